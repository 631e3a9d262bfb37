"""Which neurons need no backward pass: those whose sign generators (generators.py) show, where that is the cheaper way.

**Cheaper by which estimate.** Both ways are counted in multiplications, where a coefficient that a step holds counts
as ``HELD`` of them (it is made, gathered, masked and copied):

* backward: per row, what its windows need on the way down to the image (``backward_cost``), times the rows;
* generators: the way forwards from where they stand to this node, for as many generators as there are by then, and
  ``units * (what lies below them)`` for each row, counted on one tile in the middle of the map (``forward_cost``).

A backward multiplication takes ``DEARER`` times as long: it is in float64, on small windows, and most of its time goes
into laying them out. So early layers, whose windows are small, and networks whose cones are small, go backwards. Where
generators would need more memory than ``MOST_BYTES``, or a curved node or a whole max pool lies below, or there are
several regions or another device than the CPU, there is nothing to choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.generators import TILES, Generators, exact_in_float32
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import ReluLines
from corgi_opt.network.cone import windows_of
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ops import Affine, Input, ReLU, Weighted, Window

HELD = 50
"""Multiplications that a coefficient costs at each node, besides those of the node's operation."""

DEARER = 20
"""How much longer a backward multiplication takes; measured 9 to 18 on the zoo's deep networks. With 20 passes of dense
and mobile networks take a sixth less than with 10, those of a VGG at a large eps a quarter, and none takes longer."""

LEAST = 2_000_000_000
"""Fewer multiplications than these (some 20 ms) are not worth an estimate: small networks go backwards."""

MOST_BYTES = 1_500_000_000
"""Memory for the generators' coefficients."""


class Screened(NamedTuple):
    """Tighter bounds of a node, and which of its neurons a backward pass might show to be above zero: all but those
    whose lower bound generators know to be below it."""

    interval: Interval
    liftable: Tensor


class Screen:
    """Generators for one pass over one region; ``known`` and ``lines`` grow with it."""

    def __init__(
        self,
        graph: LayerGraph,
        regions: Regions,
        known: Mapping[str, Interval],
        lines: Mapping[str, ReluLines],
        deadline: Deadline,
    ) -> None:
        self._graph, self._known = graph, known
        self._generators: Generators | None = None
        if len(regions) == 1 and regions.eps.device.type == "cpu":
            dtype = torch.float32 if exact_in_float32() else torch.float64
            proven = graph.to(torch.float64), regions.to(torch.float64)
            self._generators = Generators(*proven, known, lines, deadline, dtype)

    def cheaper(self, name: str, rows: int) -> bool:
        """Whether so many neurons of a node are shown stable in less time by generators than by backward passes."""
        return self.bytes_for(name, rows) > 0

    def bytes_for(self, name: str, rows: int) -> int:
        """Memory that generators take to show the signs of so many neurons of a node; 0 where they do not, as backward
        passes are the cheaper way, or there is not the memory."""
        if not rows or self._generators is None or not all(map(self._served, self._graph.ancestors(name))):
            return 0
        backward = DEARER * rows * backward_cost(self._graph, name)
        if backward < LEAST:
            return 0
        cost, size = forward_cost(self._graph, name, rows, self._known, self._generators)
        return size if size <= MOST_BYTES and cost < backward else 0

    def screened(self, name: str, interval: Interval, wanted: Tensor) -> Screened:
        """``interval`` met with what generators show of the neurons marked in ``wanted`` (B or 1, C or 1, H or 1, W or
        1) whose sign is open, from both sides: the next intervals are made of both. Raises TimeoutError."""
        liftable = torch.ones_like(interval.lower, dtype=torch.bool)
        if self._generators is None:
            return Screened(interval, liftable)
        flat = torch.nonzero((wanted & interval.unstable).flatten()).flatten()
        if not self.cheaper(name, len(flat)):
            return Screened(interval, liftable)
        signs = torch.ones(2 * len(flat), dtype=torch.float64)
        signs[len(flat) :] = -1.0
        proven, most = self._generators.below(name, flat.repeat(2), signs)
        lower, upper = (side.clone() for side in interval)
        proven = proven.to(lower.dtype)
        lower.view(-1)[flat] = torch.maximum(lower.view(-1)[flat], proven[: len(flat)])
        upper.view(-1)[flat] = torch.minimum(upper.view(-1)[flat], -proven[len(flat) :])
        liftable.view(-1)[flat] = most[: len(flat)] > 0
        return Screened(Interval(lower, upper), liftable)

    def _served(self, name: str) -> bool:
        return isinstance(self._graph[name].op, (Input, Affine, ReLU))


