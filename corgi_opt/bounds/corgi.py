"""The paper's bound: CORGI (Gu et al., arXiv 2301.11324), on CNN-Cert's layer bounds (Boopathy et al. 2019).

As the authors' code does it: max pools keep their place behind the ReLU and are relaxed whole by CNN-Cert's plane;
each channel of the last feature map gets an interval; the class weights combine the channels' intervals. It is
loose (nothing is fused, pools are coarse) and fast, and every answer is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.bounds.crown import crown_multipliers, refine
from corgi_opt.bounds.dual import Interval, Rows, Rules, Step, relu_rule
from corgi_opt.bounds.interval import propagate
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ops import Input, MaxPool2d, ReLU, gather
from corgi_opt.spec import Ball


def corgi_bounds(net: CamNetwork, ball: Ball, dtype: torch.dtype, device: torch.device) -> Interval:
    """Bounds (C, H, W) of the last feature map; ``net`` must be on the same device in the same dtype."""
    graph = net.pooled
    known: dict[str, Interval] = {}
    for name in graph.ancestors(net.features):
        if isinstance(graph[name].op, Input):
            known[name] = Interval(ball.lower.to(device, dtype), ball.upper.to(device, dtype))
            continue
        known[name] = propagate(graph, name, known)
        wanted = _wanted(graph, name, known[name], net.features)
        if wanted is not None:
            known[name] = refine(graph, name, known[name], wanted, ball, known, RULES)
    return known[net.features]


def corgi_cam_bounds(net: CamNetwork, class_idx: int, features: Interval) -> Interval:
    """CAM bounds (P,) from the feature map's bounds, channel by channel (the paper's equation for the CAM)."""
    weight = net.weight[class_idx][:, None, None]
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    lower = (plus * features.lower + minus * features.upper).sum(dim=0)
    upper = (plus * features.upper + minus * features.lower).sum(dim=0)
    return Interval(lower.flatten(), upper.flatten())


def _wanted(graph: LayerGraph, name: str, found: Interval, features: str) -> Tensor | None:
    """Which neurons of a node need a backward bound, or None.

    Where only a ReLU reads a neuron, its sign is all that matters and intervals may settle it. Where a pool or the
    CAM reads the (rectified) value itself, the value matters unless it is settled to be zero.
    """
    if isinstance(graph[name].op, ReLU):
        return None
    readers = graph.consumers(name)
    if name == features or any(isinstance(graph[r].op, MaxPool2d) for r in readers):
        return torch.ones_like(found.lower, dtype=torch.bool)
    relus = [r for r in readers if isinstance(graph[r].op, ReLU)]
    if not relus:
        return None
    for relu in relus:
        if relu == features or any(isinstance(graph[r].op, MaxPool2d) for r in graph.consumers(relu)):
            return found.upper > 0
    return found.unstable


def _pool_rule(node: Node, rows: Rows, intervals: Mapping[str, Interval]) -> Step:
    """CNN-Cert's planes for a pooling window: the same slopes above and below, two offsets."""
    pool = node.op
    assert isinstance(pool, MaxPool2d)
    plane = _planes(pool, intervals[node.inputs[0]])
    h, w = rows.coefs.shape[2:]
    above = gather(plane.upper, rows.origins, h, w)
    below = gather(plane.lower, rows.origins, h, w)
    positive, negative = rows.coefs.clamp(min=0), rows.coefs.clamp(max=0)
    constant = (positive * below + negative * above).sum(dim=(1, 2, 3))
    height, width = pool.geometry.size(h, w)
    mu = rows.coefs.new_zeros(*rows.coefs.shape[:2], height, width)
    for tap, slopes in enumerate(plane.slopes):
        dy, dx = (tap // pool.kernel[1]) * pool.dilation[0], (tap % pool.kernel[1]) * pool.dilation[1]
        stop_y, stop_x = dy + (h - 1) * pool.stride[0] + 1, dx + (w - 1) * pool.stride[1] + 1
        mu[..., dy : stop_y : pool.stride[0], dx : stop_x : pool.stride[1]] += rows.coefs * gather(
            slopes, rows.origins, h, w
        )
    return Step(mu, constant)


class _Planes:
    """``sum_t slope_t x_t + lower <= max_t x_t <= sum_t slope_t x_t + upper`` per window; slopes (taps, C, H, W)."""

    def __init__(self, slopes: Tensor, lower: Tensor, upper: Tensor) -> None:
        self.slopes, self.lower, self.upper = slopes, lower, upper


def _planes(pool: MaxPool2d, x: Interval) -> _Planes:
    """CNN-Cert (Boopathy et al. 2019), table of pooling bounds.

    Among candidates t with u_t >= max l: gamma solves sum (u_t - gamma)/(u_t - l_t) = 1, clamped to
    [max l, min u]; slope_t = (u_t - gamma)/(u_t - l_t). Above: gamma - sum slope_t l_t. Below, with G = sum slope_t:
    (1 - G) min l where G <= 1, else (1 - G) max u.
    """
    l, u = _taps(pool, x.lower, float("-inf")), _taps(pool, x.upper, float("-inf"))
    best = l.max(dim=0).values
    live = u >= best
    exact = live & (u <= l)  # a candidate known exactly and never below the others: gamma is its value
    width = torch.where(live & ~exact, u - l, torch.ones_like(u))
    inverse = torch.where(live & ~exact, 1 / width, torch.zeros_like(u))
    weight_u = torch.where(live & ~exact, u * inverse, torch.zeros_like(u))
    gamma = (weight_u.sum(dim=0) - 1) / inverse.sum(dim=0)
    least_u = torch.where(live, u, torch.full_like(u, float("inf"))).min(dim=0).values
    gamma = torch.where(exact.any(dim=0), best, torch.minimum(torch.maximum(gamma, best), least_u))
    slopes = torch.where(live & ~exact, (u - gamma) * inverse, torch.zeros_like(u))
    left = (1 - slopes.sum(dim=0)).clamp(0, 1) / exact.sum(dim=0).clamp(min=1)
    slopes = torch.where(exact, left, slopes)
    growth = slopes.sum(dim=0)
    least_l = torch.where(live, l, torch.full_like(l, float("inf"))).min(dim=0).values
    most_u = torch.where(live, u, torch.full_like(u, float("-inf"))).max(dim=0).values
    below = (1 - growth) * torch.where(growth <= 1, least_l, most_u)
    above = gamma - torch.where(live, slopes * l, torch.zeros_like(l)).sum(dim=0)
    return _Planes(slopes, below, above)


def _taps(pool: MaxPool2d, values: Tensor, outside: float) -> Tensor:
    """Candidates of every pooling window (taps, C, H, W); ``outside`` where a tap is off the image."""
    height, width = pool.apply([values[None]]).shape[2:]
    need_y, need_x = pool.geometry.size(height, width)
    py, px = pool.padding
    pads = (px, max(0, need_x - px - values.shape[2]), py, max(0, need_y - py - values.shape[1]))
    padded = F.pad(values, pads, value=outside)
    taps = []
    for ky in range(pool.kernel[0]):
        for kx in range(pool.kernel[1]):
            dy, dx = ky * pool.dilation[0], kx * pool.dilation[1]
            stop_y, stop_x = dy + (height - 1) * pool.stride[0] + 1, dx + (width - 1) * pool.stride[1] + 1
            taps.append(padded[:, dy : stop_y : pool.stride[0], dx : stop_x : pool.stride[1]])
    return torch.stack(taps)


RULES: Rules = {ReLU: relu_rule(crown_multipliers), MaxPool2d: _pool_rule}
