"""One node of an ONNX graph, as it is written and as it is prepared: attributes, and what is known of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corgi_opt.errors import InputError, UnsupportedOpError
from corgi_opt.network.onnx.limits import values_in

Run = Callable[..., Tensor | tuple[Tensor, ...]]
"""What a node calculates of the operands that are left when those that say how (a shape, an axis) were read."""

MOST_LISTED = 2**20
"""Most numbers of an operand that says how."""

REQUIRED: Any = object()


@dataclass(frozen=True)
class Opaque:
    """An attribute that no operation here takes: a graph, a string list."""

    kind: str


@dataclass(frozen=True, eq=False)
class Node:
    """``inputs`` and ``outputs``: names of values, empty where one is left out. ``attributes``: plain or a tensor."""

    name: str
    op: str
    domain: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name} ({self.op})"


@dataclass(frozen=True, eq=False)
class Value:
    """``tensor``: the value itself where it is ``known`` before there is an image, else one that has no more than its
    shape and type (on torch's meta device)."""

    tensor: Tensor
    known: bool


@dataclass(eq=False)
class Call:
    """A node that is being prepared. ``version``: of the operator set.

    What is read is taken down: an attribute that nobody has read is refused by name, and an operand that was read as
    numbers (``number``, ``numbers``, ``static``) or found to be left out (``has``) is no operand of the run. ``signs``:
    as in the table, where they depend on attributes.
    """

    node: Node
    version: int
    operands: tuple[Value | None, ...]
    seen: set[str] = field(default_factory=set)
    statics: dict[int, Tensor] = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    signs: tuple[int, ...] | None = None

    # --- attributes

    def integer(self, name: str, default: Any = REQUIRED) -> int:
        return self._attribute(name, default, int)  # type: ignore[no-any-return]

    def flag(self, name: str, default: int = 0) -> bool:
        found = self.integer(name, default)
        if found not in (0, 1):
            raise self.wrong(f"its attribute {name} is {found}, not 0 or 1")
        return bool(found)

    def real(self, name: str, default: Any = REQUIRED) -> float:
        """A number. Those of a file are float32, and so is what the standard has where there is none (1e-5, 0.01)."""
        if default is not REQUIRED:
            default = torch.tensor(default, dtype=torch.float32).item()
        return self._attribute(name, default, float)  # type: ignore[no-any-return]

    def text(self, name: str, default: Any = REQUIRED) -> str:
        return self._attribute(name, default, str)  # type: ignore[no-any-return]

    def integers(self, name: str, default: Any = REQUIRED) -> Any:
        """A list of integers, or the default."""
        found = self._attribute(name, default, list)
        if found is not default and not all(type(v) is int for v in found):
            raise self.wrong(f"its attribute {name} must be integers")
        return found

    def attribute(self, name: str) -> Any:
        """An attribute of any kind, or None."""
        self.seen.add(name)
        return self.node.attributes.get(name)

    def _attribute(self, name: str, default: Any, kind: type) -> Any:
        self.seen.add(name)
        if name not in self.node.attributes:
            if default is REQUIRED:
                raise self.wrong(f"it has no attribute {name}")
            return default
        value = self.node.attributes[name]
        if type(value) is not kind:
            raise self.wrong(f"its attribute {name} is of type {type(value).__name__}, not {kind.__name__}")
        return value

    def require_read(self) -> None:
        """Raises UnsupportedOpError for an attribute that nobody has read."""
        for name, value in self.node.attributes.items():
            if name not in self.seen:
                raise self.refused(f"its attribute {name}={str(value)[:80]} is not known here")

    # --- operands

    def has(self, at: int) -> bool:
        there = at < len(self.operands) and self.operands[at] is not None
        if not there:
            self.absent.add(at)
        return there

    def unused(self, at: int) -> None:
        """An operand whose values play no part."""
        self.absent.add(at)

    def value(self, at: int) -> Value:
        found = self.operands[at] if self.has(at) else None
        if found is None:
            raise self.wrong(f"it has no input {at}")
        return found

    def shape(self, at: int = 0) -> tuple[int, ...]:
        return tuple(self.value(at).tensor.shape)

    def rank(self, at: int = 0) -> int:
        return self.value(at).tensor.ndim

    def known(self, at: int) -> bool:
        return self.value(at).known

    def floating(self, at: int = 0) -> bool:
        return self.value(at).tensor.is_floating_point()

    def static(self, at: int) -> Tensor:
        """An operand that must be known before there is an image; the run does not get it."""
        value = self.value(at)
        if not value.known:
            raise self.refused(f"its input {at} depends on the image, so what it computes is no fixed operation")
        self.statics[at] = value.tensor
        return value.tensor

    def numbers(self, at: int) -> list[int]:
        """The integers of a static operand, which is a list or one number."""
        found = self.static(at)
        if found.is_floating_point() or found.dtype == torch.bool or found.ndim > 1 or found.numel() > MOST_LISTED:
            raise self.wrong(f"its input {at} must be a short list of integers")
        return [int(v) for v in found.reshape(-1).tolist()]

    def number(self, at: int) -> float:
        """The one number of a static operand."""
        found = self.static(at)
        if found.numel() != 1:
            raise self.wrong(f"its input {at} must be one number, it has shape {tuple(found.shape)}")
        return found.reshape(()).item()

    def listed(self, name: str, at: int, since: int, default: Any = None) -> Any:
        """Integers that were an attribute before opset ``since`` and are an operand from then on."""
        if self.version < since:
            return self.integers(name, default)
        return self.numbers(at) if self.has(at) else default

    def run_operands(self) -> list[int]:
        """The places of the operands that the run gets."""
        return [at for at in range(len(self.operands)) if at not in self.statics and at not in self.absent]

    # --- axes

    def axis(self, axis: int, rank: int | None = None) -> int:
        """An axis counted from the front. Raises InputError where there is none."""
        rank = self.rank() if rank is None else rank
        if not -rank <= axis < max(rank, 1):
            raise self.wrong(f"axis {axis} of {rank}")
        return axis % rank if rank else 0

    def axes(self, axes: Sequence[int], rank: int | None = None) -> list[int]:
        found = [self.axis(a, rank) for a in axes]
        if len(set(found)) != len(found):
            raise self.wrong(f"axes {list(axes)} name one twice")
        return found

    # --- errors

    def wrong(self, why: str) -> InputError:
        """The model is malformed."""
        return InputError(f"the ONNX node {self.node.title} is malformed: {why}")

    def refused(self, why: str) -> UnsupportedOpError:
        """The model is not covered."""
        return UnsupportedOpError(self.node.name, f"ONNX {self.node.op}", f"{why[0].upper()}{why[1:]}.")

    def sized(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of something that is about to be made. Raises InputError where it is too large."""
        values_in(shape, f"what the ONNX node {self.node.title} makes")
        return tuple(shape)

    def finite(self, value: float, what: str) -> float:
        if not math.isfinite(value):
            raise self.wrong(f"{what} is {value}")
        return value
