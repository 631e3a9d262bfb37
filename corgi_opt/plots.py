"""The picture of a counterexample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from corgi_opt.drawing.maps import Shown, draw_counterexample
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Box, Clip, as_tensors
from corgi_opt.problem.results import Witness
from corgi_opt.problem.scene import Scene


def plot_counterexample(
    net: CamNetwork,
    x: Tensor,
    k: int,
    witness: Witness,
    *,
    class_idx: int | str | None = None,
    clip: Clip = (0.0, 1.0),
) -> Any:
    """Image + change = counterexample, then both CAMs with their top-k sets outlined. Returns the Figure.

    In the last panel a plus marks the pixels that came in, a cross those that were pushed out.
    """
    scene = Scene.of(net, x, class_idx=class_idx, norm="inf", clip=clip)
    before, after = scene.cam.numpy(), witness.cam.numpy()
    tops = [np.argsort(-cam.flatten(), kind="stable")[:k].tolist() for cam in (before, after)]
    return draw_counterexample(
        Shown(scene.x[0].numpy(), before, tops[0]),
        Shown(witness.image[0].numpy(), after, tops[1]),
        class_idx=scene.class_idx,
        distance=witness.distance,
        scale=_range((scene.x, witness.image), scene.clip),
    )


def _range(images: Iterable[Tensor], clip: Box | None) -> tuple[Any, Any]:
    """One grey scale for all images, a number or one a channel: the clip box, or what they hold where there is none."""
    if clip is not None:
        low, high = (end.flatten().numpy() for end in as_tensors(clip))
        return low, high
    both = [(float(i.min()), float(i.max())) for i in images]
    return min(low for low, _ in both), max(high for _, high in both)
