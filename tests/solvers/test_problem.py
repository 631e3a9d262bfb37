"""Problem: what it accepts, what it refuses, and the bound of arbitrary multipliers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from corgi_solvers import Problem, ProblemError, dual_objective
from scipy.optimize import linprog
from scipy.sparse import csr_array
from solver_problems import problem_of

INF = math.inf


def small() -> dict[str, object]:
    """min x0 - 2 x1 + 3 x2 + 5, two rows, the second column integer."""
    return {
        "c": [1.0, -2.0, 3.0],
        "offset": 5.0,
        "A": np.array([[1.0, 1.0, 0.0], [0.0, 2.0, -1.0]]),
        "row_lower": [0.0, -INF],
        "row_upper": [1.0, 3.0],
        "col_lower": [0.0, 0.0, -INF],
        "col_upper": [1.0, 4.0, INF],
        "integrality": [False, True, False],
    }


def problem(**changes: object) -> Problem:
    return Problem(**(small() | changes))  # type: ignore[arg-type]


def test_shapes_and_evaluation() -> None:
    p = problem()
    assert (p.m, p.n, p.is_mip) == (2, 3, True)
    assert p.A.dtype == np.float64
    assert p.objective([1.0, 2.0, -1.0]) == 1.0 - 4.0 - 3.0 + 5.0


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0.0, 1.0, 0.0], 0.0),
        ([1.0, 1.0, 0.0], 1.0),  # row 0 above its upper side
        ([-0.25, 0.0, 0.0], 0.25),  # row 0 and column 0 below
        ([0.0, 0.0, -5.0], 2.0),  # row 1 above: 5 > 3
        ([0.0, 0.75, 0.0], 0.25),  # column 1 is not integer
        ([0.0, 5.0, 0.0], 7.0),  # row 1: 10 > 3
        ([0.0, math.nan, 0.0], INF),
        ([0.0, 0.0, INF], INF),
    ],
)
def test_violation_is_the_largest_one(x: list[float], expected: float) -> None:
    assert problem().violation(x) == expected


def test_relaxed_and_with_objective_change_one_thing_each() -> None:
    p = problem()
    relaxed, other = p.relaxed(), p.with_objective([0.0, 0.0, 1.0], 0.0)
    assert not relaxed.is_mip
    assert relaxed.violation([0.0, 0.75, 0.0]) == 0.0
    assert other.objective([9.0, 9.0, 2.0]) == 2.0
    assert other.is_mip
    assert relaxed.A is p.A  # the matrix is shared, not copied: swapping objectives is cheap
    assert p.objective([0.0, 0.0, 0.0]) == 5.0


def test_is_immutable_and_independent_of_its_inputs() -> None:
    c = np.array([1.0, -2.0, 3.0])
    p = problem(c=c)
    c[0] = 99.0
    assert p.c[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        p.A.data[0] = 7.0
    with pytest.raises(ValueError, match="read-only"):
        p.row_lower[0] = 7.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.offset = 1.0  # type: ignore[misc]


def test_matrix_is_made_canonical() -> None:
    twice = csr_array((np.array([1.0, 2.0, 0.0, 4.0]), np.array([2, 2, 0, 1]), np.array([0, 3, 4])), shape=(2, 3))
    p = problem(A=twice)
    np.testing.assert_array_equal(p.A.toarray(), [[0.0, 0.0, 3.0], [0.0, 4.0, 0.0]])
    assert p.A.nnz == 2
    assert twice.nnz == 4  # the caller's matrix is left alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": [1.0, math.nan, 0.0]}, r"c\[1\] is NaN"),
        ({"c": [1.0, INF, 0.0]}, "c: entry 1 is inf"),
        ({"c": [1.0, 2.0]}, r"c has shape \(2,\)"),
        ({"c": [1.0, "two", 0.0]}, "c is not an array of numbers"),
        ({"offset": math.nan}, "offset is nan"),
        ({"A": np.array([[1.0, math.nan, 0.0], [0.0, 2.0, -1.0]])}, "nonzeros of A"),
        ({"A": np.array([[1.0, INF, 0.0], [0.0, 2.0, -1.0]])}, "nonzeros of A"),
        ({"A": np.ones((2, 4))}, r"c has shape \(3,\); it must be \(4,\)"),
        ({"row_lower": [0.0, math.nan]}, r"row_lower\[1\] is NaN"),
        ({"row_upper": [1.0]}, "row_upper has shape"),
        ({"row_lower": [2.0, -INF]}, r"row_lower\[0\] = 2.0 and row_upper\[0\] = 1.0"),
        ({"row_lower": [INF, -INF], "row_upper": [INF, 3.0]}, r"row_lower\[0\] = inf"),
        ({"col_lower": [0.0, 5.0, -INF]}, r"col_lower\[1\] = 5.0"),
        ({"col_upper": [1.0, 4.0, -INF]}, r"col_upper\[2\] = -inf"),
        ({"integrality": [False, True]}, "integrality has shape"),
        ({"integrality": [0, 1, 2]}, "integrality has dtype"),
    ],
)
def test_malformed_problems_are_refused_with_their_place(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        problem(**changes)
    assert isinstance(caught.value, ValueError)


def test_points_and_multipliers_of_a_wrong_shape_are_refused() -> None:
    p = problem()
    for call in (p.objective, p.violation, lambda x: dual_objective(p, x)):
        with pytest.raises(ProblemError, match="shape"):
            call(np.zeros(4))


def test_boxed_looks_at_the_columns_that_the_objective_moves() -> None:
    assert not problem().is_boxed
    assert problem(c=[1.0, -2.0, 0.0]).is_boxed


def test_empty_problems_exist() -> None:
    none = np.zeros(0)
    rows_only = problem_of(none, 2.0, np.zeros((1, 0)), [-1.0], [1.0], none, none, none.astype(bool))
    assert (rows_only.m, rows_only.n, rows_only.is_mip) == (1, 0, False)
    assert rows_only.violation(none) == 0.0
    cols_only = problem_of([1.0], 2.0, np.zeros((0, 1)), none, none, [3.0], [4.0], [True])
    assert (cols_only.m, cols_only.n, cols_only.is_mip) == (0, 1, True)
    assert dual_objective(cols_only, none) == 5.0


def test_any_multipliers_bound_a_boxed_lp_from_below() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        m, n = int(rng.integers(1, 8)), int(rng.integers(1, 8))
        A, x0 = rng.normal(size=(m, n)), rng.uniform(-1, 1, n)
        upper = A @ x0 + rng.random(m)
        lower = np.where(rng.random(m) < 0.5, A @ x0 - rng.random(m), -INF)
        c = rng.normal(size=n)
        finite = np.isfinite(lower)
        best = linprog(c, np.vstack([A, -A[finite]]), np.r_[upper, -lower[finite]], bounds=(-1, 1))
        p = Problem(c, 0.25, A, lower, upper, -np.ones(n), np.ones(n), np.zeros(n, dtype=bool))
        for scale in (0.0, 0.1, 1.0, 100.0):
            assert dual_objective(p, scale * rng.normal(size=m)) <= best.fun + 0.25 + 1e-9
        # scipy's own marginals are optimal multipliers: there the bound is the optimum
        y = best.ineqlin.marginals[:m].copy()
        y[finite] -= best.ineqlin.marginals[m:]
        assert dual_objective(p, y) == pytest.approx(best.fun + 0.25, abs=1e-8)


def test_dual_objective_at_infinite_sides() -> None:
    # min x, x free, 1 <= x < inf: y = 1 is optimal; y < 0 presses on the missing side and is dropped.
    p = problem_of([1.0], 0.0, [[1.0]], [1.0], [INF], [-INF], [INF], [False])
    assert dual_objective(p, [1.0]) == 1.0
    assert dual_objective(p, [-1.0]) == -INF
    assert dual_objective(p, [1.0 - 1e-10]) == -INF
    assert dual_objective(p, [1.0 - 1e-10], tolerance=1e-9) == pytest.approx(1.0)
    assert dual_objective(p, [math.nan]) == -INF
    assert dual_objective(p, [INF]) == -INF


def test_dual_objective_overflow_is_no_bound() -> None:
    p = problem_of([1.0], 0.0, [[1e300]], [1.0], [2.0], [-1.0], [1.0], [False])
    assert dual_objective(p, [1e300]) == -INF
