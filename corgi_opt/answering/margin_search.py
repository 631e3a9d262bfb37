"""How sharp a method is: the best bound it gives on the margin at one eps, where ``verify`` stops at its sign."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import check_rtol
from corgi_opt._deadline import Deadline
from corgi_opt._progress import Report, reporting, silent
from corgi_opt.answering.asking import Means, asked, chosen_property
from corgi_opt.answering.backends import named_solver
from corgi_opt.answering.prover import Prover
from corgi_opt.answering.verdict import ATTACK_SHARE, CORGI_SHARE
from corgi_opt.bounding.margins import Margins
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import BoundOrderError, InputError, Interrupted, NumericalError
from corgi_opt.methods import TABLE
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm
from corgi_opt.problem.results import CORGI_CUT_OFF, Proof, Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.search.atom import AtomSolver, PartExpressions
from corgi_opt.search.attack import Atoms, drive_down, rank_targets, replay
from corgi_opt.search.decide import Branched, Decider, SolvedProgram

DRIVEN = 12
"""Atoms that PGD drives down, the most likely ones first."""


class MarginSearch:
    """Bounds on the margin of one question at one eps, method by method; weaker methods first.

    Only for a property of which every atom has to hold, and without premises: what else there is only counts.

    ``rtol``: an exact method ends when both sides are within ``rtol`` times the margin at the image.
    """

    def __init__(
        self,
        question: Question,
        eps: float,
        device: torch.device,
        rtol: float,
        solvers: Callable[[str], Backend],
        report: Report = silent,
    ) -> None:
        self.question, self.ball, self.device = question, question.checked_ball(eps), device
        self.seconds: dict[str, float] = {}
        self._tolerance = rtol * question.gap
        self._solver_of, self._report = solvers, report
        self._image: Tensor = self.ball.center
        self.upper = question.margin(self._image)
        self._margins: Margins | None = None
        self._corgi = math.nan
        self._proofs: dict[int, Proof] = {}

    def run(self, method: str, deadline: Deadline) -> Verdict:
        """The bound of one method, or what is known when time is over."""
        reason = ""
        try:
            self.attack(deadline.within(ATTACK_SHARE * deadline.left))
            reason = self._bounded(method, deadline)
        except TimeoutError:
            reason = "time limit"
        except NumericalError as error:
            reason = str(error)
        except KeyboardInterrupt as stop:
            raise Interrupted(self._verdict(method, "interrupted")) from stop
        return self._verdict(method, reason)

    def attack(self, deadline: Deadline) -> None:
        """The smallest margin that PGD meets."""
        if self._margins is not None:
            return
        start = time.monotonic()
        targets = rank_targets(self.question, self.device)
        assert isinstance(targets, Atoms)  # every atom has to hold
        for atom in targets.which[:DRIVEN].tolist():
            if deadline.over or self.ball.eps == 0:
                break
            self._meet(drive_down(self.question, self.ball, atom))
        self.seconds["attack"] = time.monotonic() - start
        # an atom above what the margin is known to be needs no better bound
        self._margins = Margins(self.question, [self.ball.eps], torch.float64, self.device, goal=self.upper)

    def _bounded(self, method: str, deadline: Deadline) -> str:
        """Runs the method; returns why it is less sharp than it could be, or nothing."""
        assert self._margins is not None  # the attack comes first
        start = time.monotonic()
        try:
            if method == "ibp":
                self._margins.ibp(deadline)
                return ""
            self._beside(method, deadline)
            bound = TABLE[method].bound
            if bound is None:
                return self._solved(method, deadline)
            if method != "corgi":
                bound(self._margins, deadline)
            return ""
        finally:
            self.seconds[method] = time.monotonic() - start

    def _beside(self, method: str, deadline: Deadline) -> None:
        """The paper's bound, before CROWN leaves fewer pairs open; in its share of the time, where it is not asked for.

        Raises TimeoutError where it is.
        """
        assert self._margins is not None
        if method == "corgi":
            self._corgi = float(self._margins.corgi(deadline)[0])
        elif math.isnan(self._corgi) and self._margins.relaxed is None:
            with suppress(TimeoutError):
                self._corgi = float(self._margins.corgi(deadline.within(CORGI_SHARE * deadline.left))[0])

    def _solved(self, method: str, deadline: Deadline) -> str:
        """Atom by atom, always the lowest bound: when that is as sharp as the method gets, so is the margin."""
        margins = self._margins
        assert margins is not None
        margins.crown(deadline)
        assert margins.relaxed is not None  # crown has computed it
        exact, solver = TABLE[method].exact, self._solver_of(method)
        # phases say what the planes of pooling windows do, exactly
        known = margins.relaxed.only(0)
        bounded = replace(known, planes={}) if exact else known
        parts = PartExpressions(self.question, Expressions(self.question.net.graph, bounded))
        solve = AtomSolver(self.question, self.ball, parts, self._decider(method, solver)).solve
        done: set[int] = set()
        while True:
            atom = int(margins.lower[0].argmin())
            lowest, named = float(margins.lower[0, atom]), self.question.groups.named(atom)
            if atom in done or (exact and lowest >= self.upper - self._tolerance):
                return ""
            if deadline.over:
                return "time limit"
            self._report(f"eps {self.ball.eps:.4g}, margin in [{lowest:.4g}, {self.upper:.4g}], {named}")
            before, goal = self.upper, self.upper - (self._tolerance if exact else 0.0)
            answer = solve(atom, deadline, goal)
            if answer.image is not None:
                self._meet(answer.image)
            if answer.lower > lowest:
                margins.lower[0, atom] = answer.lower
                self._proofs[atom] = answer.proof
            if not exact:
                done.add(atom)
            elif not (answer.lower > lowest or self.upper < before):
                return answer.reason or f"the bound of {named} gets no sharper"

    def _corgi_cut_off(self, method: str) -> dict[str, float]:
        return {CORGI_CUT_OFF: 1.0} if math.isnan(self._corgi) and method != "ibp" else {}

    def _decider(self, method: str, solver: Backend) -> Decider:
        if method == "lp":
            return SolvedProgram(triangle, solver)
        if method == "milp":
            return SolvedProgram(big_m, solver)
        return Branched(solver, self.device)

    def _meet(self, image: Tensor) -> None:
        """Takes an image of the region for the one with the smallest margin, if it is."""
        x = self.ball.project(image)
        if self.ball.contains(x):
            there = self.question.margin(x)
            if there < self.upper:
                self._image, self.upper = x, there

    @property
    def lower(self) -> float:
        """The best bound so far."""
        return -math.inf if self._margins is None else float(self._margins.margin[0])

    def _check_order(self) -> None:
        if self.lower > self.upper:
            raise BoundOrderError(
                f"at eps={self.ball.eps:g} a lower bound {self.lower:.9g} of the margin exceeds its value "
                f"{self.upper:.9g} at a replayed image; nothing is certified, please report this"
            )

    def _verdict(self, method: str, reason: str) -> Verdict:
        self._check_order()
        witness = replay(self.question, self.ball, self._image) if self.upper <= 0 else None
        status = "certified" if self.lower > 0 else "falsified" if witness is not None else "unknown"
        said = {"certified": "every pair keeps its order", "unknown": f"{method} is too weak here"}
        if witness is not None:
            said["falsified"] = witness.what_changed
        proof: Proof = "solver" if "solver" in self._proofs.values() else "float64"
        prover = None
        if status != "unknown":
            leaves = named_solver(None, "bab", self.question.norm)
            prover = Prover(self.question, self.ball, witness, leaves, self.device)
        return Verdict(
            asked=asked(self.question),
            status=status,  # type: ignore[arg-type]
            eps=self.ball.eps,
            margin_lower=self.lower,
            margin_upper=self.upper,
            corgi_margin=self._corgi,
            proof=proof if status == "certified" else None,
            counterexample=witness,
            method=method,
            reason=reason or said[status],
            stats={f"seconds_{name}": s for name, s in self.seconds.items()} | self._corgi_cut_off(method),
            prover=prover,
        )


@pinned
def tight_margin(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int | None = None,
    property: Property | str | None = None,
    class_idx: int | None = None,
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
    means = Means.of(method=method, norm=norm, solver=solver, device=device, time_limit=time_limit)
    tolerance, wanted = check_rtol(rtol), chosen_property(property, k, None, net)
    question = Question.ask(Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip), wanted, tie_tol=tie_tol)
    require_margins(question)
    with reporting(progress, "margin") as report:
        search = MarginSearch(question, eps, means.device, tolerance, lambda _: means.solver, report)
        return search.run(means.method.name, means.deadline)


def require_margins(question: Question) -> None:
    """Raises InputError for a question whose margin no method bounds."""
    if question.premises is not None or not question.groups.every:
        raise InputError(
            "margins at fixed eps are those of properties of which every part has to hold, of all images: neither "
            "within nor keep_class goes with eps"
        )
