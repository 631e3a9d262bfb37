"""CROWN: the closed-form multipliers (Zhang et al. 2018), for pre-activations, CAM pixels and pairs of pixels.

At a ReLU with l < 0 < u a positive coefficient takes the lower line through 0 with slope 1 if u > -l else 0, a
negative one the chord with slope u / (u - l); a stable ReLU is linear and exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corgi_opt.bounds.dual import Interval, Rows, Rules, lower_bounds, relu_rule
from corgi_opt.bounds.interval import propagate
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.cone import windows_of
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Input, ReLU, Window
from corgi_opt.spec import Ball


def crown_multipliers(lam: Tensor, l: Tensor, u: Tensor) -> Tensor:
    """mu(lambda, l, u), elementwise."""
    unstable = (l < 0) & (u > 0)
    chord = u / torch.where(unstable, u - l, torch.ones_like(u))
    flat_or_identity = (u > -l).to(lam.dtype)
    slope = torch.where(lam >= 0, flat_or_identity, chord)
    return lam * torch.where(unstable, slope, (l >= 0).to(lam.dtype))


RULES: Rules = {ReLU: relu_rule(crown_multipliers)}


def crown_bounds(graph: LayerGraph, ball: Ball, dtype: torch.dtype, device: torch.device) -> dict[str, Interval]:
    """Bounds of all nodes over the region: CROWN for the ReLU inputs that intervals leave unstable, intervals else.

    Every bound is the better of both; a neuron that intervals already decide keeps its (looser) interval, because
    nothing downstream depends on more than its sign and its interval.
    """
    known: dict[str, Interval] = {}
    for name in graph.order:
        if isinstance(graph[name].op, Input):
            known[name] = Interval(ball.lower.to(device, dtype), ball.upper.to(device, dtype))
            continue
        known[name] = propagate(graph, name, known)
        if name in graph.preactivations:
            known[name] = refine(graph, name, known[name], known[name].unstable, ball, known, RULES)
    return known


def refine(
    graph: LayerGraph,
    name: str,
    found: Interval,
    wanted: Tensor,
    ball: Ball,
    known: Mapping[str, Interval],
    rules: Rules,
) -> Interval:
    """``found`` met with backward bounds of the neurons marked in ``wanted`` (C, H, W)."""
    channel, y, x = torch.nonzero(wanted, as_tuple=True)
    coefs = found.lower.new_zeros(len(channel), graph[name].shape[0], 1, 1)
    coefs[torch.arange(len(channel), device=coefs.device), channel] = 1.0
    rows = Rows(coefs, torch.stack([y, x], dim=1))
    low = lower_bounds(graph, name, rows, ball, known, rules)
    high = -lower_bounds(graph, name, rows.negated(), ball, known, rules)
    lower, upper = found.lower.clone(), found.upper.clone()
    lower[wanted] = torch.maximum(lower[wanted], low)
    upper[wanted] = torch.minimum(upper[wanted], high)
    return Interval(lower, upper)


def cam_bounds(
    net: CamNetwork, ball: Ball, class_idx: int, known: Mapping[str, Interval], pixels: Tensor | None = None
) -> Interval:
    """Bounds (P,) of CAM pixels (flat indices, default all), the class weights fused into the backward pass."""
    height, width = net.map_shape
    weight = net.weight[class_idx]
    if pixels is None:
        pixels = torch.arange(height * width, device=weight.device)
    origins = torch.stack([pixels // width, pixels % width], dim=1)
    rows = Rows(weight[None, :, None, None].expand(len(pixels), -1, 1, 1), origins)
    low = lower_bounds(net.graph, net.features, rows, ball, known, RULES)
    high = -lower_bounds(net.graph, net.features, rows.negated(), ball, known, RULES)
    return Interval(low, high)


def pair_bounds(net: CamNetwork, ball: Ball, class_idx: int, known: Mapping[str, Interval], pairs: Tensor) -> Tensor:
    """Lower bounds (Q,) of ``CAM_i - CAM_j`` for pairs (Q, 2) of flat pixel indices, each as one objective.

    A pair is a functional on the rectangle that spans both pixels. Pairs are passed in groups of like rectangle so
    that each group is one batch; its common rectangle has zeros where a pair does not reach.
    """
    width = net.map_shape[1]
    weight = net.weight[class_idx]
    y, x = pairs // width, pairs % width
    origins = torch.stack([y.min(dim=1).values, x.min(dim=1).values], dim=1)
    span = torch.stack([(y[:, 0] - y[:, 1]).abs(), (x[:, 0] - x[:, 1]).abs()], dim=1)
    size = _rounded(span + 1)
    bounds = weight.new_empty(len(pairs))
    for h, w in torch.unique(size, dim=0).tolist():
        group = torch.nonzero((size == torch.tensor([h, w], device=size.device)).all(dim=1)).flatten()
        coefs = weight.new_zeros(len(group), len(weight), h, w)
        row = torch.arange(len(group), device=coefs.device)
        for side, sign in ((0, 1.0), (1, -1.0)):
            dy, dx = y[group, side] - origins[group, 0], x[group, side] - origins[group, 1]
            coefs[row, :, dy, dx] = sign * weight
        rows = Rows(coefs, origins[group])
        bounds[group] = lower_bounds(net.graph, net.features, rows, ball, known, RULES)
    return bounds


def _rounded(size: Tensor) -> Tensor:
    """Rectangle sides rounded up to a few values: fewer, larger batches."""
    steps = torch.tensor([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], device=size.device)
    index = torch.searchsorted(steps, size.contiguous())
    return torch.where(index < len(steps), steps[index.clamp(max=len(steps) - 1)], size)


def share_inputs(net: CamNetwork, pairs: Tensor) -> Tensor:
    """Which pairs (Q, 2) have receptive fields that overlap (Q,); a pair that has none bounds pixel by pixel."""
    width = net.map_shape[1]
    field = windows_of(net.graph, net.features, Window(0, 0, 1, 1))[net.graph.input]
    nxt = windows_of(net.graph, net.features, Window(1, 1, 1, 1))[net.graph.input]
    stride_y, stride_x = nxt.y - field.y, nxt.x - field.x
    dy = (pairs[:, 0] // width - pairs[:, 1] // width).abs() * stride_y
    dx = (pairs[:, 0] % width - pairs[:, 1] % width).abs() * stride_x
    return (dy < field.h) & (dx < field.w)
