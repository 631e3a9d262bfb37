"""What HiGHS alone does: early stops, its limits, statuses and refusals. See also test_conformance."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys
import textwrap
import time
from typing import Any

import numpy as np
import pytest
from clock import Clock
from corgi_solvers import (
    BackendMissingError,
    Highs,
    Problem,
    ProblemError,
    SolverError,
    Status,
    highs,
    highs_run,
)
from ending import ended
from patience import mostly_slow
from solver_problems import INF, knapsack, linear_minimum, problem_of, small_mip

# ---------------------------------------------------------------------------------------------- linear programs


def with_options(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    """Every run of HiGHS has these options as well."""
    options = Highs._options
    monkeypatch.setattr(Highs, "_options", lambda self, problem: options(self, problem) | more)


def test_lp_stopped_by_a_limit_keeps_a_bound_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of iterations: where the clock stops it, a machine decides."""
    rng = np.random.default_rng(0)
    n = 300
    A = rng.random((n, n)) * (rng.random((n, n)) < 0.1) - 0.02
    inside = rng.random(n)
    c = -(A.T @ rng.random(n)) - 0.1 * rng.random(n)
    below, integrality = np.full(n, -INF), np.zeros(n, dtype=bool)
    p = Problem(c, 0.0, A, below, A @ inside + 0.1, np.zeros(n), np.full(n, 2.0), integrality)
    assert Highs().solve(p).status is Status.OPTIMAL
    with_options(monkeypatch, simplex_iteration_limit=100)
    s = Highs().solve(p)
    assert (s.status, s.report.raw_status, s.report.iterations) == (Status.LIMIT, "kIterationLimit", 100)
    assert s.row_dual is not None
    assert math.isfinite(s.bound)
    assert p.violation(inside) == 0.0
    assert s.bound <= p.objective(inside)


# --------------------------------------------------------------------------------------- mixed-integer programs


def test_an_unbounded_lp_that_presolve_calls_infeasible_is_unbounded() -> None:
    """HiGHS 1.15.1 says kInfeasible, which would be a bound of +inf; without presolve it says kUnbounded."""
    A = [[1.0, 1.0, 0.9, 0.4, 0.0, -0.8], [0.5, 0.0, 0.8, 0.3, -0.1, 0.0]]
    lower, upper = [-0.4, 1.5, -INF, 1.6, -0.4, -0.9], [0.3, 2.0, 0.7, INF, 0.5, -0.2]
    c = [-1.2, 1.4, 0.2, -1.1, -0.1, 0.2]
    p = problem_of(c, 0.0, A, [2.7, -INF], [INF, 0.6], lower, upper, [False] * 6)
    s = Highs().solve(p)
    assert (s.status, s.bound) == (Status.UNBOUNDED, -INF)


@pytest.mark.parametrize("rows", [0, 1])
def test_unbounded_mip(rows: int) -> None:
    A, sides = np.ones((rows, 2)), np.zeros(rows)
    p = problem_of([1.0, -1.0], 0.0, A, sides, sides + INF, [0.0, 0.0], [INF, INF], [True, True])
    s = Highs().solve(p)
    assert (s.status, s.bound) == (Status.UNBOUNDED, -INF)


def test_unbounded_relaxation_without_an_integer_point_is_infeasible() -> None:
    p = problem_of([1.0, -1.0], 0.0, [[2.0, 2.0]], [1.0], [1.0], [-INF, -INF], [INF, INF], [True, True])
    s = Highs().solve(p)
    assert (s.status, s.bound) == (Status.INFEASIBLE, INF)


def test_limit_with_an_incumbent_keeps_bound_and_objective_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    p = knapsack()
    with_options(monkeypatch, mip_max_nodes=5)
    s = Highs().solve(p)
    assert s.status is Status.LIMIT
    assert s.x is not None
    assert p.violation(s.x) <= 1e-8
    assert s.objective == p.objective(s.x)
    assert math.isfinite(s.bound)
    assert s.bound < s.objective - 1.0  # the hours of work that are left
    assert s.bound >= linear_minimum(p) - 1e-6


