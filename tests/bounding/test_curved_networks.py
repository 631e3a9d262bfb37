"""Networks with curved layers: no image leaves any bound, and rounding is accounted for."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import mpmath
import pytest
import torch
from curved_nets import BUILT, Curvy, read
from curves import EXACT
from mpmath import mpf
from nets import image, seeded
from patience import mostly_slow
from relaxing import ibp_pixels, pixels, regions, relaxed
from sampling import CLASS, TOLERANCE, extremes, images, require_bounds_hold
from torch import Tensor

import corgi_opt as co
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.network.curves import Function, Silu, Tanh
from corgi_opt.network.ops import Conv2d, Shape
from corgi_opt.network.smooth import Smooth

known_network = functools.cache(read)

NORMS = ("inf", "2", "1")
SIZES = {"inf": (0.02, 0.3), "2": (0.1, 1.5), "1": (0.3, 5.0)}
SHARE = 1000


ASKED = [*itertools.product(BUILT, NORMS)]
ALWAYS = [(name, NORMS[number % len(NORMS)]) for number, name in enumerate(BUILT)]


@pytest.mark.parametrize(("name", "norm"), mostly_slow(ASKED, ALWAYS))
def test_no_image_leaves_any_bound(name, norm):
    for seed, eps in enumerate(SIZES[norm]):
        net = known_network(name, seed)
        ball = co.Ball(image(1, 6, 6, seed=40 + seed), eps, norm, None if seed else (0.0, 1.0))
        require_bounds_hold(net, ball, images(net, ball, SHARE, seed))


@pytest.mark.parametrize("name", BUILT)
def test_bounds_of_a_small_region_are_sharp(name):
    """Where a network is almost linear CROWN is almost exact; interval arithmetic is not."""
    net = known_network(name, 0)
    ball = co.Ball(image(1, 6, 6, seed=40), 1e-4, "inf", None)
    lowest, highest = extremes(net, images(net, ball, 800, 0))
    bound = pixels(net, relaxed(net, ball), CLASS)
    reached = (highest["cam"] - lowest["cam"]) / (bound.upper - bound.lower)
    assert float(reached.median()) > 0.9
    loose = ibp_pixels(net, ball, CLASS)
    assert float((loose.upper - loose.lower).mean()) > 1.1 * float((bound.upper - bound.lower).mean())


@pytest.mark.parametrize("method", ["ibp", "crown", "dual"])
def test_bounds_of_nodes_in_every_method(method):
    net, ball = known_network("mixed", 1), co.Ball(image(1, 6, 6, seed=3), 0.1)
    found = co.bounds(net, ball, method=method)
    lowest, highest = extremes(net, images(net, ball, 500, 1))
    assert set(found) == set(net.graph.order)
    for node, bound in found.items():
        assert bool((lowest[node] >= bound.lower - TOLERANCE).all()), node
        assert bool((highest[node] <= bound.upper + TOLERANCE).all()), node
    single = co.bounds(net, ball, method=method, dtype=torch.float32)
    for node, bound in single.items():
        size = float(found[node].upper.abs().max() + found[node].lower.abs().max())
        assert bool((bound.lower.double() <= highest[node] + 1e-4 * size).all()), node


@pytest.mark.parametrize(("function", "torch_function"), [(Silu(), torch.nn.functional.silu), (Tanh(), torch.tanh)])
@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_what_rounding_hides_is_in_the_bounds(function, torch_function, scale):
    """At a region of one image: every bound is on its side of the exact value, which sums of terms a million times as
    large as themselves come to; and it is near."""
    draw = torch.Generator().manual_seed(5)
    model = seeded(Curvy, 2, function=torch_function, channels=2).double()
    with torch.no_grad():  # the second channel is nearly minus the first, far out
        model.second.weight.mul_(scale)
        model.second.weight[:, 1] = -model.second.weight[:, 0]
        model.first.weight[1] = model.first.weight[0] * (1 + 1e-9 * torch.rand(1, 3, 3, generator=draw))
        assert model.first.bias is not None
        model.first.bias[1] = model.first.bias[0]
    x = image(1, 6, 6, seed=9).double()
    net = co.from_torch(model, x)
    ball = co.Ball(x, 0.0)
    known = relaxed(net, ball)
    exact = exact_values(net, x, function)
    for bounds in (interval_bounds(net.graph, regions(ball)), known.intervals):
        for node, values in exact.items():
            low, high = bounds[node].lower[0].flatten().tolist(), bounds[node].upper[0].flatten().tolist()
            for l, value, u in zip(low, values, high, strict=True):
                assert mpf(l) <= value <= mpf(u), node
    pixel = pixels(net, known, CLASS)
    weights, maps = [mpf(w) for w in net.weight[CLASS].tolist()], exact[net.features]
    count = net.map_shape[0] * net.map_shape[1]
    for at in range(count):
        value = sum(w * maps[channel * count + at] for channel, w in enumerate(weights))
        assert mpf(float(pixel.lower[at])) <= value <= mpf(float(pixel.upper[at]))
    assert float((pixel.upper - pixel.lower).max()) < 1e-9 * scale


def exact_values(net: co.CamNetwork, x: Tensor, function: Function) -> dict[str, list[Any]]:
    """Every node's value at an image, in sixty digits, by its definition."""
    exact: dict[str, list[Any]] = {}
    graph = net.graph
    with mpmath.workdps(60):
        for node in graph.ancestors(net.features):
            op, shape = graph[node].op, graph[node].shape
            if node == graph.input:
                exact[node] = [mpf(v) for v in x.flatten().tolist()]
            elif isinstance(op, Smooth):
                exact[node] = [EXACT[function](v) for v in exact[graph[node].inputs[0]]]
            else:
                assert isinstance(op, Conv2d)
                exact[node] = convolved(op, exact[graph[node].inputs[0]], shape)
    return exact


def convolved(op: Conv2d, values: list[Any], shape: Shape) -> list[Any]:
    """A 3x3 convolution with padding 1 of numbers in order."""
    assert op.bias is not None
    channels, (height, width) = op.weight.shape[1], shape[1:]
    weight, bias, out = op.weight.tolist(), op.bias.tolist(), []
    for c in range(shape[0]):
        for y in range(height):
            for x in range(width):
                total = mpf(bias[c])
                for i in range(channels):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < height and 0 <= x + dx < width:
                                at = (i * height + y + dy) * width + x + dx
                                total += mpf(weight[c][i][dy + 1][dx + 1]) * values[at]
                out.append(total)
    return out
