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
from corgi_opt.bounding.crown import open_values, refine
from corgi_opt.bounding.curves import curve_planes
from corgi_opt.bounding.dual import Interval, Relaxation, lower_bounds
from corgi_opt.bounding.interval import propagate
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import PoolPlanes, ReluLines, direct_planes
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
    rounding = regions.rounding(graph)
    for name in graph.ancestors(net.features):
        node = graph[name]
        if isinstance(node.op, ReLU):
            relaxations[name] = ReluLines.crown(node.inputs[0], known[node.inputs[0]])
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
            known[name] = refine(graph, name, known[name], wanted, bound)
        if rounding is not None:
            rounding.learn(name, *known[name])
    return known[net.features]


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
    for relu in relus:
        if relu == features or any(isinstance(graph[r].op, MaxPool2d) for r in graph.consumers(relu)):
            return interval.upper > 0
    return interval.unstable
