"""What a property is asked about: a network, an image, a class, and the kind of region around the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from corgi_opt.errors import InputError, NumericalError
from corgi_opt.network import names
from corgi_opt.network.cam import CamNetwork, require_parity
from corgi_opt.problem.atoms import Parts
from corgi_opt.problem.clip import Box, Clip, as_tensors
from corgi_opt.problem.region import Ball, Norm, canonical_norm, distance


@dataclass(frozen=True, eq=False)
class Scene:
    """``x`` (1, C, H, W) float64, the image; ``dtype``: the type it was given in. There, by the user's own model:
    ``features`` (1, C, H, W), the last feature map, and ``logits`` (classes,)."""

    net: CamNetwork
    x: Tensor
    dtype: str
    class_idx: int
    norm: Norm
    clip: Box | None
    features: Tensor
    logits: Tensor

    @classmethod
    def of(cls, net: CamNetwork, x: Tensor, *, class_idx: int | str | None, norm: Norm, clip: Clip) -> Scene:
        """Checks the arguments and runs the model. Raises InputError for a bad image, class, norm or box; ParityError
        where the graph and the user's model differ at the image."""
        if not isinstance(net, CamNetwork):
            raise InputError(f"net must be a CamNetwork (co.from_torch(model, example)), got {type(net).__name__}")
        image = net.image(x)
        box = Ball(image, 0.0, norm, clip).box  # refuses a bad norm, box or image before any work is done
        logits, features = require_parity(net, image)
        return cls(
            net=net,
            x=image,
            dtype=str(x.dtype).removeprefix("torch."),
            class_idx=net.class_index(image, class_idx),
            norm=canonical_norm(norm),
            clip=box,
            features=features,
            logits=logits,
        )

    @cached_property
    def cam(self) -> Tensor:
        """The CAM (H, W) of ``class_idx`` at x."""
        return torch.einsum("c,nchw->nhw", self.net.weight[self.class_idx], self.features)[0]

    @property
    def class_name(self) -> str | None:
        """The name of ``class_idx``, where it is known."""
        return names.name_of(self.class_idx, self.net.class_names)

    @property
    def class_in_words(self) -> str:
        """``7``, or ``7 (stop)`` where the name is known."""
        return names.in_words(self.class_idx, self.class_name)

    def ball(self, eps: float) -> Ball:
        return Ball(self.x, eps, self.norm, self.clip)

    def checked_ball(self, eps: float) -> Ball:
        """The ball, once graph and user's model agree at corners of it. Raises ParityError."""
        ball = self.ball(eps)
        with suppress(NumericalError):  # bounds overflow there too, and are refused for it
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

    def scale_of(self, parts: Parts) -> float:
        """The largest sum of absolute terms that one of these parts comes from at the image."""
        sizes = parts.vectors(self.net.weight).abs() @ self.features[0].abs().flatten(1)  # (D, P)
        at_pixels = sizes[parts.head, parts.place.clamp(min=0)]
        logits = sizes.mean(dim=1) + parts.heads.abs() @ self.net.bias.abs()
        return float(torch.where(parts.whole, logits[parts.head], at_pixels).max())

    @property
    def predicted(self) -> int:
        """The class that the user's own model gives the image; of a single logit its sign, 1 or 0."""
        return int(self.logits > 0) if self.net.classes == 1 else self.net.class_index(self.x, None)


def corners(ball: Ball) -> Iterator[Tensor]:
    """Images (1, C, H, W) at corners of a region: all inputs lowest, all highest, and each drawn at random."""
    drawn = torch.rand(ball.center.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for high in (torch.zeros_like(drawn), torch.ones_like(drawn), drawn):
        yield ball.project(torch.where(high, ball.upper, ball.lower))
