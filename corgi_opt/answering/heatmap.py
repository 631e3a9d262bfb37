"""The certified heat map: what every CAM pixel can be, and how bright among the others, for every image within eps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import integer, resolve_device
from corgi_opt.answering.asking import asked_of
from corgi_opt.answering.batches import over_images
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import combination_bounds, interval_parts, part_bounds, share_inputs
from corgi_opt.bounding.regions import Regions
from corgi_opt.drawing.inline import beside
from corgi_opt.drawing.maps import draw_small_kinds, plot_heat_map
from corgi_opt.drawing.tables import html_table, seconds_in_words
from corgi_opt.errors import BoundOrderError, UnknownMethodError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.atoms import cam_pixels
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.original import scale_of, shown
from corgi_opt.problem.plain import Plain, tensor
from corgi_opt.problem.properties import TopK
from corgi_opt.problem.region import Ball, Norm
from corgi_opt.problem.scene import Scene

METHODS = ("ibp", "corgi", "crown", "dual")

MOST_PAIRS = 20_000
"""Pairs of pixels whose intervals overlap that get a bound of their own, those that overlap least first."""


@dataclass(frozen=True, eq=False)
class HeatMap(Plain):
    """Of one image at one eps; all maps (H, W).

    ``cam`` at the image; ``lower <= CAM <= upper`` proven for every image of the region; ``best`` and ``worst``: the
    ranks (1: the brightest) between which a pixel's rank is proven to stay. ``k``: the set in question, which may be
    tied here: ranks say what they say. ``image`` (1, C, H, W), the image asked about, and ``seconds`` that it took:
    None and NaN in what was read from JSON that lacks them.
    """

    cam: Tensor
    lower: Tensor
    upper: Tensor
    best: Tensor
    worst: Tensor
    k: int
    eps: float
    asked: Asked
    method: str
    image: Tensor | None = None
    seconds: float = math.nan

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
            title=f"{self.asked.in_words} at eps={self.eps:g} (L-{self.asked.norm}), by {self.method}",
            figure=figure,
        )

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> HeatMap:
        """What :meth:`to_dict` wrote, now or before it held the image."""
        image = said.get("image")
        later = {"image": None if image is None else tensor(image), "seconds": said.get("seconds")}
        later["seconds"] = math.nan if later["seconds"] is None else later["seconds"]
        maps = {name: tensor(said[name]) for name in ("cam", "lower", "upper")}
        ranks = {name: tensor(said[name], torch.long) for name in ("best", "worst")}
        return cls(**{**said, **maps, **ranks, "asked": Asked.from_dict(said["asked"]), **later})

    def _repr_html_(self) -> str:
        rows = {
            "question": f"eps={self.eps:g}, {self.asked.short}",
            **self.asked.where,
            "certainly in": int(self.inside.sum()),
            "certainly out": int(self.outside.sum()),
            "undecided": int(self.undecided.sum()),
            "proof": "float64",
            "method": self.method,
            "seconds": None if math.isnan(self.seconds) else seconds_in_words(self.seconds),
            "reason": "proven for every image within eps; undecided is what this method does not tell",
        }
        alt = "the image, its CAM with the top-k set outlined, and which pixels are in, out and undecided"
        draw = None if self.image is None else partial(self._draw_small, self.image)
        return beside(html_table("certified heat map", rows), draw, (4.05, 1.55), alt)

    def _draw_small(self, image: Tensor, figure: Any) -> None:
        scale, inside, outside = scale_of(self.asked.clip, image), self.inside.numpy(), self.outside.numpy()
        draw_small_kinds(figure, shown(image, self.cam, self.k), inside, outside, scale)

    def __repr__(self) -> str:
        counts = (int(mask.sum()) for mask in (self.inside, self.outside, self.undecided))
        said = ", ".join(f"{n} {what}" for n, what in zip(counts, ("in", "out", "undecided"), strict=True))
        return f"HeatMap(eps={self.eps:g}, {self.asked.short}, by {self.method}: {said})"


@pinned
@over_images()
def heat_map(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    method: str = "crown",
    device: str | torch.device = "auto",
) -> HeatMap:
    """What is proven of every CAM pixel of x (1, C, H, W) over all images within eps; arguments as in ``verify``.

    ``method``: "ibp", "corgi", "crown" or "dual"; the last two are met with CORGI's bound, and pixels whose intervals
    overlap are bounded as pairs too. Of several images or classes, a list.

    Raises InputError, UnknownMethodError; NumericalError where values overflow.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    start = time.monotonic()
    where, scene = resolve_device(device), Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    pixels = scene.cam.numel()
    integer("k", k, 1, max(1, pixels - 1), f" (the CAM has {pixels} pixels)")
    ball = scene.checked_ball(eps)
    bounds, bound = _bounded(scene, ball, method, where)
    low, high = (side[0].cpu().double() for side in bounds)
    at = scene.cam.flatten()
    if bool((low > at).any() or (high < at).any()):
        raise BoundOrderError("a CAM pixel at the image lies outside its proven interval, please report this")
    above = low[:, None] > high[None, :]  # (P, P): the first is brighter for every image
    if bound is not None:
        above |= _pairs_above(scene, bound, low, high, above, where)
    shape = scene.cam.shape
    return HeatMap(
        cam=scene.cam,
        lower=low.view(shape),
        upper=high.view(shape),
        best=(1 + above.sum(dim=0)).view(shape),
        worst=(len(at) - above.sum(dim=1)).view(shape),
        k=k,
        eps=ball.eps,
        asked=asked_of(scene, TopK(k), gap=_gap(at, k), kept=None),
        method=method,
        image=scene.x.clone(),
        seconds=time.monotonic() - start,
    )


