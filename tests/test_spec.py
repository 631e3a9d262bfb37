"""The region and the top-k set."""

from __future__ import annotations

import pytest
import torch
from nets import image

import corgi_opt as co


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


def test_topk_and_its_margin():
    cam = torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    top = co.TopK.of(cam, 2)
    assert top.top.tolist() == [3, 0]
    assert sorted(top.rest.tolist()) == [1, 2]
    assert top.gap == 1.0
    moved = torch.tensor([[[3.0, 1.0], [3.5, 5.0]]], dtype=torch.float64)
    assert top.margin(moved).tolist() == [-0.5]
    # the order inside the top-k set does not matter
    assert top.margin(torch.tensor([[[6.0, 1.0], [2.0, 5.0]]], dtype=torch.float64)).tolist() == [3.0]


def test_ties():
    cam = torch.tensor([[1.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    with pytest.raises(co.TieError, match="pixels 1 and 2"):
        co.TopK.of(cam, 1)
    assert co.TopK.of(cam, 2).gap == 0.5
    with pytest.raises(co.TieError, match=r"tie_tol 0\.6"):
        co.TopK.of(cam, 2, tie_tol=0.6)
