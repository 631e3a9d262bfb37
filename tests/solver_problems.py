"""Problems with known answers for the tests of the backends, and what an optimum must satisfy."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
from corgi_solvers import BackendBrokenError, BackendMissingError, NormBall, Problem, Solution, backend
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

INF = math.inf


def problem_of(*given: Any) -> Problem:
    """A problem whose vectors are written as lists: ``Problem`` makes arrays of them."""
    return Problem(*given)


def ball_of(*given: Any) -> NormBall:
    """The same for a ball."""
    return NormBall(*given)


def random_lp(rng: np.random.Generator, m: int, n: int) -> Problem:
    """A feasible LP with rows of all four kinds and columns bounded below only, above only, both or not at all."""
    A = rng.normal(size=(m, n)) * (rng.random((m, n)) < 0.6)
    x0 = rng.normal(size=n)
    activity = A @ x0
    lower = np.where(rng.random(m) < 0.5, activity - rng.random(m), -INF)
    upper = np.where(rng.random(m) < 0.6, activity + rng.random(m), INF)
    lower, upper = np.where(rng.random(m) < 0.15, activity, [lower, upper])
    col_lower = np.where(rng.random(n) < 0.9, x0 - rng.random(n), -INF)
    col_upper = np.where(rng.random(n) < 0.9, x0 + rng.random(n), INF)
    offset = float(rng.normal())
    return Problem(rng.normal(size=n), offset, A, lower, upper, col_lower, col_upper, np.zeros(n, dtype=bool))


def knapsack(n: int = 100, m: int = 10, seed: int = 0) -> Problem:
    """Multidimensional knapsack with correlated profits: hours away from optimal at the default size."""
    rng = np.random.default_rng(seed)
    A = rng.integers(1, 1000, (m, n)).astype(float)
    c = -A.mean(axis=0) - rng.integers(0, 50, n)
    capacity = np.floor(A.sum(axis=1) / 2)
    return Problem(c, 0.0, A, np.full(m, -INF), capacity, np.zeros(n), np.ones(n), np.ones(n, dtype=bool))


def small_mip(rng: np.random.Generator) -> tuple[Problem, float]:
    """Columns in [-1, 1], some integer, and its minimum by enumeration (inf if infeasible)."""
    k, rest, m = int(rng.integers(1, 5)), int(rng.integers(0, 3)), int(rng.integers(1, 5))
    n = k + rest
    A = 3 * rng.normal(size=(m, n))
    upper = A @ (rng.integers(-1, 2, n) + 0.3 * rng.normal(size=n)) + 2 * rng.random(m) - 0.5
    lower = np.where(rng.random(m) < 0.5, upper - 3 * rng.random(m), -INF)
    c, box = 100 * rng.normal(size=n), np.ones(n)
    problem = Problem(c, 7.0, A, lower, upper, -box, box, np.arange(n) < k)

    best = INF
    for z in itertools.product((-1.0, 0.0, 1.0), repeat=k):
        shift, value = A[:, :k] @ z, float(c[:k] @ z) + 7.0
        if rest == 0:
            feasible = (shift <= upper).all() and (shift >= lower).all()
            best = min(best, value) if feasible else best
            continue
        sides = np.r_[upper - shift, shift - lower]
        finite = np.isfinite(sides)
        lp = linprog(c[k:], np.vstack([A[:, k:], -A[:, k:]])[finite], sides[finite], bounds=(-1, 1))
        best = min(best, value + lp.fun) if lp.status == 0 else best
    return problem, best


@functools.cache
def usable(name: str) -> bool:
    """Whether the backend of this name can be run here: licence, CBC's executable and all."""
    try:
        backend(name).require()
    except (BackendBrokenError, BackendMissingError):
        return False
    return True


def skip_without(name: str) -> None:
    """PuLP 4, say, brings no CBC."""
    if not usable(name):
        pytest.skip(f"the solver of {name} is not installed, or has no licence")


def scipy_minimum(p: Problem) -> tuple[int, float]:
    """(scipy's status, minimum including the offset)."""
    rows = LinearConstraint(p.A.toarray(), p.row_lower, p.row_upper) if p.m else None
    box = Bounds(p.col_lower, p.col_upper)
    result = milp(p.c, constraints=rows, bounds=box, integrality=p.integrality, options={"mip_rel_gap": 0.0})
    return result.status, INF if result.fun is None else result.fun + p.offset


def assert_kkt(p: Problem, s: Solution, tolerance: float = 1e-7) -> None:
    """Primal and dual feasibility, signs and complementary slackness: x and y are optimal, whoever says so."""
    assert s.x is not None
    assert s.row_dual is not None
    assert p.violation(s.x) <= tolerance
    reduced, activity = p.c - p.A.T @ s.row_dual, p.A @ s.x
    for duals, values, lower, upper in (
        (s.row_dual, activity, p.row_lower, p.row_upper),
        (reduced, s.x, p.col_lower, p.col_upper),
    ):
        rising, falling = duals > tolerance, duals < -tolerance
        np.testing.assert_allclose(values[rising], lower[rising], atol=tolerance)
        np.testing.assert_allclose(values[falling], upper[falling], atol=tolerance)


def linear_minimum(p: Problem) -> float:
    """The minimum of the relaxation of a problem with upper row sides only."""
    relaxed = linprog(p.c, p.A.toarray(), p.row_upper, bounds=np.c_[p.col_lower, p.col_upper])
    return float(relaxed.fun)
