"""What a Solution may rest on: lies, garbage and halves of answers end in no claim above the truth."""

from __future__ import annotations

import math
import time

import pytest
from corgi_solvers import Problem, Solution, Status
from corgi_solvers.claims import Claim, vouch, without_solver
from solver_problems import INF, problem_of

# minimum 1, of the first at y = 1
LP = problem_of([1.0, 1.0], 0.0, [[1.0, 1.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [False, False])
MIP = problem_of([1.0, 1.0], 0.0, [[2.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [True, True])


def judge(problem: Problem, status: Status, x: object = None, y: object = None, bound: float = -INF) -> Solution:
    return vouch(problem, Claim(status, "said", x, y, bound), "test", time.perf_counter())  # type: ignore[arg-type]


def test_an_optimum_with_its_multipliers_is_believed() -> None:
    s = judge(LP, Status.OPTIMAL, [1.0, 0.0], [1.0])
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 1.0, 1.0)
    s = judge(MIP, Status.OPTIMAL, [1.0, 0.0], bound=1.0 - 1e-9)
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 1.0, 1.0 - 1e-9)


@pytest.mark.parametrize("y", [None, [math.nan], [INF], [], [1.0, 1.0], ["garbage"], [0.0], [0.5], [-7.0], [40.0]])
def test_multipliers_that_are_none_or_wrong_make_no_optimum(y: object) -> None:
    s = judge(LP, Status.OPTIMAL, [1.0, 0.0], y)
    assert s.status is Status.LIMIT
    assert s.objective == 1.0
    assert s.bound < 1.0


@pytest.mark.parametrize("x", [None, [math.nan, 0.0], [1.0], [0.0, 0.0], [-1.0, 9.0], "garbage"])
def test_points_that_are_none_or_infeasible_are_dropped(x: object) -> None:
    s = judge(LP, Status.OPTIMAL, x, [1.0])
    assert (s.status, s.objective, s.x, s.bound) == (Status.LIMIT, INF, None, 1.0)
    assert judge(MIP, Status.OPTIMAL, x, bound=1.0).status is Status.ERROR
    assert judge(MIP, Status.LIMIT, x, bound=0.5).x is None


def test_a_limit_labelled_optimal_is_no_optimum() -> None:
    s = judge(LP, Status.OPTIMAL, [5.0, 5.0], [0.9])
    assert (s.status, s.bound) == (Status.LIMIT, 0.9)
    s = judge(MIP, Status.OPTIMAL, [5.0, 5.0], bound=0.5)
    assert (s.status, s.bound, s.x) == (Status.ERROR, -INF, None)


@pytest.mark.parametrize("bound", [1.1, INF, math.nan])
@pytest.mark.parametrize("status", [Status.OPTIMAL, Status.LIMIT])
def test_a_bound_above_a_feasible_point_is_no_bound(status: Status, bound: float) -> None:
    s = judge(MIP, status, [1.0, 0.0], bound=bound)
    assert (s.status, s.bound) == (Status.ERROR, -INF)


def test_an_integer_point_must_be_integer() -> None:
    assert judge(MIP, Status.LIMIT, [0.5, 0.0], bound=0.25).x is None


@pytest.mark.parametrize("status", [Status.ERROR, Status.UNBOUNDED, Status.DECIDED])
def test_other_statuses_hold_nothing(status: Status) -> None:
    s = judge(LP, status, [1.0, 0.0], [1.0], 1.0)
    assert (s.status, s.objective, s.bound, s.x, s.row_dual) == (status, INF, -INF, None, None)


def test_residues_on_free_columns_cost_what_they_may_be_worth() -> None:
    p = problem_of([1.0], 0.0, [[1.0]], [1.0], [INF], [-INF], [INF], [False])  # minimum 1 at y = 1
    s = judge(p, Status.OPTIMAL, [1.0], [1.0 + 1e-9])  # y L alone is above 1
    assert s.status is Status.OPTIMAL
    assert s.bound == pytest.approx(1.0, abs=1e-8)
    assert s.bound < 1.0
    assert judge(p, Status.OPTIMAL, [1.0], [1.0 - 1e-4]).bound == -INF
    assert judge(p, Status.LIMIT, None, [1.0 + 1e-9]).bound == -INF  # no point: no idea of the column's reach
    assert judge(p, Status.OPTIMAL, [1.0], [1.0]).bound == 1.0


def test_rows_without_a_side_ask_for_no_solver() -> None:
    """Whatever stands in them: each column settles for itself."""
    p = problem_of([1.0, -1.0], 2.0, [[1.0, 3.0]], [-INF], [INF], [-1.0, -1.0], [5.0, 5.0], [False, True])
    claim = without_solver(p)
    assert claim is not None and claim.x is not None
    assert (claim.status, claim.x.tolist(), claim.bound) == (Status.OPTIMAL, [-1.0, 5.0], -4.0)
    assert without_solver(problem_of([1.0], 0.0, [[1.0]], [0.5], [INF], [0.0], [5.0], [False])) is None
