"""Bounds by generators: those of backward passes, what float hides is in their account, and when they are chosen."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generating import NETS, ball, generators
from nets import Plain, network
from patience import diagonal, mostly_slow
from relaxing import regions
from torch import Tensor

import corgi_opt as co
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.crown import Relaxed, crown_pass, unit_rows
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.generators import Generators, exact_in_float32
from corgi_opt.bounding.relaxation import ReluLines
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ops import Combine, Conv2d, Input, ReLU
from corgi_opt.problem.region import Norm


@pytest.fixture(scope="module", params=NETS)
def net(request):
    build, shape = NETS[request.param]
    return network(build, shape, 2)


def by_lines(relaxed: Relaxed) -> Relaxed:
    """The same relaxation without pooling windows' direct planes."""
    parts = (relaxed.graph, relaxed.regions, relaxed.intervals, relaxed.lines)
    return Relaxed(*parts, {}, {}, NEVER, relaxed.rounding)


def both_ways(relaxed: Relaxed, found: Generators, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Every third neuron's bounds, below and above: a backward pass', and the two numbers around it."""
    shape = relaxed.graph[name].shape
    places = torch.nonzero(torch.ones(1, *shape))[::3].repeat(2, 1)
    signs = torch.ones(len(places), dtype=torch.float64)
    signs[len(places) // 2 :] = -1.0
    rows = unit_rows(places, shape, relaxed.regions.center)
    rows.coefs.mul_(signs[:, None, None, None])
    flat = (places[:, 1] * shape[1] + places[:, 2]) * shape[2] + places[:, 3]
    return relaxed.bound(name, rows), *found.below(name, flat, signs)


EPS: dict[Norm, float] = {"inf": 0.05, "2": 0.3, "1": 1.0}
BALLS: list[list[Any]] = [[*EPS], [(0.0, 1.0), None]]


@pytest.mark.parametrize(("norm", "clip"), mostly_slow(product(*BALLS), diagonal(*BALLS)))
def test_they_are_the_backward_passes_bounds(norm, clip, net):
    eps = EPS[norm]
    relaxed = by_lines(crown_pass(net.graph, regions(ball(net, eps, norm, clip))))
    exact, single = generators(relaxed, torch.float64), generators(relaxed, torch.float32)
    for name in net.graph.preactivations:
        want, low, high = both_ways(relaxed, exact, name)
        scale = float(want.abs().max())
        torch.testing.assert_close(low, want, rtol=0, atol=1e-9 * scale)
        assert bool((low <= want + 1e-9 * scale).all()) and bool((want <= high + 1e-9 * scale).all())
        want, low, high = both_ways(relaxed, single, name)
        assert bool((low <= want + 1e-9 * scale).all()) and bool((want <= high + 1e-9 * scale).all())
        torch.testing.assert_close(low, want, rtol=0, atol=0.02 * scale)
        assert float((want - low).max()) > 1e-10 * scale  # float32 is not taken for exact


def drawn(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    spread = 10.0 ** (2 * torch.rand(*shape, generator=draw, dtype=torch.float64) - 1)
    return torch.randn(*shape, generator=draw, dtype=torch.float64) * spread


def layers(seed: int) -> LayerGraph:
    """Two pixels, three layers of three neurons each, the second with a branch past it."""
    shape = (3, 1, 2)
    convs = [Conv2d(drawn(3, 3, 1, 1, seed=seed + n), drawn(3, seed=seed + 10 + n)) for n in range(3)]
    coefs = (drawn(3, 1, 1, seed=seed + 20), drawn(3, 1, 2, seed=seed + 21))
    return LayerGraph(
        [
            Node("x", Input(), (), shape),
            Node("first", convs[0], ("x",), shape),
            Node("on", ReLU(), ("first",), shape),
            Node("second", convs[1], ("on",), shape),
            Node("both", Combine(coefs, drawn(3, 1, 1, seed=seed + 22)), ("second", "on"), shape),
            Node("on2", ReLU(), ("both",), shape),
            Node("third", convs[2], ("on2",), shape),
        ],
        "third",
    )


Exact = list[list[Fraction]]
"""A node's values at two pixels, by channel, as rational numbers."""


def exact(values: Tensor) -> Exact:
    return [[Fraction(v) for v in row] for row in values.expand(3, 1, 2)[:, 0].tolist()]


def exactly(net: LayerGraph, x: Exact) -> dict[str, Exact]:
    """All nodes' exact values."""
    values = {"x": x}
    for name in net.order[1:]:
        op, read = net[name].op, [values[i] for i in net[name].inputs]
        if isinstance(op, ReLU):
            values[name] = [[max(v, Fraction(0)) for v in row] for row in read[0]]
        elif isinstance(op, Combine):
            assert op.shift is not None
            parts = [
                [[c * v for c, v in zip(*rows, strict=True)] for rows in zip(exact(coef), given, strict=True)]
                for coef, given in zip(op.coefs, read, strict=True)
            ]
            values[name] = [
                [sum(vs, Fraction(0)) for vs in zip(*rows, strict=True)]
                for rows in zip(*parts, exact(op.shift), strict=True)
            ]
        else:
            assert isinstance(op, Conv2d) and op.bias is not None
            weight = [[Fraction(w) for w in row] for row in op.weight[:, :, 0, 0].tolist()]
            values[name] = [
                [sum((w * v[p] for w, v in zip(row, read[0], strict=True)), Fraction(b)) for p in (0, 1)]
                for row, b in zip(weight, op.bias.tolist(), strict=True)
            ]
    return values


WIDE = 1.0
"""A radius at which some of the six units of a layer are unstable, for every seed that is drawn below."""


def drawn_images(center: Tensor, seed: int) -> list[Tensor]:
    """Images (1, 3, 1, 2) of the box of radius WIDE, two of them its corners."""
    draw = torch.Generator().manual_seed(seed)
    moves = 2 * torch.rand(4, *center.shape[1:], generator=draw, dtype=torch.float64) - 1
    moves[2:] = moves[2:].sign()
    images = center + WIDE * moves
    return list(torch.minimum(center + WIDE, torch.maximum(center - WIDE, images)).split(1))


def at_generators(found: Generators, center: Tensor, x: Tensor, values: dict[str, Exact]) -> list[Fraction]:
    """What the generators are, exactly, at an image: moves of inputs, and values of unstable units."""
    pairs = zip(x.flatten().tolist(), center.flatten().tolist(), strict=True)
    moves = [Fraction(a) - Fraction(c) for a, c in pairs]
    g = [moves[i] for i in found.order.tolist()]
    for block in found.blocks:
        z = [v for row in values[block.source] for v in row]
        g += [max(z[i], Fraction(0)) for i in block.flat.tolist()]
    return g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(1, 9))
