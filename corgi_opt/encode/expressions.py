"""Functionals of a network as linear expressions over its inputs and its unstable ReLUs; all else is eliminated.

A ReLU proven active passes coefficients on, one proven inactive drops them, an unstable one is a variable. So an
expression is one backward pass, as for a dual bound, except that coefficients of unstable ReLUs are recorded instead of
relaxed. Expressions of pre-activations are remembered: questions about one image at one eps share most of them.

Columns number the variables of the whole network: inputs first, then ReLUs in topological order (flat indices of
their maps), then, after all variables, windows of pooling nodes, which are no variables: they say which windows an
expression passed through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.budget import in_parts
from corgi_opt.bounding.crown import Bounded, unit_rows
from corgi_opt.bounding.dual import Relaxations, Rows, Step, backward, rows_at_once
from corgi_opt.bounding.tolerance import Rounding, gamma
from corgi_opt.network.graph import LayerGraph
from corgi_opt.problem.region import Ball

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Expression:
    """``constant + values @ variables[columns]``; columns sorted. ``windows``: pooling windows it passed through.

    ``error``: how far the exact functional may differ from it over the region, as coefficients were rounded.
    """

    constant: float
    columns: Indices
    values: Vector
    windows: Indices
    error: float = 0.0

    def __sub__(self, other: Expression) -> Expression:
        return combined([(1.0, self), (-1.0, other)])

    def __neg__(self) -> Expression:
        return replace(self, constant=-self.constant, values=-self.values)

    def plus(self, constant: float, doubt: float = 0.0) -> Expression:
        """This and a number, which is off by ``doubt`` at most."""
        total = combined([(1.0, self)], constant)
        return replace(total, error=total.error + doubt)


def combined(terms: Sequence[tuple[float, Expression]], constant: float = 0.0) -> Expression:
    """``constant + sum of weight * expression``."""
    columns = np.concatenate([e.columns for _, e in terms])
    values = np.concatenate([w * e.values for w, e in terms])
    merged, place = np.unique(columns, return_inverse=True)
    total = np.bincount(place, values, minlength=len(merged))
    kept = total != 0
    return Expression(
        constant=constant + sum(w * e.constant for w, e in terms),
        error=sum(abs(w) * e.error for w, e in terms)
        + gamma(len(terms)) * (abs(constant) + sum(abs(w * e.constant) for w, e in terms)),
        columns=merged[kept],
        values=total[kept],
        windows=np.unique(np.concatenate([e.windows for _, e in terms])),
    )


class Expressions:
    """Expressions over one region. ``graph`` is in float64 on the CPU; ``bounded`` holds proven bounds of its nodes."""

    def __init__(self, graph: LayerGraph, bounded: Bounded) -> None:
        self.graph, self.bounded = graph, bounded
        self._rounding = Rounding.of(graph, bounded.intervals)
        self._remembered: dict[int, Expression] = {}
        self._start: dict[str, int] = {}
        count = 0
        for name in (graph.input, *graph.relus, *bounded.planes):
            self._start[name] = count
            count += math.prod(graph[name].shape)
        self.columns = count
        self.inputs = math.prod(graph[graph.input].shape)
        self._first_window = self._start[next(iter(bounded.planes))] if bounded.planes else count
        self._notes: list[tuple[Tensor, Tensor, Tensor]] = []
        self._gates: Relaxations = {n: self._gate(n) for n in graph.relus} | {
            n: _Passed(partial(self._note, n)) for n in bounded.planes
        }

    def of(self, node: str, rows: Rows, deadline: Deadline) -> list[Expression]:
        """The expressions of functionals of ``node``, all about the one region. Raises TimeoutError."""

        def part(start: int, count: int) -> list[Expression]:
            deadline.check()
            return self._descended(node, rows.part(start, count))

        return [one for parts in in_parts(len(rows), rows_at_once(self.graph, node, rows), part) for one in parts]

    def units(self, relu: str, columns: Indices, deadline: Deadline) -> list[Expression]:
        """The pre-activations of some units (their columns) of one ReLU node. Raises TimeoutError."""
        missing = np.array([c for c in columns if c not in self._remembered], dtype=np.int64)
        if len(missing):
            source = self.graph[relu].inputs[0]
            rows = self._unit_rows(source, missing - self._start[relu])
            self._remembered.update(zip(missing.tolist(), self.of(source, rows, deadline), strict=True))
        return [self._remembered[c] for c in columns.tolist()]

    def ranges(self, columns: Indices, ball: Ball) -> tuple[Vector, Vector]:
        """Least and largest values (K,), (K,) of variables (sorted columns): inputs in the box of ``ball``, ReLUs."""
        low, high = [np.zeros(0)], [np.zeros(0)]
        for name, part in self.by_node(columns).items():
            if name == self.graph.input:
                low.append(ball.lower.flatten().numpy()[part])
                high.append(ball.upper.flatten().numpy()[part])
            else:
                low.append(np.zeros(len(part)))
                high.append(np.maximum(self.bounds(name, part)[1], 0.0))
        return np.concatenate(low), np.concatenate(high)

    def bounds(self, relu: str, columns: Indices) -> Vector:
        """Proven lower and upper bounds (2, U) of the pre-activations of some units of one ReLU node."""
        at = torch.from_numpy(columns - self._start[relu])
        return torch.stack([side.flatten()[at] for side in self.bounded.intervals[self.graph[relu].inputs[0]]]).numpy()

    def cuts(self, node: str, windows: Indices, deadline: Deadline) -> list[Expression]:
        """Expressions that direct planes keep at or below zero: plane below - maximum, and maximum - plane above.

        Of the given windows of a pooling node, where those planes are the tighter ones. Raises TimeoutError.
        """
        planes = self.bounded.planes[node]
        assert planes.used is not None
        rows: list[Expression] = []
        for used, sign in zip(planes.used, (1.0, -1.0), strict=True):
            flat = windows - self._start[node]
            flat = flat[used[0].flatten().numpy()[flat]]
            if not len(flat):
                continue
            maximum = self._unit_rows(node, flat)
            maximum.coefs.mul_(sign)
            step = planes.step(maximum)  # the plane that bounds a coefficient of this sign from below
            assert step.constant is not None
            ((source, plane),) = step.passed
            parts = (self.of(source, plane, deadline), self.of(node, maximum, deadline), step.constant.tolist())
            rows += [combined([(1.0, low), (-1.0, value)], shift) for low, value, shift in zip(*parts, strict=True)]
        return rows

    def by_node(self, columns: Iterable[int]) -> dict[str, Indices]:
        """Columns of ReLUs and pooling windows by their node, each sorted."""
        every = np.array(sorted(columns), dtype=np.int64)
        names, starts = list(self._start), np.array([*self._start.values(), self.columns])
        cut = np.searchsorted(every, starts)
        return {n: every[a:b] for n, a, b in zip(names, cut[:-1], cut[1:], strict=True) if b > a}

    def flat(self, node: str, columns: Indices) -> Indices:
        """Places in a node's map of its columns."""
        return columns - self._start[node]

    def _gate(self, relu: str) -> _Gate:
        source = self.graph[relu].inputs[0]
        z = self.bounded.intervals[source]
        return _Gate(source, (z.lower >= 0).double()[None], z.unstable.double()[None], partial(self._note, relu))

    def _note(self, name: str, rows: Rows) -> None:
        """Records the nonzero coefficients of rows, all on the map of this node."""
        _, height, width = self.graph[name].shape
        row, c, y, x = torch.nonzero(rows.coefs, as_tuple=True)
        at = rows.places.corners[row]
        column = (c * height + at[:, 0] + y) * width + at[:, 1] + x + self._start[name]
        self._notes.append((row, column, rows.coefs[row, c, y, x]))

    def _unit_rows(self, node: str, flat: Indices) -> Rows:
        shape = self.graph[node].shape
        places = torch.from_numpy(np.stack([np.zeros_like(flat), *np.unravel_index(flat, shape)], axis=1))
        return unit_rows(places, shape, torch.zeros((), dtype=torch.float64))

    def _descended(self, node: str, rows: Rows) -> list[Expression]:
        self._notes.clear()
        ended = backward(self.graph, node, rows, self._gates, self._rounding)
        assert ended.doubt is not None  # there is an account of rounding
        if ended.at_image is not None:
            self._note(self.graph.input, ended.at_image)
        row, column, value = (torch.cat(parts).numpy() for parts in zip(*self._notes, strict=True))
        table = sparse.csr_array((value, (row, column)), shape=(len(rows), self.columns))
        table.sort_indices()
        expressions = []
        for k, (constant, error) in enumerate(zip(ended.constant.tolist(), ended.doubt.tolist(), strict=True)):
            here = slice(*table.indptr[k : k + 2])
            columns, values = table.indices[here].astype(np.int64), table.data[here]
            end = int(np.searchsorted(columns, self._first_window))
            expressions.append(Expression(constant, columns[:end], values[:end], columns[end:], error))
        return expressions


@dataclass(frozen=True, eq=False)
class _Gate:
    """A ReLU whose active units pass coefficients on; ``note`` records those of unstable units.

    ``on``, ``unstable``: maps (1, C, H, W) of ones and zeros.
    """

    source: str
    on: Tensor
    unstable: Tensor
    note: Callable[[Rows], None]

    def step(self, rows: Rows) -> Step:
        self.note(replace(rows, coefs=rows.coefs * rows.gather(self.unstable)))
        return Step(((self.source, replace(rows, coefs=rows.coefs * rows.gather(self.on))),), None)


@dataclass(frozen=True, eq=False)
class _Passed:
    """A node that rows pass unchanged; ``note`` records them."""

    note: Callable[[Rows], None]

    def step(self, rows: Rows) -> Step:
        self.note(rows)
        return Step((), None, rows)
