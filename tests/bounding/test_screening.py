"""When generators are chosen, and what a pass makes of them: as tight where it counts, with fewer rows backwards."""

from __future__ import annotations

import pytest
import torch
from generating import NETS, ball, generators
from nets import Deep, Plain, network
from oracles import points_in
from relaxing import regions

import corgi_opt as co
from corgi_opt._deadline import NEVER
from corgi_opt.bounding import screening
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import Relaxed, crown_pass
from corgi_opt.bounding.screening import Screen, backward_cost, forward_cost, generator_bytes


@pytest.fixture(scope="module", params=NETS)
def net(request) -> co.CamNetwork:
    build, shape = NETS[request.param]
    return network(build, shape, 2)


def always(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    """Every layer by generators, or none."""
    monkeypatch.setattr(screening, "LEAST", 0)
    monkeypatch.setattr(screening, "forward_cost", lambda *_: (-1 if chosen else 1 << 80, 1))


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.05), ("2", 0.3), ("1", 1.0)])
def test_a_pass_with_them_is_as_tight_where_it_counts(norm, eps, net, monkeypatch):
    region = regions(ball(net, eps, norm))
    always(monkeypatch, False)
    without = crown_pass(net.graph, region)
    always(monkeypatch, True)
    found = crown_pass(net.graph, region)
    for name in net.graph.preactivations:
        was, now = without.intervals[name], found.intervals[name]
        open_, scale = was.unstable, float(was.upper.abs().max()) + 1e-9
        assert int((now.unstable & ~open_).sum()) == 0
        assert float((now.upper - now.lower).sum()) <= float((was.upper - was.lower).sum()) + 1e-9 * scale
        if not without.direct:  # planes are chosen at the middle of intervals, which are others now
            assert bool((now.lower[open_] >= was.lower[open_] - 1e-9 * scale).all())
            assert bool((now.upper[open_] <= was.upper[open_] + 1e-9 * scale).all())


def test_no_image_leaves_them(net, monkeypatch):
    always(monkeypatch, True)
    region = ball(net, 0.05)
    found = crown_pass(net.graph, regions(region)).intervals
    images = points_in(region.center[0] - 0.05, region.center[0] + 0.05, 200, 1)
    seen = net.graph.values(torch.cat([region.project(x[None]) for x in images]))
    for name in net.graph.preactivations:
        low, high = found[name]
        assert bool((seen[name] >= low).all()) and bool((seen[name] <= high).all())


def test_fewer_rows_go_backwards(monkeypatch):
    net = network(Deep, (1, 9, 7), 2)
    rows = {True: 0, False: 0}
    for chosen in rows:
        always(monkeypatch, chosen)

        def counting(relaxed, node, some, chosen=chosen):
            rows[chosen] += len(some)
            return Relaxed.bound(relaxed, node, some)

        crown_pass(net.graph, regions(ball(net, 0.02)), bounder=counting)
    assert 0 < rows[True] < 0.9 * rows[False]


def test_the_memory_of_a_pass_is_that_of_its_largest_sweep(monkeypatch):
    graph = network(Deep, (1, 9, 7), 2).graph
    assert generator_bytes(graph) == 0  # so small a network goes backwards
    monkeypatch.setattr(screening, "LEAST", 0)
    monkeypatch.setattr(screening, "DEARER", 1 << 40)
    inputs, largest = 9 * 7, max(graph[n].shape[0] * graph[n].shape[1] * graph[n].shape[2] for n in graph.order)
    assert 4 * inputs * largest <= generator_bytes(graph) <= 4 * 4 * inputs * largest
    monkeypatch.setattr(screening, "MOST_BYTES", 1000)
    assert generator_bytes(graph) == 0


@pytest.mark.parametrize("kind", ["plain", "residual", "deep"])
def test_the_papers_bound_is_the_same_with_them(kind, monkeypatch):
    net = network(NETS[kind][0], NETS[kind][1], 2)
    found = {}
    for chosen in (True, False):
        always(monkeypatch, chosen)
        found[chosen] = corgi_bounds(net, regions(ball(net, 0.05)))
    scale = float(found[False].upper.max())
    # where interval arithmetic bounds a neuron better than CROWN, its operands' bounds are float32's
    assert bool((found[True].lower >= found[False].lower - 1e-5 * scale).all())
    assert bool((found[True].upper <= found[False].upper + 1e-5 * scale).all())


def test_the_cheaper_way_is_taken():
    """One neuron is cheaper backwards; many neurons of a deep layer, whose windows are the image, by generators."""
    net = network(Deep, (1, 9, 7), 2)
    relaxed = crown_pass(net.graph, regions(ball(net, 0.02)))
    parts = (net.graph, relaxed.regions, relaxed.intervals, relaxed.lines)
    last = net.graph.preactivations[-1]
    screen = Screen(*parts, NEVER)
    assert not screen.cheaper(last, 0) and not screen.cheaper(last, 1)
    assert screen.cheaper(last, 100_000)
    costs = [backward_cost(net.graph, name) for name in net.graph.preactivations]
    assert costs == sorted(costs)
    few, most = (
        forward_cost(net.graph, last, n, relaxed.intervals, generators(relaxed, torch.float32)) for n in (1, 50)
    )
    assert few[0] < most[0] and few[1] == most[1] > 0


def test_where_memory_does_not_suffice_rows_go_backwards(monkeypatch):
    net = network(Deep, (1, 9, 7), 2)
    relaxed = crown_pass(net.graph, regions(ball(net, 0.02)))
    screen = Screen(net.graph, relaxed.regions, relaxed.intervals, relaxed.lines, NEVER)
    last = net.graph.preactivations[-1]
    assert screen.cheaper(last, 100_000)
    monkeypatch.setattr(screening, "MOST_BYTES", 1000)
    assert not screen.cheaper(last, 100_000)


def test_several_regions_go_backwards():
    net = network(Plain, (1, 6, 6), 2)
    two = crown_pass(net.graph, regions(ball(net, 0.02), ball(net, 0.03)))
    screen = Screen(net.graph, two.regions, two.intervals, two.lines, NEVER)
    assert not screen.cheaper(net.graph.preactivations[-1], 100_000)
