"""An ONNX graph as a torch module: its nodes in order, each a torch function of float64 tensors.

So it goes the way of any model: torch.export, the table of builders, parity, the proof of the head. Counterexamples are
replayed through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt.errors import InputError
from corgi_opt.network.onnx.node import Run

Names = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where the model comes from, and what its reading was compared with.

    ``compared``: whether onnxruntime calculates the same; ``note``: that in words.
    """

    file: str
    opset: int
    compared: bool
    note: str


class Step(nn.Module):
    """One node. ``inputs``: the values that ``run`` takes, by name (empty: left out); ``outputs``: those that it gives
    (empty: not used); ``last``: those that nobody reads after it; ``text``: what the node says, in full; ``signs``: of
    a sum of products, as in the table."""

    def __init__(
        self, op: str, run: Run, signs: tuple[int, ...] | None, inputs: Names, outputs: Names, last: Names, text: str
    ) -> None:
        super().__init__()
        self.op, self.run, self.signs, self.text = op, run, signs, text
        self.inputs, self.outputs, self.last = inputs, outputs, last
        self.training = False

    def forward(self, *operands: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        return self.run(*operands)

    def extra_repr(self) -> str:
        return self.text


class OnnxModule(nn.Module):
    """The graph from the value ``image`` (1, C, H, W) to the value ``output``, in eval mode; its modules are the nodes.

    ``held``: where the constants are kept that nodes read, by their names in the file.
    """

    def __init__(
        self, image: str, shape: tuple[int, int, int, int], output: str, steps: Mapping[str, Step], origin: Origin
    ) -> None:
        super().__init__()
        self.image, self.shape, self.output, self.origin = image, shape, output, origin
        self.held: dict[str, str] = {}
        for name, step in steps.items():  # in their order
            self.add_module(self._free(name), step)
        self.training = False

    def _free(self, name: str) -> str:
        """A name for an attribute of this module that says what ``name`` does."""
        name = name.replace(".", "_") or "_"
        while hasattr(self, name):
            name += "_"
        return name

    def hold(self, name: str, value: Tensor) -> None:
        """Keeps a constant: floats as weights, integers as buffers."""
        self.held[name] = attribute = self._free(f"{name}:value")
        if value.is_floating_point():
            self.register_parameter(attribute, nn.Parameter(value, requires_grad=False))
        else:
            self.register_buffer(attribute, value)

    def steps(self) -> Iterator[Step]:
        """The nodes in order."""
        for step in self.children():
            assert isinstance(step, Step)  # it has no other modules
            yield step

    def constants(self) -> dict[str, Tensor]:
        return {name: getattr(self, attribute) for name, attribute in self.held.items()}

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape) != self.shape:
            raise InputError(f"the ONNX model takes an image of shape {self.shape}, got {tuple(x.shape)}")
        values: dict[str, Any] = {**self.constants(), self.image: x}
        for step in self.steps():
            given = step(*(values.get(name) for name in step.inputs))
            given = given if isinstance(given, tuple) else (given,)
            values.update((n, v) for n, v in zip(step.outputs, given, strict=False) if n)
            for name in step.last:
                del values[name]
        scores = values[self.output]
        assert isinstance(scores, torch.Tensor)  # it was read so
        return scores
