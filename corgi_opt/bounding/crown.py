"""CROWN (Zhang et al. 2018) for all inputs of ReLUs and of curved nodes, screened.

A backward pass is spent on a neuron only when its sign is open after interval arithmetic, and after generators where
these are the cheaper way to show it (screening.py); when it can still matter to the question (``matter``: the receptive
field of the pixels that are undecided); and when no larger region has settled it (``above``). All others keep their
interval: of a stable neuron a ReLU needs the sign only. The plane of a pooling window needs more, so candidates that
may be its maximum are bounded too; and so are all inputs of a curved node, from both sides, unless intervals are exact
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.budget import in_parts
from corgi_opt.bounding.curves import CurvePlanes, curve_planes
from corgi_opt.bounding.dual import Interval, Relaxations, Rows, lower_bounds, rows_at_once
from corgi_opt.bounding.interval import propagate
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import (
    PoolChoice,
    PoolPlanes,
    ReluLines,
    choose_planes,
    from_windows,
    tree_planes,
    window_taps,
)
from corgi_opt.bounding.screening import Screen
from corgi_opt.bounding.tolerance import Rounding
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import MaxPool2d, ReLU, Shape
from corgi_opt.network.smooth import Curved, Smooth

Bound = Callable[[Rows], Tensor]
"""Lower bounds (R,) of R functionals of one node."""

Refiner = Callable[[LayerGraph, str, Interval, Tensor, Bound], Interval]
"""Better bounds of a node's neurons that matter (a mask (B or 1, 1, H, W)), from backward passes."""


@dataclass(frozen=True, eq=False)
class Bounded:
    """Proven bounds of one region, on the CPU in float64, for encodings.

    ``intervals`` (C, H, W) by node; ``planes`` (of one region) by the last node of a pool, where a direct plane is
    tighter than the tree's lines.
    """

    intervals: Mapping[str, Interval]
    planes: Mapping[str, PoolPlanes]


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A network over B regions: proven bounds (B, C, H, W) of its nodes, and how a backward pass relaxes each.

    ``lines``: of every ReLU; ``pools``: of every pooling window, by its last node; ``curves``: of every curved node.
    Bounds raise TimeoutError after
    ``deadline``. ``rounding``: the account of rounding that is taken off them in float64; None in float32.
    """

    graph: LayerGraph
    regions: Regions
    intervals: Mapping[str, Interval]
    lines: Mapping[str, ReluLines]
    pools: Mapping[str, PoolChoice]
    curves: Mapping[str, CurvePlanes]
    deadline: Deadline = NEVER
    rounding: Rounding | None = None

    @property
    def relaxations(self) -> Relaxations:
        return {**self.lines, **self.curves, **{name: pool.every for name, pool in self.pools.items()}}

    @property
    def direct(self) -> Mapping[str, PoolPlanes]:
        """Pooling windows where the direct plane is the tighter one; the rest is left to the ReLUs of the tree."""
        return {name: pool.direct for name, pool in self.pools.items() if pool.direct is not None}

    def bound(self, node: str, rows: Rows) -> Tensor:
        """CROWN's lower bounds (R,) of functionals of ``node``."""
        return lower_bounds(self.graph, node, rows, self.regions, self.relaxations, self.deadline, self.rounding)

    def only(self, case: int) -> Bounded:
        """The proven bounds of one region."""
        intervals = {n: Interval(*(side[case].cpu().double() for side in b)) for n, b in self.intervals.items()}
        return Bounded(intervals, {name: planes.only(case) for name, planes in self.direct.items()})

    def to(self, dtype: torch.dtype) -> Relaxed:
        """The same relaxation in another precision. From float64 to float32 it bounds nothing any more."""
        if self.regions.eps.dtype == dtype:
            return self
        return Relaxed(
            self.graph.to(dtype, self.regions.eps.device),
            self.regions.to(dtype),
            {name: Interval(b.lower.to(dtype), b.upper.to(dtype)) for name, b in self.intervals.items()},
            {name: lines.to(dtype) for name, lines in self.lines.items()},
            {name: pool.to(dtype) for name, pool in self.pools.items()},
            {name: planes.to(dtype) for name, planes in self.curves.items()},
            self.deadline,
        )


def settle(graph: LayerGraph, name: str, interval: Interval, matter: Tensor, bound: Bound) -> Interval:
    """Bounds the neurons whose sign is open, first from the side that is likelier to settle it (the nearer to zero).

    The other side is bounded only where that did not.
    """
    open_, nearer_above = matter & interval.unstable, interval.upper < -interval.lower
    interval = tightened(graph, name, interval, open_ & ~nearer_above, open_ & nearer_above, bound)
    open_ = open_ & interval.unstable
    return tightened(graph, name, interval, open_ & nearer_above, open_ & ~nearer_above, bound)


def refine(graph: LayerGraph, name: str, interval: Interval, wanted: Tensor, bound: Bound) -> Interval:
    """``interval`` met with backward bounds, from both sides, of the neurons marked in ``wanted`` (B, C, H, W)."""
    return tightened(graph, name, interval, wanted, wanted, bound)


