"""The linear program of a phase pattern: below what the pattern allows, exact where nothing is open."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from corgi_solvers import Cvxpy, Highs, Status
from encoding import CASES, scipy_lp
from encoding import exact_setting as setting
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.leaf import leaf
from corgi_opt.encode.program import Program

every_lp = pytest.mark.parametrize(
    ("case", "norm"), [(case, "inf") for case in CASES] + [(case, "1") for case in ("plain", "residual", "pooled")]
)


@functools.cache
def seen(case: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Pre-activations (N, U) at images of the region, and the output there (N,), in units of its scale."""
    at, program = setting(case, norm)
    x = torch.cat([at.ball.project(image[None]) for image in at.points(60)])
    z = np.stack([at.scaled(program, image)[1] for image in x])
    return z, at.pair_at(x) / program.scales[0]


def patterns(case: str, norm: str, count: int) -> list[np.ndarray]:
    """Patterns that images have: of all their units, or of most."""
    generator, (z, _) = np.random.default_rng(0), seen(case, norm)
    shares = (1.0, 0.6)
    return [
        (np.where(z[k] > 0, 1, -1) * (generator.random(z.shape[1]) < shares[k % 2])).astype(np.int8)
        for k in range(count)
    ]


def least_of(program: Program, phases: np.ndarray) -> float:
    """The exact minimum under a pattern, by scipy: the MILP with binaries fixed; inf where no image has it."""
    problem, binaries = big_m(program), slice(program.inputs + program.units, program.inputs + 2 * program.units)
    low, high = problem.col_lower.copy(), problem.col_upper.copy()
    low[binaries], high[binaries] = phases > 0, phases >= 0
    answer = milp(
        problem.c,
        integrality=problem.integrality.astype(int),
        bounds=Bounds(low, high),
        constraints=LinearConstraint(problem.A, problem.row_lower, problem.row_upper),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status in (0, 2), answer.message
    return float(answer.fun) + problem.offset if answer.status == 0 else np.inf


@every_lp
def test_optima_are_those_of_the_pattern_or_below(case, norm):
    _, program = setting(case, norm)
    z, values = seen(case, norm)
    for phases in patterns(case, norm, 2):
        exact = least_of(program, phases)
        allowed = ~(phases * z < 0).any(axis=1)
        assert exact <= values[allowed].min() + 1e-6
        low, high = (scipy_lp(leaf(program, 0, phases, penalty)) for penalty in (1.0, 1e3))
        assert low - 1e-6 <= high <= exact + 1e-6 * max(1.0, abs(exact))
        if phases.all():
            assert high == pytest.approx(exact, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_image_of_an_l2_ball_that_has_the_pattern_is_below(case):
    _, program = setting(case, "2")
    z, values = seen(case, "2")
    for phases in patterns(case, "2", 2):
        solution = Cvxpy().solve(leaf(program, 0, phases, 1e3))
        assert solution.status in (Status.OPTIMAL, Status.LIMIT)
        assert solution.bound <= values[~(phases * z < 0).any(axis=1)].min() + 1e-9


@every_lp
def test_an_image_is_a_point_of_its_pattern(case, norm):
    at, program = setting(case, norm)
    x = at.ball.center[0] + 0.002 * (at.points(1)[0] - at.ball.center[0])
    point = at.point(program, x)
    _, z = at.scaled(program, x)
    distances = np.abs(program.reach * point[: program.inputs] + program.shift) if norm == "1" else np.zeros(0)
    whole = np.concatenate([point, np.zeros(program.units), distances])
    for kept in (np.ones(program.units), np.arange(program.units) % 2):
        phases = (np.where(z > 0, 1, -1) * kept).astype(np.int8)
        problem = leaf(program, 0, phases, 10.0)
        assert problem.violation(whole) < 1e-7
        assert problem.objective(whole) == pytest.approx(at.pair_at(x[None])[0] / program.scales[0], rel=1e-7, abs=1e-7)
        # a unit whose phase is not the image's pays for it
        broken = phases.copy()
        broken[np.abs(z).argmax()] = -np.sign(z[np.abs(z).argmax()])
        assert leaf(program, 0, broken, 10.0).violation(whole) > 1e-3


@every_lp
def test_a_pattern_that_no_image_has_rises_with_its_penalty(case, norm):
    _, program = setting(case, norm)
    generator, risen = np.random.default_rng(1), 0
    for _ in range(4):
        phases = generator.choice(np.array([-1, 1], dtype=np.int8), program.units)
        if least_of(program, phases) < np.inf:
            continue
        optima = [scipy_lp(leaf(program, 0, phases, penalty)) for penalty in (1.0, 1e3, 1e5)]
        assert optima[0] < optima[1] < optima[2]
        risen += optima[2] > 10 * max(1.0, abs(optima[0]))
    assert risen >= 1


def test_other_outputs_have_leaves_of_their_own():
    at, _ = setting("pooled")
    program = at.program(at.difference, *at.pixels(at.pair[0]))
    x = at.points(1)[0]
    whole = np.concatenate([at.point(program, x), np.zeros(program.units)])
    phases = np.zeros(program.units, dtype=np.int8)
    expected = [at.pair_at(x[None])[0], float(at.net.cams(x[None], 0).flatten()[at.pair[0]])]
    for goal, value in enumerate(expected / program.scales):
        assert leaf(program, goal, phases, 10.0).objective(whole) == pytest.approx(value, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("moved", [-0.01, 0.01])
def test_what_clearing_may_have_moved_is_allowed_for(moved):
    """At a point where all rows are tight, pre-activations may be off by as much as ``slack`` says, and no more."""
    _, program = setting("pooled")
    units = program.units
    t = np.random.default_rng(0).uniform(-1, 1, program.inputs)
    point = np.concatenate([t, np.zeros(2 * units)])
    constants = moved - program.rows @ point[: program.inputs + units]
    tight = replace(program, constants=constants, lower=np.zeros(units), upper=np.ones(units))
    for phase in (-1, 0, 1):
        phases = np.full(units, phase, dtype=np.int8)
        allowed, short = (replace(tight, slack=np.full(units, slack)) for slack in (0.01, 0.009))
        assert leaf(allowed, 0, phases, 10.0).violation(point) < 1e-12
        if (phase, moved) != (-1, -0.01):  # one that is off may be as low as it likes
            assert leaf(short, 0, phases, 10.0).violation(point) == pytest.approx(0.001)


def test_a_leaf_has_a_point_whatever_the_phases():
    """No solver's "infeasible" has to be believed, says the module."""
    generator = np.random.default_rng(2)
    for case in CASES:
        _, program = setting(case)
        for _ in range(5):
            phases = generator.choice(np.array([-1, 0, 1], dtype=np.int8), program.units)
            assert Highs().solve(leaf(program, 0, phases, 10.0)).status is Status.OPTIMAL


def test_a_leaf_has_a_point_where_phases_contradict_bounds():
    """One input t. a = relu(t + 0.98) and b = relu(0.98 - t) are nearly always on; c = relu(a - t - 0.99) and
    d = relu(b + t - 0.99) are nearly zero. With a and b off, c's bounds ask for t near -1 and d's for t near 1."""
    width = np.array([2.0, 2.0, 0.02, 0.02])
    rows = np.array([[1, 0, 0, 0, 0], [-1, 0, 0, 0, 0], [-1, 2, 0, 0, 0], [1, 0, 2, 0, 0]]) / width[:, None]
    constants = np.array([0.98, 0.98, -0.99, -0.99]) / width
    base = setting("plain")[1]
    program = replace(
        base,
        places=np.zeros((1, 3), dtype=np.int64),
        middle=np.zeros(1),
        radius=np.ones(1),
        shift=np.zeros(1),
        reach=np.ones(1),
        rows=sparse.csr_array(rows),
        constants=constants,
        slack=np.zeros(4),
        lower=np.array([-0.02, -0.02, -0.01, -0.01]) / width,
        upper=np.array([1.98, 1.98, 0.01, 0.01]) / width,
        outputs=sparse.csr_array(np.ones((1, 5))),
        units_at=np.arange(4),
    )
    for t in np.linspace(-1, 1, 401):  # the bounds are true
        v = np.array([t, 0, 0, 0, 0])
        for unit in range(4):
            z = rows[unit] @ v + constants[unit]
            assert program.lower[unit] - 1e-9 <= z <= program.upper[unit] + 1e-9
            v[1 + unit] = max(z, 0)
    phases = np.array([-1, -1, 0, 0], dtype=np.int8)
    assert Highs().solve(leaf(program, 0, phases, 10.0)).status is Status.OPTIMAL
