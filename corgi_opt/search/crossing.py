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
        epses = probes(low, high, rtol)
        points = [Point(eps, margin) for eps, margin in zip(epses, margins(epses), strict=True)]
        # margins need not fall everywhere: what counts is the largest eps that holds, and the next above that does not
        low = max([low, *(p for p in points if p.margin > 0)], key=lambda p: p.eps)
        high = min([high, *(p for p in points if not p.margin > 0 and p.eps > low.eps)], key=lambda p: p.eps)
    return low, high


def probes(low: Point, high: Point, rtol: float) -> list[float]:
    """One to three eps strictly between low and high, rising."""
    root = secant_root(low, high)
    if root is None:
        return [_middle(low.eps, high.eps)]
    wanted = [root / (1 + rtol / 3), root * (1 + rtol / 3), _middle(low.eps, high.eps)]
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
