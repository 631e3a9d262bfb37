"""The public attack: one call, one eps."""

from __future__ import annotations

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import resolve_device
from corgi_opt.answering.asking import chosen_property
from corgi_opt.answering.batches import over_images
from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm
from corgi_opt.problem.scene import Scene
from corgi_opt.problem.witness import Witness
from corgi_opt.search.attack import PgdOptions, pgd, rank_targets


@pinned
@over_images(tied=lambda *_, **__: None)
def attack(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    keep_class: bool = False,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    device: str | torch.device = "auto",
    options: PgdOptions | None = None,
) -> Witness | None:
    """A counterexample found by pairwise PGD and replayed in float64 through the user's own model, or None.

    None means that the attack failed, not that the property holds. Arguments as in :func:`corgi_opt.verify`. Of several
    images or classes, a list.
    """
    if options is not None and not isinstance(options, PgdOptions):
        raise InputError(f"options must be a co.PgdOptions or None, got {options!r}")
    where, wanted = resolve_device(device), chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    question = Question.ask(scene, wanted, tie_tol=tie_tol, keep_class=keep_class)
    ball = question.checked_ball(eps)
    return pgd(question, ball, rank_targets(question, where), where, options or PgdOptions())
