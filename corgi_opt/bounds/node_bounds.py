"""Bounds of every node of a network, by name, for people who study tightness."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from corgi_opt.bounds.crown import crown_bounds
from corgi_opt.bounds.dual import Interval
from corgi_opt.bounds.interval import interval_bounds
from corgi_opt.errors import InputError, UnknownMethodError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.question import resolve_device
from corgi_opt.spec import Ball

METHODS = {"ibp": interval_bounds, "crown": crown_bounds}


def bounds(
    net: CamNetwork,
    ball: Ball,
    *,
    method: str = "crown",
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float64,
) -> Mapping[str, Interval]:
    """Node name -> Interval (lower, upper), each (C, H, W), over the region; node names as in ``net.graph``.

    "ibp" is interval arithmetic; "crown" adds a CROWN pass for every ReLU input that intervals leave unstable and
    propagates from there. ``dtype`` float32 or float64; float arithmetic is not outward rounded, so in float32 a
    bound may be off by about 1e-6 of its layer's scale (1e-3 where torch uses TF32 on CUDA).
    Raises InputError, UnknownMethodError.
    """
    if not isinstance(net, CamNetwork) or not isinstance(ball, Ball):
        raise InputError(
            f"bounds takes a CamNetwork and a Ball, got {type(net).__name__} and {type(ball).__name__}: "
            "co.bounds(co.from_torch(model, x), co.Ball(x, eps=...))"
        )
    if not isinstance(method, str) or method not in METHODS:
        raise UnknownMethodError(method, tuple(METHODS))
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    net.image(ball.center, "the ball's centre")
    where = resolve_device(device)
    return METHODS[method](net.to(dtype, where).graph, ball, dtype, where)
