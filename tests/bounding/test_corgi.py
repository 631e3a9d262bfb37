"""The paper's bound: no image leaves it, it is exact where nothing is relaxed, and what cannot matter is left out."""

from __future__ import annotations

import pytest
import torch
from nets import Plain, Pooled, Residual, image, seeded
from oracles import points_in
from relaxing import corgi_pixels, ibp_pixels, regions

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.network.cone import reach_of
from corgi_opt.problem.region import Norm

CASES = {"plain": (Plain, (1, 6, 6)), "pooled": (Pooled, (1, 6, 6)), "residual": (Residual, (1, 6, 5))}


@pytest.fixture(scope="module", params=CASES)
def net(request):
    build, shape = CASES[request.param]
    return co.from_torch(seeded(build, 2), image(*shape))


def ball(net, eps: float, norm: Norm = "inf") -> co.Ball:
    return co.Ball(image(*net.graph[net.graph.input].shape, seed=4).double(), eps, norm)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.05), ("2", 0.3), ("1", 1.0)])
def test_no_image_leaves_it(norm, eps, net):
    region = ball(net, eps, norm)
    low, high = (side[0] for side in corgi_bounds(net, regions(region)))
    images = points_in(region.center[0] - eps, region.center[0] + eps, 300, 1)
    seen = net.graph.forward(torch.cat([region.project(x[None]) for x in images]), net.features)
    assert bool((seen >= low).all()) and bool((seen <= high).all())


def test_of_one_image_it_is_its_value(net):
    region = ball(net, 0.0)
    low, high = corgi_bounds(net, regions(region))
    expected = net.graph.forward(region.center, net.features)
    torch.testing.assert_close(low, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(high, expected, rtol=1e-9, atol=1e-9)


def test_where_no_sign_changes_it_is_the_linear_networks(net):
    """A region so small that every ReLU and every maximum is decided: ``value - eps ||gradient||_1``."""
    eps = 1e-9
    region = co.Ball(ball(net, eps).center, eps, clip=None)
    low, _ = corgi_bounds(net, regions(region))
    x = region.center.clone().requires_grad_(True)
    features = net.graph.forward(x, net.features)
    at = int(features.flatten().argmax())
    (slope,) = torch.autograd.grad(features.flatten()[at], x)
    fall = float(features.detach().flatten()[at] - low.flatten()[at])
    assert fall == pytest.approx(eps * float(slope.abs().sum()), rel=1e-3)


def test_it_is_tighter_than_intervals_of_cams(net):
    region = ball(net, 0.02)
    corgi, ibp = corgi_pixels(net, region, 0), ibp_pixels(net, region, 0)
    assert bool((corgi.upper - corgi.lower <= ibp.upper - ibp.lower + 1e-9).all())
    assert float((corgi.upper - corgi.lower).mean()) < 0.95 * float((ibp.upper - ibp.lower).mean())


def test_neurons_that_cannot_matter_may_be_left_out(net):
    region = ball(net, 0.05)
    corner = torch.zeros(1, *net.map_shape, dtype=torch.bool)
    corner[0, 0, 0] = True
    whole = corgi_bounds(net, regions(region))
    part = corgi_bounds(
        net,
        regions(region),
        {n: m[:, None] if m.ndim == 3 else m for n, m in reach_of(net.pooled, net.features, corner).items()},
    )
    for a, b in zip(part, whole, strict=True):
        torch.testing.assert_close(a[0, :, 0, 0], b[0, :, 0, 0], rtol=1e-9, atol=1e-12)


def test_when_time_is_over_it_says_so(net):
    with pytest.raises(TimeoutError):
        corgi_bounds(net, regions(ball(net, 0.05)), deadline=Deadline(0.0))
