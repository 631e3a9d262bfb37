"""What is asked: a region around an image, and the top-k set that must not change within it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.arguments import finite, integer, not_negative
from corgi_opt.errors import InputError, TieError

Clip = tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Ball:
    """The region ``{x : ||x - center||_inf <= eps}`` intersected with the clip box, if there is one.

    ``center`` is an image (1, C, H, W); eps and the box are in the units of the network's input. ``clip=None``
    switches the box off. Raises InputError when eps < 0 or not finite, the norm is unknown, the box is empty or
    the centre lies outside it.
    """

    center: Tensor
    eps: float
    norm: str = "inf"
    clip: Clip = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm != "inf":
            raise InputError(f"norm must be 'inf' (the only one with a method so far), got {self.norm!r}")
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

    def contains(self, x: Tensor) -> bool:
        """Whether x (1, C, H, W) lies in the region, exactly as float64 compares."""
        x = x.double()
        near = bool(((x - self.center).abs() <= self.eps).all())
        return near and (self.clip is None or bool(((x >= self.clip[0]) & (x <= self.clip[1])).all()))

    def project(self, x: Tensor) -> Tensor:
        """The nearest image inside, such that ``contains`` holds in spite of rounding."""
        x = torch.minimum(torch.maximum(x.double(), self.lower[None]), self.upper[None])
        # center + eps may round away from center by half a unit: step back towards the centre where it did
        over = (x - self.center).abs() > self.eps
        return torch.where(over, torch.nextafter(x, self.center), x)

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
