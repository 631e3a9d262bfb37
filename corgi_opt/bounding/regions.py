"""Regions as tensors: B balls within their clip boxes, and the least value of a linear function over each.

For ``min lam' x over {||x - c||_p <= eps} and {lower <= x <= upper}`` with ``x = c + d``:

* p = inf: the intersection is a box, and every input goes to its own end;
* p = 1: greedy (a fractional knapsack): the budget eps is spent on inputs by falling ``|lam|``;
* p = 2: by duality, for any ``nu > 0``,

      min lam' d >= min over the box of [lam' d + nu/2 (||d||^2 - eps^2)],   d_i = clip(-lam_i / nu, low_i, high_i)

  with equality at the nu where ``||d|| = eps``. Sorting the inputs by where they reach the box gives that nu in
  closed form; whatever rounding does to it, the right-hand side stays a lower bound.

A minimiser d is returned with the value: the value's derivative by lam is d (Danskin), and x = c + d is the image at
which a relaxation has its minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.bounding.tolerance import Rounding
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Places, gather
from corgi_opt.problem.region import Ball, Norm


@dataclass(frozen=True, eq=False)
class Regions:
    """B regions of one norm: center, lower, upper (B, C, H, W) and eps (B,), on one device in one dtype.

    ``lower`` and ``upper`` are the box that holds the region; ``x[case]`` of B images belongs to region ``case``.
    """

    norm: Norm
    center: Tensor
    lower: Tensor
    upper: Tensor
    eps: Tensor

    @classmethod
    def of(cls, balls: Sequence[Ball], dtype: torch.dtype, device: torch.device) -> Regions:
        """The regions of balls that share norm and image shape."""
        (norm,) = {b.norm for b in balls}
        parts = ([b.center[0] for b in balls], [b.lower for b in balls], [b.upper for b in balls])
        center, lower, upper = (torch.stack(part).to(device, dtype) for part in parts)
        return cls(norm, center, lower, upper, torch.tensor([b.eps for b in balls], dtype=dtype, device=device))

    def __len__(self) -> int:
        return len(self.eps)

    def to(self, dtype: torch.dtype) -> Regions:
        return Regions(self.norm, *(t.to(dtype) for t in (self.center, self.lower, self.upper, self.eps)))

    def rounding(self, graph: LayerGraph) -> Rounding | None:
        """The account of rounding for bounds over these regions; None in float32, which proves nothing."""
        return Rounding(graph) if self.eps.dtype == torch.float64 else None

    def minimum(self, coefs: Tensor, places: Places) -> Tensor:
        """``min of coefs' x`` (R,) over their regions, for coefficients (R, C, h, w) on windows at these places.

        Differentiable in ``coefs``.
        """
        h, w = coefs.shape[2:]
        if self.norm == "inf":
            low, high = gather(self.lower, places, h, w), gather(self.upper, places, h, w)
            return (coefs * torch.where(coefs.detach() > 0, low, high)).flatten(1).sum(dim=1)
        center = gather(self.center, places, h, w)
        low = gather(self.lower - self.center, places, h, w).expand_as(coefs)
        high = gather(self.upper - self.center, places, h, w).expand_as(coefs)
        move = least(self.norm, coefs.detach().flatten(1), low.flatten(1), high.flatten(1), self.eps[places.case])
        return (coefs * (center + move.offset.view_as(coefs))).flatten(1).sum(dim=1) + move.slack


class Move(NamedTuple):
    """``min lam' d = lam' offset + slack`` (slack is 0 up to rounding); offset (R, N), slack (R,)."""

    offset: Tensor
    slack: Tensor


def least(norm: Norm, lam: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Move:
    """Minimises ``lam' d`` (R, N) over ``||d||_norm <= eps`` (R,) and ``low <= d <= high`` with low <= 0 <= high."""
    if norm == "inf":
        return Move(torch.where(lam > 0, low, high), torch.zeros_like(eps))
    room = torch.where(lam > 0, -low, high)
    return _least_l1(lam, room, eps) if norm == "1" else _least_l2(lam, room, eps)


def _least_l1(lam: Tensor, room: Tensor, eps: Tensor) -> Move:
    order = lam.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    spent_before = sorted_room.cumsum(dim=1) - sorted_room
    spent = torch.minimum((eps[:, None] - spent_before).clamp(min=0), sorted_room)
    return Move(-lam.sign() * torch.zeros_like(lam).scatter(1, order, spent), torch.zeros_like(eps))


def _least_l2(lam: Tensor, room: Tensor, eps: Tensor) -> Move:
    size = lam.abs()
    full_at = torch.where(size > 0, room / size.clamp(min=torch.finfo(lam.dtype).tiny), torch.inf)
    order = full_at.argsort(dim=1, stable=True)
    full, free = (room**2).gather(1, order), (lam**2).gather(1, order)
    # with the first j inputs at the box, ||d||^2 = (their room)^2 + t^2 (the others' lam)^2, where t = 1 / nu
    at_box = full.cumsum(dim=1) - full
    moving = free.flip(1).cumsum(dim=1).flip(1)
    t = ((eps[:, None] ** 2 - at_box).clamp(min=0) / moving.clamp(min=torch.finfo(lam.dtype).tiny)).sqrt()
    until = full_at.gather(1, order)
    t = torch.maximum(t, F.pad(until, (1, -1)))  # rounding must not take t below where the last input reached the box
    reached = t <= until
    first = reached.to(torch.uint8).argmax(dim=1, keepdim=True)
    t = torch.where(reached.any(dim=1, keepdim=True), t.gather(1, first), torch.inf)
    offset = -lam.sign() * torch.minimum(room, torch.where(size > 0, t * size, torch.zeros_like(size)))
    nu = 1 / t[:, 0]
    slack = nu / 2 * ((offset**2).sum(dim=1) - eps**2)
    # a ball whose squared radius underflows has no nu: the bound of Cauchy and Schwarz instead
    exact = nu.isfinite() & slack.isfinite()
    return Move(
        torch.where(exact[:, None], offset, torch.zeros_like(offset)), torch.where(exact, slack, -eps * lam.norm(dim=1))
    )
