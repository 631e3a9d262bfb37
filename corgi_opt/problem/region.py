"""Regions: all images within eps of one, in a box."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corgi_opt._ambient import pinned, plain
from corgi_opt._checks import not_negative
from corgi_opt.errors import InputError
from corgi_opt.problem.clip import Box, Clip, as_tensors, checked_clip, require_inside

Norm = Literal["inf", "2", "1"]

_NORMS: dict[object, Norm] = {"inf": "inf", "2": "2", "1": "1", math.inf: "inf", 2: "2", 1: "1"}

_SPELT = re.compile(r"\s*(?:l[ _-]?)?(inf|2|1)\s*", re.IGNORECASE)


def canonical_norm(norm: object) -> Norm:
    """ "inf", "2" or "1", from that, the number, or a spelling such as "Linf", "l_inf", "L-2". Raises InputError."""
    value = plain(norm)
    if isinstance(value, str) and (spelt := _SPELT.fullmatch(value)):
        value = spelt[1].lower()
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value not in _NORMS:
        raise InputError(f"norm must be 'inf', '2' or '1', got {norm!r}")
    return _NORMS[value]


def distance(norm: Norm, moved: Tensor) -> float:
    """``||moved||`` of a float64 tensor, its sum correctly rounded."""
    size = moved.abs().flatten()
    if norm == "inf":
        return float(size.max())
    return math.fsum(size.tolist()) if norm == "1" else math.sqrt(math.fsum((size**2).tolist()))


@dataclass(frozen=True, eq=False)
class Ball:
    """The region ``{x : ||x - center||_norm <= eps}`` intersected with the clip box, if there is one.

    ``center`` is an image (1, C, H, W), a tensor or a numpy array; ``norm`` is "inf", "2" or "1" (the numbers do as
    well, and "Linf", "l2" ...) over all C*H*W inputs together; eps and the box are in the units of the network's input.
    ``clip``: ``(low, high)``, each end a number or one for every channel (a list, or a tensor that broadcasts to the
    image), is kept as plain floats; ``clip=None`` switches the box off. Raises InputError when eps < 0 or not finite,
    the norm is unknown, the box is empty or the centre lies outside it.
    """

    center: Tensor
    eps: float
    norm: Norm = "inf"
    clip: Clip = (0.0, 1.0)

    @pinned
    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", canonical_norm(self.norm))
        eps = not_negative("eps", plain(self.eps), " in the units of the input")
        object.__setattr__(self, "center", plain(self.center))
        if not isinstance(self.center, Tensor):
            raise InputError(f"the centre must be a torch tensor (1, C, H, W), got {type(self.center).__name__}")
        if self.center.ndim != 4 or self.center.shape[0] != 1:
            raise InputError(f"the centre must have shape (1, C, H, W), got {tuple(self.center.shape)}")
        if not bool(torch.isfinite(self.center).all()):
            raise InputError("the centre holds NaN or infinite values")
        object.__setattr__(self, "center", self.center.detach().to("cpu", torch.float64, copy=True))
        object.__setattr__(self, "eps", eps)
        box = checked_clip(self.clip, self.center.shape[1:])
        if box is not None:
            require_inside(self.center, box)
        object.__setattr__(self, "clip", box)

    @property
    def box(self) -> Box | None:
        """``clip`` as plain floats: ``(low, high)``, or two tuples of one number a channel."""
        return self.clip  # type: ignore[return-value]  # since __post_init__

    @property
    @pinned
    def lower(self) -> Tensor:
        """Smallest value of every input (C, H, W)."""
        low = self.center[0] - self.eps
        return low if self.box is None else torch.maximum(low, as_tensors(self.box)[0])

    @property
    @pinned
    def upper(self) -> Tensor:
        """Largest value of every input (C, H, W)."""
        high = self.center[0] + self.eps
        return high if self.box is None else torch.minimum(high, as_tensors(self.box)[1])

    @pinned
    def distance(self, x: Tensor) -> float:
        """``||x - center||`` in the ball's norm, for an image x (1, C, H, W)."""
        return distance(self.norm, x.double() - self.center)

    @pinned
    def contains(self, x: Tensor) -> bool:
        """Whether x (1, C, H, W) lies in the region, as float64 compares."""
        x = x.double()
        if self.box is not None:
            low, high = as_tensors(self.box)
            if not bool(((x >= low) & (x <= high)).all()):
                return False
        return self.distance(x) <= self.eps

    @pinned
    def project(self, x: Tensor) -> Tensor:
        """An image inside, near x (for "inf" the nearest), such that ``contains`` holds in spite of rounding."""
        x = torch.minimum(torch.maximum(x.double(), self.lower[None]), self.upper[None])
        if self.norm == "inf":
            # center + eps may round away from center by half a unit: step back towards the centre where it did
            over = (x - self.center).abs() > self.eps
            return torch.where(over, torch.nextafter(x, self.center), x)
        size, inside = self.distance(x), x
        for slack in (0.0, 1e-12, 1e-9, 1e-6):
            if self.distance(inside) <= self.eps:
                return inside
            inside = self.center + (x - self.center) * (self.eps / size * (1 - slack))
            inside = torch.minimum(torch.maximum(inside, self.lower[None]), self.upper[None])
        return inside if self.distance(inside) <= self.eps else self.center.clone()
