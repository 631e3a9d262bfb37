"""Max pools whose every step has the stride of the pool.

A lowered pool takes its maxima over columns first, with stride (1, s), and then over rows, with (s, 1). Some readers of
ONNX take convolutions of one stride along both axes only. Where a pool itself has one, its windows can be written so:
every pixel of the window is a tap of stride (s, s), and their maxima are a tree of ``a + relu(b - a)``, row by row and
then over the rows. Windows that do not overlap have as many ReLUs either way, and the same ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from corgi_opt.network.graph import GraphBuilder, LayerGraph, Node
from corgi_opt.network.lowering import scalar
from corgi_opt.network.ops import Combine, ReLU, Tap


def with_square_pools(graph: LayerGraph) -> LayerGraph:
    """The same function; every pool with one stride, larger than 1, along both axes is written as above."""
    builder = GraphBuilder()
    for name in graph.order:
        node = graph[name]
        stride = (1, 1) if node.pooled is None else node.pooled.pool.stride
        if stride[0] == stride[1] > 1:
            last = builder.nodes.pop(_pool(builder, node))
            builder.nodes[name] = replace(last, name=name)
        else:
            builder.nodes[name] = node
    return builder.build(graph.output)


class _Candidate:
    """A node, and where it is a maximum of pixels that are on the map, (H, W)."""

    def __init__(self, name: str, on: Tensor) -> None:
        self.name, self.on = name, on


def _pool(builder: GraphBuilder, node: Node) -> str:
    """Adds the maxima of a node's windows. Returns the last node."""
    assert node.pooled is not None
    pool, source = node.pooled.pool, node.pooled.source
    size = (node.shape[1], node.shape[2])
    rows = []
    for y in range(pool.kernel[0]):
        taps = []
        for x in range(pool.kernel[1]):
            place = (y * pool.dilation[0], x * pool.dilation[1])
            offset = (place[0] - pool.padding[0], place[1] - pool.padding[1])
            tap = Tap(pool.stride, offset, size, place)
            on = [_on_map(pool.stride[a], offset[a], size[a], builder.nodes[source].shape[1 + a]) for a in (0, 1)]
            name = builder.add(f"{node.name}.tap", tap, (source,), node.shape, node.module)
            taps.append(_Candidate(name, on[0][:, None] & on[1][None, :]))
        rows.append(_largest(builder, node, taps))
    return _largest(builder, node, rows).name


def _on_map(stride: int, offset: int, count: int, length: int) -> Tensor:
    """Which of the positions ``stride * r + offset`` are on an axis."""
    position = torch.arange(count) * stride + offset
    return (position >= 0) & (position < length)


def _largest(builder: GraphBuilder, node: Node, level: list[_Candidate]) -> _Candidate:
    """The maximum of several candidates, as a balanced tree."""
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        level = [_larger(builder, node, a, b) for a, b in pairs] + level[2 * len(pairs) :]
    return level[0]


def _larger(builder: GraphBuilder, node: Node, a: _Candidate, b: _Candidate) -> _Candidate:
    """``a + relu(b - a)`` where both are on the map; else the one that is."""
    both = _coefficient(a.on & b.on)
    gap = builder.add(f"{node.name}.diff", Combine((both, -both)), (b.name, a.name), node.shape, node.module)
    rise = builder.add(f"{node.name}.relu", ReLU(), (gap,), node.shape, node.module)
    parts = {a.name: _coefficient(a.on), rise: scalar(1.0)}
    if bool((b.on & ~a.on).any()):
        parts[b.name] = _coefficient(b.on & ~a.on)
    name = builder.add(f"{node.name}.max", Combine(tuple(parts.values())), tuple(parts), node.shape, node.module)
    return _Candidate(name, a.on | b.on)


def _coefficient(where: Tensor) -> Tensor:
    """1 where (H, W) says so and 0 elsewhere; a scalar where it is 1 all over."""
    return scalar(1.0) if bool(where.all()) else where[None].double()