def _gap(cam: Tensor, k: int) -> float:
    """Between the k-th brightest pixel and the next, if there is one."""
    order = cam.sort(descending=True).values
    return float(order[k - 1] - order[k]) if k < len(order) else 0.0


Bound = Callable[[str, Rows], Tensor]


def _bounded(scene: Scene, ball: Ball, method: str, device: torch.device) -> tuple[Interval, Bound | None]:
    """Intervals (1, P) of all CAM pixels, and what bounds pairs of them, if the method does."""
    net, regions = scene.net.to(torch.float64, device), Regions.of([ball], torch.float64, device)
    parts = cam_pixels(net.classes, scene.class_idx, scene.cam.numel())
    if method == "ibp":
        return interval_parts(net, parts, interval_bounds(net.graph, regions)[net.features]), None
    found = interval_parts(net, parts, corgi_bounds(net, regions))
    if method == "corgi":
        return found, None
    relaxed = crown_pass(net.graph, regions)
    bound: Bound = relaxed.bound if method == "crown" else partial(ascend, relaxed)
    every = torch.ones(1, len(parts), dtype=torch.bool)
    low, high = (side.cpu() for side in found)
    return Interval(low, high).meet(part_bounds(net, parts, bound, every, every)), bound


def _pairs_above(scene: Scene, bound: Bound, low: Tensor, high: Tensor, above: Tensor, device: torch.device) -> Tensor:
    """Pairs (P, P) of overlapping intervals whose first pixel is brighter for every image after all."""
    at = scene.cam.flatten()
    net, parts = scene.net.to(torch.float64, device), cam_pixels(scene.net.classes, scene.class_idx, len(at))
    i, j = torch.nonzero((at[:, None] > at[None, :]) & ~above, as_tuple=True)
    pairs = torch.stack([i, j], dim=1)
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    pairs = pairs[share_inputs(scene.net, parts, pairs, signs.expand(len(pairs), 2))]
    overlap = high[pairs[:, 1]] - low[pairs[:, 0]]
    pairs = pairs[torch.argsort(overlap, stable=True)[:MOST_PAIRS]]
    found = torch.zeros_like(above)
    if len(pairs):
        case = torch.zeros(len(pairs), dtype=torch.long)
        values = combination_bounds(net, parts, bound, pairs, signs.expand(len(pairs), 2), case).cpu().double()
        found[pairs[:, 0], pairs[:, 1]] = values > 0
    return found
