"""A lower bound on the continuous relaxation that no rounding can lift above the truth, from any multipliers.

    minimise c'x + offset  subject to  L <= A x <= U,  l <= x <= u,  ||S_b x + s_b||_2 <= R_b  for each ball b

With multipliers y of the rows and q_b of the balls, *whatever* floats they are, and y_i = 0 where it presses against
a missing side, weak duality says that in exact arithmetic the minimum is at least

    g = offset + sum_i (y_i > 0 ? y_i L_i : y_i U_i) - sum_b (q_b's_b + R_b ||q_b||_2) + sum_j min(r_j l_j, r_j u_j)
    r = c - A'y - sum_b S_b'q_b

In float64, v = 2^-53, w = 2^-1074, gamma_k = k v / (1 - k v), with N terms in g and k_j products in r_j,

    |error of r_j| <= delta_j = gamma_{2 k_j + 8} (|c_j| + sum_i |a_ij| |y_i| + sum_b |S_bj| |q_bj|) + (k_j + 2) w
    P = sum_j delta_j max(|l_j|, |u_j|)
    |error of g|   <= E = (P + gamma_{2N + 16} (sum |terms| + P) + 2 N w) (1 + 2^-40)

so the float below fl(g) - E is a bound. Where the sign of r_j is beyond doubt, |r_j| > delta_j, only the side that it
presses against counts in P, so the other may be missing. A column that neither c nor any multiplier touches adds
nothing. The constants are about twice what is needed: that pays for computing delta, P and E in float64, too.

After A. Neumaier and O. Shcherbina, Safe bounds in linear and mixed-integer linear programming, Math. Program. 99
(2004) 283-296; gamma_k as in N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. (2002), section 3.1.
It takes IEEE 754 arithmetic that rounds to nearest; where denormal numbers are flushed to zero, w is no bound on
what an underflow loses, and nothing is claimed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from corgi_solvers.arrays import Vector
from corgi_solvers.balls import NormBall
from corgi_solvers.errors import ProblemError
from corgi_solvers.problem import Problem

UNIT = 2.0**-53  # v: relative error of one rounding
TINY = math.ulp(0.0)  # w: twice the absolute error of one underflow
SMALLEST_NORMAL = sys.float_info.min
WIDENING = 2.0**60  # how far a ball's multiplier may be from where it would be without a box, either way
BISECTIONS = 70


def safe_bound(problem: Problem, y: npt.ArrayLike) -> float:
    """A number that is never above the minimum of ``problem``'s continuous relaxation, from row multipliers ``y`` (m,).

    "Never" is meant exactly: the minimum over the reals of the problem whose numbers are these floats, for any
    ``y`` at all. How close it gets depends on ``y``: an optimal one leaves rounding errors, some 1e-14 of the sizes
    involved. The multipliers of the balls are chosen here. -inf, which claims nothing, where ``y`` or anything on the
    way is not finite, and where a column without bound has a reduced cost that rounding could hide.

    If there is no feasible point, every number is a right answer. Raises ProblemError if ``y`` has the wrong shape.
    """
    multipliers = np.asarray(y, dtype=np.float64)
    if multipliers.shape != (problem.m,):
        raise ProblemError(f"y has shape {multipliers.shape}; the problem has {problem.m} rows")
    if not np.isfinite(multipliers).all() or not _keeps_denormals():
        return -math.inf
    with np.errstate(all="ignore"):  # what overflows ends as -inf
        side = np.where(multipliers > 0, problem.row_lower, problem.row_upper)
        usable = np.where(np.isfinite(side), multipliers, 0.0)
        row_terms = usable * np.where(usable == 0, 0.0, side)
        lower, upper = _box(problem)
        shares = _shares(problem, usable, lower, upper)
        reduced, error = _reduced_costs(problem, usable, shares)
        terms, doubt = _column_terms(reduced, error, lower, upper)
        balls = [_ball_terms(ball, q) for ball, q in zip(problem.balls, shares, strict=True)]
        return _below_sum(np.concatenate([[problem.offset], row_terms, terms, *balls]), doubt)


def proves_infeasible(problem: Problem, y: npt.ArrayLike) -> bool:
    """Whether row multipliers ``y`` (m,) prove that no point satisfies the rows, the box and the balls (Farkas).

    They do where the minimum of zero over such points is above zero. True is a proof, rounding included: it is never
    returned for a problem whose continuous relaxation has a feasible point. False says nothing.

    Raises ProblemError if ``y`` has the wrong shape.
    """
    return safe_bound(problem.with_objective(np.zeros(problem.n), 0.0), y) > 0


def _reduced_costs(problem: Problem, y: Vector, shares: Sequence[Vector]) -> tuple[Vector, Vector]:
    """r (n,) and delta (n,): the exact reduced costs are within delta of r, and r = delta = 0 says that they are 0.

    ``shares``: the multipliers q_b (p,) of the balls. Products with a zero are exact and do not count in k_j; those
    that underflow to zero do, which is why a column is idle by what it is made of, not by its value.
    """
    A = problem.A
    reduced = problem.c - A.T @ y
    size = np.abs(problem.c) + abs(A).T @ np.abs(y)
    active = np.repeat(y != 0, np.diff(A.indptr))
    products = np.bincount(A.indices[active], minlength=problem.n)
    for ball, q in zip(problem.balls, shares, strict=True):
        reduced[ball.columns] -= ball.scale * q
        size[ball.columns] += np.abs(ball.scale * q)
        products[ball.columns] += q != 0
    error = _gamma(2 * products + 8) * size + (products + 2) * TINY
    return reduced, np.where((problem.c != 0) | (products > 0), error, 0.0)


def _column_terms(reduced: Vector, error: Vector, lower: Vector, upper: Vector) -> tuple[Vector, Vector]:
    """The terms min(r_j l_j, r_j u_j) (n,) and what the errors of r_j may take off each (n,), up to roundings."""
    side = np.where(reduced > 0, lower, upper)
    certain = np.abs(reduced) > error  # of its sign: x_j's bound on this side is then all that is needed
    reach = np.where(certain, np.abs(side), np.maximum(np.abs(lower), np.abs(upper)))
    idle = error == 0  # also where the box is open: 0 * inf
    return reduced * np.where(idle, 0.0, side), error * np.where(idle, 0.0, reach)


def _ball_terms(ball: NormBall, q: Vector) -> Vector:
    """-q_i s_i (p,) and -R ||q||_2 as one more, to a relative gamma_{p + 8} each and w for every one of them.

    R multiplies the largest |q_i| first: an underflow of the norm alone could be anything times R.
    """
    peak, root = _norm(q)
    return np.append(-q * ball.shift, -(ball.radius * peak) * root)


def _below_sum(terms: Vector, doubt: Vector) -> float:
    """A float that is no larger than the exact sum of ``terms`` less that of ``doubt``, in spite of their roundings.

    Each was computed to gamma_{N + 8} of its size and w. -inf where anything is not finite.
    """
    count = terms.size
    doubts = float(doubt.sum())
    error = doubts + float(_gamma(2 * count + 16)) * (float(np.abs(terms).sum()) + doubts) + 2 * count * TINY
    bound = math.nextafter(float(terms.sum()) - error * (1 + 2.0**-40), -math.inf)
    return bound if math.isfinite(bound) else -math.inf


def _box(problem: Problem) -> tuple[Vector, Vector]:
    """The columns' bounds (n,), (n,) where no ball is tighter: it ends at (-s - R) / S and (-s + R) / S at the latest.

    Every rounding goes outwards. It may come out empty where there is no feasible point: then any bound is right.
    """
    lower, upper = problem.col_lower.copy(), problem.col_upper.copy()
    for ball in problem.balls:
        ends = np.stack([
            np.nextafter(-ball.shift - ball.radius, -np.inf) / ball.scale,
            np.nextafter(-ball.shift + ball.radius, np.inf) / ball.scale,
        ])  # fmt: skip
        lower[ball.columns] = np.maximum(lower[ball.columns], np.nextafter(ends.min(axis=0), -np.inf))
        upper[ball.columns] = np.minimum(upper[ball.columns], np.nextafter(ends.max(axis=0), np.inf))
    return lower, upper


def _shares(problem: Problem, y: Vector, lower: Vector, upper: Vector) -> list[Vector]:
    """Multipliers q_b (p,) of the balls: as good as any for ``y`` where no two balls share a column.

    They are plain floats, of which nothing has to be right: any finite ones give a bound. A ball serves what earlier
    ones left over.
    """
    shares, left = [], problem.c - problem.A.T @ y if problem.balls else problem.c
    for ball in problem.balls:
        columns = ball.columns
        q = _ball_multipliers(ball, left[columns], lower[columns], upper[columns])
        shares.append(np.where(np.isfinite(q).all(), q, 0.0))
        left[columns] -= ball.scale * shares[-1]
    return shares


def _ball_multipliers(ball: NormBall, r: Vector, lower: Vector, upper: Vector) -> Vector:
    """The q (p,) that splits r'x = (S q)'x + (r - S q)'x best between ball and box, to rounding; all (p,).

    With z = S x + s, at the top of ``NormBall.linear_minimum``'s g the point z minimises (r / S)'z + nu/2 ||z||^2 over
    the box and q = -nu z: it is r / S clipped to -nu times the box of z, and nu the least with ||q|| <= nu R.
    """
    whole = r / ball.scale
    if ball.radius == 0:
        return whole
    ends = np.stack([ball.scale * lower + ball.shift, ball.scale * upper + ball.shift])
    smallest, largest = -ends.max(axis=0), -ends.min(axis=0)
    peak, root = _norm(whole)
    free = peak * root / ball.radius  # the nu of a ball without a box
    low, high = free / WIDENING, free * WIDENING
    for _ in range(BISECTIONS):
        middle = math.sqrt(low) * math.sqrt(high)
        peak, root = _norm(np.clip(whole, middle * smallest, middle * largest))
        low, high = (middle, high) if peak * root > middle * ball.radius else (low, middle)
    return np.clip(whole, high * smallest, high * largest)


def _norm(q: Vector) -> tuple[float, float]:
    """||q||_2 as a product of max |q_i| and a root >= 1, neither of which loses digits to under- or overflow."""
    peak = float(np.abs(q).max())
    return (peak, float(np.sqrt(np.square(q / peak).sum()))) if peak > 0 else (0.0, 0.0)


def _gamma(k: npt.ArrayLike) -> Vector:
    """gamma_k = k v / (1 - k v)."""
    share = np.asarray(k) * UNIT
    return share / (1 - share)


def _keeps_denormals() -> bool:
    """Whether this thread computes with denormal numbers, as IEEE 754 says, or takes them for zero."""
    return SMALLEST_NORMAL / 2 > 0
