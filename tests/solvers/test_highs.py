"""The HiGHS backend against scipy, brute force and the KKT conditions; its limits, stops and refusals."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from corgi_solvers import (
    BackendMissingError,
    Highs,
    Problem,
    ProblemError,
    Solution,
    SolverError,
    Status,
    highs,
    highs_run,
)
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

INF = math.inf


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


# ---------------------------------------------------------------------------------------------- linear programs


def test_lps_agree_with_scipy_and_satisfy_kkt() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(150):
        p = random_lp(rng, int(rng.integers(0, 10)), int(rng.integers(1, 10)))
        s = Highs().solve(p)
        status, minimum = scipy_minimum(p)
        seen.add(s.status)
        if status == 0:
            assert s.status is Status.OPTIMAL
            assert s.objective == pytest.approx(minimum, abs=1e-7)
            assert s.bound == pytest.approx(minimum, abs=1e-7)
            assert s.x is not None
            assert s.objective == p.objective(s.x)
            assert_kkt(p, s)
        else:
            assert (status, s.status) == (3, Status.UNBOUNDED)
            assert s.bound == -INF
    assert seen == {Status.OPTIMAL, Status.UNBOUNDED}


def test_infeasible_lp() -> None:
    p = Problem([1.0, 1.0], 0.0, [[1.0, 1.0]], [3.0], [INF], [0.0, 0.0], [1.0, 1.0], [False, False])
    s = Highs().solve(p)
    assert (s.status, s.objective, s.bound, s.x, s.row_dual) == (Status.INFEASIBLE, INF, INF, None, None)


def test_lp_stopped_by_its_limit_keeps_a_bound_that_holds() -> None:
    rng = np.random.default_rng(0)
    n = 700
    A = rng.random((n, n)) * (rng.random((n, n)) < 0.1) - 0.02
    inside = rng.random(n)
    c = -(A.T @ rng.random(n)) - 0.1 * rng.random(n)
    below, integrality = np.full(n, -INF), np.zeros(n, dtype=bool)
    p = Problem(c, 0.0, A, below, A @ inside + 0.1, np.zeros(n), np.full(n, 2.0), integrality)
    s = Highs().solve(p, time_limit=0.3)
    assert s.status is Status.LIMIT
    assert s.report.seconds < 2.0
    assert s.row_dual is not None
    assert math.isfinite(s.bound)
    assert p.violation(inside) == 0.0
    assert s.bound <= p.objective(inside)


# --------------------------------------------------------------------------------------- mixed-integer programs


def test_mips_agree_with_enumeration_and_scipy() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(80):
        p, minimum = small_mip(rng)
        s = Highs().solve(p)
        seen.add(s.status)
        assert scipy_minimum(p)[1] == pytest.approx(minimum, abs=1e-4)
        if math.isfinite(minimum):
            assert s.status is Status.OPTIMAL
            assert s.objective == pytest.approx(minimum, abs=1e-6)
            assert minimum - 1e-6 <= s.bound <= minimum + 1e-6
            assert s.x is not None
            assert p.violation(s.x) <= 1e-8
            assert s.row_dual is None
        else:
            assert (s.status, s.bound, s.x) == (Status.INFEASIBLE, INF, None)
    assert seen == {Status.OPTIMAL, Status.INFEASIBLE}


def test_integrality_is_not_lost() -> None:
    p = Problem([-1.0, -1.0], 0.0, [[2.0, 2.0]], [-INF], [3.0], [0.0, 0.0], [1.0, 1.0], [True, True])
    assert Highs().solve(p).objective == -1.0
    assert Highs().solve(p.relaxed()).objective == -1.5


@pytest.mark.parametrize("rows", [0, 1])
def test_unbounded_mip(rows: int) -> None:
    A, sides = np.ones((rows, 2)), np.zeros(rows)
    p = Problem([1.0, -1.0], 0.0, A, sides, sides + INF, [0.0, 0.0], [INF, INF], [True, True])
    s = Highs().solve(p)
    assert (s.status, s.bound) == (Status.UNBOUNDED, -INF)


def test_unbounded_relaxation_without_an_integer_point_is_infeasible() -> None:
    p = Problem([1.0, -1.0], 0.0, [[2.0, 2.0]], [1.0], [1.0], [-INF, -INF], [INF, INF], [True, True])
    s = Highs().solve(p)
    assert (s.status, s.bound) == (Status.INFEASIBLE, INF)


def test_limit_with_an_incumbent_keeps_bound_and_objective_apart() -> None:
    p = knapsack()
    start = time.perf_counter()
    s = Highs().solve(p, time_limit=0.5)
    assert time.perf_counter() - start < 2.0
    assert s.status is Status.LIMIT
    assert s.x is not None
    assert p.violation(s.x) <= 1e-8
    assert s.objective == p.objective(s.x)
    assert math.isfinite(s.bound)
    assert s.bound < s.objective - 1.0  # the hours of work that are left
    assert s.bound >= linear_minimum(p) - 1e-6


def linear_minimum(p: Problem) -> float:
    relaxed = linprog(p.c, p.A.toarray(), p.row_upper, bounds=np.c_[p.col_lower, p.col_upper])
    return float(relaxed.fun)


@pytest.mark.parametrize("limit", [0.0, -1.0, 1e-9])
def test_limit_too_short_for_anything_claims_nothing(limit: float) -> None:
    s = Highs().solve(knapsack(), time_limit=limit)
    assert (s.status, s.objective, s.bound, s.x) == (Status.LIMIT, INF, -INF, None)


def test_limit_counts_from_each_run() -> None:
    solver, p = Highs(), knapsack()
    for _ in range(3):
        assert 0.2 <= solver.solve(p, time_limit=0.3).report.seconds < 1.5


# ------------------------------------------------------------------------------------------------------- deciding


def test_decide_at_never_claims_the_wrong_side() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        p, minimum = small_mip(rng)
        if not math.isfinite(minimum):
            continue
        for t in minimum + np.array([-30.0, -1e-3, 1e-3, 30.0]):
            s = Highs().solve(p, decide_at=float(t))
            assert s.status in (Status.DECIDED, Status.OPTIMAL)
            assert (s.bound > t, s.objective <= t) == (minimum > t, minimum <= t)
            assert s.bound <= minimum + 1e-6
            assert s.objective >= minimum - 1e-6


def test_decide_at_stops_early_on_both_sides() -> None:
    p = knapsack()
    below = linear_minimum(p) - 10.0
    greedy = milp(
        p.c,
        constraints=LinearConstraint(p.A.toarray(), p.row_lower, p.row_upper),
        bounds=Bounds(0, 1),
        integrality=np.ones(p.n),
        options={"time_limit": 0.3},
    ).fun

    proven = Highs().solve(p, time_limit=20.0, decide_at=below)
    assert proven.status is Status.DECIDED
    assert below < proven.bound <= greedy
    assert proven.report.seconds < 5.0

    found = Highs().solve(p, time_limit=20.0, decide_at=greedy + 100.0)
    assert found.status is Status.DECIDED
    assert found.x is not None
    assert found.objective == p.objective(found.x) <= greedy + 100.0
    assert p.violation(found.x) <= 1e-8
    assert found.bound <= greedy
    assert found.report.seconds < 5.0


def test_undecided_within_the_limit_says_limit() -> None:
    p = knapsack()
    s = Highs().solve(p, time_limit=0.3, decide_at=linear_minimum(p) + 20.0)
    assert s.status is Status.LIMIT
    assert s.bound <= linear_minimum(p) + 20.0 < s.objective


def test_lps_are_solved_to_the_end_whatever_is_to_be_decided() -> None:
    p = Problem([1.0], 0.0, [[1.0]], [1.0], [2.0], [0.0], [3.0], [False])
    for t in (0.0, 1.0, 5.0):
        s = Highs().solve(p, decide_at=t)
        assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 1.0, 1.0)


# ------------------------------------------------------------------------------------------ empty and refused input


def test_problems_without_rows_or_columns() -> None:
    none = np.zeros(0)
    free = Problem([1.0, -1.0], 2.0, np.zeros((0, 2)), none, none, [0.0, 0.0], [1.5, 1.5], [False, True])
    s = Highs().solve(free)
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 1.0, 1.0)
    s = Highs().solve(free.relaxed())
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 0.5, 0.5)

    held = Problem(none, 2.0, np.zeros((1, 0)), [-1.0], [1.0], none, none, none.astype(bool))
    s = Highs().solve(held)
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 2.0, 2.0)
    broken = Problem(none, 2.0, np.zeros((1, 0)), [0.5], [1.0], none, none, none.astype(bool))
    s = Highs().solve(broken)
    assert (s.status, s.objective, s.bound) == (Status.INFEASIBLE, INF, INF)
    nothing = Problem(none, 2.0, np.zeros((0, 0)), none, none, none, none, none.astype(bool))
    assert Highs().solve(nothing).bound == 2.0
    assert [s.bound for s in Highs().minimise_each(nothing, np.zeros((2, 0)))] == [2.0, 2.0]


def one_column(a: float = 1.0, c: float = 1.0, upper: float = 2.0, row_lower: float = -INF) -> Problem:
    return Problem([c], 0.0, [[1.0], [a]], [0.0, row_lower], [1.0, 2.0], [0.0], [upper], [False])


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (one_column(a=1e-12), r"A\[1, 0\] is 1e-12; HiGHS drops"),
        (one_column(a=-1e-300), r"A\[1, 0\] is -1e-300; HiGHS drops"),
        (one_column(a=-1e15), r"A\[1, 0\] is -1e\+15; HiGHS refuses"),
        (one_column(c=1e20), r"c\[0\] is 1e\+20"),
        (one_column(upper=1e21), r"col_upper\[0\] is 1e\+21"),
        (one_column(row_lower=-1e20), r"row_lower\[1\] is -1e\+20"),
    ],
)
def test_what_highs_would_silently_change_is_refused(p: Problem, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Highs().solve(p)
    with pytest.raises(ProblemError, match=message):
        Highs().minimise_each(p, [[0.0]])


def test_the_smallest_entries_that_are_accepted_are_kept() -> None:
    # Without its entry the row would not hold x back from 1e12.
    p = Problem([-1.0], 0.0, [[2e-12]], [-INF], [0.2], [0.0], [1e12], [False])
    assert Highs().solve(p).objective == pytest.approx(-1e11, rel=1e-6)


def test_arguments_that_are_no_numbers_are_refused() -> None:
    p = one_column()
    with pytest.raises(ProblemError, match="time_limit is NaN"):
        Highs().solve(p, time_limit=math.nan)
    with pytest.raises(ProblemError, match="decide_at is NaN"):
        Highs().solve(p, decide_at=math.nan)
    with pytest.raises(ProblemError, match=r"objectives\[1, 0\] is not finite"):
        Highs().minimise_each(p, [[0.0], [math.nan]])
    with pytest.raises(ProblemError, match=r"objectives\[1, 0\] is 1e\+20"):
        Highs().minimise_each(p, [[0.0], [1e20]])


@pytest.mark.parametrize(
    "settings",
    [{"threads": 0}, {"mip_rel_gap": -1.0}, {"mip_abs_gap": math.nan}, {"feasibility_tolerance": 1e-12}],
)
def test_settings_highs_cannot_take_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ProblemError):
        Highs(**settings)  # type: ignore[arg-type]


def test_missing_or_old_highspy_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Highs, "available", staticmethod(lambda: False))
        with pytest.raises(BackendMissingError, match=r"not installed\. Run: pip install"):
            Highs().solve(one_column())
    monkeypatch.setattr(highs, "MINIMUM_VERSION", (99, 0, 0))
    with pytest.raises(BackendMissingError, match="too old") as caught:
        Highs().solve(one_column())
    assert isinstance(caught.value, ImportError)


def test_refused_options_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs, "SMALLEST_ENTRY", 0.0)  # below what HiGHS takes
    with pytest.raises(SolverError, match="kError to option small_matrix_value"):
        Highs().solve(one_column())


@pytest.mark.parametrize("p", [one_column(), knapsack(n=5, m=2)], ids=["lp", "mip"])
def test_unexpected_statuses_claim_nothing(p: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(highs_run.RAW_STATUS, "kOptimal")
    for s in (Highs().solve(p), Highs().minimise_each(p.relaxed(), [p.c])[0]):
        assert (s.status, s.objective, s.bound, s.x, s.row_dual) == (Status.ERROR, INF, -INF, None, None)


# ---------------------------------------------------------------------------------------------- hot-started series


def test_minimise_each_equals_cold_solves() -> None:
    rng = np.random.default_rng(4)
    hot_iterations = cold_iterations = 0
    for _ in range(10):
        p = random_lp(rng, 25, 30)
        costs = p.c + 0.1 * rng.normal(size=(8, p.n))
        for c, hot in zip(costs, Highs().minimise_each(p, costs), strict=True):
            each = p.with_objective(c, p.offset)
            cold = Highs().solve(each)
            assert hot.status is cold.status
            assert hot.bound == pytest.approx(cold.bound, abs=1e-7)
            hot_iterations += hot.report.iterations
            cold_iterations += cold.report.iterations
            if hot.status is Status.OPTIMAL:
                assert hot.objective == pytest.approx(scipy_minimum(each)[1], abs=1e-7)
                assert_kkt(each, hot)
    assert hot_iterations < cold_iterations


def test_minimise_each_of_infeasible_rows_and_of_nothing() -> None:
    p = Problem([1.0], 0.0, [[1.0]], [3.0], [4.0], [0.0], [1.0], [False])
    assert [s.status for s in Highs().minimise_each(p, [[1.0], [-1.0]])] == [Status.INFEASIBLE] * 2
    assert Highs().minimise_each(p, np.zeros((0, 1))) == []


def test_minimise_each_shares_one_budget() -> None:
    p = knapsack(n=200, m=60).relaxed()
    costs = p.c * np.random.default_rng(5).uniform(0.5, 1.5, (20_000, p.n))
    start = time.perf_counter()
    solutions = Highs().minimise_each(p, costs, time_limit=0.5)
    assert time.perf_counter() - start < 5.0
    assert len(solutions) == 20_000
    assert solutions[0].status is Status.OPTIMAL
    assert (solutions[-1].status, solutions[-1].bound, solutions[-1].x) == (Status.LIMIT, -INF, None)
    assert all(s.status is Status.LIMIT for s in Highs().minimise_each(p, costs[:2], time_limit=0.0))


def test_minimise_each_is_for_lps_of_the_right_width() -> None:
    with pytest.raises(ProblemError, match="relaxed"):
        Highs().minimise_each(knapsack(), np.zeros((1, 100)))
    with pytest.raises(ProblemError, match="objectives has shape"):
        Highs().minimise_each(one_column(), np.zeros(1))


# -------------------------------------------------------------------------------------------- process-wide behaviour


def test_runs_are_deterministic_and_threads_may_change() -> None:
    p = knapsack(n=20, m=4)
    first, *others = [Highs(threads=threads).solve(p) for threads in (1, 1, 2, 1)]
    assert first.x is not None
    for other in others:
        assert other.objective == pytest.approx(first.objective)
    assert others[0].x is not None
    np.testing.assert_array_equal(first.x, others[0].x)
    assert first.report.nodes == others[0].report.nodes
    assert first.report.iterations == others[0].report.iterations


def test_backend_declares_itself_and_pickles() -> None:
    assert Highs.available()
    assert (Highs.capabilities.lp, Highs.capabilities.mip, Highs.capabilities.soc) == (True, True, False)
    restored = pickle.loads(pickle.dumps(Highs(threads=2)))
    assert restored == Highs(threads=2)
    report = Highs().solve(one_column()).report
    assert (report.solver, report.raw_status) == ("highs", "kOptimal")
    assert tuple(map(int, report.version.split("."))) >= highs.MINIMUM_VERSION


def run_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_import_loads_no_solver_and_no_torch() -> None:
    code = """
        import json, sys
        import corgi_solvers
        assert corgi_solvers.Highs.available()
        print(json.dumps([name for name in ("highspy", "torch", "cvxpy", "pulp") if name in sys.modules]))
    """
    out, err = run_python(code).communicate(timeout=60)
    assert err == ""
    assert json.loads(out) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
@pytest.mark.parametrize(
    ("rows", "columns", "call"),
    [
        (10, 100, "Highs().solve(p)"),
        (1500, 1500, "Highs().solve(p)"),
        (1000, 1000, "Highs().minimise_each(p.relaxed(), p.c * rng.random((500, n)))"),
    ],
    ids=["searching", "in the root LP of a MIP, where HiGHS does not look", "hot-started series"],
)
def test_ctrl_c_is_raised_within_two_seconds(rows: int, columns: int, call: str) -> None:
    code = f"""
        import numpy as np
        from corgi_solvers import Highs, Problem

        m, n = {rows}, {columns}
        rng = np.random.default_rng(0)
        A = rng.integers(1, 1000, (m, n)) * (rng.random((m, n)) < (1.0 if m < 100 else 0.02))
        c = -A.mean(axis=0) - rng.random(n)
        p = Problem(c, 0.0, A, np.full(m, -np.inf), A @ rng.random(n), np.zeros(n), np.ones(n), np.ones(n, bool))
        tiny = Problem([1.0], 0.0, [[2.0]], [1.0], [9.0], [0.0], [9.0], [True])
        print(Highs().solve(tiny).objective, flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(Highs().solve(tiny).objective, flush=True)
    """
    process = run_python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "1.0\n"  # set up; the hard solve comes next
    time.sleep(1.0)
    assert process.poll() is None
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.perf_counter() - sent < 2.0
    assert process.stdout.readline() == "1.0\n"  # the flag did not stick: the next run ends as it should
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
    assert time.perf_counter() - sent < 4.0