def test_exact_values_are_within_the_account(seed, dtype):
    """``constant + sum of coef_g g`` in rational arithmetic, at the exact g of an image, against its exact value."""
    net, center = layers(100 * seed), drawn(1, 3, 1, 2, seed=seed)
    found = generators(crown_pass(net, regions(co.Ball(center, WIDE, clip=None))), dtype)
    for name in ("first", "both", "third"):
        maps = found.of(name)
        coefs = maps.coefs.maps.double().flatten(1)
        for x in drawn_images(center, seed):
            values = exactly(net, exact(x[0]))
            g = at_generators(found, center, x, values)
            for neuron, value in enumerate(v for row in values[name] for v in row):
                constant, size, error = (float(m[0]) for m in maps.at(torch.tensor([neuron])))
                terms = [Fraction(c) * v for c, v in zip(coefs[:, neuron].tolist(), g[: len(coefs)], strict=True)]
                assert abs(sum(terms, Fraction(constant)) - value) <= Fraction(error)
                assert sum(map(abs, terms), Fraction(0)) <= Fraction(size)
    assert found.count > 6
    assert float((maps.error / maps.size).max()) < {torch.float32: 1e-2, torch.float64: 1e-10}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(1, 9))
def test_no_exact_value_is_below_a_bound(seed, dtype):
    net, center = layers(100 * seed), drawn(1, 3, 1, 2, seed=seed)
    found = generators(crown_pass(net, regions(co.Ball(center, WIDE, clip=None))), dtype)
    signs = torch.tensor([1.0] * 6 + [-1.0] * 6, dtype=torch.float64)
    for name in ("first", "both", "third"):
        low, _ = found.below(name, torch.arange(6).repeat(2), signs)
        for x in drawn_images(center, seed):
            values = [v for row in exactly(net, exact(x[0]))[name] for v in row]
            both = [*values, *(-v for v in values)]
            assert all(Fraction(bound) <= value for bound, value in zip(low.tolist(), both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_functions_bound_is_its_exact_minimum_less_the_account(dtype):
    """Of the first layer nothing is relaxed: the corner where it is attained is known."""
    net, center = layers(0), drawn(1, 3, 1, 2, seed=0)
    region = regions(co.Ball(center, WIDE, clip=None))
    low, high = generators(crown_pass(net, region), dtype).below("first", torch.arange(6), torch.ones(6).double())
    weight = net["first"].op
    assert isinstance(weight, Conv2d)
    for neuron in range(6):
        signs = weight.weight[neuron // 2, :, 0, 0].sign()[None, :, None, None]
        corner = torch.where(signs > 0, region.lower, region.upper)
        least = exactly(net, exact(corner[0]))["first"][neuron // 2][neuron % 2]
        assert Fraction(float(low[neuron])) <= least <= Fraction(float(high[neuron]))


def test_when_time_is_over_they_say_so():
    net = network(Plain, (1, 6, 6), 2)
    relaxed = crown_pass(net.graph, regions(ball(net, 0.05)))
    late = generators(relaxed, torch.float32, Deadline(0.0))
    with pytest.raises(TimeoutError):
        late.of(net.graph.preactivations[-1])


def test_what_overflows_proves_nothing():
    shape = (1, 1, 1)
    big = [Conv2d(torch.full((1, 1, 1, 1), 1e30).double(), None) for _ in range(2)]
    nodes = [Node("x", Input(), (), shape), Node("a", big[0], ("x",), shape), Node("b", big[1], ("a",), shape)]
    graph = LayerGraph(nodes, "b")
    region = regions(co.Ball(torch.zeros(1, 1, 1, 1), 1.0, clip=None))
    known = {name: Interval(region.lower, region.upper) for name in graph.order}
    lines: dict[str, ReluLines] = {}
    low, high = Generators(graph, region, known, lines, NEVER, torch.float32).below(
        "b", torch.tensor([0]), torch.ones(1, dtype=torch.float64)
    )
    assert low.tolist() == [-torch.inf] and high.tolist() == [torch.inf]


def test_float32_is_what_it_says():
    assert exact_in_float32()


def test_a_transform_in_place_of_sums_of_products_is_seen(monkeypatch):
    """Winograd's adds neighbours up before it multiplies: here, a value and its neighbour, which is taken off again."""
    conv = F.conv2d

    def transformed(x, weight, **kwargs):
        beside = x.roll(1, dims=-1)
        return conv(x + beside, weight, **kwargs) - conv(beside, weight, **kwargs)

    monkeypatch.setattr(F, "conv2d", transformed)
    assert not exact_in_float32.__wrapped__()
