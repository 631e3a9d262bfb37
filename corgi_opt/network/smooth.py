"""Operations that are neither affine nor ReLU: smooth activations, and products of two maps.

They have no exact form here. Bounds relax them by planes (bounding/curves.py); exact methods and certificates name them
and refuse.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.network.curves import ROUNDINGS, Function
from corgi_opt.network.ops import Op


class Curved(Op):
    """An elementwise operation that is not piecewise linear in its operands."""

    elementwise = True

    @property
    @abstractmethod
    def title(self) -> str:
        """What people call it."""

    @abstractmethod
    def magnitude(self, sizes: Sequence[Tensor]) -> Tensor:
        """At least the size of its values where operands are no larger than ``sizes``."""

    @abstractmethod
    def terms(self, sizes: Sequence[Tensor]) -> Tensor:
        """At least the sum of the absolute terms of its linearisation: what a relative error of its operands, or of its
        value, is relative to."""

    def error(self, sizes: Sequence[Tensor]) -> Tensor:
        """How far ``interval``, or a computed value, may be off where operands are no larger than ``sizes``."""
        unit = torch.finfo(sizes[0].dtype).eps / 2
        return 2 * ROUNDINGS * unit * self.magnitude(sizes)


@dataclass(frozen=True, eq=False)
class Smooth(Curved):
    """A smooth function of every entry."""

    function: Function

    @property
    def title(self) -> str:
        return self.function.title

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.function.spoken(inputs[0])

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The exact range: between its turns the function only rises or only falls."""
        (l,), (u,), f = lower, upper, self.function
        ends = f.value(l), f.value(u)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for turn in f.turns:
            inside, at = (l < turn) & (turn < u), f.value(torch.full_like(l, turn))
            low = torch.where(inside, torch.minimum(low, at), low)
            high = torch.where(inside, torch.maximum(high, at), high)
        drop = f.drop(u)
        return low if drop is None else low - drop, high

    def magnitude(self, sizes: Sequence[Tensor]) -> Tensor:
        return self.function.magnitude(sizes[0])

    def terms(self, sizes: Sequence[Tensor]) -> Tensor:
        return self.function.magnitude(sizes[0]) + self.function.steepest(sizes[0]) * sizes[0]


@dataclass(frozen=True, eq=False)
class Product(Curved):
    """``x * y``, of two maps of one shape."""

    @property
    def title(self) -> str:
        return "a product of two maps"

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] * inputs[1]

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The exact range: a bilinear function is extreme at corners."""
        corners = torch.stack([x * y for x in (lower[0], upper[0]) for y in (lower[1], upper[1])])
        return corners.amin(dim=0), corners.amax(dim=0)

    def magnitude(self, sizes: Sequence[Tensor]) -> Tensor:
        return sizes[0] * sizes[1]

    def terms(self, sizes: Sequence[Tensor]) -> Tensor:
        return 2 * sizes[0] * sizes[1]
