"""What is asked: a region around an image, and the top-k set that must not change within it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corgi_opt.arguments import finite, integer, not_negative
from corgi_opt.errors import InputError, TieError

Clip = tuple[float, float] | None
Norm = Literal["inf", "2", "1"]

_NORMS: dict[object, Norm] = {"inf": "inf", "2": "2", "1": "1", math.inf: "inf", 2: "2", 1: "1"}


def canonical_norm(norm: object) -> Norm:
    """ "inf", "2" or "1", from that or the number. Raises InputError."""
    if isinstance(norm, bool) or not isinstance(norm, (str, int, float)) or norm not in _NORMS:
        raise InputError(f"norm must be 'inf', '2' or '1', got {norm!r}")
    return _NORMS[norm]


def distance(norm: Norm, moved: Tensor) -> float:
    """``||moved||`` of a float64 tensor, its sum correctly rounded."""
    size = moved.abs().flatten()
    if norm == "inf":
        return float(size.max())
    return math.fsum(size.tolist()) if norm == "1" else math.sqrt(math.fsum((size**2).tolist()))


@dataclass(frozen=True, eq=False)
class Ball:
    """The region ``{x : ||x - center||_norm <= eps}`` intersected with the clip box, if there is one.

    ``center`` is an image (1, C, H, W); ``norm`` is "inf", "2" or "1" (the numbers do as well) over all C*H*W inputs
    together; eps and the box are in the units of the network's input. ``clip=None`` switches the box off. Raises
    InputError when eps < 0 or not finite, the norm is unknown, the box is empty or the centre lies outside it.
    """

    center: Tensor
    eps: float
    norm: Norm = "inf"
    clip: Clip = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", canonical_norm(self.norm))
        eps = not_negative("eps", self.eps, " in the units of the input")
        if not isinstance(self.center, Tensor):
            raise InputError(f"the centre must be a torch tensor (1, C, H, W), got {type(self.center).__name__}")
        if self.center.ndim != 4 or self.center.shape[0] != 1:
            raise InputError(f"the centre must have shape (1, C, H, W), got {tuple(self.center.shape)}")
        if not bool(torch.isfinite(self.center).all()):
            raise InputError("the centre holds NaN or infinite values")
        object.__setattr__(self, "center", self.center.detach().to("cpu", torch.float64))
        object.__setattr__(self, "eps", eps)
        if self.clip is not None:
            object.__setattr__(self, "clip", self._checked_clip(self.clip))

    def _checked_clip(self, clip: tuple[float, float]) -> tuple[float, float]:
        try:
            low, high = (finite("an end of clip", end) for end in clip)
            if not low < high:
                raise ValueError
        except (TypeError, ValueError) as error:
            raise InputError(f"clip must be (low, high) with low < high or None, got {clip!r}") from error
        smallest, largest = float(self.center.min()), float(self.center.max())
        if smallest < low or largest > high:
            raise InputError(
                f"the image has values in [{smallest:.6g}, {largest:.6g}], outside the clip box [{low}, {high}]; "
                "pass clip=None, or the box of your own preprocessing"
            )
        return (low, high)

    @property
    def lower(self) -> Tensor:
        """Smallest value of every input (C, H, W)."""
        low = self.center[0] - self.eps
        return low if self.clip is None else low.clamp(min=self.clip[0])

    @property
    def upper(self) -> Tensor:
        """Largest value of every input (C, H, W)."""
        high = self.center[0] + self.eps
        return high if self.clip is None else high.clamp(max=self.clip[1])

    def distance(self, x: Tensor) -> float:
        """``||x - center||`` in the ball's norm, for an image x (1, C, H, W)."""
        return distance(self.norm, x.double() - self.center)

    def contains(self, x: Tensor) -> bool:
        """Whether x (1, C, H, W) lies in the region, as float64 compares."""
        x = x.double()
        in_box = self.clip is None or bool(((x >= self.clip[0]) & (x <= self.clip[1])).all())
        return in_box and self.distance(x) <= self.eps

    def project(self, x: Tensor) -> Tensor:
        """An image inside, near x (for "inf" the nearest), such that ``contains`` holds in spite of rounding."""
        x = torch.minimum(torch.maximum(x.double(), self.lower[None]), self.upper[None])
        if self.norm == "inf":
            # center + eps may round away from center by half a unit: step back towards the centre where it did
            over = (x - self.center).abs() > self.eps
            return torch.where(over, torch.nextafter(x, self.center), x)
        found, inside = self.distance(x), x
        for slack in (0.0, 1e-12, 1e-9, 1e-6):
            if self.distance(inside) <= self.eps:
                return inside
            inside = self.center + (x - self.center) * (self.eps / found * (1 - slack))
            inside = torch.minimum(torch.maximum(inside, self.lower[None]), self.upper[None])
        return inside if self.distance(inside) <= self.eps else self.center.clone()

    def with_eps(self, eps: float) -> Ball:
        return Ball(self.center, eps, self.norm, self.clip)


@dataclass(frozen=True, eq=False)
class TopK:
    """The k brightest pixels of a CAM (H, W), as flat indices; ``top`` is sorted from the brightest."""

    k: int
    top: Tensor
    rest: Tensor
    gap: float

    @classmethod
    def of(cls, cam: Tensor, k: int, tie_tol: float = 0.0) -> TopK:
        """Raises InputError when k is out of range, TieError when pixels k and k+1 differ by no more than tie_tol."""
        pixels = cam.numel()
        if pixels < 2:
            raise InputError("the CAM has a single pixel, so there is no top-k set that could change")
        k = integer("k", k, 1, pixels - 1, f" (the CAM has {pixels} pixels)")
        tie_tol = not_negative("tie_tol", tie_tol)
        values = cam.flatten()
        order = torch.argsort(values, descending=True, stable=True)
        gap = float(values[order[k - 1]] - values[order[k]])
        if gap <= tie_tol:
            raise TieError(
                f"CAM pixels {k} and {k + 1} differ by {gap:.3g} at the given image (tie_tol {tie_tol:.3g}), so its "
                f"top-{k} set is not defined; choose another k"
            )
        return cls(k, order[:k].clone(), order[k:].clone(), gap)

    def margin(self, cams: Tensor) -> Tensor:
        """``min over the top of CAM - max over the rest of CAM`` (N,) for CAMs (N, H, W); <= 0: the set changed."""
        flat = cams.flatten(1)
        return flat[:, self.top].min(dim=1).values - flat[:, self.rest].max(dim=1).values
