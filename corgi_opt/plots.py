"""The picture of a counterexample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from corgi_opt.drawing.maps import Shown, draw_counterexample
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Box, Clip, as_tensors
from corgi_opt.problem.question import Question
from corgi_opt.problem.results import Witness


def plot_counterexample(
    net: CamNetwork,
    x: Tensor,
    k: int,
    witness: Witness,
    *,
    class_idx: int | None = None,
    clip: Clip = (0.0, 1.0),
) -> Any:
    """Image + change = counterexample, then both CAMs with their top-k sets outlined. Returns the Figure.

    In the last panel a plus marks the pixels that came in, a cross those that were pushed out.
    """
    # a witness was found, so the set was defined; whoever lowered tie_tol for it need not do so again here
    question = Question.ask(net, x, k=k, class_idx=class_idx, norm="inf", clip=clip, tie_tol=0.0)
    after = witness.cam.numpy()
    brightest = np.argsort(-after.flatten(), kind="stable")[:k].tolist()
    return draw_counterexample(
        Shown(question.x[0].numpy(), question.cam.numpy(), question.topk.top.tolist()),
        Shown(witness.image[0].numpy(), after, brightest),
        class_idx=question.class_idx,
        distance=witness.distance,
        scale=_range((question.x, witness.image), question.clip),
    )


def _range(images: Iterable[Tensor], clip: Box | None) -> tuple[Any, Any]:
    """One grey scale for all images, a number or one a channel: the clip box, or what they hold where there is none."""
    if clip is not None:
        low, high = (end.flatten().numpy() for end in as_tensors(clip))
        return low, high
    both = [(float(i.min()), float(i.max())) for i in images]
    return min(low for low, _ in both), max(high for _, high in both)
