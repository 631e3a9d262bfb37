"""The CVXPY backend: statuses never seen, absent duals, false optima; Ctrl-C; what it refuses."""

from __future__ import annotations

import json
import math
import pickle
import signal
import sys
import textwrap
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from corgi_solvers import BackendMissingError, Cvxpy, NormBall, Problem, ProblemError, Solution, Status, cvxpy
from ending import ended
from solver_problems import INF, problem_of

LP = problem_of([1.0, 1.0], 0.0, [[1.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [False, False])  # minimum 0.5


def assert_no_claim(s: Solution) -> None:
    assert (s.status, s.objective, s.bound, s.x) == (Status.ERROR, INF, -INF, None)


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """``tampered(change)``: Clarabel's raw answer goes through ``change`` before CVXPY and we see it."""
    from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL

    def install(change: Callable[[Any], Any]) -> None:
        honest = CLARABEL.solve_via_data

        def solve(self: Any, *args: Any, **kwargs: Any) -> Any:
            raw = honest(self, *args, **kwargs)
            fields = ("x", "z", "status", "obj_val", "solve_time", "iterations")
            return change(types.SimpleNamespace(**{name: getattr(raw, name) for name in fields}))

        monkeypatch.setattr(CLARABEL, "solve_via_data", solve)

    return install


def put(**fields: Any) -> Callable[[Any], Any]:
    def change(raw: Any) -> Any:
        for name, value in fields.items():
            setattr(raw, name, value(getattr(raw, name)) if callable(value) else value)
        return raw

    return change


def test_an_untampered_answer_is_believed(tampered: Any) -> None:
    tampered(put())
    s = Cvxpy().solve(LP)
    assert s.status is Status.OPTIMAL
    assert s.bound == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("status", ["Splendid", "NumericalError", "Unsolved", "", "AlmostPrimalInfeasible", None])
def test_statuses_never_seen_claim_nothing(tampered: Any, status: object) -> None:
    tampered(put(status=status))
    assert_no_claim(Cvxpy().solve(LP))


@pytest.mark.parametrize("bad", [math.nan, INF, 1e300])
def test_duals_that_are_no_numbers_give_no_bound_above_the_truth(tampered: Any, bad: float) -> None:
    tampered(put(z=lambda z: [bad] * len(z)))
    s = Cvxpy().solve(LP)
    assert s.status is Status.LIMIT
    assert s.bound <= 0.5


def test_absent_duals_give_no_bound(tampered: Any) -> None:
    tampered(put(z=None))
    s = Cvxpy().solve(LP)
    assert (s.status, s.bound) == (Status.LIMIT, -INF)


@pytest.mark.parametrize("x", [[math.nan, 0.0], [0.0, 0.0], [-9.0, 9.0]])
def test_points_that_are_none_are_dropped(tampered: Any, x: list[float]) -> None:
    tampered(put(x=x))
    s = Cvxpy().solve(LP)
    assert (s.status, s.objective, s.x) == (Status.LIMIT, INF, None)
    assert s.bound <= 0.5 + 1e-9


def test_a_limit_labelled_optimal_is_no_optimum(tampered: Any) -> None:
    tampered(put(x=[5.0, 5.0], z=lambda z: [0.5 * value for value in z]))
    s = Cvxpy().solve(LP)
    assert (s.status, s.objective) == (Status.LIMIT, 10.0)
    assert s.bound <= 0.5


def test_infeasible_needs_a_proof(tampered: Any) -> None:
    tampered(put(status="PrimalInfeasible"))
    s = Cvxpy().solve(LP)
    assert_no_claim(s)
    assert s.report.raw_status == "PrimalInfeasible, unproven"


def test_an_exception_of_the_solver_claims_nothing(tampered: Any) -> None:
    def fall(raw: Any) -> Any:
        raise ValueError("out of luck")

    tampered(fall)
    s = Cvxpy().solve(LP)
    assert_no_claim(s)
    assert "out of luck" in s.report.raw_status


def test_the_bound_is_no_optimum_of_clarabel() -> None:
    """Over random problems with balls the bound stays below every feasible point, the solver's optimum does not."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        n = 6
        centre, r = rng.uniform(0, 1, n), rng.normal(size=n)
        A = rng.normal(size=(3, n))
        ball = NormBall(np.arange(n), np.ones(n), -centre, 0.3)
        box = (np.zeros(n), np.ones(n))
        p = problem_of(r, 0.0, A, [-INF] * 3, A @ centre + 0.05, *box, np.zeros(n, dtype=bool), (ball,))
        s = Cvxpy().solve(p)
        assert s.status is Status.OPTIMAL
        assert s.objective - 1e-6 <= s.bound <= s.objective + 1e-7
        assert s.x is not None
        inward = centre + (s.x - centre) * (1 - 1e-7)  # strictly feasible, and as good as optimal
        assert p.violation(inward) == 0.0
        assert s.bound <= p.objective(inward)


def test_at_a_limit_the_bound_still_holds() -> None:
    rng = np.random.default_rng(0)
    n = 300
    A, inside = rng.normal(size=(450, n)), rng.normal(size=n)
    ball = NormBall(np.arange(n), np.ones(n), np.zeros(n), 100.0)
    free = np.full(n, INF)
    p = Problem(
        rng.normal(size=n), 0.0, A, np.full(450, -INF), A @ inside + 1.0, -free, free, np.zeros(n, bool), (ball,)
    )
    s = Cvxpy().solve(p, time_limit=0.05)
    assert s.status is Status.LIMIT
    assert p.violation(inside) == 0.0
    assert s.bound <= p.objective(inside)


def test_other_solvers_and_integers_are_refused() -> None:
    with pytest.raises(ProblemError, match="no solver 'osqp' behind CVXPY here; there are clarabel, scs"):
        Cvxpy("osqp")
    p = problem_of([1.0], 0.0, [[1.0]], [0.0], [1.0], [0.0], [1.0], [True])
    with pytest.raises(ProblemError, match="relaxed"):
        Cvxpy().solve(p)


def test_a_missing_solver_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"scs"}
    monkeypatch.setattr(cvxpy, "installed", lambda package: package not in missing)
    assert not Cvxpy("scs").available()
    with pytest.raises(BackendMissingError, match=r"scs is not installed\. Run: pip install scs"):
        Cvxpy("scs").solve(LP)
    missing.add("cvxpy")
    with pytest.raises(BackendMissingError, match=r"cvxpy is not installed\. Run: pip install"):
        Cvxpy().solve(LP)


def test_declares_itself_and_pickles() -> None:
    assert (Cvxpy.capabilities.lp, Cvxpy.capabilities.mip, Cvxpy.capabilities.soc) == (True, False, True)
    assert pickle.loads(pickle.dumps(Cvxpy("scs"))) == Cvxpy("scs")
    report = Cvxpy().solve(LP).report
    assert (report.solver, report.raw_status) == ("cvxpy:clarabel", "Solved")
    assert report.iterations > 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: sends SIGINT to one process")
def test_ctrl_c_is_raised_while_the_solver_runs() -> None:
    code = """
        import threading
        import numpy as np
        from corgi_solvers import Cvxpy, NormBall, Problem
        rng = np.random.default_rng(0)
        m, n = 1800, 1500
        A, c, free = rng.normal(size=(m, n)), rng.normal(size=n), np.full(n, np.inf)
        ball = NormBall(np.arange(n), np.ones(n), np.zeros(n), 9.0)
        p = Problem(c, 0.0, A, np.full(m, -np.inf), np.ones(m), -free, free, np.zeros(n, bool), (ball,))
        tiny = Problem([1.0], 0.0, [[1.0]], [0.5], [9.0], [0.0], [1.0], [False])
        print(round(Cvxpy().solve(tiny).objective, 3), flush=True)
        try:
            Cvxpy().solve(p)
        except KeyboardInterrupt:
            print("interrupted", any(t.name == "corgi-solver" for t in threading.enumerate()), flush=True)
        import os
        os._exit(0)  # not waiting for the run that was left behind
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with ended(command) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == 0.5
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted True\n"  # not waiting for the solver
        out, err = process.communicate()
        assert (out, err) == ("", "")
