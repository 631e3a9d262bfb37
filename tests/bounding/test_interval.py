"""Intervals of small graphs made by hand: every image of the region is inside, and single layers are exact."""

from __future__ import annotations

import pytest
import torch
from oracles import points_in
from relaxing import CPU

import corgi_opt as co
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.regions import Regions
from corgi_opt.errors import NumericalError
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.lowering import normal_form, scalar
from corgi_opt.network.ops import Combine, Conv2d, Input, MaxPool2d, ReLU
from corgi_opt.problem.region import Norm

SHAPE = (2, 5, 4)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(seed: int, scale: float = 1.0) -> Conv2d:
    return Conv2d(scale * drawn(2, 2, 3, 3, seed=seed), drawn(2, seed=seed), (1, 1), (1, 1), (1, 1), 1)


def graph(scale: float = 1.0) -> LayerGraph:
    """conv, ReLU, conv, plus the image."""
    return LayerGraph(
        [
            Node("x", Input(), (), SHAPE),
            Node("first", conv(1, scale), ("x",), SHAPE),
            Node("on", ReLU(), ("first",), SHAPE),
            Node("second", conv(2, scale), ("on",), SHAPE),
            Node("sum", Combine((scalar(1.0), scalar(-2.0))), ("second", "x"), SHAPE),
        ],
        "sum",
    )


def ball(norm: Norm, eps: float = 0.2, clip=(0.0, 1.0)) -> co.Ball:
    center = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return co.Ball(center, eps, norm, clip)


def bounds(graph: LayerGraph, *balls: co.Ball, dtype=torch.float64):
    return interval_bounds(graph.to(dtype), Regions.of(balls, dtype, CPU))


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_no_image_leaves_them(norm):
    found, region = bounds(graph(), ball(norm)), ball(norm)
    images = points_in(region.center[0] - region.eps, region.center[0] + region.eps, 400, 1)
    values = graph().values(torch.cat([region.project(x[None]) for x in images]))
    for name, (low, high) in found.items():
        assert bool((values[name] >= low).all()) and bool((values[name] <= high).all())


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_a_convolution_of_the_image_has_the_dual_norm_of_its_filter(norm):
    """Inside the map and far from the box, its least value is ``w'x - eps ||w||``, exactly."""
    region = ball(norm, 0.01, clip=None)
    low, high = (side[0, :, 2, 1] for side in bounds(graph(), region)["first"])
    op = graph()["first"].op
    assert isinstance(op, Conv2d)
    filters, middle = op.weight.flatten(1), op.apply([region.center])[0, :, 2, 1]
    dual = {"inf": 1, "2": 2, "1": float("inf")}[norm]
    spread = 0.01 * torch.linalg.vector_norm(filters, dual, dim=1)
    torch.testing.assert_close(low, middle - spread)
    torch.testing.assert_close(high, middle + spread)


def test_one_layer_in_a_box_is_attained():
    region = ball("inf")
    low, _ = bounds(graph(), region)["first"]
    x = region.center.clone().requires_grad_(True)
    value = graph().forward(x, "first")[0, 1, 3, 2]
    (slope,) = torch.autograd.grad(value, x)
    worst = torch.where(slope > 0, region.lower, region.upper)
    assert float(low[0, 1, 3, 2]) == pytest.approx(float(graph().forward(worst, "first")[0, 1, 3, 2]), abs=1e-12)


def test_a_pool_is_no_wider_than_its_candidates():
    """The differences that it is lowered to would be."""
    pool = MaxPool2d((2, 2), (1, 1), (0, 0), (1, 1))
    whole = LayerGraph([Node("x", Input(), (), SHAPE), Node("max", pool, ("x",), (2, 4, 3))], "max")
    region, (lowered, _) = ball("inf"), normal_form(whole)
    low, high = (side[0] for side in bounds(lowered, region)[lowered.output])
    expected = [torch.nn.functional.max_pool2d(side[None], 2, 1)[0] for side in (region.lower, region.upper)]
    torch.testing.assert_close(low, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(high, expected[1], rtol=0, atol=1e-12)


def test_several_regions_are_bounded_as_each_alone():
    balls = [ball("2", eps) for eps in (0.0, 0.1, 0.7)]
    together = bounds(graph(), *balls)
    for case, one in enumerate(balls):
        for name, (low, high) in bounds(graph(), one).items():
            torch.testing.assert_close(together[name].lower[case], low[0])
            torch.testing.assert_close(together[name].upper[case], high[0])


def test_what_overflows_is_raised():
    with pytest.raises(NumericalError, match="overflow float64"):
        bounds(graph(1e200), ball("inf"))
