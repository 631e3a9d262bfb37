"""Programs over an L1 ball: which images satisfy the rows, and that optima are those of the ball."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from corgi_solvers import Highs, Status
from encoding import CASES, Setting, scipy_lp, scipy_milp
from patience import mostly_slow
from relaxing import pairs

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.norms import within_ball
from corgi_opt.encode.triangle import triangle
from corgi_opt.problem.region import Ball

TIMES = {"plain": 6.0, "residual": 6.0, "pooled": 5.0, "overlapping pool": 6.0, "everything": 25.0, "deep": 4.0}
"""How much further than each input of the box alone all of them together may go."""


@functools.cache
def setting(case: str) -> Setting:
    return Setting.case(case, "1", CASES[case][3] * TIMES[case])


def images(at: Setting, count: int) -> torch.Tensor:
    """Images (N, C, H, W) of the ball: some move a few inputs far, some all of them a little; on its border, or not."""
    generator = torch.Generator().manual_seed(1)
    shape, center = at.ball.center.shape[1:], at.ball.center[0]
    moved = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    few = torch.rand(count, *shape, generator=generator, dtype=torch.float64) < 3 / moved[0].numel()
    moved[: count // 2] *= few[: count // 2]
    moved *= at.ball.eps / moved.abs().flatten(1).sum(dim=1).clamp(min=1e-12)[:, None, None, None]
    moved[::3] *= torch.rand(len(moved[::3]), 1, 1, 1, generator=generator, dtype=torch.float64)
    found = (center + moved).clamp(0, 1)  # no farther from a centre in [0, 1]
    assert ((found - center).abs().flatten(1).sum(dim=1) <= at.ball.eps + 1e-12).all()
    return found


def distances(at: Setting, x: torch.Tensor) -> np.ndarray:
    """Of the program's inputs, in units of eps."""
    channel, row, column = at.program().places.T
    return (x - at.ball.center[0])[channel, row, column].abs().numpy() / at.ball.eps


@pytest.mark.parametrize("case", CASES)
def test_images_in_the_ball_satisfy_the_rows(case):
    at = setting(case)
    program = at.program()
    lp, mip, border = triangle(program), big_m(program), 0
    assert lp.n == 2 * program.inputs + program.units
    assert mip.n == 2 * program.inputs + 2 * program.units
    assert int(mip.integrality.sum()) == program.units
    for x in images(at, 30):
        away, expected = distances(at, x), at.pair_at(x[None])[0] / program.scales[0]
        for problem, point in ((lp, at.point(program, x)), (mip, at.binary_point(program, x))):
            whole = np.concatenate([point, away])
            assert problem.violation(whole) < 1e-7
            assert problem.objective(whole) == pytest.approx(expected, rel=1e-7, abs=1e-7)
        border += away.sum() > 0.3
    assert border > 3


@pytest.mark.parametrize("case", CASES)
def test_images_outside_do_not_whatever_distances_are_claimed(case):
    at = setting(case)
    program, center = at.program(), at.ball.center[0]
    problem, n = triangle(program), program.inputs
    generator = torch.Generator().manual_seed(2)
    for power in (0, 1, 4):  # all inputs alike, or some much more than others; away from the ends of the box
        direction = (0.5 - center) * torch.rand(center.shape, generator=generator, dtype=torch.float64) ** power
        for factor, status in ((0.999, Status.OPTIMAL), (1.001, Status.INFEASIBLE)):
            x = center + direction * factor / distances(at, center + direction).sum()
            assert bool(((x >= at.ball.lower) & (x <= at.ball.upper)).all())
            assert distances(at, x).sum() == pytest.approx(factor, rel=1e-9)
            low, high = problem.col_lower.copy(), problem.col_upper.copy()
            low[:n] = high[:n] = at.point(program, x)[:n]
            fixed = replace(problem, c=np.zeros(problem.n), col_lower=low, col_upper=high)
            assert Highs().solve(fixed).status is status


