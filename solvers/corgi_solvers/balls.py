"""Second-order-cone rows: ellipsoids, aligned with the axes, over some of the columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corgi_solvers.arrays import Vector, first, frozen_vector, require_finite
from corgi_solvers.errors import ProblemError

WIDENINGS = 60  # doublings or halvings of a ball's multiplier before its search gives up
BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class NormBall:
    """The row ``|| scale * x[columns] + shift ||_2 <= radius``; immutable, its arrays are read-only.

    Shapes: ``columns`` (p,) integers, each column once; ``scale`` (p,) without zeros; ``shift`` (p,).

    Raises ProblemError on a wrong shape, a repeated or negative column, a zero scale, a negative radius or
    anything that is not finite.
    """

    columns: npt.NDArray[np.int64]
    scale: Vector
    shift: Vector
    radius: float

    def __post_init__(self) -> None:
        columns = _frozen_columns(self.columns)
        fields = {
            "columns": columns,
            "scale": frozen_vector("scale", self.scale, columns.size),
            "shift": frozen_vector("shift", self.shift, columns.size),
            "radius": float(self.radius),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen; this is its own construction
        require_finite("scale", self.scale)
        require_finite("shift", self.shift)
        if not self.scale.all():
            raise ProblemError(f"scale[{first(self.scale == 0)}] is zero: leave that column out of the ball")
        if not 0 <= self.radius < math.inf:
            raise ProblemError(f"radius is {self.radius}; it must be >= 0 and finite")

    def violation(self, x: Vector) -> float:
        """How far the norm at the point ``x`` (n,) of the whole problem is above the radius; 0 if it is not."""
        return max(float(np.linalg.norm(self.scale * x[self.columns] + self.shift)) - self.radius, 0.0)

    def box(self) -> tuple[Vector, Vector]:
        """The smallest box (lower (p,), upper (p,)) around the ball, to rounding."""
        centre, reach = -self.shift / self.scale, self.radius / np.abs(self.scale)
        return centre - reach, centre + reach

    def linear_minimum(self, r: Vector, lower: Vector, upper: Vector) -> float:
        """A lower bound on the minimum of r'x over this ball and the box [lower, upper]; all (p,), x = x[columns].

        Weak duality: for any nu > 0 it is at least

            g(nu) = min over the box of  r'x + nu/2 (||scale x + shift||^2 - radius^2),

        which is separable. g is concave and its slope at nu is (||scale x(nu) + shift||^2 - radius^2) / 2, so its
        top is found by bisection; with the whole space for a box it is at nu = ||r / scale|| / radius. Every nu
        looked at gives a valid bound (to rounding, which this function does not bound); the best one is returned,
        -inf if none is finite.
        """
        best, nu = -math.inf, float(np.linalg.norm(r / self.scale)) / self.radius if self.radius > 0 else math.inf
        if not 0 < nu < math.inf:
            return best

        def rising(nu: float) -> bool:
            nonlocal best
            x = np.clip((-r / (nu * self.scale) - self.shift) / self.scale, lower, upper)
            excess = float(np.square(self.scale * x + self.shift).sum()) - self.radius**2
            value = float(r @ x) + nu / 2 * excess
            if math.isfinite(value):
                best = max(best, value)
            return excess > 0

        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what overflows is no candidate
            factor = 2.0 if rising(nu) else 0.5
            inner, outer = nu, nu
            for _ in range(WIDENINGS):
                inner, outer = outer, outer * factor
                if rising(outer) != (factor > 1):
                    break
            low, high = min(inner, outer), max(inner, outer)
            for _ in range(BISECTIONS):
                middle = math.sqrt(low) * math.sqrt(high)
                low, high = (middle, high) if rising(middle) else (low, middle)
        return best


def linear_minimum(
    balls: Sequence[NormBall], r: Vector, lower: Vector, upper: Vector, *, tolerance: float = 0.0
) -> float:
    """A lower bound on the minimum of r'x over the box [lower, upper] and all balls; r, lower, upper (n,).

    Each ball also tightens the box. A ball that shares a column with an earlier one serves for that only, which
    loosens the bound and keeps it valid. An |r_j| <= ``tolerance`` on a side where the box is open counts as
    zero. -inf if no finite bound is found.
    """
    lower, upper = _tightened(balls, lower, upper)
    side = np.where(r > 0, lower, upper)
    idle = (r == 0) | (~np.isfinite(side) & (np.abs(r) <= tolerance))
    terms = np.where(idle, 0.0, r) * np.where(idle, 0.0, side)

    in_balls, total = np.zeros(r.size, dtype=bool), 0.0
    for ball in balls:
        if not in_balls[ball.columns].any():
            in_balls[ball.columns] = True
            own = ball.linear_minimum(r[ball.columns], lower[ball.columns], upper[ball.columns])
            total += max(own, float(terms[ball.columns].sum()))
    total += float(terms[~in_balls].sum())
    return total if math.isfinite(total) else -math.inf


def _tightened(balls: Sequence[NormBall], lower: Vector, upper: Vector) -> tuple[Vector, Vector]:
    """The box intersected with the balls' boxes; a column that this would empty keeps its own bounds."""
    low, high = lower.copy(), upper.copy()
    for ball in balls:
        ball_low, ball_high = ball.box()
        low[ball.columns] = np.maximum(low[ball.columns], ball_low)
        high[ball.columns] = np.minimum(high[ball.columns], ball_high)
    kept = low <= high
    return np.where(kept, low, lower), np.where(kept, high, upper)


def _frozen_columns(columns: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """A read-only copy of shape (p,), p >= 1: distinct column numbers."""
    given = np.array(columns)
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ProblemError(f"columns has shape {given.shape} and dtype {given.dtype}; it must be (p,) integers, p >= 1")
    if given.min() < 0 or np.unique(given).size != given.size:
        raise ProblemError("columns has a negative or repeated number; each column of a ball is named once")
    given = given.astype(np.int64)
    given.setflags(write=False)
    return given
