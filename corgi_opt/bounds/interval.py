"""Interval arithmetic (IBP): each node's bounds from its operands' bounds (Gowal et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from corgi_opt.bounds.dual import Interval
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Combine, Conv2d, Input, MaxPool2d, Op, ReLU
from corgi_opt.spec import Ball


def propagate(graph: LayerGraph, name: str, known: Mapping[str, Interval]) -> Interval:
    """One node's interval from its operands'. A node that is a pool's maximum is also bounded as one."""
    node = graph[name]
    found = _image(node.op, [known[i] for i in node.inputs])
    if node.pooled is not None and node.pooled.source in known:
        found = found.meet(_image(node.pooled.pool, [known[node.pooled.source]]))
    return found


def interval_bounds(graph: LayerGraph, ball: Ball, dtype: torch.dtype, device: torch.device) -> dict[str, Interval]:
    """Intervals of all nodes over the region, by name; graph must be on the same device in the same dtype."""
    known: dict[str, Interval] = {}
    for name in graph.order:
        if isinstance(graph[name].op, Input):
            known[name] = Interval(ball.lower.to(device, dtype), ball.upper.to(device, dtype))
        else:
            known[name] = propagate(graph, name, known)
    return known


def _image(op: Op, inputs: list[Interval]) -> Interval:
    if isinstance(op, Conv2d):
        return _convolve(op, inputs[0])
    if isinstance(op, Combine):
        return _combine(op, inputs)
    # Taps, ReLU and max pooling are monotone in every operand.
    assert isinstance(op, (ReLU, MaxPool2d)) or op.geometry.extent == (1, 1)
    lower, upper = (op.apply([_batched(i[side]) for i in inputs])[0] for side in (0, 1))
    return Interval(lower, upper)


def _convolve(op: Conv2d, x: Interval) -> Interval:
    center, radius = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
    middle = op.apply([_batched(center)])[0]
    spread = replace(op, weight=op.weight.abs(), bias=None).apply([_batched(radius)])[0]
    return Interval(middle - spread, middle + spread)


def _combine(op: Combine, inputs: list[Interval]) -> Interval:
    shift = torch.zeros((), dtype=inputs[0].lower.dtype, device=inputs[0].lower.device)
    lower: Tensor = shift if op.shift is None else op.shift
    upper = lower
    for c, x in zip(op.coefs, inputs, strict=True):
        plus, minus = c.clamp(min=0), c.clamp(max=0)
        lower = lower + plus * x.lower + minus * x.upper
        upper = upper + plus * x.upper + minus * x.lower
    return Interval(lower, upper)


def _batched(x: Tensor) -> Tensor:
    return x[None]
