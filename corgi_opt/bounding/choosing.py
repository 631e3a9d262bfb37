"""Relaxations that leave a choice: the one side that searches for it (in float32), the other that takes it as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from corgi_opt.bounding.adam import Adam
from corgi_opt.bounding.curves import MIDDLE
from corgi_opt.bounding.dual import Interval, Rows, Step, phi
from corgi_opt.bounding.relaxation import ReluLines, lines_step
from corgi_opt.bounding.turning import TurningPlanes

TINY = 1e-3
"""A pull is searched in units of the coefficient it is taken off, or of this share of the row's largest."""


class Choosing(ABC):
    """A node whose choice, within ``limits`` for every coefficient, is being searched, by Adam."""

    pace: ClassVar[float] = 1.0
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    start: Tensor | None = None  # where the search begins, if that is not CROWN's
    choice: Tensor | None = None
    _adam: Adam | None = None

    @abstractmethod
    def step(self, rows: Rows) -> Step: ...

    def move(self, gradient: Tensor, rate: float) -> None:
        assert self.choice is not None
        self._adam = self._adam or Adam(gradient)
        moved = self.choice.detach() + rate * self.pace * self._adam.step(gradient)
        self.choice = moved.clamp(*self.limits).requires_grad_(True)

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these."""
        assert self.choice is not None
        self.choice = self.choice.detach()[rows].requires_grad_(True)
        if self._adam is not None:
            self._adam.keep(rows)

    def _begin(self, rows: Rows, at: Tensor) -> Tensor:
        if self.choice is None:
            first = at if self.start is None else self.start
            self.choice = first.expand_as(rows.coefs).clone().clamp(*self.limits).requires_grad_(True)
        return self.choice


class ChoosingLines(Choosing):
    """A ReLU: the choice is the slope of the line below."""

    def __init__(self, lines: ReluLines) -> None:
        self._lines = lines

    def step(self, rows: Rows) -> Step:
        below, above, shift = self._lines.at(rows)
        choice = self._begin(rows, below)
        # a stable ReLU has no room above its line, and its slope is not a choice
        return lines_step(self._lines.source, rows, torch.where(shift > 0, choice, below), above, shift)


class ChoosingPlanes(Choosing):
    """A curved node: the choice is which of its planes. The best is rarely far from the middle."""

    pace = 0.1

    def __init__(self, planes: TurningPlanes) -> None:
        self._planes = planes

    def step(self, rows: Rows) -> Step:
        return self._planes.step(rows, self._begin(rows, rows.coefs.new_full((1, 1, 1, 1), MIDDLE)))


@dataclass(frozen=True, eq=False)
class ChosenPlanes:
    """A curved node with given choices (R, C, h, w)."""

    planes: TurningPlanes
    choice: Tensor

    def step(self, rows: Rows) -> Step:
        return self.planes.step(rows, self.choice.to(rows.coefs.dtype))


@dataclass(frozen=True, eq=False)
class ChosenLines:
    """A ReLU with given lower slopes (R, C, h, w), whatever they are; its share of D is ``phi``."""

    lines: ReluLines
    intervals: Mapping[str, Interval]
    below: Tensor

    def step(self, rows: Rows) -> Step:
        below, above, shift = self.lines.at(rows)
        l, u = (rows.gather(side) for side in self.intervals[self.lines.source])
        slope = torch.where(shift > 0, self.below.to(below.dtype), below)
        mu = torch.where(rows.coefs > 0, slope, above) * rows.coefs
        constant = phi(rows.coefs, mu, l, u).flatten(1).sum(dim=1)
        return Step(((self.lines.source, replace(rows, coefs=mu)),), constant)


class ChoosingPulls(Choosing):
    """An affine node of which only values within ``interval`` are wanted, where ``cut`` (B, C, H, W) says: what that is
    worth to each row, in units of its coefficient at first."""

    pace = 0.5
    limits = (-4.0, 4.0)

    def __init__(self, interval: Interval, cut: Tensor) -> None:
        self.interval, self._cut = interval, cut
        self._first: Tensor | None = None
        self._scale: Tensor | None = None  # of the rows that are left

    def pulls_of(self, choice: Tensor) -> Tensor:
        """What a choice (of all rows that it began with) takes off their coefficients."""
        assert self._first is not None
        return choice * self._first

    def step(self, rows: Rows) -> Step:
        if self._scale is None:
            size = rows.coefs.detach().abs()
            self._first = self._scale = (size + TINY * size.amax()) * rows.gather(self._cut)
        choice = self._begin(rows, rows.coefs.new_zeros(1, 1, 1, 1))
        return pulled(rows, choice * self._scale, self.interval, 0.0)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        assert self._scale is not None
        self._scale = self._scale[rows]


@dataclass(frozen=True, eq=False)
class ChosenPulls:
    """An affine node with given pulls (R, C, h, w), whatever they are where its values lie within ``interval``.

    ``rounded``: the relative error of a pull's share of D.
    """

    interval: Interval
    pulls: Tensor
    rounded: float

    def step(self, rows: Rows) -> Step:
        return pulled(rows, self.pulls.to(rows.coefs.dtype), self.interval, self.rounded)


def pulled(rows: Rows, pulls: Tensor, interval: Interval, rounded: float) -> Step:
    """Takes ``pulls`` off coefficients at values ``z`` within an interval: of ``pull * z`` the least is left to D."""
    low, high = (rows.gather(side) for side in interval)
    least = torch.where(pulls > 0, pulls * low, pulls * high)
    if rounded:
        least = least - rounded * pulls.abs() * torch.maximum(low.abs(), high.abs())
    return Step((), least.flatten(1).sum(dim=1), replace(rows, coefs=rows.coefs - pulls))
