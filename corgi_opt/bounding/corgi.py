"""The paper's bound: CORGI (Gu et al., arXiv 2301.11324), on CNN-Cert's layer bounds (Boopathy et al. 2019).

As the authors' code does it: max pools keep their place behind the ReLU and are relaxed whole by CNN-Cert's plane;
each channel of the last feature map gets an interval; the class weights combine the channels' intervals. It is
loose (nothing is fused, pools are coarse) and fast, and every answer is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.crown import Bound, open_values, refine, tightened
from corgi_opt.bounding.curves import curve_planes
from corgi_opt.bounding.dual import Interval, Relaxation, lower_bounds
from corgi_opt.bounding.interval import propagate
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import PoolPlanes, ReluLines, direct_planes
from corgi_opt.bounding.screening import Screen
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import MaxPool2d, ReLU
from corgi_opt.network.smooth import Curved


def corgi_bounds(
    net: CamNetwork, regions: Regions, matter: Mapping[str, Tensor] | None = None, deadline: Deadline = NEVER
) -> Interval:
    """Bounds (B, C, H, W) of the last feature map; ``net`` must be on the regions' device in their dtype.

    ``matter`` {node of net.pooled: (B or 1, 1, H, W)}: the neurons that can still influence the question; the others
    keep their interval. Raises TimeoutError.
    """
    graph = net.pooled
    known: dict[str, Interval] = {}
    relaxations: dict[str, Relaxation] = {}
    lines: dict[str, ReluLines] = {}
    screen = Screen(graph, regions, known, lines, deadline)
    rounding = regions.rounding(graph)
    for name in graph.ancestors(net.features):
        node = graph[name]
        if isinstance(node.op, ReLU):
            relaxations[name] = lines[name] = ReluLines.crown(node.inputs[0], known[node.inputs[0]])
        elif isinstance(node.op, MaxPool2d):
            planes = direct_planes(node.op, known[node.inputs[0]])
            relaxations[name] = PoolPlanes(node.inputs[0], node.op, planes)
        elif isinstance(node.op, Curved):
            relaxations[name] = curve_planes(node, known)
        known[name] = propagate(graph, name, known, regions, rounding)
        wanted = _wanted(graph, name, known[name], regions, net.features)
        if wanted is not None:
            if matter is not None:
                wanted = wanted & matter[name]
            bound = partial(
                lower_bounds,
                graph,
                name,
                regions=regions,
                relaxations=relaxations,
                deadline=deadline,
                rounding=rounding,
            )
            signs = not _rectified_value_matters(graph, name, net.features)
            known[name] = _refined(graph, name, known[name], wanted, bound, screen, signs=signs)
        if rounding is not None:
            rounding.learn(name, *known[name])
    return known[net.features]


def _refined(
    graph: LayerGraph, name: str, interval: Interval, wanted: Tensor, bound: Bound, screen: Screen, *, signs: bool
) -> Interval:
    """``interval`` met with backward bounds of the neurons marked in ``wanted``.

    Where only ReLUs read them, and where that is cheaper, generators show first which are off or on. Where more than
    ``signs`` matters, they also show which no pass would find to be on: how far below zero those go, no ReLU passes on.
    """
    relus_only = all(isinstance(graph[reader].op, ReLU) for reader in graph.consumers(name))
    if not relus_only:
        return refine(graph, name, interval, wanted, bound)
    interval, liftable = screen.screened(name, interval, wanted)
    if signs:
        return refine(graph, name, interval, wanted & interval.unstable, bound)
    above = wanted & (interval.upper > 0)
    return tightened(graph, name, interval, above & liftable, above, bound)


def _wanted(graph: LayerGraph, name: str, interval: Interval, regions: Regions, features: str) -> Tensor | None:
    """Which neurons of a node need a backward bound, or None.

    Where only a ReLU reads a neuron, its sign is all that matters and intervals may settle it. Where a pool or the
    CAM reads the (rectified) value itself, the value matters unless it is settled to be zero. A curved node's range
    follows from its operands', whose values matter.
    """
    if isinstance(graph[name].op, (ReLU, Curved)):
        return None
    readers = graph.consumers(name)
    if name == features or any(isinstance(graph[r].op, MaxPool2d) for r in readers):
        return torch.ones_like(interval.lower, dtype=torch.bool)
    if name in graph.measured:
        return open_values(graph, name, interval, regions)
    relus = [r for r in readers if isinstance(graph[r].op, ReLU)]
    if not relus:
        return None
    return interval.upper > 0 if _rectified_value_matters(graph, name, features) else interval.unstable


def _rectified_value_matters(graph: LayerGraph, name: str, features: str) -> bool:
    """Whether a pool or the CAM reads a ReLU of this node."""
    relus = [r for r in graph.consumers(name) if isinstance(graph[r].op, ReLU)]
    return any(r == features or any(isinstance(graph[p].op, MaxPool2d) for p in graph.consumers(r)) for r in relus)
