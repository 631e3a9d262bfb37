"""One suite for every backend: whatever the solver, a Problem gets the same answer and no claim above the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from corgi_solvers import (
    Backend,
    BackendMissingError,
    NormBall,
    Problem,
    ProblemError,
    Solution,
    Status,
    backend,
)
from solver_problems import (
    INF,
    assert_kkt,
    knapsack,
    problem_of,
    random_lp,
    scipy_minimum,
    skip_without,
    small_mip,
    usable,
)

BACKENDS = ["highs", "pulp:cbc", "pulp:highs", "cvxpy:clarabel", "cvxpy:scs"]
OPTIONAL = ["pulp:scip", "pulp:gurobi", "pulp:cplex"]  # one skip each where they are not installed
PATIENT = {"pulp:highs", "pulp:scip", "pulp:gurobi", "pulp:cplex"}  # half a second to start: fewer problems
LOOSE = {"cvxpy:scs"}  # a splitting method: right, but to few digits
SHORT = {"cvxpy:scs", "pulp:scip"}  # may leave an LP's bound short of its optimum, and say LIMIT then


@pytest.fixture(params=[*BACKENDS, *filter(usable, OPTIONAL)])
def name(request: pytest.FixtureRequest) -> str:
    skip_without(request.param)
    return str(request.param)


@pytest.mark.parametrize("optional", OPTIONAL)
def test_optional_solvers_that_are_absent_say_so(optional: str) -> None:
    if backend(optional).available():
        pytest.skip("is installed: the suite covers it")
    with pytest.raises(BackendMissingError, match="pip install"):
        backend(optional).solve(lp([1.0], [[1.0]], ([0.0], [1.0]), ([0.0], [2.0])))


@pytest.fixture
def solver(name: str) -> Backend:
    return backend(name)


@pytest.fixture
def mip(solver: Backend) -> Backend:
    if not solver.capabilities.mip:
        pytest.skip("declares no MIPs")
    return solver


@pytest.fixture
def soc(solver: Backend) -> Backend:
    if not solver.capabilities.soc:
        pytest.skip("declares no second-order cones")
    return solver


def trials(name: str, many: int, few: int = 3) -> int:
    return few if name in PATIENT else many


def lp(c: object, A: object, rows: tuple[object, object], cols: tuple[object, object], offset: float = 0.0) -> Problem:
    n = np.size(c)  # type: ignore[arg-type]
    return Problem(c, offset, A, *rows, *cols, np.zeros(n, dtype=bool))  # type: ignore[arg-type]


def assert_claims_nothing_wrong(s: Solution, minimum: float, tolerance: float = 1e-6) -> None:
    assert s.bound <= minimum + tolerance
    assert s.objective >= minimum - tolerance


# ---------------------------------------------------------------------------------------------- linear programs


def test_lps_agree_with_scipy_and_satisfy_kkt(name: str, solver: Backend) -> None:
    rng = np.random.default_rng(1)
    tolerance = 1e-4 if name in LOOSE else 1e-6
    seen = set()
    for _ in range(trials(name, 40, 6)):
        p = random_lp(rng, int(rng.integers(0, 8)), int(rng.integers(1, 8)))
        s = solver.solve(p)
        status, minimum = scipy_minimum(p)
        seen.add(s.status)
        if status == 0 and (name not in SHORT or s.status is Status.OPTIMAL):
            assert s.status is Status.OPTIMAL, s
            assert s.objective == pytest.approx(minimum, abs=tolerance)
            assert minimum - tolerance <= s.bound <= minimum + 1e-7
            assert s.x is not None
            assert s.objective == p.objective(s.x)
            assert_kkt(p, s, tolerance)
        elif status == 0:
            assert s.status is Status.LIMIT
            assert s.bound <= minimum + 1e-7
        else:
            assert status == 3
            assert s.status in {Status.UNBOUNDED, Status.LIMIT if name == "pulp:cbc" else Status.UNBOUNDED}
            assert s.bound == -INF
    assert Status.OPTIMAL in seen


@pytest.mark.parametrize(
    ("c", "rows", "y"),
    [
        ([1.0, 1.0], (1.0, INF), 1.0),  # held up at the lower side
        ([-1.0, -1.0], (-INF, 1.0), -1.0),  # held down at the upper side
        ([1.0, 1.0], (1.0, 1.5), 1.0),  # two-sided, active below
        ([-1.0, -1.0], (1.0, 1.5), -1.0),  # two-sided, active above
        ([1.0, 1.0], (1.25, 1.25), 1.0),  # equality, from below
        ([-1.0, -1.0], (1.25, 1.25), -1.0),  # equality, from above
        ([0.0, 0.0], (-INF, INF), 0.0),  # no side
    ],
)
def test_signs_of_row_duals(name: str, solver: Backend, c: list[float], rows: tuple[float, float], y: float) -> None:
    s = solver.solve(lp(c, [[1.0, 1.0]], ([rows[0]], [rows[1]]), ([-9.0, -9.0], [9.0, 9.0]), 2.0))
    assert s.status is Status.OPTIMAL
    assert s.row_dual is not None
    np.testing.assert_allclose(s.row_dual, [y], atol=1e-4 if name in LOOSE else 1e-6)
    expected = 2.0 + (rows[0] if y > 0 else -rows[1] if y < 0 else 0.0)
    assert s.bound == pytest.approx(expected, abs=1e-4 if name in LOOSE else 1e-6)


def test_free_columns_and_negative_upper_bounds(name: str, solver: Backend) -> None:
    p = lp(
        [2.0, 1.0, -1.0],
        [[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
        ([-3.0, -1.0, -INF], [INF, INF, INF]),
        ([-INF, -INF, -INF], [INF, INF, -0.125]),
    )
    s = solver.solve(p)
    assert s.status is Status.OPTIMAL, s
    exact = 1.5 * -3.0 + 0.5 * -1.0 + 0.125
    assert s.objective == pytest.approx(exact, abs=1e-4 if name in LOOSE else 1e-6)
    assert s.bound == pytest.approx(exact, abs=1e-4 if name in LOOSE else 1e-6)


def test_infeasible_lp(solver: Backend) -> None:
    p = lp([1.0, 1.0], [[1.0, 1.0], [1.0, -1.0]], ([3.0, -INF], [INF, 5.0]), ([0.0, 0.0], [1.0, 1.0]))
    s = solver.solve(p)
    assert (s.status, s.objective, s.bound, s.x, s.row_dual) == (Status.INFEASIBLE, INF, INF, None, None)


def test_unbounded_lp(solver: Backend) -> None:
    s = solver.solve(lp([-1.0, 1.0], [[1.0, -1.0]], ([-1.0], [INF]), ([0.0, 0.0], [INF, INF])))
    assert (s.status, s.bound) == (Status.UNBOUNDED, -INF)


def test_empty_rows_and_columns(name: str, solver: Backend) -> None:
    A = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    p = lp([1.0, -1.0, 1.0], A, ([-1.0, 1.0], [1.0, INF]), ([0.0, 0.0, 0.0], [5.0, 2.0, 5.0]), 10.0)
    s = solver.solve(p)
    tolerance = 1e-4 if name in LOOSE else 1e-6
    assert s.status is Status.OPTIMAL
    assert s.bound == pytest.approx(9.0, abs=tolerance)
    assert s.objective == pytest.approx(9.0, abs=tolerance)
    broken = lp([1.0, -1.0, 1.0], A, ([0.5, 1.0], [1.0, INF]), ([0.0, 0.0, 0.0], [5.0, 2.0, 5.0]))
    assert solver.solve(broken).status is Status.INFEASIBLE


def test_problems_without_rows_or_columns(solver: Backend) -> None:
    none = np.zeros(0)
    free = problem_of([1.0, -1.0], 2.0, np.zeros((0, 2)), none, none, [0.0, 0.0], [1.5, 1.5], [False, True])
    if solver.capabilities.mip:
        s = solver.solve(free)
        assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 1.0, 1.0)
    s = solver.solve(free.relaxed())
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 0.5, 0.5)
    open_ended = problem_of([1.0], 0.0, np.zeros((0, 1)), none, none, [-INF], [INF], [False])
    assert solver.solve(open_ended).status is Status.UNBOUNDED
    held = problem_of(none, 2.0, np.zeros((1, 0)), [-1.0], [1.0], none, none, none.astype(bool))
    s = solver.solve(held)
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 2.0, 2.0)
    broken = problem_of(none, 2.0, np.zeros((1, 0)), [0.5], [1.0], none, none, none.astype(bool))
    s = solver.solve(broken)
    assert (s.status, s.objective, s.bound) == (Status.INFEASIBLE, INF, INF)
    nothing = Problem(none, 2.0, np.zeros((0, 0)), none, none, none, none, none.astype(bool))
    assert solver.solve(nothing).bound == 2.0


# --------------------------------------------------------------------------------------- mixed-integer programs


def test_mips_agree_with_enumeration_and_scipy(name: str, mip: Backend) -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(trials(name, 40, 5)):
        p, minimum = small_mip(rng)
        s = mip.solve(p)
        seen.add(s.status)
        assert scipy_minimum(p)[1] == pytest.approx(minimum, abs=1e-4)
        if math.isfinite(minimum):
            assert s.status is Status.OPTIMAL, s
            assert s.objective == pytest.approx(minimum, abs=1e-5)
            assert minimum - 1e-5 <= s.bound <= minimum + 1e-6
            assert s.x is not None
            assert p.violation(s.x) <= 1e-6
            assert s.row_dual is None
        elif name != "pulp:cbc" or s.status is not Status.ERROR:  # CBC crashes on some
            assert (s.status, s.bound, s.x) == (Status.INFEASIBLE, INF, None)
    assert Status.OPTIMAL in seen


def test_integrality_is_not_lost(mip: Backend) -> None:
    p = problem_of([-1.0, -1.0], 0.0, [[2.0, 2.0]], [-INF], [3.0], [0.0, 0.0], [1.0, 1.0], [True, True])
    assert mip.solve(p).objective == pytest.approx(-1.0, abs=1e-6)
    assert mip.solve(p.relaxed()).objective == pytest.approx(-1.5, abs=1e-6)


def test_integer_columns_have_no_hidden_bounds(mip: Backend) -> None:
    """MPS readers disagree on an integer column without bounds: [0, 1], [0, inf)?"""
    p = problem_of(
        [-1.0, 1.0], 0.0, [[2.0, 0.0], [0.0, 2.0]], [-INF, -15.0], [15.0, INF], [0, -INF], [INF, INF], [1 > 0] * 2
    )
    s = mip.solve(p)
    assert s.status is Status.OPTIMAL
    assert s.objective == pytest.approx(-14.0, abs=1e-6)


def test_unbounded_mip_claims_nothing(mip: Backend) -> None:
    p = problem_of([-1.0, 1.0], 0.0, [[1.0, -1.0]], [-1.0], [INF], [0.0, 0.0], [INF, INF], [True, True])
    s = mip.solve(p)
    assert s.status in (Status.UNBOUNDED, Status.ERROR)  # some only say "unbounded or infeasible"
    assert s.bound == -INF


def test_limit_with_an_incumbent_keeps_bound_and_objective_apart(name: str, mip: Backend) -> None:
    p = knapsack()
    s = mip.solve(p, time_limit=0.5)  # of hours
    assert s.status is Status.LIMIT, s
    if s.x is not None:
        assert p.violation(s.x) <= 1e-6
        assert s.objective == p.objective(s.x)
    assert s.bound < s.objective - 1.0  # the hours of work that are left


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_no_time_claims_nothing(solver: Backend, limit: float) -> None:
    p = knapsack() if solver.capabilities.mip else knapsack().relaxed()
    s = solver.solve(p, time_limit=limit)
    assert (s.status, s.objective, s.bound, s.x) == (Status.LIMIT, INF, -INF, None)


def test_lp_stopped_by_its_limit_claims_no_more_than_the_truth(name: str, solver: Backend) -> None:
    if name == "pulp:gurobi" or name == "pulp:cplex":
        pytest.skip("too large for their free licences")
    rng = np.random.default_rng(0)
    n = 700
    A = rng.random((n, n)) * (rng.random((n, n)) < 0.1) - 0.02
    inside = rng.random(n)
    c = -(A.T @ rng.random(n)) - 0.1 * rng.random(n)
    p = lp(c, A, (np.full(n, -INF), A @ inside + 0.1), (np.zeros(n), np.full(n, 2.0)))
    s = solver.solve(p, time_limit=0.05)
    assert s.status in (Status.LIMIT, Status.OPTIMAL), s  # a machine may be quick
    assert p.violation(inside) == 0.0
    assert s.bound <= p.objective(inside)
    assert s.bound < INF


# --------------------------------------------------------------------------------------------- second-order cones


def test_linear_objective_over_a_ball(name: str, soc: Backend) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        p = int(rng.integers(2, 8))
        scale, shift, r = rng.uniform(0.2, 3.0, p), rng.normal(size=p), rng.normal(size=p)
        exact = 0.5 - r @ (shift / scale) - 2.0 * np.linalg.norm(r / scale)
        free, none = np.full(p, INF), np.zeros(0)
        balls = (NormBall(np.arange(p), scale, shift, 2.0),)
        problem = Problem(r, 0.5, np.zeros((0, p)), none, none, -free, free, np.zeros(p, dtype=bool), balls)
        s = soc.solve(problem)
        assert s.status is Status.OPTIMAL, s
        assert s.objective == pytest.approx(exact, abs=1e-4 if name in LOOSE else 1e-6)
        assert exact - 1e-6 <= s.bound <= exact + 1e-9


def test_ball_box_and_rows(name: str, soc: Backend) -> None:
    """The minimum of -(x + y) over the unit disc with x <= 0.6 is at (0.6, 0.8); a row then cuts y to 0.5."""

    def disc(y_most: float) -> Problem:
        return problem_of(
            [-1.0, -1.0], 0.0, [[0.0, 2.0]], [-INF], [2 * y_most], [-INF, -INF], [0.6, INF], [False, False],
            (NormBall([0, 1], [1.0, 1.0], [0.0, 0.0], 1.0),),  # type: ignore[arg-type]
        )  # fmt: skip

    tolerance = 1e-4 if name in LOOSE else 1e-6
    for y_most, minimum in ((5.0, -(0.6 + 0.8)), (0.5, -(0.6 + 0.5))):
        s = soc.solve(disc(y_most))
        assert s.status is Status.OPTIMAL, s
        assert s.objective == pytest.approx(minimum, abs=tolerance)
        assert minimum - tolerance <= s.bound <= minimum + 1e-9
        assert s.row_dual is not None
        assert (s.row_dual <= tolerance).all()


def test_a_ball_outside_the_box_is_infeasible_or_no_answer(soc: Backend) -> None:
    ball = NormBall([0, 1], [1.0, 1.0], [-3.0, -3.0], 1.0)  # type: ignore[arg-type]
    p = problem_of([1.0, 1.0], 0.0, [[1.0, 1.0]], [-INF], [3.0], [0.0, 0.0], [1.0, 1.0], [False, False], (ball,))
    s = soc.solve(p)
    assert s.status in (Status.INFEASIBLE, Status.ERROR)
    assert s.x is None


# ------------------------------------------------------------------------------------------------- refused input


def test_what_a_backend_does_not_declare_it_refuses(solver: Backend) -> None:
    ball = NormBall([0], [1.0], [0.0], 1.0)  # type: ignore[arg-type]
    p = problem_of([1.0], 0.0, [[1.0]], [0.0], [1.0], [0.0], [2.0], [True], (ball,))
    if not solver.capabilities.soc:
        with pytest.raises(ProblemError, match="cvxpy:clarabel"):
            solver.solve(p.relaxed())
    if not solver.capabilities.mip:
        with pytest.raises(ProblemError, match="integer columns"):
            solver.solve(p)


def test_numbers_that_solvers_would_change_are_refused(solver: Backend) -> None:
    def one(a: float = 1.0, c: float = 1.0, upper: float = 2.0) -> Problem:
        return lp([c], [[1.0], [a]], ([0.0, -INF], [1.0, 2.0]), ([0.0], [upper]))

    for p, message in (
        (one(a=1e-12), r"A\[1, 0\] is 1e-12"),
        (one(c=1e20), r"c\[0\] is 1e\+20"),
        (one(upper=1e21), r"col_upper\[0\] is 1e\+21"),
    ):
        with pytest.raises(ProblemError, match=message):
            solver.solve(p)


def test_limits_that_are_no_numbers_are_refused(solver: Backend) -> None:
    p = lp([1.0], [[1.0]], ([0.0], [1.0]), ([0.0], [2.0]))
    with pytest.raises(ProblemError, match="time_limit is NaN"):
        solver.solve(p, time_limit=math.nan)
    with pytest.raises(ProblemError, match="decide_at is NaN"):
        solver.solve(p, decide_at=math.nan)


def test_decide_at_never_claims_the_wrong_side(name: str, mip: Backend) -> None:
    rng = np.random.default_rng(3)
    decided = 0
    while decided < trials(name, 10, 2):
        p, minimum = small_mip(rng)
        if not math.isfinite(minimum):
            continue
        decided += 1
        for t in (minimum - 1.0, minimum + 1.0):
            s = mip.solve(p, decide_at=t)
            assert s.status in (Status.DECIDED, Status.OPTIMAL)
            assert (s.bound > t, s.objective <= t) == (minimum > t, minimum <= t)
            assert_claims_nothing_wrong(s, minimum)


def test_lps_are_solved_to_the_end_whatever_is_to_be_decided(solver: Backend) -> None:
    p = lp([1.0, 0.0], [[1.0, 1.0]], ([1.0], [2.0]), ([0.0, 0.0], [3.0, 0.5]))
    s = solver.solve(p, decide_at=5.0)
    assert s.status is Status.OPTIMAL
    assert s.objective == pytest.approx(0.5, abs=1e-4)
