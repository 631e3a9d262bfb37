"""Where a falling function of eps crosses zero: safeguarded secant steps, one eps at a time.

Regula falsi in the Illinois variant (Dowell and Jarratt 1971): the margin of an end that stays is halved, and a step
that did not halve the bracket is followed by its middle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FAR_APART = 1e5
"""Ratio of the ends from which quarters lead nowhere: every neuron is open all the way, and a margin costs as much."""


class Point(NamedTuple):
    """An eps and the margin there; -inf where it is unknown."""

    eps: float
    margin: float


class Crossing:
    """Narrows ``low`` (margin > 0) and ``high`` (margin <= 0, or unknown) to within rtol of each other.

    The caller asks for an eps (:meth:`ask`) and tells the margin there (:meth:`tell`), or that it would take too long
    (:meth:`forgo`). It may stop at any time: ``low`` is the largest eps that holds so far. ``first``: the eps to begin
    with.
    """

    def __init__(self, low: Point, high: Point, rtol: float, first: float | None = None) -> None:
        self.low, self.high, self.rtol = low, high, rtol
        self.forgone = False
        self._first = first
        self._weight = 1.0  # of the margin at the end that stays
        self._rising: bool | None = None  # whether the last step moved the lower end
        self._halved = True  # whether it halved the bracket

    @property
    def begun(self) -> bool:
        return self.forgone or self._rising is not None

    @property
    def closed(self) -> bool:
        return self.low.eps > 0 and self.high.eps <= self.low.eps * (1 + self.rtol)

    @property
    def stopped(self) -> bool:
        """Whether what closes it from above is an eps whose margin was forgone."""
        return self.closed and self.forgone and self.high.margin == -math.inf

    def ask(self) -> float:
        """The next eps: strictly between the ends, but for the first."""
        if self._first is not None:
            return self._first
        between = middle(self.low.eps, self.high.eps)
        if self.forgone and self.high.margin == -math.inf:
            return between if self.high.eps > FAR_APART * self.low.eps else max(self.high.eps / 4, between)
        if self.high.margin == -math.inf and self.low.eps > 0:
            return min(2 * self.low.eps, between)  # far above nothing is known, and a margin costs most
        root = self._root() if self._halved else None
        if root is None:
            return between
        # beyond the root, seen from the end that moved last: the other end is to move as well
        at = root * (1 + self.rtol / 3) if self._rising else root / (1 + self.rtol / 3)
        least, most = self.low.eps * (1 + 0.9 * self.rtol), self.high.eps / (1 + 0.9 * self.rtol)
        return min(max(at, least), most) if least < most else between

    def tell(self, eps: float, margin: float) -> None:
        """Takes in the margin at ``eps``. Margins need not fall everywhere: kept are the largest eps that holds and the
        next above it that does not."""
        before, rising = (self.low.eps, self.high.eps), margin > 0
        if rising:
            self.low = max(self.low, Point(eps, margin), key=lambda p: p.eps)
        elif self.low.eps < eps <= self.high.eps:
            self.high = Point(eps, margin)
        self._weight = self._weight / 2 if rising == self._rising else 1.0
        self._halved = self._first is not None or _halved(before, (self.low.eps, self.high.eps))
        self._first, self._rising = None, rising

    def forgo(self, eps: float) -> None:
        """The margin at ``eps`` costs too much: only smaller ones are asked for from now on."""
        self._first, self.forgone = None, True
        self.high = Point(min(eps, self.high.eps), -math.inf)

    def _root(self) -> float | None:
        low, high = self.low, self.high
        if self._rising:
            return secant_root(low, Point(high.eps, high.margin * self._weight))
        return secant_root(Point(low.eps, low.margin * self._weight), high)


def secant_root(low: Point, high: Point) -> float | None:
    """Where the straight line through both points is zero, or None if it is not between them."""
    drop = low.margin - high.margin
    if not (math.isfinite(drop) and drop > 0):
        return None
    return low.eps + (high.eps - low.eps) * low.margin / drop


def middle(low: float, high: float) -> float:
    """The middle of a bracket on a logarithmic scale; a quarter of ``high`` where ``low`` is 0."""
    return math.sqrt(low * high) if low > 0 else high / 4


def _halved(before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Whether a bracket's width has halved, as it is or on a logarithmic scale (which an end at 0 has none of)."""
    if after[1] - after[0] <= (before[1] - before[0]) / 2:
        return True
    return before[0] > 0 and math.log(after[1] / after[0]) <= math.log(before[1] / before[0]) / 2
