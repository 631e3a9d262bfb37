"""Receptive fields, exactly: which positions of the image each position of a node reads, over all paths.

Along one path what a position (r, c) reads is a product of the rows that r reads and the columns that c reads, whatever
strides, paddings, dilations and borders are on it. So a field is a union of such products, one for each path, and a
path whose rows and columns another one holds adds nothing: most networks keep a single one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Geometry

MOST_PATHS = 16
"""Most products of one node; beyond it two are replaced by one that holds both (a larger field is safe)."""


class _Path(NamedTuple):
    """Rows (H, h) of a map below that each row of the node reads, and columns (W, w): booleans."""

    rows: Tensor
    columns: Tensor

    def holds(self, other: _Path) -> bool:
        return bool((self.rows | ~other.rows).all() and (self.columns | ~other.columns).all())

    def union(self, other: _Path) -> _Path:
        return _Path(self.rows | other.rows, self.columns | other.columns)


@dataclass(frozen=True, eq=False)
class Fields:
    """Which positions of a node read an input in common: for each pair of paths the pairs of rows (H, H) and of columns
    (W, W) that do, as booleans."""

    meets: tuple[tuple[Tensor, Tensor], ...]

    def share(self, pairs: Tensor) -> Tensor:
        """Whether positions (Q, 2), flat indices, read an input in common (Q,)."""
        first, second = pairs.cpu().T
        shared = torch.zeros(len(first), dtype=torch.bool)
        for rows, columns in self.meets:
            width = len(columns)
            shared |= rows[first // width, second // width] & columns[first % width, second % width]
        return shared.to(pairs.device)


_KNOWN: weakref.WeakKeyDictionary[LayerGraph, dict[str, Fields]] = weakref.WeakKeyDictionary()


def fields_of(graph: LayerGraph, node: str) -> Fields:
    """The fields of a node's positions; remembered as long as the graph is."""
    known = _KNOWN.setdefault(graph, {})
    if node not in known:
        paths = _paths(graph, node)
        meets = ((_meets(a.rows, b.rows), _meets(a.columns, b.columns)) for a in paths for b in paths)
        known[node] = Fields(tuple(meets))
    return known[node]


def _meets(one: Tensor, other: Tensor) -> Tensor:
    return one.float() @ other.float().T > 0.5


def _paths(graph: LayerGraph, node: str) -> list[_Path]:
    """The products of rows and columns of the image that positions of ``node`` read."""
    height, width = graph[node].shape[1:]
    pending = {node: [_Path(torch.eye(height, dtype=torch.bool), torch.eye(width, dtype=torch.bool))]}
    for name in reversed(graph.ancestors(node)):
        if name not in pending or name == graph.input:
            continue
        paths = pending.pop(name)
        for operand in graph[name].inputs:
            lengths = zip(graph[name].shape[1:], graph[operand].shape[1:], strict=True)
            reads = [_axis(graph[name].op.geometry, axis, *ends) for axis, ends in enumerate(lengths)]
            below = [_Path(_read(p.rows, reads[0]), _read(p.columns, reads[1])) for p in paths]
            pending[operand] = _distinct([*pending.get(operand, []), *below])
    return pending.get(graph.input, [])


def _axis(geometry: Geometry, axis: int, length: int, before: int) -> Tensor:
    """Which positions of an operand each position of a node's map reads along one axis (length, before)."""
    start = torch.arange(length)[:, None] * geometry.stride[axis] + geometry.offset[axis]
    away = torch.arange(before)[None] - start
    return (away >= 0) & (away < geometry.extent[axis]) & (away % geometry.step[axis] == 0)


def _read(reached: Tensor, reads: Tensor) -> Tensor:
    return reached.float() @ reads.float() > 0.5


def _distinct(paths: list[_Path]) -> list[_Path]:
    """Paths that no other holds."""
    kept: list[_Path] = []
    for path in paths:
        if not any(other.holds(path) for other in kept):
            kept = [other for other in kept if not path.holds(other)] + [path]
    while len(kept) > MOST_PATHS:
        kept = [*kept[:-2], kept[-2].union(kept[-1])]
    return kept