def tightened(
    graph: LayerGraph, name: str, interval: Interval, from_below: Tensor, from_above: Tensor, bound: Bound
) -> Interval:
    """``interval`` with better lower bounds of some neurons and better upper bounds of some."""
    below, above = torch.nonzero(from_below), torch.nonzero(from_above)
    places = torch.cat([below, above])
    if not len(places):
        return interval
    lower, upper = interval.lower.clone(), interval.upper.clone()

    def tighten(start: int, count: int) -> None:
        part, lows = places[start : start + count], max(0, len(below) - start)
        rows = unit_rows(part, graph[name].shape, lower)
        rows.coefs[lows:] *= -1.0
        values = bound(rows)
        at_lower, at_upper = tuple(part[:lows].T), tuple(part[lows:].T)
        values = torch.where(values.isnan(), -torch.inf, values)  # proves nothing, and must not stick
        lower[at_lower] = torch.maximum(lower[at_lower], values[:lows])
        upper[at_upper] = torch.minimum(upper[at_upper], -values[lows:])

    in_parts(len(places), rows_at_once(graph, name, unit_rows(places[:1], graph[name].shape, lower)), tighten)
    return Interval(lower, upper)


def unit_rows(places: Tensor, shape: Shape, like: Tensor) -> Rows:
    """The neurons at ``places`` (R, 4: case, channel, row, column) as functionals of their node."""
    coefs = like.new_zeros(len(places), shape[0], 1, 1)
    coefs[torch.arange(len(places), device=coefs.device), places[:, 1]] = 1.0
    return Rows.at(coefs, places[:, 2:], places[:, 0])


def crown_pass(
    graph: LayerGraph,
    regions: Regions,
    *,
    matter: Mapping[str, Tensor] | None = None,
    above: Mapping[str, Interval] | None = None,
    refiner: Refiner = settle,
    bounder: Callable[[Relaxed, str, Rows], Tensor] = Relaxed.bound,
    deadline: Deadline = NEVER,
) -> Relaxed:
    """Relaxes ``graph`` over ``regions``, node by node.

    ``matter``: {node: (B or 1, 1, H, W)}, neurons that can still influence the question (default all). ``above``:
    bounds (B or 1, C, H, W) over a region that holds this one; they hold here. ``refiner``: which ReLU inputs get
    backward bounds (default: :func:`settle`). ``bounder``: computes those from what is relaxed so far. Raises
    TimeoutError.
    """
    known: dict[str, Interval] = {}
    lines: dict[str, ReluLines] = {}
    pools: dict[str, PoolChoice] = {}
    curves: dict[str, CurvePlanes] = {}
    rounding = regions.rounding(graph)
    relaxed = Relaxed(graph, regions, known, lines, pools, curves, deadline, rounding)  # grows with the loop
    screen = Screen(graph, regions, known, lines, deadline)
    everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=regions.eps.device)

    def mattering(name: str) -> Tensor:
        return everywhere if matter is None else matter.get(name, ~everywhere)

    for name in graph.order:
        node = graph[name]
        if node.pooled is not None:
            source, pool = node.pooled.source, node.pooled.pool
            tree = tree_planes(graph, name, lines, known[source].lower)
            contested = _contested(pool, known[source], tree.open) & mattering(source)
            known[source] = refine(graph, source, known[source], contested, partial(bounder, relaxed, source))
            pools[name] = choose_planes(node.pooled, tree, known[source])
        if isinstance(node.op, Curved):
            curves[name] = curve_planes(node, known)
        interval = propagate(graph, name, known, regions, rounding)
        if above is not None:
            interval = interval.meet(above[name])
        if name in graph.measured:
            wanted = mattering(name) & open_values(graph, name, interval, regions)
            interval = refine(graph, name, interval, wanted, partial(bounder, relaxed, name))
        elif name in graph.preactivations and not isinstance(node.op, Smooth):  # whose range is exact
            wanted = mattering(name)
            interval = screen.screened(name, interval, wanted).interval
            interval = refiner(graph, name, interval, wanted, partial(bounder, relaxed, name))
        known[name] = interval
        if rounding is not None:
            rounding.learn(name, *interval)
        for relu in graph.consumers(name):
            if isinstance(graph[relu].op, ReLU):
                lines[relu] = ReluLines.crown(name, interval)
    return relaxed


def open_values(graph: LayerGraph, name: str, interval: Interval, regions: Regions) -> Tensor:
    """Neurons (B, C, H, W) of a measured node whose values a backward pass may bound better than the interval does.

    None where that is exact: in sums of the image's own pixels, over a box. Where only ReLUs read a neuron, not those
    that are off.
    """
    wanted = interval.lower < interval.upper
    if graph[name].inputs == (graph.input,) and regions.norm == "inf":
        return torch.zeros_like(wanted)
    if all(isinstance(graph[reader].op, ReLU) for reader in graph.consumers(name)):
        wanted = wanted & (interval.upper > 0)
    return wanted


def _contested(pool: MaxPool2d, x: Interval, windows: Tensor) -> Tensor:
    """Which candidates (B, C, H, W) may be the maximum of a marked window that has several such."""
    lower, upper = (window_taps(pool, side, float("-inf")) for side in x)
    live = upper >= lower.amax(dim=0)
    return from_windows(pool, live & (live.sum(dim=0) > 1) & windows, x.lower.shape[2], x.lower.shape[3])
