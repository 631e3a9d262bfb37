"""Small trained CAM networks of the usual kinds, read from a folder that is not part of the project."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Zoo:
    """``root`` holds architectures.py (``make(name)``), weights as NAME.safetensors, and images.npz.

    "-adv" behind a name: the same architecture, trained adversarially.
    """

    root: Path

    @property
    def names(self) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.safetensors"))

    def architectures(self) -> list[str]:
        """Names of all networks: trained ones, and architectures without weights."""
        return sorted({*self.names, *self._module().NAMES})

    def model(self, name: str) -> nn.Module:
        """In eval mode; with weights as torch draws them where the folder has none."""
        model: nn.Module = self._module().make(name.removesuffix("-adv"))
        weights = self.root / f"{name}.safetensors"
        if weights.exists():
            model.load_state_dict(load_file(weights))
        return model.eval()

    def _module(self) -> Any:
        spec = importlib.util.spec_from_file_location("zoo_architectures", self.root / "architectures.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def image(self, index: int) -> Tensor:
        """(1, 3, H, W) in [0, 1]."""
        pixels = np.load(self.root / "images.npz")["x"][index]
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
