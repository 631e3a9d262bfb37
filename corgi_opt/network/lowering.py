"""Rewrites into affine + ReLU: batch norm, average and max pooling. (The builders do it for a leaky ReLU.)

* batch norm (eval) is a per-channel affine map, folded into the convolution before it where there is one;
* average pooling is a depthwise convolution (with a per-position scale where padding is not counted);
* ``max(a, b) = a + relu(b - a)``: a pooling window is a balanced tree of these, columns first and then rows
  (overlapping windows then share their columns' maxima);
* ``maxpool(relu(x)) = relu(maxpool(x))``: one ReLU per window in place of one per candidate.

A new piecewise-linear layer is a builder, with a rewrite here where that is more than a line, and nothing elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from corgi_opt.network.graph import GraphBuilder, LayerGraph, Node, Pooled
from corgi_opt.network.ops import Combine, Conv2d, Input, MaxPool2d, ReLU, Shape, Tap


def scalar(value: float) -> Tensor:
    """A coefficient that broadcasts over any map."""
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def batch_norm(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm in eval mode as ``scale * x + shift`` per channel; all are (C,)."""
    scale = (var.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    shift = shift if bias is None else shift + bias.double()
    return scale, shift


def average_pool(
    shape: Shape,
    out: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    count_include_pad: bool,
    divisor: int | None,
) -> tuple[Conv2d, Combine | None]:
    """Average pooling as a depthwise sum and, where the divisor varies over the map, a scale per position."""
    channels = shape[0]
    ones = torch.ones(channels, 1, *kernel, dtype=torch.float64)
    if divisor is not None:
        counts = torch.full((1, *out[1:]), float(divisor), dtype=torch.float64)
    else:
        counts = _counts(shape, out, kernel, stride, padding, count_include_pad)
    if bool((counts == counts.flatten()[0]).all()):
        return Conv2d(ones / counts.flatten()[0], None, stride, padding, (1, 1), channels), None
    return Conv2d(ones, None, stride, padding, (1, 1), channels), Combine((1.0 / counts,))


def _counts(
    shape: Shape,
    out: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    include: bool,
) -> Tensor:
    """How many positions each window of an average pool divides by, (1, H, W)."""
    per_axis = []
    for axis in (0, 1):
        start = torch.arange(out[1 + axis]) * stride[axis] - padding[axis]
        margin = padding[axis] if include else 0
        stop = (start + kernel[axis]).clamp(max=shape[1 + axis] + margin)
        per_axis.append((stop - start.clamp(min=-margin)).double())
    return (per_axis[0][:, None] * per_axis[1][None, :])[None]


def fold_affine(graph: LayerGraph) -> tuple[LayerGraph, dict[str, str]]:
    """Folds a per-channel affine map into the convolution before it, when that feeds nothing else. Also says which node
    has the value of each."""
    builder, renamed = GraphBuilder(), dict[str, str]()
    for name in graph.order:
        node = graph[name]
        op, inputs = node.op, tuple(renamed[i] for i in node.inputs)
        before = builder.nodes[inputs[0]] if len(inputs) == 1 else None
        if before is not None and len(graph.consumers(node.inputs[0])) == 1 and _per_channel(op):
            conv = before.op
            if isinstance(conv, Conv2d) and isinstance(op, Combine):
                builder.nodes[before.name] = replace(before, op=_folded(conv, op))
                renamed[name] = before.name
                continue
        renamed[name] = builder.add(name, op, inputs, node.shape, node.module)
    return builder.build(renamed[graph.output]), renamed


def _per_channel(op: object) -> bool:
    if not isinstance(op, Combine) or len(op.coefs) != 1:
        return False
    parts = (*op.coefs, *(() if op.shift is None else (op.shift,)))
    return all(p.shape[-2:] == (1, 1) for p in parts)


def _folded(conv: Conv2d, after: Combine) -> Conv2d:
    channels = conv.weight.shape[0]
    scale = after.coefs[0].flatten().expand(channels)
    bias = torch.zeros(channels, dtype=torch.float64) if conv.bias is None else conv.bias
    bias = bias * scale if after.shift is None else bias * scale + after.shift.flatten().expand(channels)
    return replace(conv, weight=conv.weight * scale[:, None, None, None], bias=bias)


def normal_form(graph: LayerGraph) -> tuple[LayerGraph, dict[str, str]]:
    """The graph with every max pool rewritten as differences, taken before the ReLU that precedes it. Also says which
    node has the value of each that something reads."""
    builder = GraphBuilder()
    plain: dict[str, str] = {}  # old name -> new name of its value
    late: dict[str, str] = {}  # old name -> new name of a node whose ReLU is the value, not built yet

    def value(old: str) -> str:
        if old not in plain:
            before = builder.nodes[late[old]]
            plain[old] = builder.add(old, ReLU(), (before.name,), before.shape, graph[old].module)
        return plain[old]

    for name in graph.order:
        node = graph[name]
        if isinstance(node.op, Input):
            plain[name] = builder.add(name, node.op, (), node.shape, node.module)
        elif isinstance(node.op, ReLU):
            late[name] = value(node.inputs[0])
        elif isinstance(node.op, MaxPool2d):
            (source,) = node.inputs
            if source in late:
                late[name] = _pool(builder, node, f"{name}.max", late[source])
            else:
                plain[name] = _pool(builder, node, name, value(source))
        else:
            inputs = tuple(value(i) for i in node.inputs)
            plain[name] = builder.add(name, node.op, inputs, node.shape, node.module)
    return builder.build(value(graph.output)), plain


def _pool(builder: GraphBuilder, node: Node, name: str, source: str) -> str:
    """Adds the maxima of a pooling window: over its columns, then over its rows. Returns the last node."""
    pool = node.op
    assert isinstance(pool, MaxPool2d)
    columns = _axis_max(builder, node, f"{name}.cols", source, pool, axis=1)
    rows = _axis_max(builder, node, f"{name}.rows", columns, pool, axis=0)
    if rows == source:
        return source
    # nothing reads the last node yet: it takes the name that the pool's value has in the model's own order
    last = builder.nodes.pop(rows)
    return builder.add(name, last.op, last.inputs, last.shape, last.module, Pooled(source, pool))


def _axis_max(builder: GraphBuilder, node: Node, name: str, source: str, pool: MaxPool2d, axis: int) -> str:
    """The maximum over one axis of a pooling window, as a balanced tree of ``a + relu(b - a)``."""
    k, s, p, d = (v[axis] for v in (pool.kernel, pool.stride, pool.padding, pool.dilation))
    if (k, s, p) == (1, 1, 0):
        return source
    shape = builder.nodes[source].shape
    length, out = shape[1 + axis], node.shape[1 + axis]
    size = (out, shape[2]) if axis == 0 else (shape[1], out)
    stride = (s, 1) if axis == 0 else (1, s)
    level: list[tuple[str, Tensor]] = []
    for tap in range(k):
        start = tap * d - p
        position = torch.arange(out) * s + start
        valid = ((position >= 0) & (position < length)).double()
        offset, place = ((start, 0), (tap * d, 0)) if axis == 0 else ((0, start), (0, tap * d))
        tap_op = Tap(stride, offset, size, place)
        level.append((builder.add(f"{name}.tap{tap}", tap_op, (source,), (shape[0], *size), node.module), valid))
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        merged = [_max2(builder, node, name, a, b, axis) for a, b in pairs]
        level = merged + level[2 * len(pairs) :]
    return level[0][0]


def _max2(
    builder: GraphBuilder, node: Node, name: str, a: tuple[str, Tensor], b: tuple[str, Tensor], axis: int
) -> tuple[str, Tensor]:
    """``max(a, b) = a + relu(b - a)`` where both candidates are on the image; else the one that is."""
    (first, a_on), (second, b_on) = a, b
    shape = builder.nodes[first].shape
    size = shape[1:]
    both = _coefficient(a_on * b_on, axis, size)
    gap = builder.add(f"{name}.diff", Combine((both, -both)), (second, first), shape, node.module)
    rise = builder.add(f"{name}.relu", ReLU(), (gap,), shape, node.module)
    parts = {first: _coefficient(a_on, axis, size), rise: scalar(1.0)}
    if bool((b_on * (1 - a_on)).any()):
        parts[second] = _coefficient(b_on * (1 - a_on), axis, size)
    out = builder.add(f"{name}.max", Combine(tuple(parts.values())), tuple(parts), shape, node.module)
    return out, torch.maximum(a_on, b_on)


def _coefficient(values: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
    """A 1-D coefficient along an axis as a map (1, H, W); a scalar where it is constant one."""
    if bool((values == 1).all()):
        return scalar(1.0)
    along = values[None, :, None] if axis == 0 else values[None, None, :]
    return along.expand(1, *size).contiguous()