@pytest.mark.parametrize("limit", [0.0, -1.0, 1e-9])
def test_limit_too_short_for_anything_claims_nothing(limit: float) -> None:
    s = Highs().solve(knapsack(), time_limit=limit)
    assert (s.status, s.objective, s.bound, s.x) == (Status.LIMIT, INF, -INF, None)


def test_hours_of_work_end_at_the_limit() -> None:
    s = Highs().solve(knapsack(), time_limit=0.3)
    assert (s.status, s.report.raw_status) == (Status.LIMIT, "kTimeLimit")


def test_limit_counts_from_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS counts an LP's limit over all runs of its object, a MIP's from the run's start: it is told accordingly."""
    clock, told, spent = Clock(), [], []
    clock.stand_in(monkeypatch, highs, highs_run)
    honest = highs_run.HighsRun._set

    def listening(self: highs_run.HighsRun, name: str, value: Any) -> None:
        if name == "time_limit":
            told.append(value)
            spent.append(self._handle.getRunTime())
        honest(self, name, value)

    monkeypatch.setattr(highs_run.HighsRun, "_set", listening)
    p = knapsack(n=12, m=3)
    for _ in range(3):
        assert Highs().solve(p, time_limit=300.0).status is Status.OPTIMAL
    assert told == [300.0] * 3
    told.clear()
    spent.clear()
    # infeasible, and its objective could run away: HiGHS is asked again without the objective
    lp = problem_of([-1.0], 0.0, [[1.0], [1.0]], [3.0, -INF], [INF, 2.0], [0.0], [INF], [False])
    assert Highs().solve(lp, time_limit=300.0).status is Status.INFEASIBLE
    assert told == [300.0 + before for before in spent]
    assert len(told) == 2
    assert spent[1] > 0


# ------------------------------------------------------------------------------------------------------- deciding


