"""Every backend is what the protocol says, and what it declares about itself is what it takes."""

from __future__ import annotations

import inspect

import pytest
from corgi_solvers import Backend, Capabilities, ProblemError, SolverError, Status, backend, names
from solver_problems import INF, ball_of, problem_of, skip_without

BOX = ([0.0, 0.0], [5.0, 5.0])
PROBLEMS = {
    "lp": problem_of([1.0, 1.0], 0.0, [[1.0, 2.0]], [1.0], [INF], *BOX, [False, False]),  # minimum 0.5
    "mip": problem_of([1.0, 1.0], 0.0, [[2.0, 2.0]], [1.0], [INF], *BOX, [True, True]),  # minimum 1
    "soc": problem_of(
        [1.0, 1.0],
        0.0,
        [[1.0, 2.0]],
        [1.0],
        [INF],
        *BOX,
        [False, False],
        (ball_of([0, 1], [1.0, 1.0], [0.0, 0.0], 1.0),),
    ),  # minimum 0.5
}
MINIMUM = {"lp": 0.5, "mip": 1.0, "soc": 0.5}


@pytest.mark.parametrize("name", names())
def test_it_has_what_the_protocol_asks(name: str) -> None:
    found = backend(name)
    assert isinstance(found.name, str) and isinstance(found.capabilities, Capabilities)
    assert isinstance(found.available(), bool)
    for method in ("available", "require", "solve"):
        asked = dict(inspect.signature(getattr(Backend, method)).parameters)
        del asked["self"]
        has = inspect.signature(getattr(found, method)).parameters
        assert {n: (p.kind, p.default) for n, p in asked.items()} == {n: (p.kind, p.default) for n, p in has.items()}


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", ["highs", "pulp:cbc", "cvxpy:clarabel"])
def test_it_takes_what_it_says_and_refuses_the_rest(name: str, kind: str) -> None:
    skip_without(name)
    solver = backend(name)
    if not getattr(solver.capabilities, kind):
        with pytest.raises((ProblemError, SolverError)):
            solver.solve(PROBLEMS[kind])
        return
    found = solver.solve(PROBLEMS[kind])
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(MINIMUM[kind], abs=1e-6)
    assert found.bound == pytest.approx(MINIMUM[kind], abs=1e-5)
