"""Bounds of one region on the CPU, as the tests ask for them."""

from __future__ import annotations

from typing import Any

import torch
from asking import cam_bounds, pair_bounds, pixels_of
from torch import Tensor

import corgi_opt as co
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import Relaxed, crown_pass
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import interval_parts
from corgi_opt.bounding.regions import Regions

CPU = torch.device("cpu")


def regions(*balls: co.Ball, dtype: torch.dtype = torch.float64) -> Regions:
    return Regions.of(balls, dtype, CPU)


def relaxed(net: co.CamNetwork, *balls: co.Ball) -> Relaxed:
    return crown_pass(net.graph, regions(*balls))


def only(bounds: Interval) -> Interval:
    """Those of the one region there is."""
    lower, upper = bounds
    return Interval(lower[0], upper[0])


def pixels(net: co.CamNetwork, known: Relaxed, class_idx: int, bound: Any = None) -> Interval:
    """All CAM pixels' bounds (P,)."""
    every = torch.ones(len(known.regions), net.map_shape[0] * net.map_shape[1], dtype=torch.bool)
    return only(cam_bounds(net, class_idx, bound or known.bound, every))


def pairs(net: co.CamNetwork, known: Relaxed, class_idx: int, wanted: Tensor, bound: Any = None) -> Tensor:
    """Pairs' lower bounds (Q,)."""
    return pair_bounds(net, class_idx, bound or known.bound, wanted, torch.zeros(len(wanted), dtype=torch.long))


def corgi_pixels(net: co.CamNetwork, ball: co.Ball, class_idx: int) -> Interval:
    return only(interval_parts(net, pixels_of(net, class_idx), corgi_bounds(net, regions(ball))))


def ibp_pixels(net: co.CamNetwork, ball: co.Ball, class_idx: int) -> Interval:
    features = interval_bounds(net.graph, regions(ball))[net.features]
    return only(interval_parts(net, pixels_of(net, class_idx), features))