@pytest.mark.parametrize("count", mostly_slow([15, 60], [15]))
def test_decide_at_never_claims_the_wrong_side(count: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(count):
        p, minimum = small_mip(rng)
        if not math.isfinite(minimum):
            continue
        for t in minimum + np.array([-30.0, -1e-3, 1e-3, 30.0]):
            s = Highs().solve(p, decide_at=float(t))
            assert s.status in (Status.DECIDED, Status.OPTIMAL)
            assert (s.bound > t, s.objective <= t) == (minimum > t, minimum <= t)
            assert s.bound <= minimum + 1e-6
            assert s.objective >= minimum - 1e-6


def greedy(p: Problem) -> float:
    """The objective of a knapsack that takes whatever still fits, the best for its size first."""
    x = np.zeros(p.n)
    for j in np.argsort(p.c / np.asarray(p.A.sum(axis=0)).ravel()):
        x[j] = 1.0
        if p.violation(x) > 0:
            x[j] = 0.0
    assert p.violation(x) == 0.0
    return p.objective(x)


def test_decide_at_stops_early_on_both_sides() -> None:
    """Without a limit of time: to the end it would take hours."""
    p = knapsack()
    below, feasible = linear_minimum(p) - 10.0, greedy(knapsack())
    proven = Highs().solve(p, decide_at=below)
    assert proven.status is Status.DECIDED
    assert below < proven.bound <= feasible

    found = Highs().solve(p, decide_at=feasible + 100.0)
    assert found.status is Status.DECIDED
    assert found.x is not None
    assert found.objective == p.objective(found.x) <= feasible + 100.0
    assert p.violation(found.x) <= 1e-8
    assert found.bound <= feasible


def test_undecided_within_the_limit_says_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    p = knapsack()
    with_options(monkeypatch, mip_max_nodes=5)
    s = Highs().solve(p, decide_at=linear_minimum(p) + 20.0)
    assert s.status is Status.LIMIT
    assert s.bound <= linear_minimum(p) + 20.0 < s.objective


# ------------------------------------------------------------------------------------------ empty and refused input


def one_column(a: float = 1.0, c: float = 1.0, upper: float = 2.0, row_lower: float = -INF) -> Problem:
    return problem_of([c], 0.0, [[1.0], [a]], [0.0, row_lower], [1.0, 2.0], [0.0], [upper], [False])


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (one_column(a=1e-12), r"A\[1, 0\] is 1e-12; HiGHS may drop"),
        (one_column(a=-1e-300), r"A\[1, 0\] is -1e-300; HiGHS may drop"),
        (one_column(a=-1e15), r"A\[1, 0\] is -1e\+15; HiGHS refuses"),
        (one_column(c=1e20), r"c\[0\] is 1e\+20"),
        (one_column(upper=1e21), r"col_upper\[0\] is 1e\+21"),
        (one_column(row_lower=-1e20), r"row_lower\[1\] is -1e\+20"),
    ],
)
def test_what_highs_would_silently_change_is_refused(p: Problem, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Highs().solve(p)


def test_the_smallest_entries_that_are_accepted_are_kept() -> None:
    # Without its entry the row would not hold x back from 1e12.
    p = problem_of([-1.0], 0.0, [[2e-12]], [-INF], [0.2], [0.0], [1e12], [False])
    assert Highs().solve(p).objective == pytest.approx(-1e11, rel=1e-6)


def test_arguments_that_are_no_numbers_are_refused() -> None:
    p = one_column()
    with pytest.raises(ProblemError, match="time_limit is NaN"):
        Highs().solve(p, time_limit=math.nan)
    with pytest.raises(ProblemError, match="decide_at is NaN"):
        Highs().solve(p, decide_at=math.nan)


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
    s = Highs().solve(p)
    assert (s.status, s.objective, s.bound, s.x, s.row_dual) == (Status.ERROR, INF, -INF, None, None)


# -------------------------------------------------------------------------------------------- process-wide behaviour


def test_nothing_is_printed_though_a_new_highs_object_prints_a_banner(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """highspy 1.16 prints it as the constructor sets the callback; other objects than ours still may."""
    import highspy

    honest: Any = highspy.Highs.enableCallbacks

    def printing(self: Any) -> None:
        if self.getOptionValue("output_flag")[1]:
            os.write(1, b"Running HiGHS\n")
        honest(self)

    capfd.readouterr()
    monkeypatch.setattr(highspy.Highs, "enableCallbacks", printing)
    Highs().solve(one_column())
    Highs().solve(knapsack(n=5, m=2))
    assert capfd.readouterr() == ("", "")
    highspy.Highs()
    assert "Running HiGHS\n" in capfd.readouterr().out


def test_a_process_that_solves_prints_only_what_it_prints() -> None:
    code = """
        import numpy as np
        from corgi_solvers import Highs, Problem
        one = np.ones(1)
        for whole in (True, False):
            Highs().solve(Problem(one, 0.0, np.ones((1, 1)), one, 2 * one, 0 * one, 3 * one, np.array([whole])))
        print("done")
    """
    with ended(run_python(code)) as process:
        assert process.communicate() == ("done\n", "")


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


def run_python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_import_loads_no_solver_and_no_torch() -> None:
    code = """
        import json, sys
        import corgi_solvers
        assert corgi_solvers.Highs.available()
        print(json.dumps([name for name in ("highspy", "torch", "cvxpy", "pulp") if name in sys.modules]))
    """
    with ended(run_python(code)) as process:
        out, err = process.communicate()
    assert err == ""
    assert json.loads(out) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: sends SIGINT to one process")
@pytest.mark.parametrize(
    ("rows", "columns", "call"),
    [
        (10, 100, "Highs().solve(p)"),
        (1500, 1500, "Highs().solve(p)"),
    ],
    ids=["searching", "in the root LP of a MIP, where HiGHS does not look"],
)
def test_ctrl_c_is_raised_and_the_solver_lives_on(rows: int, columns: int, call: str) -> None:
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
    with ended(run_python(code)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1.0\n"  # set up; the hard solve comes next
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.readline() == "1.0\n"  # the flag did not stick: the next run ends as it should
        assert process.communicate() == ("", "")
        assert process.returncode == 0
