"""A solution's status, objective and bound say three things, which agree only where they have to."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from corgi_solvers import Highs, Solution, Status
from solver_problems import INF, problem_of


def solved(c: list[float], lower: float, upper: float, whole: bool = False) -> Solution:
    """min c x + 7 with ``lower <= x1 + x2 <= upper`` in a box of 5, by HiGHS."""
    problem = problem_of(c, 7.0, [[1.0, 1.0]], [lower], [upper], [0.0, 0.0], [5.0, 5.0], [whole, whole])
    return Highs().solve(problem)


def test_an_optimum_has_a_point_a_value_and_a_bound_that_meet() -> None:
    found = solved([1.0, 2.0], 1.5, INF)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(8.5) and found.bound == pytest.approx(8.5)
    assert found.x is not None and found.row_dual is not None
    np.testing.assert_allclose(found.x, [1.5, 0.0], atol=1e-9)
    np.testing.assert_allclose(found.row_dual, [1.0], atol=1e-9)  # >= 0 at a lower side


def test_multipliers_at_an_upper_side_are_negative_and_a_mip_has_none() -> None:
    found = solved([-1.0, -2.0], -INF, 1.5)
    assert found.row_dual is not None
    np.testing.assert_allclose(found.row_dual, [-2.0], atol=1e-9)
    whole = solved([-1.0, -2.0], -INF, 1.5, whole=True)
    assert whole.row_dual is None and whole.objective == pytest.approx(5.0)


def test_what_has_no_point_has_an_infinite_value_and_every_bound() -> None:
    found = solved([1.0, 1.0], 11.0, INF)
    assert found.status is Status.INFEASIBLE
    assert (found.objective, found.bound, found.x) == (math.inf, math.inf, None)


def test_it_cannot_be_changed_afterwards() -> None:
    found = solved([1.0, 2.0], 1.5, INF)
    with pytest.raises(FrozenInstanceError):
        found.bound = 9.0  # type: ignore[misc]
    assert found.report.solver == "highs" and found.report.raw_status == "kOptimal" and found.report.seconds >= 0
