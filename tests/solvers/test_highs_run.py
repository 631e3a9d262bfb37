"""One HiGHS object at work: loaded once and asked often, each outcome read as what its status vouches for."""

from __future__ import annotations

import math
import threading
import time

import highspy
import numpy as np
import pytest
from corgi_solvers import Problem, SolverError, Status
from corgi_solvers.highs_run import HighsRun
from solver_problems import INF, knapsack, problem_of, random_lp, scipy_minimum, small_mip

OPTIONS = {
    "output_flag": False,
    "dual_feasibility_tolerance": 1e-9,
    "threads": 1,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.0,
}


def later(seconds: float = 60.0) -> float:
    return time.perf_counter() + seconds


def run(p: Problem, cancel: threading.Event | None = None, **options: object) -> HighsRun:
    return HighsRun(highspy, {**OPTIONS, **options}, p, cancel or threading.Event())  # type: ignore[dict-item]


@pytest.mark.parametrize("seed", range(6))
def test_its_minimum_is_scipys(seed: int) -> None:
    for p in (random_lp(np.random.default_rng(seed), 4, 6), small_mip(np.random.default_rng(seed))[0]):
        status, expected = scipy_minimum(p)
        with run(p) as one:
            found = one.minimise(later())
        if status == 2:
            assert (found.status, found.bound) == (Status.INFEASIBLE, INF)
        elif status == 0:
            assert found.status is Status.OPTIMAL
            assert found.objective == pytest.approx(expected, abs=1e-6)
            assert found.bound == pytest.approx(expected, abs=1e-5)


def test_a_threshold_is_told_from_both_sides() -> None:
    p, best = small_mip(np.random.default_rng(3))
    assert math.isfinite(best)
    with run(p) as one:
        above = one.minimise(later(), decide_at=best - 1.0)
        below = one.minimise(later(), decide_at=best + 1.0)
    assert above.bound > best - 1.0 and above.bound <= best + 1e-6
    assert below.objective <= best + 1.0


def test_a_cancelled_or_late_run_claims_nothing() -> None:
    p, cancel = knapsack(), threading.Event()
    with run(p, cancel) as one:
        late = one.minimise(time.perf_counter() - 1.0)
        assert (late.status, late.bound, late.x, late.report.raw_status) == (Status.LIMIT, -INF, None, "not run")
        cancel.set()
        stopped = one.minimise(later())
    assert (stopped.status, stopped.bound, stopped.x) == (Status.INTERRUPTED, -INF, None)
    assert stopped.report.raw_status == "not run"


def test_a_run_is_stopped_from_another_thread() -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    start = time.perf_counter()
    with run(knapsack(), cancel) as one:
        found = one.minimise(later())
    assert found.status is Status.INTERRUPTED and time.perf_counter() - start < 30
    assert found.bound <= found.objective


def test_no_column_leaves_only_the_rows_to_look_at() -> None:
    def empty(lower: float, upper: float) -> Problem:
        return problem_of([], 2.5, np.zeros((1, 0)), [lower], [upper], [], [], [])

    with run(empty(-1.0, 1.0)) as one:
        found = one.minimise(later())
        assert (found.status, found.objective, found.bound) == (Status.OPTIMAL, 2.5, 2.5)
    with run(empty(1.0, 2.0)) as one:
        assert one.minimise(later()).status is Status.INFEASIBLE


def test_what_highs_refuses_is_raised() -> None:
    with pytest.raises(SolverError, match="HiGHS answered kError to option threads"):
        run(knapsack(5, 2), threads=-3)