def generator_bytes(graph: LayerGraph) -> int:
    """Memory that generators take in a pass over one region on the CPU where few ReLUs are open, most of which only
    generators or backward passes show."""
    shape = (1, *graph[graph.input].shape)
    center, lower, upper = (torch.full(shape, value, dtype=torch.float64) for value in (0.0, -1.0, 1.0))
    zero = {name: Interval(*[torch.zeros(1, *graph[name].shape)] * 2) for name in graph.preactivations}
    screen = Screen(graph, Regions("inf", center, lower, upper, upper.new_ones(1)), zero, {}, NEVER)
    return max((screen.bytes_for(name, math.prod(graph[name].shape)) for name in graph.preactivations), default=0)


def backward_cost(graph: LayerGraph, node: str) -> int:
    """Multiplications that one neuron's backward pass takes."""
    sizes, cost = {node: (1, 1)}, 0
    for name in reversed(graph.ancestors(node)):
        if name not in sizes:
            continue
        h, w = (min(size, most) for size, most in zip(sizes[name], graph[name].shape[1:], strict=True))
        cost += graph[name].shape[0] * h * w * (HELD + _terms(graph[name]))
        needed = graph[name].op.geometry.size(h, w)
        for operand in graph[name].inputs:
            before = sizes.get(operand, (0, 0))
            sizes[operand] = (max(before[0], needed[0]), max(before[1], needed[1]))
    return cost


def forward_cost(
    graph: LayerGraph, node: str, rows: int, known: Mapping[str, Interval], generators: Generators
) -> tuple[int, int]:
    """Multiplications that so many of a node's neurons take by generators, and the most bytes that these hold."""
    way, peak = _sweep_cost(graph, node, known, generators)
    _, height, width = graph[node].shape
    tall, wide = -(-height // TILES), -(-width // TILES)
    windows = windows_of(graph, node, Window((height - tall) // 2, (width - wide) // 2, tall, wide))
    below = round(_share(windows[graph.input], graph[graph.input]) * generators.inputs)
    each = HELD * below
    for name in graph.ancestors(node):
        if isinstance(graph[name].op, ReLU):
            source = graph[name].inputs[0]
            units = round(_share(windows[source], graph[source]) * int(known[source].unstable.sum()))
            each += units * (HELD + below)
            below += units
    return way + rows * each, peak


def _sweep_cost(graph: LayerGraph, node: str, known: Mapping[str, Interval], generators: Generators) -> tuple[int, int]:
    """Multiplications from where generators stand to a node, and the most bytes held on the way."""
    many = {name: len(maps.coefs) for name, maps in generators.maps.items()}
    total, cost, peak, done = generators.count, 0, 0, set(generators.done)
    held = {name: count * math.prod(graph[name].shape) for name, count in many.items()}
    for name in graph.ancestors(node):
        if name in done:
            continue
        done.add(name)
        op, size = graph[name].op, math.prod(graph[name].shape)
        many[name] = max((many[operand] for operand in graph[name].inputs), default=generators.inputs)
        if isinstance(op, ReLU):
            units = int(known[graph[name].inputs[0]].unstable.sum())
            many[name], total = (total + units, total + units) if units else (many[name], total)
        else:
            cost += many[name] * size * (HELD + _terms(graph[name]))
        held[name] = many[name] * size
        peak = max(peak, sum(held.values()))
        for operand in graph[name].inputs:
            if done.issuperset(graph.consumers(operand)):
                held.pop(operand, None)
    return cost, peak * generators.dtype.itemsize


def _terms(node: Node) -> int:
    """Products that a value of a node is the sum of."""
    return node.op.terms * len(node.inputs) if isinstance(node.op, Weighted) else 0


def _share(window: Window, node: Node) -> float:
    """Which part of a node's map a window covers."""
    _, height, width = node.shape
    rows = min(height, window.y + window.h) - max(0, window.y)
    columns = min(width, window.x + window.w) - max(0, window.x)
    return max(0, rows) * max(0, columns) / (height * width)
