"""Values that are moved from place to place, as convolutions.

A convolution reads a map at evenly spaced rows and columns. So a map of moved values is cut into rectangles in which
each channel reads one channel of the operand, at places that go down and to the right in even steps: slices, pads,
rolls and pixel_unshuffle are few of them. Each is a convolution with a one for every channel, put back among the zeros
that another convolution pads with.

Turns and enlargements are as many rectangles as pixels, but along rows alone only as many as rows: what can be done one
axis after the other is (:func:`one_axis_at_a_time`). What is left (a transposition, pixel_shuffle) is two convolutions
that can say anything: one makes a channel of every value that is read, another puts each where it belongs. They have
more numbers than values that are read times values that are written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from corgi_opt.network.graph import GraphBuilder, LayerGraph, Node
from corgi_opt.network.lowering import scalar
from corgi_opt.network.movement import NOTHING, Move
from corgi_opt.network.ops import Combine, Shape, Window

MOST_RECTANGLES = 64
"""Into which a map of moved values may be cut."""

MOST_NUMBERS = 2**25
"""Of the two convolutions that can say anything: 128 MiB of float32."""


class Piece(NamedTuple):
    """``rectangle`` of a result: position r of it is a convolution's whose kernel ``weight`` (C_out, C, kh, kw) starts
    at ``stride * r + offset`` of the operand."""

    rectangle: Window
    weight: Tensor
    stride: tuple[int, int]
    offset: tuple[int, int]


def pieces_of(index: Tensor, shape: Shape, out: Window) -> list[Piece] | None:
    """The pieces of a window of moved values; ``index`` (C_out, h, w): flat places of an operand of this shape, or
    NOTHING. None: there are more than MOST_RECTANGLES."""
    places = _Places.of(index, shape)
    rows, columns = _runs(places, 0), _runs(places, 1)
    if len(rows) * len(columns) > MOST_RECTANGLES:
        return None
    found = []
    for y, h, down in rows:
        for x, w, right in columns:
            stride = (down or right or 1, right or down or 1)  # of a single line any does
            used = torch.nonzero(places.used[:, y, x]).flatten()
            if not len(used):
                continue
            first = torch.stack([places.row[used, y, x], places.column[used, y, x]])
            low = first.amin(dim=1)
            size = (first.amax(dim=1) - low + 1).tolist()
            weight = torch.zeros(len(index), shape[0], *size, dtype=torch.float64)
            weight[used, places.channel[used, y, x], first[0] - low[0], first[1] - low[1]] = 1.0
            corner = (out.y + y, out.x + x)
            offset = (int(low[0]) - stride[0] * corner[0], int(low[1]) - stride[1] * corner[1])
            found.append(Piece(Window(*corner, h, w), weight, stride, offset))
    return found


class Anything(NamedTuple):
    """Two kernels: ``values`` (n, C, H, W) makes a channel of every value of a whole operand that is read, ``placed``
    (C_out, n, h, w) puts them on a map of which it reads one pixel."""

    values: Tensor
    placed: Tensor


def anything(index: Tensor, shape: Shape) -> Anything | None:
    """Any map (C_out, h, w) of moved values. None: of more than MOST_NUMBERS."""
    used = index != NOTHING
    read, which = torch.unique(index[used], return_inverse=True)
    size, (h, w) = torch.Size(shape).numel(), index.shape[1:]
    filled = (2 * max(h, w) - h) * (2 * max(h, w) - w)  # a kernel's size, with the same pad at all ends
    if len(read) * (size + len(index) * filled) > MOST_NUMBERS:
        return None
    values = torch.zeros(len(read), size, dtype=torch.float64)
    values[torch.arange(len(read)), read] = 1.0
    placed = torch.zeros(len(index), len(read), h, w, dtype=torch.float64)
    channel, y, x = torch.nonzero(used).T
    placed[channel, which, h - 1 - y, w - 1 - x] = 1.0
    return Anything(values.view(len(read), *shape), placed)


def one_axis_at_a_time(graph: LayerGraph) -> LayerGraph:
    """The same function; what moves values in too many pieces moves them along rows and then along columns, where it
    does nothing else."""
    builder = GraphBuilder()
    for name in graph.order:
        node = graph[name]
        parts = _split(builder, node) if isinstance(node.op, Move) else None
        if parts is None:
            builder.nodes[name] = node
        else:
            total = Combine(tuple(scalar(1.0) for _ in parts))
            builder.nodes[name] = replace(node, op=total, inputs=tuple(parts))
    return builder.build(graph.output)


def _split(builder: GraphBuilder, node: Node) -> list[str] | None:
    """Adds the two steps of every operand. Returns the last of each; None: they are not needed, or there are none."""
    assert isinstance(node.op, Move)
    whole = Window(0, 0, *node.shape[1:])
    if all(pieces_of(i, s, whole) is not None for i, s in zip(node.op.index, node.op.shapes, strict=True)):
        return None
    steps = [_two_steps(i, s) for i, s in zip(node.op.index, node.op.shapes, strict=True)]
    parts = []
    for operand, shape, step in zip(node.inputs, node.op.shapes, steps, strict=True):
        if step is None:
            return None
        first, second = step
        between = (node.shape[0], node.shape[1], shape[2])
        rows = Move((first,), (shape,))
        name = builder.add(f"{node.name}.rows", rows, (operand,), between, node.module)
        columns = Move((second,), (between,))
        parts.append(builder.add(f"{node.name}.columns", columns, (name,), node.shape, node.module))
    return parts


def _two_steps(index: Tensor, shape: Shape) -> tuple[Tensor, Tensor] | None:
    """Rows from an operand (C, H, W) to (C_out, h, W), and columns from there to (C_out, h, w): the indices of both, or
    None where the row that is read depends on the column, or the other way round."""
    places, (out, h, w) = _Places.of(index, shape), index.shape
    none = torch.full((), NOTHING)
    used = places.used
    marked = [torch.where(used, p, none) for p in (places.channel, places.row, places.column)]
    channel, row, column = marked[0].amax(dim=(1, 2)), marked[1].amax(dim=2), marked[2].amax(dim=1)
    rows, columns = row[:, :, None], column[:, None, :]  # (C_out, h, 1) and (C_out, 1, w)
    both = (rows != NOTHING) & (columns != NOTHING)
    made = torch.where(both, (channel[:, None, None] * shape[1] + rows) * shape[2] + columns, none)
    if not torch.equal(made, index):
        return None
    along = torch.arange(shape[2])
    first = torch.where(rows != NOTHING, (channel[:, None, None] * shape[1] + rows) * shape[2] + along, none)
    lines = torch.arange(out * h).view(out, h, 1)
    second = torch.where(columns != NOTHING, lines * shape[2] + columns, none).expand(out, h, w)
    return first, second.contiguous()


class _Places(NamedTuple):
    """Of every value of a map (C_out, h, w): whether it is read at all, from which channel, row and column."""

    used: Tensor
    channel: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, index: Tensor, shape: Shape) -> _Places:
        index, (_, h, w) = index.cpu(), shape
        return cls(index != NOTHING, index // (h * w), index // w % h, index % w)


def _runs(places: _Places, axis: int) -> list[tuple[int, int, int | None]]:
    """Rows (or columns, ``axis`` 1) that are read in even steps: where each run begins, how many lines it has, and its
    step, None of a single line."""
    used, channel, moving, still = (
        p.movedim(1 + axis, 0).flatten(1)
        for p in (places.used, places.channel, (places.row, places.column)[axis], (places.column, places.row)[axis])
    )
    runs: list[tuple[int, int, int | None]] = []
    start, step = 0, None
    for line in range(1, len(used)):
        here = used[line]
        apart = (moving[line] - moving[line - 1])[here]
        same = torch.equal(here, used[line - 1]) and bool(
            ((channel[line] == channel[line - 1]) & (still[line] == still[line - 1]))[here].all()
        )
        by = int(apart[0]) if len(apart) else step
        even = same and by is not None and by >= 1 and bool((apart == by).all()) and step in (None, by)
        empty = same and not len(apart) and step is None
        if even or empty:
            step = by
            continue
        runs.append((start, line - start, step))
        start, step = line, None
    return [*runs, (start, len(used) - start, step)]
