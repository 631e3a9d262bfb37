"""A validated question: this network, this image, these k pixels. Shared by all methods that answer it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.errors import InputError, NumericalError
from corgi_opt.network.cam import CamNetwork, require_parity
from corgi_opt.problem.clip import Box, Clip, as_tensors
from corgi_opt.problem.properties import TopK
from corgi_opt.problem.region import Ball, Norm, canonical_norm, distance


@dataclass(frozen=True, eq=False)
class Question:
    """Do the k brightest pixels of the CAM of ``class_idx`` stay the same? (Definitions: docs/definitions.md.)

    ``x`` (1, C, H, W) float64; ``cam`` (H, W) at x. ``scale``: the largest ``sum_c |W_c A_c|`` over the pixels at x,
    the size of the sums that a CAM value comes from; tolerances are stated relative to it. ``predicted``: the class
    that an image must still be given to count as a counterexample; None: any. Of a single logit: its sign, 1 or 0.
    """

    net: CamNetwork
    x: Tensor
    class_idx: int
    cam: Tensor
    topk: TopK
    scale: float
    norm: Norm
    clip: Box | None
    predicted: int | None

    @classmethod
    def ask(
        cls,
        net: CamNetwork,
        x: Tensor,
        *,
        k: int,
        class_idx: int | None,
        norm: Norm,
        clip: Clip,
        tie_tol: float | None,
        within: int | None = None,
        keep_class: bool = False,
    ) -> Question:
        """Raises InputError for a bad image, k, class, norm or box; TieError when the top-k set is not defined;
        ParityError where the graph does not compute the user's model at the image."""
        if not isinstance(net, CamNetwork):
            raise InputError(f"net must be a CamNetwork (co.from_torch(model, example)), got {type(net).__name__}")
        image = net.image(x)
        box = Ball(image, 0.0, norm, clip).box  # refuses a bad norm, box or image before any work is done
        require_parity(net, image)
        chosen = net.class_index(image, class_idx)
        cam = net.model_cam(image, chosen)
        features = net.graph.forward(image, net.features)[0]
        scale = float((net.weight[chosen][:, None, None] * features).abs().sum(dim=0).max())
        topk = TopK.of(cam, k, 1e-9 * scale if tie_tol is None else tie_tol, within)
        if not isinstance(keep_class, bool):
            raise InputError(f"keep_class must be True or False, got {keep_class!r}")
        predicted = _predicted(net, image) if keep_class else None
        return cls(net, image, chosen, cam, topk, scale, canonical_norm(norm), box, predicted)

    def ball(self, eps: float) -> Ball:
        return Ball(self.x, eps, self.norm, self.clip)

    def checked_ball(self, eps: float) -> Ball:
        """The same, when corners of it have been run through the user's model. Raises ParityError."""
        ball = self.ball(eps)
        with suppress(NumericalError):  # bounds overflow there too, and say so
            for x in corners(ball) if eps > 0 else ():
                require_parity(self.net, x)
        return ball

    @property
    def whole_range(self) -> float:
        """The eps at which the region is the whole clip box; infinity without one."""
        if self.clip is None:
            return float("inf")
        low, high = as_tensors(self.clip)
        return distance(self.norm, torch.maximum(self.x - low, high - self.x))

    def counts(self, x: Tensor) -> bool:
        """Whether an image (1, C, H, W) may be a counterexample: where the class is to be kept, the user's own model
        must still predict it, by no less than any other."""
        if self.predicted is None:
            return True
        gaps = class_rows(self.net.classes, self.predicted)
        return bool((gaps @ self.net.model_logits(x)).min() >= 0)

    def margin(self, x: Tensor) -> float:
        """The margin at one image (1, C, H, W), by running the user's own model in float64."""
        return float(self.topk.margin(self.net.model_cam(x, self.class_idx)[None])[0])


def corners(ball: Ball) -> Iterator[Tensor]:
    """Images (1, C, H, W) where a region ends: its lowest, its highest, and one whose inputs are drawn."""
    drawn = torch.rand(ball.center.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for high in (torch.zeros_like(drawn), torch.ones_like(drawn), drawn):
        yield ball.project(torch.where(high, ball.upper, ball.lower))


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"``: CUDA where there is one, else the CPU. Raises InputError for an unknown or absent device."""
    found = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    try:
        made = torch.zeros(1, device=torch.device(found if device == "auto" else device))
        made.sum().item()  # "meta" makes tensors but cannot hold a value
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        message, others = str(error).splitlines()[0], "'cpu'" if device == "auto" else "'auto' or 'cpu'"
        raise InputError(f"device {device!r} is not usable here ({message}); use {others}") from error
    return made.device  # by its number, as its tensors say it: what is kept for a device is kept once


def _predicted(net: CamNetwork, image: Tensor) -> int:
    return int(net.model_logits(image) > 0) if net.classes == 1 else net.class_index(image, None)


def class_rows(classes: int, predicted: int) -> Tensor:
    """Rows (G, classes), float64, whose products with the logits are all >= 0 where the predicted class is kept:
    ``logit_c - logit_t`` for every other class t.

    A single logit is that of a binary classifier: class 1 where it is positive, class 0 where not. So its sign is kept,
    as if there were a second logit that is always 0.
    """
    if classes == 1:
        return torch.full((1, 1), 1.0 if predicted == 1 else -1.0, dtype=torch.float64)
    others = torch.tensor([t for t in range(classes) if t != predicted])
    rows = torch.zeros(len(others), classes, dtype=torch.float64)
    rows[:, predicted] = 1.0
    rows[torch.arange(len(others)), others] = -1.0
    return rows
