"""What is asked: a region around an image, and the top-k set that must not change within it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corgi_opt.ambient import pinned, pinned_with_grad, plain
from corgi_opt.arguments import integer, not_negative
from corgi_opt.clip import Box, Clip, as_tensors, checked_clip, require_inside
from corgi_opt.errors import InputError, TieError

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
    together; eps and the box are in the units of the network's input. ``clip``: ``(low, high)``, each end a number or
    one for every channel (a list, or a tensor that broadcasts to the image), is kept as plain floats;
    ``clip=None`` switches the box off. Raises InputError when eps < 0 or not finite, the norm is unknown, the box is
    empty or the centre lies outside it.
    """

    center: Tensor
    eps: float
    norm: Norm = "inf"
    clip: Clip = (0.0, 1.0)

    @pinned
    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", canonical_norm(self.norm))
        eps = not_negative("eps", self.eps, " in the units of the input")
        if not isinstance(self.center, Tensor):
            raise InputError(f"the centre must be a torch tensor (1, C, H, W), got {type(self.center).__name__}")
        object.__setattr__(self, "center", plain(self.center))
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
        found, inside = self.distance(x), x
        for slack in (0.0, 1e-12, 1e-9, 1e-6):
            if self.distance(inside) <= self.eps:
                return inside
            inside = self.center + (x - self.center) * (self.eps / found * (1 - slack))
            inside = torch.minimum(torch.maximum(inside, self.lower[None]), self.upper[None])
        return inside if self.distance(inside) <= self.eps else self.center.clone()

    @pinned
    def with_eps(self, eps: float) -> Ball:
        return Ball(self.center, eps, self.norm, self.clip)


@dataclass(frozen=True, eq=False)
class TopK:
    """The k brightest pixels of a CAM (H, W), as flat indices, and what may not happen to them.

    ``top`` (k,) is sorted from the brightest, ``rest`` (P-k,) likewise. Each top pixel has to stay among the ``within``
    brightest: of its ``rivals`` (R,) at most ``allowed`` may become as bright as it is. With ``within = k``, the set
    itself has to stay: rivals are the rest, and none is allowed. Otherwise rivals are all pixels, itself left out.
    ``ahead`` (k, R): rivals that are as bright from the start.
    """

    k: int
    within: int
    top: Tensor
    rest: Tensor
    rivals: Tensor
    ahead: Tensor
    gap: float

    @classmethod
    @pinned
    def of(cls, cam: Tensor, k: int, tie_tol: float = 0.0, within: int | None = None) -> TopK:
        """Raises InputError when k or within is out of range, TieError when pixels k and k+1 differ by no more than
        tie_tol."""
        pixels = cam.numel()
        if pixels < 2:
            raise InputError("the CAM has a single pixel, so there is no top-k set that could change")
        k = integer("k", k, 1, pixels - 1, f" (the CAM has {pixels} pixels)")
        within = k if within is None else integer("within", within, k, pixels - 1, f" (k is {k}, the CAM has {pixels})")
        tie_tol = not_negative("tie_tol", tie_tol)
        values = cam.flatten()
        order = torch.argsort(values, descending=True, stable=True)
        gap = float(values[order[k - 1]] - values[order[k]])
        if gap <= tie_tol:
            raise TieError(
                f"CAM pixels {k} and {k + 1} differ by {gap:.3g} at the given image (tie_tol {tie_tol:.3g}), so its "
                f"top-{k} set is not defined; choose another k"
            )
        top, rest = order[:k].clone(), order[k:].clone()
        rivals = rest if within == k else order
        ahead = (values[top][:, None] <= values[rivals]) & (top[:, None] != rivals)
        return cls(k, within, top, rest, rivals, ahead, gap)

    @property
    def allowed(self) -> int:
        """How many rivals may be as bright as a top pixel."""
        return 0 if self.within == self.k else self.within - 1

    @property
    def own(self) -> Tensor:
        """Where (k, R) a rival is the top pixel itself."""
        return self.top[:, None] == self.rivals

    @pinned_with_grad
    def gaps(self, cams: Tensor) -> Tensor:
        """``CAM_i - CAM_j`` (N, k, R) of CAMs (N, H, W); infinite for a pixel and itself."""
        flat = cams.flatten(1)
        found = flat[:, self.top, None] - flat[:, None, self.rivals]
        return found.masked_fill(self.own.to(found.device), torch.inf)

    @pinned_with_grad
    def least(self, gaps: Tensor) -> Tensor:
        """Of gaps (..., k, R), or lower bounds on them, what each top pixel has left (..., k): <= 0 where it falls out.

        It is the smallest gap after as many as are allowed.
        """
        return gaps.amin(dim=-1) if self.allowed == 0 else gaps.kthvalue(self.allowed + 1, dim=-1).values

    @pinned_with_grad
    def margin(self, cams: Tensor) -> Tensor:
        """``min over top pixels of CAM_i - (the within-th brightest of the others)`` (N,) for CAMs (N, H, W).

        With ``within = k``: ``min over the top of CAM - max over the rest of CAM``, of the same sign. <= 0: broken.
        """
        if self.allowed == 0:
            flat = cams.flatten(1)
            return flat[:, self.top].min(dim=1).values - flat[:, self.rest].max(dim=1).values
        return self.least(self.gaps(cams)).amin(dim=1)

    @pinned
    def worst_pair(self, cam: Tensor) -> tuple[int, int]:
        """The top pixel and the rival that :meth:`margin` of a CAM (H, W) is about."""
        gaps = self.gaps(cam[None])[0]
        row = int(self.least(gaps).argmin())
        rival = int(gaps[row].argsort(stable=True)[self.allowed])
        return int(self.top[row]), int(self.rivals[rival])
