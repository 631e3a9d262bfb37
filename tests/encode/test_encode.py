"""The triangle and the big-M encoding against the torch forward, scipy's solvers and brute force."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from corgi_solvers import Highs, Status
from encoding import CASES, CUT_CASES, Setting, scipy_lp, scipy_milp
from patience import diagonal, mostly_slow
from relaxing import pairs

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.triangle import triangle

setting = functools.cache(Setting.case)
cut_setting = functools.cache(lambda index, planes: Setting.with_cuts(*CUT_CASES[index], planes=planes))


def crown(at: Setting) -> float:
    return float(pairs(at.net, at.whole, 0, torch.tensor([at.pair]))[0])


@pytest.mark.parametrize("case", CASES)
def test_fixed_inputs_satisfy_both_encodings_with_the_torch_objective(case):
    at = setting(case)
    program = at.program()
    assert program.units > 0
    lp, mip = triangle(program), big_m(program)
    assert not lp.is_mip
    assert int(mip.integrality.sum()) == program.units
    for x in at.points(20):
        expected = at.pair_at(x[None])[0] / program.scales[0]
        assert lp.violation(at.point(program, x)) < 1e-7
        assert mip.violation(at.binary_point(program, x)) < 1e-7
        assert lp.objective(at.point(program, x)) == pytest.approx(expected, rel=1e-7, abs=1e-7)
        assert mip.objective(at.binary_point(program, x)) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_with_the_input_fixed_the_milp_leaves_no_choice(case):
    """Whatever is minimised: big-M rows are not only satisfied by the network's values, but by nothing else."""
    at = setting(case)
    program = at.program()
    problem, n = big_m(program), program.inputs
    generator = np.random.default_rng(0)
    for x in at.points(3):
        point = at.binary_point(program, x)
        lower, upper = problem.col_lower.copy(), problem.col_upper.copy()
        lower[:n] = upper[:n] = point[:n]
        fixed = type(problem)(
            generator.normal(size=problem.n) * (np.arange(problem.n) < n + program.units),
            0.0,
            problem.A,
            problem.row_lower,
            problem.row_upper,
            lower,
            upper,
            problem.integrality,
        )
        found = Highs().solve(fixed)
        assert found.status is Status.OPTIMAL and found.x is not None
        np.testing.assert_allclose(found.x[: n + program.units], point[: n + program.units], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_triangle_is_the_hull_of_each_unit(case):
    """Rows of a unit alone: at z in [l, u], s may be anything from relu(z) to the chord."""
    at = setting(case)
    program = at.program()
    lp = triangle(program)
    rows, n = lp.A.toarray(), program.inputs
    for unit in range(program.units):
        own = rows[[unit, program.units + unit]]
        # move s alone from an image: the room that the two rows and its bounds leave is that of the triangle
        x = at.points(1, unit)[0]
        point = at.point(program, x)
        z = float((program.rows[[unit]] @ point)[0]) + program.constants[unit]
        rest = point.copy()
        rest[n + unit] = 0.0
        sides = (lp.row_upper[[unit, program.units + unit]] - own @ rest) / own[:, n + unit]
        l, u = program.lower[unit], program.upper[unit]
        assert max(0.0, sides[0]) == pytest.approx(max(0.0, z), abs=1e-7)
        assert sides[1] == pytest.approx(u * (z - l), abs=1e-7)
        assert (lp.col_lower[n + unit], lp.col_upper[n + unit]) == (0.0, u)


@pytest.mark.parametrize("case", mostly_slow(CASES, CASES.keys() - {"deep"}))
def test_optima_are_in_order_and_attained(case):
    at = setting(case)
    program = at.program()
    lp, exact = (Highs().solve(encoding(program)) for encoding in (triangle, big_m))
    assert lp.status is exact.status is Status.OPTIMAL
    scale = program.scales[0]
    sampled = float(at.pair_at(at.points(500, 4)).min())
    assert crown(at) - 1e-6 <= lp.bound * scale <= exact.bound * scale + 1e-6
    assert exact.objective * scale <= sampled + 1e-6
    # the minimiser, run through the network, attains the optimum
    assert exact.x is not None
    witness = program.image(exact.x, at.ball.center)
    assert float((witness - at.ball.center).abs().max()) <= at.ball.eps + 1e-12
    assert at.ball.contains(at.ball.project(witness))
    assert at.pair_at(witness)[0] == pytest.approx(exact.objective * scale, abs=1e-5)


def test_some_cases_tell_lp_milp_and_crown_apart():
    gaps = []
    for case in ("residual", "pooled"):
        at = setting(case)
        program = at.program()
        lp, exact = (Highs().solve(e(program)).objective * program.scales[0] for e in (triangle, big_m))
        gaps.append((lp - crown(at), exact - lp))
    assert max(g for g, _ in gaps) > 1e-3
    assert max(g for _, g in gaps) > 1e-3


@pytest.mark.parametrize("case", ["plain", "residual", "pooled"])
def test_scipy_agrees(case):
    program = setting(case).program()
    lp, mip = triangle(program), big_m(program)
    assert Highs().solve(lp).objective == pytest.approx(scipy_lp(lp), abs=1e-6)
    assert Highs().solve(mip).objective == pytest.approx(scipy_milp(mip), abs=1e-5)


@pytest.mark.parametrize("case", mostly_slow(["plain", "residual", "pooled"], ["residual"]))
def test_other_outputs_do_not_move_the_optimum_of_the_first(case):
    """They bring units of their own, but say nothing about the first."""
    at = setting(case)
    count = at.net.map_shape[0] * at.net.map_shape[1]
    others = [e for e in at.pixels(*range(0, count, 3)) if len(e.columns)]
    alone, beside = at.program(), at.program(at.difference, *others)
    assert beside.units > alone.units
    for encoding in (triangle, big_m):
        expected, found = (Highs().solve(encoding(p)).objective * p.scales[0] for p in (alone, beside))
        assert found == pytest.approx(expected, abs=1e-6)
    first, second = (at.program(*e) for e in ((at.difference, others[0]), (others[0], at.difference)))
    optima = [Highs().solve(big_m(p)).objective * p.scales[0] for p in (first, second)]
    assert optima[0] == pytest.approx(Highs().solve(big_m(alone)).objective * alone.scales[0], abs=1e-6)
    expected = at.program(others[0])
    assert optima[1] == pytest.approx(Highs().solve(big_m(expected)).objective * expected.scales[0], abs=1e-6)


@pytest.mark.parametrize("case", ["plain", "pooled"])
def test_eps_zero_gives_the_value_at_the_image(case):
    at = setting(case, eps=0.0)
    program = at.program()
    assert program.units == 0
    for encoding in (triangle, big_m):
        value = Highs().solve(encoding(program)).objective * program.scales[0]
        assert value == pytest.approx(at.pair_at(at.ball.center)[0], abs=1e-9)


TINY: list[list[Any]] = [[*range(4)], [None, (0.0, 1.0)]]


@pytest.mark.parametrize(("seed", "clip"), mostly_slow(itertools.product(*TINY), diagonal(*TINY)[:2]))
def test_the_milp_is_brute_force(seed, clip):
    at, expected = Setting.tiny(seed, 0.3, clip=clip)
    program = at.program()
    lp, exact = (Highs().solve(encoding(program)) for encoding in (triangle, big_m))
    assert exact.objective * program.scales[0] == pytest.approx(expected, abs=1e-6)
    assert lp.objective * program.scales[0] <= expected + 1e-6


# --- direct planes of pooling windows ------------------------------------------------------------------------


@pytest.mark.parametrize("index", mostly_slow(range(len(CUT_CASES)), [0, 2, 3]))
def test_cuts_put_the_lp_between_crown_and_the_milp(index):
    at, bare = cut_setting(index, True), cut_setting(index, False)
    with_cuts, without = at.program(), bare.program()
    assert with_cuts.cuts.shape[0] > 0
    problem, scale = triangle(with_cuts), with_cuts.scales[0]
    assert problem.m == 2 * with_cuts.units + with_cuts.cuts.shape[0]
    lp, plain, exact = (Highs().solve(p) for p in (problem, triangle(without), big_m(without)))
    assert all(s.status is Status.OPTIMAL for s in (lp, plain, exact))
    assert crown(at) - 1e-6 <= lp.bound * scale <= exact.bound * without.scales[0] + 1e-6
    # the planes say something that the triangles do not
    assert lp.bound * scale > plain.bound * without.scales[0] + 1e-5
    assert lp.objective == pytest.approx(scipy_lp(problem), abs=1e-6)
    if index in (1, 3):
        return  # larger ones
    # and nothing that binaries do not say: units that only cuts read leave the exact optimum as it is
    assert Highs().solve(big_m(with_cuts)).objective * scale == pytest.approx(
        exact.objective * without.scales[0], abs=1e-6
    )


def test_without_cuts_an_lp_can_be_below_crown():
    """CROWN uses the direct planes. An LP that did not have them would break the order of the methods."""
    short = []
    for index in range(len(CUT_CASES)):
        bare = cut_setting(index, False).program()
        lp = Highs().solve(triangle(bare)).bound * bare.scales[0]
        short.append(crown(cut_setting(index, True)) - lp)
    assert max(short) > 1e-4