@pytest.mark.parametrize("case", mostly_slow(CASES, CASES.keys() - {"everything"}))
def test_optima_are_in_order_and_in_the_ball(case):
    at = setting(case)
    program = at.program()
    lp, exact = (Highs().solve(encoding(program)) for encoding in (triangle, big_m))
    assert lp.status is exact.status is Status.OPTIMAL
    scale = program.scales[0]
    crown = float(pairs(at.net, at.whole, 0, torch.tensor([at.pair]))[0])
    assert crown - 1e-6 <= lp.bound * scale <= exact.bound * scale + 1e-6
    assert exact.objective * scale <= float(at.pair_at(images(at, 400)).min()) + 1e-6
    assert exact.x is not None
    witness = program.image(exact.x, at.ball.center)
    assert at.ball.distance(witness) <= at.ball.eps * (1 + 1e-6)
    assert at.ball.distance(witness) > 0.99 * at.ball.eps  # it uses what it may
    assert at.pair_at(witness)[0] == pytest.approx(exact.objective * scale, abs=1e-5)
    inside = at.ball.project(witness)
    assert at.ball.contains(inside)
    assert at.pair_at(inside)[0] == pytest.approx(exact.objective * scale, abs=1e-5)
    # the box around the ball holds more
    box = Highs().solve(triangle(replace(program, norm="inf")))
    assert box.objective * scale < lp.objective * scale - 1e-3


@pytest.mark.parametrize("case", ["plain", "residual"])
def test_scipy_agrees(case):
    program = setting(case).program()
    lp, mip = triangle(program), big_m(program)
    assert Highs().solve(lp).objective == pytest.approx(scipy_lp(lp), abs=1e-6)
    assert Highs().solve(mip).objective == pytest.approx(scipy_milp(mip), abs=1e-5)


TINY = [(eps, clip, seed) for eps, clip in ((0.3, (0.0, 1.0)), (0.8, (0.0, 1.0)), (0.5, None)) for seed in range(4)]


@pytest.mark.parametrize(("eps", "clip", "seed"), mostly_slow(TINY, TINY[::5]))
def test_the_milp_is_brute_force(eps, clip, seed):
    at, expected = Setting.tiny(seed, eps, "1", clip)
    program = at.program()
    lp, exact = (Highs().solve(encoding(program)) for encoding in (triangle, big_m))
    assert exact.objective * program.scales[0] == pytest.approx(expected, abs=1e-6)
    assert lp.objective * program.scales[0] <= expected + 1e-6


@pytest.mark.parametrize("case", ["pooled", "deep", "everything"])
def test_a_linear_network_goes_down_its_steepest_input(case):
    """Where nothing is unstable and no box is near: the value at the centre less eps times the largest gradient."""
    net, center = setting(case).net, setting(case).ball.center * 0.5 + 0.25
    at = Setting.of(net, Ball(center, 1e-6, "1"))
    program = at.program()
    assert program.units == 0
    x = center.clone().requires_grad_(True)
    cam = at.net.cams(x, 0).flatten()
    difference = cam[at.pair[0]] - cam[at.pair[1]]
    (gradient,) = torch.autograd.grad(difference, x)
    assert float(gradient.abs().max()) > 1e-3
    expected = float(difference.detach()) - 1e-6 * float(gradient.abs().max())
    for encoding in (triangle, big_m):
        found = Highs().solve(encoding(program)).objective * program.scales[0]
        assert found == pytest.approx(expected, abs=1e-12)


def test_eps_zero_is_the_image():
    at = Setting.case("pooled", "1", 0.0)
    program = at.program()
    assert (program.inputs, program.units) == (0, 0)
    for encoding in (triangle, big_m):
        found = Highs().solve(encoding(program)).objective * program.scales[0]
        assert found == pytest.approx(at.pair_at(at.ball.center)[0], abs=1e-9)


def test_inputs_cut_off_by_the_box_of_images():
    """The distance is from the centre, not from the middle of what an input may be."""
    at = setting("plain")
    program = at.program()
    cut = np.flatnonzero(np.abs(program.shift) > 0.1)
    assert len(cut)
    channel, row, column = program.places.T
    low, high = (side[channel, row, column].numpy() for side in (at.ball.lower, at.ball.upper))
    center = at.ball.center[0][channel, row, column].numpy()
    for end, side in ((-1.0, low), (1.0, high)):
        np.testing.assert_allclose(program.reach * end + program.shift, (side - center) / at.ball.eps, atol=1e-12)
    # one such input alone, all the way to the farther end of its box
    problem, n = triangle(program), program.inputs
    for i in cut[:5]:
        t = -program.shift / program.reach  # the centre
        t[i] = np.sign(program.shift[i])
        away = np.abs(program.reach * t + program.shift)
        image = program.image(t, at.ball.center)
        assert away.sum() == pytest.approx(at.ball.distance(image) / at.ball.eps, rel=1e-9)
        whole = np.concatenate([at.point(program, image[0]), away])
        assert problem.violation(whole) < 1e-7
        np.testing.assert_allclose(whole[:n], t, atol=1e-9)


def test_a_box_is_left_as_it_is():
    program = Setting.case("plain").program()
    problem = big_m(program)
    assert within_ball(program, problem) is problem
