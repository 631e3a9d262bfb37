"""The certified heat map: what every CAM pixel can be, and how bright among the others, for every image within eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import integer
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.corgi import corgi_bounds, corgi_cam_bounds
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import cam_bounds, pair_bounds, share_inputs
from corgi_opt.bounding.regions import Regions
from corgi_opt.drawing.maps import plot_heat_map
from corgi_opt.errors import BoundOrderError, UnknownMethodError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.question import Question, resolve_device
from corgi_opt.problem.region import Ball, Norm, canonical_norm

METHODS = ("ibp", "corgi", "crown", "dual")

MOST_PAIRS = 20_000
"""Pairs of pixels whose intervals overlap that get a bound of their own, those that overlap least first."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Of one image at one eps; all maps (H, W).

    ``cam`` at the image; ``lower <= CAM <= upper`` proven for every image of the region; ``best`` and ``worst``: the
    ranks (1: the brightest) between which a pixel's rank is proven to stay. ``k``: the set in question.
    """

    cam: Tensor
    lower: Tensor
    upper: Tensor
    best: Tensor
    worst: Tensor
    k: int
    eps: float
    class_idx: int
    method: str

    @property
    def inside(self) -> Tensor:
        """Pixels (H, W) that are certainly among the k brightest."""
        return self.worst <= self.k

    @property
    def outside(self) -> Tensor:
        """Pixels (H, W) that are certainly not."""
        return self.best > self.k

    @property
    def undecided(self) -> Tensor:
        """Pixels (H, W) of which this method does not tell."""
        return ~self.inside & ~self.outside

    def plot(self, figure: Any = None) -> Any:
        """The CAM, widths of intervals and rank ranges, and which pixels are in, out, undecided; returns the Figure."""
        return plot_heat_map(
            self.cam.numpy(),
            (self.upper - self.lower).numpy(),
            (self.worst - self.best).numpy(),
            self.inside.numpy(),
            self.outside.numpy(),
            title=f"top-{self.k} of the CAM of class {self.class_idx} at eps={self.eps:g}, by {self.method}",
            figure=figure,
        )

    def __repr__(self) -> str:
        counts = (int(mask.sum()) for mask in (self.inside, self.outside, self.undecided))
        said = ", ".join(f"{n} {what}" for n, what in zip(counts, ("in", "out", "undecided"), strict=True))
        return f"HeatMap(k={self.k}, eps={self.eps:g}, class {self.class_idx}, by {self.method}: {said})"


@pinned
def heat_map(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int,
    method: str = "crown",
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    device: str | torch.device = "auto",
) -> HeatMap:
    """What is proven of every CAM pixel of x (1, C, H, W) over all images within eps; arguments as in ``verify``.

    ``method``: "ibp", "corgi", "crown" or "dual"; the last two are met with CORGI's bound, and pixels whose intervals
    overlap are bounded as pairs too. Raises InputError, UnknownMethodError; NumericalError where values overflow.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    where, norm = resolve_device(device), canonical_norm(norm)
    pixels_in_all = int(np.prod(net.map_shape)) if isinstance(net, CamNetwork) else 2
    integer("k", k, 1, max(1, pixels_in_all - 1), f" (the CAM has {pixels_in_all} pixels)")
    # ties do not matter here: ranks say what they say
    question = Question.ask(
        net, x, k=_untied(net, x, class_idx), class_idx=class_idx, norm=norm, clip=clip, tie_tol=0.0
    )
    ball = question.checked_ball(eps)
    pixels, bound = _bounded(question, ball, method, where)
    low, high = (side[0].cpu().double() for side in pixels)
    at = question.cam.flatten()
    if bool((low > at).any() or (high < at).any()):
        raise BoundOrderError("a CAM pixel at the image lies outside its proven interval, please report this")
    above = low[:, None] > high[None, :]  # (P, P): the first is brighter for every image
    if bound is not None:
        above |= _pairs_above(question, bound, low, high, above, where)
    shape = question.cam.shape
    return HeatMap(
        cam=question.cam,
        lower=low.view(shape),
        upper=high.view(shape),
        best=(1 + above.sum(dim=0)).view(shape),
        worst=(len(at) - above.sum(dim=1)).view(shape),
        k=k,
        eps=ball.eps,
        class_idx=question.class_idx,
        method=method,
    )


Bound = Callable[[str, Rows], Tensor]


def _bounded(question: Question, ball: Ball, method: str, device: torch.device) -> tuple[Interval, Bound | None]:
    """Intervals (1, P) of all CAM pixels, and what bounds pairs of them, if the method does."""
    net, regions = question.net.to(torch.float64, device), Regions.of([ball], torch.float64, device)
    if method == "ibp":
        known = interval_bounds(net.graph, regions)
        return corgi_cam_bounds(net, question.class_idx, known[net.features]), None
    everything = torch.ones(1, *net.map_shape, dtype=torch.bool, device=device)
    features = corgi_bounds(net, regions)
    found = corgi_cam_bounds(net, question.class_idx, features)
    if method == "corgi":
        return found, None
    relaxed = crown_pass(net.graph, regions)
    bound: Bound = relaxed.bound if method == "crown" else partial(ascend, relaxed)
    return found.meet(cam_bounds(net, question.class_idx, bound, everything.flatten(1))), bound


def _pairs_above(
    question: Question, bound: Bound, low: Tensor, high: Tensor, above: Tensor, device: torch.device
) -> Tensor:
    """Pairs (P, P) of overlapping intervals whose first pixel is brighter for every image after all."""
    at = question.cam.flatten()
    i, j = torch.nonzero((at[:, None] > at[None, :]) & ~above, as_tuple=True)
    pairs = torch.stack([i, j], dim=1)
    pairs = pairs[share_inputs(question.net, pairs)]
    overlap = high[pairs[:, 1]] - low[pairs[:, 0]]
    pairs = pairs[torch.argsort(overlap, stable=True)[:MOST_PAIRS]]
    found = torch.zeros_like(above)
    if len(pairs):
        net, case = question.net.to(torch.float64, device), torch.zeros(len(pairs), dtype=torch.long, device=device)
        values = pair_bounds(net, question.class_idx, bound, pairs.to(device), case).cpu().double()
        found[pairs[:, 0], pairs[:, 1]] = values > 0
    return found


def _untied(net: CamNetwork, x: Tensor, class_idx: int | None) -> int:
    """Some k at which the image has no tie: a Question needs one, a heat map does not."""
    cam = net.model_cam(net.image(x), net.class_index(net.image(x), class_idx)).flatten().sort(descending=True).values
    gaps = cam[:-1] - cam[1:]
    return int(gaps.argmax()) + 1
