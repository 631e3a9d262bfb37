"""Where a falling function of eps crosses zero: safeguarded secant steps, several eps to a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST_ROUNDS = 30


class Point(NamedTuple):
    """An eps and a margin there."""

    eps: float
    margin: float


Batch = Callable[[Sequence[float]], Sequence[float]]
"""The margins at several eps."""


def crossing(margins: Batch, low: Point, high: Point, rtol: float) -> tuple[Point, Point]:
    """Narrows ``low`` (margin > 0) and ``high`` (margin <= 0) to within rtol of each other, in at most MOST_ROUNDS.

    Each batch holds both sides of the secant's root, and a middle that alone would halve the bracket.
    """
    for _ in range(MOST_ROUNDS):
        if low.eps > 0 and high.eps <= low.eps * (1 + rtol):
            break
        for eps, margin in sorted(zip(*_batch(margins, low, high, rtol), strict=True)):
            if margin > 0 and eps > low.eps:
                low = Point(eps, margin)  # also above one that failed: what counts is the largest that holds
            elif not margin > 0 and low.eps < eps < high.eps:
                high = Point(eps, margin)
        if high.eps <= low.eps:
            raise AssertionError("a bracket cannot turn around: probes lie inside it")
    return low, high


def _batch(margins: Batch, low: Point, high: Point, rtol: float) -> tuple[list[float], Sequence[float]]:
    epses = probes(low, high, rtol)
    return epses, margins(epses)


def probes(low: Point, high: Point, rtol: float) -> list[float]:
    """One to three eps strictly between low and high, rising."""
    root = secant_root(low, high)
    if root is None:
        return [_middle(low.eps, high.eps)]
    # margins are nearly concave in eps, so that the true root lies between the secant's and high
    wanted = [root / (1 + rtol / 3), root * (1 + rtol / 3), _middle(max(root, low.eps), high.eps)]
    least, most = low.eps * (1 + rtol / 4), high.eps / (1 + rtol / 4)
    inside = sorted({e for e in wanted if least < e < most})
    return inside or [_middle(low.eps, high.eps)]


def secant_root(low: Point, high: Point) -> float | None:
    """Where the straight line through both points is zero, or None if it is not between them."""
    drop = low.margin - high.margin
    if not (math.isfinite(drop) and drop > 0):
        return None
    return low.eps + (high.eps - low.eps) * low.margin / drop


def _middle(low: float, high: float) -> float:
    return math.sqrt(low * high) if low > 0 else high / 4
