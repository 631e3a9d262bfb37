"""Networks of a study: built anew wherever they are needed, from a name, and known again by a hash."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from corgi_opt.data.keras import is_keras_file
from corgi_opt.data.sources import load_model, onnx_name
from corgi_opt.errors import InputError
from corgi_opt.study.own import run_once


@dataclass(frozen=True)
class ModelSource:
    """``build``: as MODEL of the command line, a file with its whole path; ``weights``: a file, or None."""

    build: str
    weights: str | None

    @classmethod
    def of(cls, entry: Any, folder: Path, where: str) -> ModelSource:
        """From an entry of a plan in ``folder``; ``where``: its place, for messages. Raises InputError."""
        if isinstance(entry, nn.Module):
            raise InputError(
                f"{where}: workers build the network themselves, so a plan names what builds it ('file.py:function' or "
                "'package.module:function'); a module object cannot be given"
            )
        if isinstance(entry, str):
            entry = {"build": entry}
        known = isinstance(entry, Mapping) and not set(entry) - {"build", "weights"}
        if not known or not isinstance(entry.get("build"), str):
            raise InputError(
                f"{where} needs build = 'digits', 'model.onnx', 'model.keras', 'file.py:function' ..., and may have "
                f"weights; got {entry!r}"
            )
        build, weights = entry["build"], entry.get("weights")
        file, _, function = build.rpartition(":")
        onnx = onnx_name(build)
        if onnx is not None:
            build = str((folder / onnx[0]).resolve()) + (f":{onnx[1]}" if onnx[1] else "")
        elif is_keras_file(build):
            build = str((folder / build).resolve())
        elif file.endswith(".py"):
            build = f"{(folder / file).resolve()}:{function}"
        return cls(build, None if weights is None else str((folder / weights).resolve()))

    def built(self) -> nn.Module:
        """Builds the network. Raises InputError."""
        return load_model(run_once(self.build), None if self.weights is None else Path(self.weights))

    def sourced(self, name: str) -> SourcedModel:
        """Builds it once, for its hash. Raises InputError."""
        return SourcedModel(name, self, model_sha256(self.built()))


@dataclass(frozen=True)
class SourcedModel:
    """A network by its name in the plan, where it comes from, and its hash."""

    name: str
    source: ModelSource
    sha256: str

    def built(self) -> nn.Module:
        """Builds it again. Raises InputError where it is not the one that was hashed."""
        module = self.source.built()
        if model_sha256(module) != self.sha256:
            raise InputError(
                f"{self.source.build} builds another network than when the study began: run the study again"
            )
        return module


def model_sha256(module: nn.Module) -> str:
    """The hash of what the network is: its structure, the plain attributes of its modules, weights and buffers, and the
    source of every class that is not torch's own.

    Where the file that builds it stands, and what else is in there, plays no part; what the code takes from elsewhere
    (a global constant, a function of another module) is not seen.
    """
    said = hashlib.sha256()
    for part in _parts(module):
        said.update(len(part).to_bytes(8, "little"))
        said.update(part)
    return said.hexdigest()


def _parts(module: nn.Module) -> Iterator[bytes]:
    yield repr(module).encode()
    for name, m in module.named_modules():
        plain = {key: value for key, value in vars(m).items() if _is_plain(value)}
        yield f"{name} {sorted(plain.items())}".encode()
    for kind in sorted({type(m) for m in module.modules()}, key=lambda c: f"{c.__module__}.{c.__qualname__}"):
        if not kind.__module__.startswith("torch."):
            yield _source(kind)
    for name, tensor in module.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        yield f"{name} {values.dtype} {tuple(values.shape)}".encode()
        yield values.view(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _source(kind: type) -> bytes:
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):  # made by hand, or its file is gone
        return kind.__qualname__.encode()
