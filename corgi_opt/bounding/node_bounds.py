"""Bounds of every node of a network, by name, for people who study tightness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from corgi_opt._ambient import pinned
from corgi_opt._checks import resolve_device
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.regions import Regions
from corgi_opt.errors import InputError, UnknownMethodError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.graph import LayerGraph
from corgi_opt.problem.region import Ball

METHODS: Mapping[str, Callable[[LayerGraph, Regions], Mapping[str, Interval]]] = {
    "ibp": interval_bounds,
    "crown": lambda graph, regions: crown_pass(graph, regions).intervals,
    "dual": lambda graph, regions: crown_pass(graph, regions, bounder=ascend).intervals,
}


@pinned
def bounds(
    net: CamNetwork,
    ball: Ball | Sequence[Ball],
    *,
    method: str = "crown",
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float64,
) -> Mapping[str, Interval]:
    """Node name -> Interval (lower, upper), each (C, H, W), over the region; node names as in ``net.graph``.

    "ibp" is interval arithmetic; "crown" adds a CROWN pass for every ReLU input that intervals leave unstable and every
    input of a curved node, and propagates from there; "dual" improves each of those by dual ascent (much slower). A
    sequence of B balls of one norm is one batch (several images, or several eps): each bound is (B, C, H, W). ``dtype``
    float64, where what rounding may hide is taken off, or float32, where a bound may be off by about 1e-6 of its
    layer's scale (1e-3 where torch uses TF32 on CUDA).
    Raises InputError, UnknownMethodError; NumericalError where values overflow float64.
    """
    balls = [ball] if isinstance(ball, Ball) else list(ball) if isinstance(ball, Sequence) else []
    if not isinstance(net, CamNetwork) or not balls or not all(isinstance(b, Ball) for b in balls):
        raise InputError(
            f"bounds takes a CamNetwork and a Ball or a sequence of them, got {type(net).__name__} and "
            f"{type(ball).__name__}: co.bounds(co.from_torch(model, x), co.Ball(x, eps=...))"
        )
    if not isinstance(method, str) or method not in METHODS:
        raise UnknownMethodError(method, tuple(METHODS))
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    for b in balls:
        net.image(b.center, "the ball's centre")
    if len({b.norm for b in balls}) > 1:
        raise InputError("the balls of one batch must share their norm")
    where = resolve_device(device)
    intervals = METHODS[method](net.to(dtype, where).graph, Regions.of(balls, dtype, where))
    if isinstance(ball, Ball):
        return {name: Interval(b.lower[0], b.upper[0]) for name, b in intervals.items()}
    return intervals
