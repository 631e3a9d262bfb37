"""The public attack: one call, one image, one eps."""

from __future__ import annotations

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.question import Question, resolve_device
from corgi_opt.problem.region import Norm
from corgi_opt.problem.results import Witness
from corgi_opt.search.attack import PgdOptions, pgd, rank_targets


@pinned
def attack(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int,
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    within: int | None = None,
    keep_class: bool = False,
    device: str | torch.device = "auto",
    options: PgdOptions | None = None,
) -> Witness | None:
    """A counterexample found by pairwise PGD and replayed in float64 through the user's own model, or None.

    None means that the attack failed, not that the top-k set is stable. Arguments as in :func:`corgi_opt.verify`.
    """
    if options is not None and not isinstance(options, PgdOptions):
        raise InputError(f"options must be a co.PgdOptions or None, got {options!r}")
    where = resolve_device(device)
    question = Question.ask(
        net, x, k=k, class_idx=class_idx, norm=norm, clip=clip, tie_tol=tie_tol, within=within, keep_class=keep_class
    )
    ball = question.checked_ball(eps)
    return pgd(question, ball, rank_targets(question, where), where, options or PgdOptions())
