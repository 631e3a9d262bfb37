"""Affine operations of our own, written here with their rules and nothing else: every bound takes them as its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import image
from oracles import points_in
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.answering.plain import PLAIN, array, plain_network
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.regions import Regions
from corgi_opt.network import ops
from corgi_opt.network.builders import BUILDERS
from corgi_opt.network.graph import GraphBuilder, LayerGraph
from corgi_opt.network.lowering import scalar
from corgi_opt.proof import operations
from corgi_opt.proof.arithmetic import Array, Exact, Float64, Numbers
from corgi_opt.proof.bounds import Bounds, Claims
from corgi_opt.proof.network import Network
from corgi_opt.proof.region import Region
from corgi_opt.proof.rows import Rows, Shape

CHANNELS, HEIGHT, WIDTH = 4, 5, 6


@dataclass(frozen=True, eq=False)
class Moved(ops.Weighted):
    """``out[c, y, x] = scale[c] * in[c, y, x + by[c]]``, zero off the map (shifts: Wu et al. 2018)."""

    scale: Tensor
    by: tuple[int, ...]

    terms = 1

    @property
    def geometry(self) -> ops.Geometry:
        return ops.Geometry(offset=(0, min(self.by)), extent=(1, max(self.by) - min(self.by) + 1))

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        height, width = inputs[0].shape[2:]
        moved = [ops.crop(inputs[0][:, c], ops.Window(0, by, height, width)) for c, by in enumerate(self.by)]
        return torch.stack(moved, dim=1) * self.scale[:, None, None]

    def adjoint(self, lam: Tensor, places: ops.Places, shape: Shape) -> list[Tensor]:
        h, w = lam.shape[2:]
        below = lam.new_zeros(*lam.shape[:2], *self.geometry.size(h, w))
        for c, by in enumerate(self.by):
            below[:, c, :, by - min(self.by) :][..., :w] = self.scale[c] * lam[:, c]
        return [below]

    def absolute(self) -> Moved:
        return replace(self, scale=self.scale.abs())

    def linear(self) -> Moved:
        return self

    def bias_map(self) -> None:
        return None

    def to(self, dtype: torch.dtype, device: torch.device) -> Moved:
        return replace(self, scale=self.scale.to(device, dtype))


@dataclass(frozen=True, eq=False)
class PlainMoved(operations.Weighted):
    scale: Array
    by: tuple[int, ...]

    terms = adjoint_terms = 1

    @property
    def weights(self) -> tuple[Array, ...]:
        return (self.scale,)

    @property
    def bias_map(self) -> Array:
        return np.zeros((1, 1, 1))

    def reads(self, size: operations.Pair) -> operations.Pair:
        return size[0], size[1] + max(self.by) - min(self.by)

    def images(self, weights: Sequence[Numbers], values: Sequence[Numbers], shape: Shape) -> list[Numbers]:
        found = np.zeros_like(values[0])
        for c, by in enumerate(self.by):
            to, of = slice(max(0, -by), shape[2] - max(0, by)), slice(max(0, by), shape[2] - max(0, -by))
            found[c, :, to] = weights[0][c] * values[0][c, :, of]
        return [found]

    def adjoint(self, weights: Sequence[Numbers], rows: Rows) -> list[Rows]:
        count, channels, h, w = rows.coefs.shape
        below = np.zeros((count, channels, *self.reads((h, w))), dtype=rows.coefs.dtype)
        for c, by in enumerate(self.by):
            below[:, c, :, by - min(self.by) :][..., :w] = weights[0][c] * rows.coefs[:, c]
        return [Rows(below, rows.corners + np.array([0, min(self.by)]))]


@dataclass(frozen=True, eq=False)
class Shuffle(ops.Selection):
    """Channels in another order."""

    order: tuple[int, ...]

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0][:, list(self.order)]

    def adjoint(self, lam: Tensor, places: ops.Places, shape: Shape) -> list[Tensor]:
        return [lam[:, np.argsort(self.order).tolist()]]


@dataclass(frozen=True, eq=False)
class PlainShuffle(operations.Selection):
    order: tuple[int, ...]

    def image(self, values: Sequence[Numbers], shape: Shape) -> Numbers:
        return values[0][list(self.order)]

    def adjoint(self, rows: Rows) -> list[Rows]:
        return [replace(rows, coefs=rows.coefs[:, np.argsort(self.order)])]


OPS = {
    "moved": Moved(torch.tensor([1.5, -0.7, 0.3, -2.0], dtype=torch.float64), (-2, 0, 1, 3)),
    "shuffle": Shuffle((2, 0, 3, 1)),
}


@pytest.fixture(autouse=True)
def rows_of_the_table(monkeypatch):
    monkeypatch.setitem(PLAIN, Moved, lambda op: PlainMoved(array(op.scale), op.by))
    monkeypatch.setitem(PLAIN, Shuffle, lambda op: PlainShuffle(op.order))


def graph_of(op: ops.Op) -> LayerGraph:
    """conv, the operation, ReLU, plus what the operation read, conv: some functionals pass it and some do not."""
    g = torch.Generator().manual_seed(0)
    first, last = (torch.randn(CHANNELS, c, 3, 3, generator=g, dtype=torch.float64) for c in (1, CHANNELS))
    bias, shape = torch.randn(CHANNELS, generator=g, dtype=torch.float64), (CHANNELS, HEIGHT, WIDTH)
    builder = GraphBuilder()
    builder.add("x", ops.Input(), (), (1, HEIGHT, WIDTH))
    builder.add("first", ops.Conv2d(first, bias, padding=(1, 1)), ("x",), shape)
    builder.add("new", op, ("first",), shape)
    builder.add("relu", ops.ReLU(), ("new",), shape)
    builder.add("sum", ops.Combine((scalar(1.0), scalar(-1.0))), ("relu", "new"), shape)
    builder.add("both", ops.Combine((scalar(1.0), scalar(0.5))), ("sum", "first"), shape)
    builder.add("late", ops.ReLU(), ("both",), shape)
    return builder.build(builder.add("last", ops.Conv2d(last, bias, padding=(1, 1)), ("late",), shape))


def plain(graph: LayerGraph) -> Network:
    net: Any = SimpleNamespace(graph=graph, features="last", weight=torch.ones(1, CHANNELS), bias=torch.zeros(1))
    return plain_network(net)


def setting(name: str) -> tuple[LayerGraph, co.Ball, Mapping[str, Tensor]]:
    graph, ball = graph_of(OPS[name]), co.Ball(image(1, HEIGHT, WIDTH, seed=1), 0.1)
    return graph, ball, graph.values(points_in(ball.lower, ball.upper, 500, seed=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPS)
def test_intervals_and_crown_contain_what_is_sampled(name, dtype):
    graph, ball, values = setting(name)
    regions, moved = Regions.of([ball], dtype, torch.device("cpu")), graph.to(dtype)
    ibp, crown = interval_bounds(moved, regions), crown_pass(moved, regions).intervals
    for node in graph.order:
        slack = 1e-12 if dtype == torch.float64 else 1e-4
        for found in (ibp[node], crown[node]):
            assert bool((found.lower - slack <= values[node]).all() and (values[node] <= found.upper + slack).all())
    assert float((crown["both"].upper - crown["both"].lower).sum()) < float(
        (ibp["both"].upper - ibp["both"].lower).sum()
    )


@pytest.mark.parametrize("arithmetic", [Float64(), Exact()], ids=["floats", "fractions"])
@pytest.mark.parametrize("name", OPS)
def test_what_the_checker_proves_contains_what_is_sampled(name, arithmetic):
    graph, ball, values = setting(name)
    bounds = Bounds(plain(graph), Region(ball.center[0].numpy(), ball.eps, "inf", (0.0, 1.0)), arithmetic)
    crown = crown_pass(graph, Regions.of([ball], torch.float64, torch.device("cpu"))).intervals
    for at, node in enumerate(graph.order):
        bounds.reach(at)
        if node in graph.preactivations:
            open_ = np.flatnonzero(crown[node].unstable)  # the others are left to intervals there
            flat = open_[:3] if isinstance(arithmetic, Exact) else open_  # fractions take their time
            proven = bounds.neurons(at, flat, flat)
            bounds.take(at, Claims(flat, *proven))
            if flat is open_:
                for ours, theirs in zip(crown[node], proven, strict=True):
                    np.testing.assert_allclose(theirs, ours.flatten()[flat], atol=1e-9)
        there = values[node].numpy()
        assert (bounds.lower[at] - 1e-12 <= there).all() and (there <= bounds.upper[at] + 1e-12).all()


def test_the_hash_tells_its_settings_and_weights_apart():
    moved, shuffle = OPS["moved"], OPS["shuffle"]
    assert isinstance(moved, Moved) and isinstance(shuffle, Shuffle)
    scale = moved.scale.clone()
    scale[2] = torch.nextafter(scale[2], scale[2] + 1)
    others = [replace(moved, scale=scale), replace(moved, by=(-2, 0, 3, 1)), replace(shuffle, order=(2, 0, 1, 3))]
    assert len({plain(graph_of(op)).sha256 for op in (moved, shuffle, *others)}) == 5


def test_the_hash_refuses_what_it_cannot_say():
    with pytest.raises(TypeError, match=r"PlainShuffle\.order"):
        _ = replace_op(plain(graph_of(OPS["shuffle"])), PlainShuffle(None)).sha256  # type: ignore[arg-type]


def replace_op(network: Network, op: operations.Op) -> Network:
    nodes = list(network.nodes)
    nodes[2] = replace(nodes[2], op=op)
    return replace(network, nodes=tuple(nodes))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_a_builder_makes_it_part_of_every_answer(monkeypatch, tmp_path):
    """From the torch model to a certificate that is checked anew: with one builder, and the rules above."""

    def channel_shuffle(t, fx, *, x, groups):
        operand = t.map(x)
        channels = t.builder.nodes[operand].shape[0]
        order = np.arange(channels).reshape(groups, -1).T.flatten().tolist()
        return t.add(fx, "shuffle", Shuffle(tuple(order)), (operand,))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shuffled().eval()
    x = image(1, 6, 6, seed=3)
    known = co.from_torch(model, x)
    assert not any(isinstance(known.graph[n].op, Shuffle) for n in known.graph.order)
    monkeypatch.setitem(BUILDERS, "channel_shuffle.default", channel_shuffle)
    net = co.from_torch(model, x)
    assert any(isinstance(net.graph[n].op, Shuffle) for n in net.graph.order)
    assert co.radius(known, x, k=2, rtol=0.05).lower == pytest.approx(co.radius(net, x, k=2, rtol=0.05).lower, rel=0.05)
    radius = co.radius(net, x, k=2, rtol=0.05)
    assert 0 < radius.lower < radius.attack
    verdict = co.verify(net, x, eps=0.9 * radius.lower, k=2, proof="checked")
    assert (verdict.status, verdict.proof) == ("certified", "checked")
    verdict.prove().save(tmp_path / "a.cert")
    assert co.check_certificate(tmp_path / "a.cert", model).margin > 0
