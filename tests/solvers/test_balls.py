"""Balls: what they accept, their violation, and the bound they add to any multipliers, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from corgi_solvers import Highs, NormBall, Problem, ProblemError, dual_objective
from patience import mostly_slow
from scipy.optimize import minimize

INF = math.inf


def over(n: int, *balls: NormBall, c: object = None, box: float = INF) -> Problem:
    """min c'x over balls and the box [-box, box]^n, without rows."""
    costs = np.ones(n) if c is None else c
    none = np.zeros(0)
    side = np.full(n, box)
    return Problem(costs, 0.5, np.zeros((0, n)), none, none, -side, side, np.zeros(n, bool), balls)  # type: ignore[arg-type]


def ball(columns: object, radius: float = 1.0, scale: object = None, shift: object = None) -> NormBall:
    p = np.size(columns)  # type: ignore[arg-type]
    return NormBall(
        columns,  # type: ignore[arg-type]
        np.ones(p) if scale is None else scale,  # type: ignore[arg-type]
        np.zeros(p) if shift is None else shift,  # type: ignore[arg-type]
        radius,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ball([[0, 1]]), "columns has shape"),
        (lambda: ball([]), "columns has shape"),
        (lambda: ball([0.0, 1.0]), "columns has .* dtype float64"),
        (lambda: ball([0, -1]), "negative or repeated"),
        (lambda: ball([1, 1]), "negative or repeated"),
        (lambda: ball([0, 1], scale=[1.0]), r"scale has shape \(1,\)"),
        (lambda: ball([0, 1], scale=[1.0, 0.0]), r"scale\[1\] is zero"),
        (lambda: ball([0, 1], scale=[1.0, INF]), "scale: entry 1 is inf"),
        (lambda: ball([0, 1], shift=[math.nan, 0.0]), r"shift\[0\] is NaN"),
        (lambda: ball([0], radius=-1.0), "radius is -1.0"),
        (lambda: ball([0], radius=INF), "radius is inf"),
        (lambda: over(2, ball([0, 2])), r"balls\[0\] holds column 2; the problem has 2 columns"),
    ],
)
def test_malformed_balls_are_refused_with_their_place(make: object, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()  # type: ignore[operator]


def test_balls_count_in_violation_and_survive_changes() -> None:
    p = over(3, ball([0, 2], scale=[1.0, 2.0], shift=[0.0, 1.0]), ball([1], radius=4.0))
    assert p.is_soc
    assert p.violation([3.0, 0.0, 1.5]) == pytest.approx(4.0)  # |(3, 4)| = 5
    assert p.violation([0.0, 7.0, 0.0]) == 3.0
    assert p.violation([0.0, 4.0, -0.5]) == 0.0
    for other in (p.relaxed(), p.with_objective(np.zeros(3), 0.0)):
        assert other.balls == p.balls
    with pytest.raises(ValueError, match="read-only"):
        p.balls[0].scale[0] = 2.0


def test_highs_names_the_backend_that_takes_balls() -> None:
    with pytest.raises(ProblemError, match="cvxpy:clarabel"):
        Highs().solve(over(2, ball([0, 1])))


def test_the_bound_over_a_ball_is_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = int(rng.integers(1, 8))
        scale, shift, r = rng.uniform(0.1, 3.0, p) * rng.choice([-1, 1], p), rng.normal(size=p), rng.normal(size=p)
        radius = float(rng.choice([0.0, 1e-3, 1.0, 50.0]))
        exact = 0.5 - r @ (shift / scale) - radius * np.linalg.norm(r / scale)
        problem = over(p, NormBall(np.arange(p), scale, shift, radius), c=r)
        assert dual_objective(problem, []) == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_the_bound_over_a_ball_in_a_box_is_the_minimum() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        n = int(rng.integers(2, 7))
        r, centre = rng.normal(size=n), rng.uniform(-0.9, 0.9, n)
        problem = over(n, ball(np.arange(n), radius=0.8, shift=-centre), c=r, box=1.0)
        bound = dual_objective(problem, [])
        best = minimize(
            lambda x, r=r: r @ x,
            centre,
            jac=lambda _, r=r: r,
            bounds=[(-1, 1)] * n,
            constraints={
                "type": "ineq",
                "fun": lambda x, centre=centre: 0.64 - np.square(x - centre).sum(),
                "jac": lambda x, centre=centre: -2 * (x - centre),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert bound == pytest.approx(best.fun + 0.5, abs=1e-6)
        inside = centre + 0.8 * _directions(rng, 2000, n)
        inside = inside[(np.abs(inside) <= 1).all(axis=1)]
        assert (inside @ r + 0.5 >= bound - 1e-12).all()


@pytest.mark.parametrize("trials", mostly_slow([16, 60], [16]))
def test_any_multipliers_bound_a_problem_with_balls_from_below(trials: int) -> None:
    rng = np.random.default_rng(2)
    for trial in range(trials):
        m, n = int(rng.integers(1, 5)), int(rng.integers(2, 7))
        x0 = rng.uniform(-1, 1, n)
        A = rng.normal(size=(m, n))
        reach = rng.uniform(0.1, 1.0)
        balls = [ball(np.arange(n // 2 + 1), radius=reach, shift=-x0[: n // 2 + 1])]
        if trial % 2:  # overlapping: only the first may count in full
            balls.append(ball(np.arange(1, n), radius=reach, shift=-x0[1:]))
        box = np.full(n, INF if trial % 2 else 1.0)
        c = rng.normal(size=n)
        none = np.full(m, -INF)
        p = Problem(c, 0.0, A, none, A @ x0 + 0.3, -box, box, np.zeros(n, dtype=bool), tuple(balls))
        points = x0 + reach * rng.random((3000, 1)) * _directions(rng, 3000, n)
        feasible = [x for x in points if p.violation(x) == 0.0]
        assert feasible
        lowest = min(p.objective(x) for x in feasible)
        for scale in (0.0, 0.3, 3.0):
            assert dual_objective(p, -scale * rng.random(m)) <= lowest + 1e-12


def test_what_is_not_finite_or_empty_stays_sound() -> None:
    half = over(2, ball([0]), c=[1.0, 1.0])
    assert dual_objective(half, []) == -INF  # column 1 is free
    assert dual_objective(over(2, ball([0]), c=[1.0, 1e-12]), [], tolerance=1e-9) == -0.5
    far = over(1, ball([0], shift=[-5.0]), box=1.0)  # the ball is outside the box: infeasible, any bound holds
    assert dual_objective(far, []) >= -0.5
    huge = over(2, ball([0, 1], scale=[1e-200, 1e200], radius=1e200), c=[1e200, 1.0])
    assert dual_objective(huge, []) == -INF


def _directions(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    raw = rng.normal(size=(count, n))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)
