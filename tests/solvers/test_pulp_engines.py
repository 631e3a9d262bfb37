"""PuLP's model of a problem, and the engines that are here: nothing is lost on the way there or back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from corgi_solvers import Status
from corgi_solvers.pulp_engines import ENGINES, Limits, Model
from solver_problems import INF, problem_of, random_lp, scipy_minimum, small_mip, usable

pulp = pytest.importorskip("pulp")

LIMITS = Limits(60.0, 1, 0.0, 1e-9)
HERE = [name for name in ENGINES if usable(f"pulp:{name}")]


def held(model: Model, x: np.ndarray) -> bool:
    """Whether PuLP's own constraints hold at a point of the problem."""
    values = dict(zip(model.columns, x[[int(name[1:]) for name in model.columns]], strict=True))
    for constraint in (
        model.lp.constraints.values() if isinstance(model.lp.constraints, dict) else model.lp.constraints()
    ):
        total = constraint.constant + sum(a * values[v.name] for v, a in constraint.items())
        ok = {
            pulp.LpConstraintEQ: abs(total) < 1e-9,
            pulp.LpConstraintLE: total < 1e-9,
            pulp.LpConstraintGE: total > -1e-9,
        }
        if not ok[constraint.sense]:
            return False
    return True


@pytest.mark.parametrize("seed", range(5))
def test_pulps_rows_hold_where_the_problems_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = random_lp(rng, 5, 4)
    model, seen = Model(p), set()
    low, high = np.maximum(p.col_lower, -3), np.minimum(p.col_upper, 3)
    activity = [p.A @ x for x in low + rng.random((200, 4)) * (high - low)]
    for x, a in zip(low + np.random.default_rng(seed).random((200, 4)) * (high - low), activity, strict=True):
        a = p.A @ x
        inside = bool(((a >= p.row_lower - 1e-12) & (a <= p.row_upper + 1e-12)).all())
        assert held(model, x) == inside
        seen.add(inside)


def test_columns_that_nothing_reads_come_back_as_near_to_zero_as_they_may_be() -> None:
    A = [[1.0, 0.0, 0.0, 0.0]]
    p = problem_of(
        [1.0, 0.0, 0.0, 0.0],
        0.0,
        A,
        [2.0],
        [INF],
        [0.0, 3.0, -5.0, 1.5],
        [9.0, 4.0, -2.0, 6.0],
        [False, False, False, True],
    )
    model = Model(p)
    assert "x0" in model.columns and "x1" not in model.columns and "x2" not in model.columns
    assert model.point([2.0] * len(model.columns)).tolist() == [2.0, 3.0, -2.0, 2.0]


def test_the_multipliers_of_a_two_sided_row_are_added_up() -> None:
    p = problem_of([1.0], 0.0, [[1.0], [2.0], [3.0]], [0.0, 1.0, 5.0], [2.0, INF, 5.0], [0.0], [9.0], [False])
    model = Model(p)
    of = [row for _, row in model.rows]
    assert of == [0, 0, 1, 2]
    assert model.row_dual([0.5, -2.0, 3.0, 4.0]).tolist() == [-1.5, 3.0, 4.0]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("seed", range(3))
def test_an_engines_minimum_is_that_of_enumeration_or_scipy(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mip, best = small_mip(rng)
    lp = random_lp(rng, 4, 5)
    _, least = scipy_minimum(lp)
    for p, expected in ((mip, best), (lp, least)):
        if math.isinf(expected):
            continue
        found = ENGINES[name](Model(p), LIMITS)
        assert found.status is Status.OPTIMAL
        assert found.x is not None
        assert p.objective(found.x) == pytest.approx(expected, abs=1e-5)
        if p.is_mip:
            assert found.row_dual is None
            assert found.bound + p.offset <= expected + 1e-6
        else:
            assert found.row_dual is not None
            np.testing.assert_array_less(-1e-6, found.row_dual[np.isinf(p.row_upper)])
            np.testing.assert_array_less(found.row_dual[np.isinf(p.row_lower)], 1e-6)


@pytest.mark.parametrize("name", HERE)
def test_an_engine_tells_infeasible(name: str) -> None:
    p = problem_of([1.0], 0.0, [[1.0], [1.0]], [3.0, -INF], [INF, 2.0], [0.0], [9.0], [False])
    assert ENGINES[name](Model(p), LIMITS).status is Status.INFEASIBLE
