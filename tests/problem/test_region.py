"""The region and the top-k set."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import image

import corgi_opt as co

ORDER = {"inf": np.inf, "2": 2, "1": 1}
"""Norms as numpy counts them."""


def far_from(x: torch.Tensor, reach: float, seed: int) -> torch.Tensor:
    """Images (float64) around x, most of them outside a ball of radius ``reach``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x.double() + reach * noise * (torch.rand(x.shape, generator=generator) < 0.5)


def test_the_box_is_the_ball_inside_the_clip():
    x = torch.tensor([[[[0.0, 0.05, 0.5, 1.0]]]])
    ball = co.Ball(x, 0.1)
    torch.testing.assert_close(ball.lower.flatten(), torch.tensor([0.0, 0.0, 0.4, 0.9]).double())
    torch.testing.assert_close(ball.upper.flatten(), torch.tensor([0.1, 0.15, 0.6, 1.0]).double())
    free = co.Ball(x, 0.1, clip=None)
    torch.testing.assert_close(free.lower, x[0].double() - 0.1)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 0.1, 0.3])
def test_projection_is_inside_in_spite_of_rounding(eps):
    """center + eps rounds away from the centre for about half of all values; projected points must still be inside."""
    x = image(3, 20, 20, seed=1)
    ball = co.Ball(x, eps)
    far = x.double() + 2 * eps * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = ball.project(far)
    assert ball.contains(inside)
    assert not ball.contains(far)
    assert torch.equal(ball.project(inside), inside)


def test_contains_is_exact():
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    ball = co.Ball(x, 0.25)
    edge = torch.tensor([[[[0.25, 0.75]]]], dtype=torch.float64)
    assert ball.contains(edge)
    assert not ball.contains(torch.nextafter(edge, torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64)))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *((inf, "inf") for inf in ("inf", math.inf, np.inf, np.float32("inf"), torch.tensor(math.inf))),
        *((inf, "inf") for inf in ("Inf", "Linf", "linf", "L_inf", "l_inf", "L-inf", "l inf", " INF ")),
        *((two, "2") for two in ("2", 2, 2.0, np.int64(2), np.float64(2), torch.tensor(2), "L2", "l2", "l_2")),
        *((one, "1") for one in ("1", 1, 1.0, np.uint8(1), torch.tensor(1.0), "L1", "l1", "L_1")),
    ],
)
def test_norms_have_one_name(spelling, name):
    ball = co.Ball(image(1, 2, 2), 0.1, spelling)
    assert ball.norm == name
    assert replace(ball, eps=0.2).norm == name


@pytest.mark.parametrize(
    "norm",
    ["3", "L3", "L", "Linf2", "infinity", "l__2", "", 0, 3, -1, 1.5, True, None, math.nan, -math.inf, [2], (1,), {}],
)
def test_other_norms_are_refused(norm):
    with pytest.raises(co.InputError, match="norm must be 'inf', '2' or '1'"):
        co.Ball(image(1, 2, 2), 0.1, norm)


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("seed", range(5))
def test_distance_is_the_norm_of_the_difference(norm, seed):
    x = image(3, 6, 5, seed=seed)
    y = far_from(x, 0.3, seed)
    expected = np.linalg.norm((y - x.double()).numpy().ravel(), ORDER[norm])
    assert co.Ball(x, 0.1, norm).distance(y) == pytest.approx(expected, rel=1e-14)
    assert co.Ball(x, 0.1, norm).distance(x) == 0.0


@pytest.mark.parametrize(("norm", "step"), [("2", (3 / 8, 4 / 8)), ("1", (5 / 16, 5 / 16))])
def test_contains_is_exact_in_other_norms(norm, step):
    """Steps whose length floats hold: sqrt(9 + 16) / 8 and (5 + 5) / 16 are both 5 / 8."""
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    ball = co.Ball(x, 0.625, norm, None)
    edge = x + torch.tensor([[[step]]], dtype=torch.float64)
    assert ball.distance(edge) == 0.625
    assert ball.contains(edge)
    beyond = edge.clone()
    beyond[..., 1] += 1e-12
    assert not ball.contains(beyond)
    assert not replace(ball, eps=float(np.nextafter(0.625, 0))).contains(edge)
    # inside the ball and outside the box
    assert not co.Ball(x, 0.625, norm, (0.0, 0.9)).contains(x + torch.tensor([[[[0.0, 0.45]]]]))


@pytest.mark.parametrize("norm", ["2", "1"])
@pytest.mark.parametrize("eps", [1e-100, 1e-15, 1e-12, 1e-6, 1e-3, 0.1, 2.0, 50.0])
@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
@pytest.mark.parametrize("centre", ["anywhere", "on the border"])
def test_projection_is_inside_in_other_norms(norm, eps, clip, centre):
    x = image(3, 12, 10, seed=1)
    if centre == "on the border":
        x = x.round()
    ball = co.Ball(x, eps, norm, clip)
    for seed in range(4):
        reach = eps if seed % 2 else 0.01 * eps
        far = far_from(x, reach, seed)
        inside = ball.project(far)
        assert ball.contains(inside)
        assert np.linalg.norm((inside - x.double()).numpy().ravel(), ORDER[norm]) <= eps * (1 + 1e-12)
        if clip is not None:
            assert 0 <= float(inside.min()) <= float(inside.max()) <= 1
        assert torch.equal(ball.project(inside), inside)
        if ball.contains(far):
            assert torch.equal(inside, far)


@pytest.mark.parametrize("norm", ["2", "1"])
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.1])
def test_projection_gives_little_away(norm, eps):
    """From far away, with no box in the way, it lands on the border of the ball, in the direction it came from."""
    x = image(3, 12, 10, seed=1)
    ball = co.Ball(x, eps, norm, None)
    far = far_from(x, 0.1 * eps, 0)  # 180 inputs move: far outside the ball, and no single one outside its box
    assert ball.distance(far) > 1.1 * eps
    inside = ball.project(far)
    assert ball.distance(inside) >= eps * (1 - 1e-5)
    step, wanted = (inside - x.double()).flatten(), (far - x.double()).flatten()
    assert float(torch.nn.functional.cosine_similarity(step, wanted, dim=0)) > 1 - 1e-9


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_box_around_a_ball_holds_it(norm):
    x = image(1, 5, 4, seed=2)
    ball = co.Ball(x, 0.3, norm)
    for seed in range(20):
        inside = ball.project(far_from(x, 0.3, seed))
        assert bool(((inside[0] >= ball.lower) & (inside[0] <= ball.upper)).all())


def test_a_smaller_p_is_a_smaller_ball():
    x = image(2, 4, 4, seed=3)
    norms: tuple[Any, ...] = (1, 2, math.inf)
    one, two, most = (co.Ball(x, 0.2, norm) for norm in norms)
    for seed in range(20):
        y = far_from(x, 0.02, seed).clamp(0, 1)
        assert one.distance(y) >= two.distance(y) >= most.distance(y)
        assert one.contains(y) <= two.contains(y) <= most.contains(y)
