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
from corgi_opt._deadline import Deadline, check_time_limit
from corgi_opt._progress import Report, reporting, silent
from corgi_opt.answering.backends import check_solver, named_solver
from corgi_opt.answering.prover import Prover
from corgi_opt.answering.verdict import ATTACK_SHARE, CORGI_SHARE
from corgi_opt.bounding.margins import Margins
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import BoundOrderError, Interrupted, NumericalError
from corgi_opt.methods import TABLE, check_method
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.question import Question, resolve_device
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.problem.results import CORGI_CUT_OFF, Proof, Verdict
from corgi_opt.search.attack import Pairs, drive_apart, rank_targets, replay
from corgi_opt.search.decide import Branched, Decider, SolvedProgram
from corgi_opt.search.pairs import CamExpressions, PairSolver

DRIVEN_PAIRS = 12
"""Pairs that PGD drives apart, the most likely ones first."""


class MarginSearch:
    """Bounds on the margin of one question at one eps, method by method; weaker methods first. Top-k sets only.

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
        self._tolerance = rtol * question.topk.gap
        self._solver_of, self._report = solvers, report
        self._image: Tensor = self.ball.center
        self.upper = question.margin(self._image)
        self._margins: Margins | None = None
        self._corgi = math.nan
        self._proofs: dict[tuple[int, int], Proof] = {}

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
        assert isinstance(targets, Pairs)  # no rivals are allowed here
        for i, j in targets.pairs[:DRIVEN_PAIRS].tolist():
            if deadline.over or self.ball.eps == 0:
                break
            self._meet(drive_apart(self.question, self.ball, (i, j)))
        self.seconds["attack"] = time.monotonic() - start
        # a pair that differs by more than the margin is known to be needs no better bound
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
        """Pair by pair, always the lowest bound: when that is as sharp as the method gets, so is the margin."""
        margins, topk = self._margins, self.question.topk
        assert margins is not None
        margins.crown(deadline)
        assert margins.relaxed is not None  # crown has computed it
        exact, solver = TABLE[method].exact, self._solver_of(method)
        # phases say what the planes of pooling windows do, exactly
        known = margins.relaxed.only(0)
        bounded = replace(known, planes={}) if exact else known
        cam = CamExpressions(self.question, Expressions(self.question.net.graph, bounded))
        solve = PairSolver(self.question, self.ball, cam, self._decider(method, solver)).solve
        done: set[int] = set()
        while True:
            entry = int(margins.lower[0].argmin())
            lowest = float(margins.lower[0].flatten()[entry])
            if entry in done or (exact and lowest >= self.upper - self._tolerance):
                return ""
            if deadline.over:
                return "time limit"
            row, column = divmod(entry, margins.lower.shape[2])
            pair = int(topk.top[row]), int(topk.rivals[column])
            self._report(f"eps {self.ball.eps:.4g}, margin in [{lowest:.4g}, {self.upper:.4g}], pixels {pair}")
            before, goal = self.upper, self.upper - (self._tolerance if exact else 0.0)
            answer = solve(pair, deadline, goal)
            if answer.image is not None:
                self._meet(answer.image)
            if answer.lower > lowest:
                margins.lower[0, row, column] = answer.lower
                self._proofs[row, column] = answer.proof
            if not exact:
                done.add(entry)
            elif not (answer.lower > lowest or self.upper < before):
                return answer.reason or f"the bound of pixels {pair[0]} and {pair[1]} gets no sharper"

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
            status=status,  # type: ignore[arg-type]
            eps=self.ball.eps,
            k=self.question.topk.k,
            within=self.question.topk.within,
            class_idx=self.question.class_idx,
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
    k: int,
    method: str = "bab",
    rtol: float = 0.01,
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    time_limit: float = 300.0,
    tie_tol: float | None = None,
    solver: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Verdict:
    """The best bounds of one method on the margin at one eps; arguments as in :func:`corgi_opt.verify`.

    ``margin_lower`` is as high as the method proves, ``margin_upper`` the margin at the worst image met. An exact
    method ends when they are within ``rtol`` times the margin at the image itself. ``seed`` plays no part: the search
    draws nothing. Raises as :func:`corgi_opt.verify`.
    """
    norm = canonical_norm(norm)
    chosen = check_method(method, norm).name
    deadline, where = check_time_limit(time_limit), resolve_device(device)
    tolerance, backend = check_rtol(rtol), check_solver(solver, chosen, norm)
    question = Question.ask(net, x, k=k, class_idx=class_idx, norm=norm, clip=clip, tie_tol=tie_tol)
    with reporting(progress, "margin") as report:
        return MarginSearch(question, eps, where, tolerance, lambda _: backend, report).run(chosen, deadline)
