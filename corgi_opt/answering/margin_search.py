"""How sharp a method is: the best bound it gives on the margin at one eps, where ``verify`` stops at its sign."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import check_rtol
from corgi_opt._deadline import Deadline
from corgi_opt._progress import Report, reporting, silent
from corgi_opt.answering.asking import Means, chosen_property
from corgi_opt.answering.backends import named_solver
from corgi_opt.answering.goals import Halved, Value
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import Prover
from corgi_opt.answering.verdict import ATTACK_SHARE, CORGI_SHARE, climb, settle
from corgi_opt.bounding.margins import timed
from corgi_opt.errors import Interrupted, NumericalError
from corgi_opt.methods import TABLE
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm
from corgi_opt.problem.results import SECONDS, Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.search.attack import drive_down, rank_targets

LOG = logging.getLogger(__name__)

DRIVEN = 12
"""Targets that PGD drives down, the most likely ones first."""


class MarginSearch:
    """Bounds on the margin of one question at one eps, method by method on one ladder; weaker methods first.

    ``rtol``: an exact method ends when both sides are within ``rtol`` times the margin at the image.
    """

    def __init__(
        self,
        question: Question,
        eps: float,
        device: torch.device,
        rtol: float,
        solver: Backend,
        report: Report = silent,
    ) -> None:
        goal = (Value if question.groups.every else Halved)(rtol * question.gap)
        self._ladder = Ladder(question, eps, device, report=report, goal=goal)
        self._solver, self._attacked = solver, False
        self._stats: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """What each method added, and the attack, by name."""
        return {name.removeprefix(SECONDS): spent for name, spent in self._stats.items()}

    def run(self, method: str, deadline: Deadline) -> Verdict:
        """The bound of one method, or what is known when time is over."""
        ladder = self._ladder
        try:
            with suppress(NumericalError):  # which the bounds will say
                self._attack(deadline.within(ATTACK_SHARE * deadline.left))
            corgi = CORGI_SHARE * deadline.left if math.isnan(ladder.corgi) else 0.0
            with timed(self._stats, method):
                verdict = climb(ladder, TABLE[method], None, self._solver, deadline, corgi)
        except KeyboardInterrupt as stop:
            raise Interrupted(settle(ladder, method, "interrupted")) from stop
        ladder.corgi = verdict.corgi_margin
        said = (method, verdict.eps, verdict.margin_lower, verdict.margin_upper)
        LOG.info("margin by %s: eps=%.6g, in [%.4g, %.4g]", *said)
        if verdict.status == "unknown":
            return replace(verdict, method=method)
        leaves = named_solver(None, "bab", ladder.question.norm)
        prover = Prover(ladder.question, ladder.ball, verdict.counterexample, leaves, ladder.device)
        return replace(verdict, method=method, prover=prover)

    def _attack(self, deadline: Deadline) -> None:
        """The smallest margin that PGD meets, once."""
        question, ball = self._ladder.question, self._ladder.ball
        if self._attacked or ball.eps == 0:
            return
        self._attacked = True
        with timed(self._stats, "attack"):
            targets = rank_targets(question, self._ladder.device)
            for target in targets.each(DRIVEN):
                if deadline.over:
                    break
                self._ladder.meet(drive_down(question, ball, target))


@pinned
def tight_margin(
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
    method: str = "bab",
    rtol: float = 0.01,
    solver: str | None = None,
    device: str | torch.device = "auto",
    time_limit: float = 300.0,
    progress: bool | None = None,
) -> Verdict:
    """The best bounds of one method on the margin at one eps; arguments as in :func:`corgi_opt.verify`.

    ``margin_lower`` is as high as the method proves, ``margin_upper`` the margin at the worst image met. An exact
    method ends when they are within ``rtol`` times the margin at the image itself. ``seed`` plays no part: the search
    draws nothing. Raises as :func:`corgi_opt.verify`.
    """
    means = Means.of(net, method=method, norm=norm, solver=solver, device=device, time_limit=time_limit)
    tolerance, wanted = check_rtol(rtol), chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    question = Question.ask(scene, wanted, tie_tol=tie_tol, keep_class=keep_class)
    with reporting(progress, "margin") as report:
        search = MarginSearch(question, eps, means.device, tolerance, means.solver, report)
        verdict = search.run(means.method.name, means.deadline)
    return verdict if verdict.status != "unknown" else replace(verdict, reason=means.said(verdict.reason))
