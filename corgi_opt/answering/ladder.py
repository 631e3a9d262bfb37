"""All rungs for one question at one eps: relaxations, then LP, MILP or branch and bound for the pairs left."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt._progress import Report, silent
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.margins import Margins, timed
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import BoundOrderError
from corgi_opt.methods import TABLE
from corgi_opt.problem.question import Question
from corgi_opt.problem.results import Proof, Witness
from corgi_opt.search.attack import PgdOptions, Targets, pgd, polish, replay
from corgi_opt.search.branch import TOO_CLOSE
from corgi_opt.search.counting import CountSolver
from corgi_opt.search.decide import Branched, Decider, SolvedProgram
from corgi_opt.search.pairs import CamExpressions, PairAnswer, PairSolver

PAIR_SECONDS = 2.0
"""What a pair may take at least, where some are allowed to pass: one that takes long most likely does."""

NO_REPLAY = "the image that is found is no counterexample when it is replayed"
"""Why an answer may be no answer."""

Entry = tuple[int, int]
"""A top pixel's row and a rival's column."""


class Ladder:
    """All that is proven so far about one question at one eps. Bounds only ever tighten.

    ``lower`` (k, R): best proven lower bound of ``CAM_i - CAM_j`` for each top pixel i (rows, in the order of
    ``question.topk.top``) and rival j (of ``question.topk.rivals``). ``witness``: the counterexample with the smallest
    margin met. ``above``: the same question at a larger eps; what is proven there holds here.
    """

    def __init__(
        self,
        question: Question,
        eps: float,
        device: torch.device,
        above: Ladder | None = None,
        report: Report = silent,
    ) -> None:
        self.question, self.device, self._report = question, device, report
        # a smaller region lies in the larger one, which has been checked
        self.ball = question.checked_ball(eps) if above is None else question.ball(eps)
        known = None if above is None else above.margins.known(0)
        self.margins: Margins = Margins(question, [eps], torch.float64, device, known)
        self.witness: Witness | None = None
        self.by_solver = torch.zeros_like(self.lower, dtype=torch.bool)
        if above is not None:
            self.by_solver |= above.by_solver
        self._attacked = False

    # --- what is known ---------------------------------------------------------------------------------------

    @property
    def lower(self) -> Tensor:
        return self.margins.lower[0]

    @property
    def stats(self) -> dict[str, float]:
        return self.margins.stats

    @property
    def margin(self) -> float:
        """The best proven lower bound on the margin."""
        return float(self.margins.margin[0])

    @property
    def undecided(self) -> list[Entry]:
        """Open entries of ``lower``, the most doubtful first."""
        rows, columns = torch.nonzero(self.margins.open[0], as_tuple=True)
        order = torch.argsort(self.lower[rows, columns], stable=True)
        return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))

    @property
    def certified(self) -> bool:
        return self.margin > 0

    @property
    def settled(self) -> bool:
        return self.certified or self.witness is not None

    @property
    def proof(self) -> Proof:
        """Rests on the solver where any pair needed it."""
        return "solver" if bool(self.by_solver.any()) else "float64"

    # --- the rungs -------------------------------------------------------------------------------------------

    def bound(self, name: str, deadline: Deadline = NEVER) -> float:
        """Runs a relaxation on the pairs that are open; returns the best proven margin over those.

        Raises TimeoutError; what was proven by then stays.
        """
        rung = TABLE[name].bound
        assert rung is not None  # a relaxation
        found = float(rung(self.margins, deadline)[0])
        self._check_order()
        return found

    def lp(self, solver: Backend, deadline: Deadline) -> str:
        """The triangle LP on every pair left, until one that matters stays undecided. Returns why it stopped, or ''."""
        relaxed = self._relaxed(deadline)
        cam = CamExpressions(self.question, Expressions(self.question.net.graph, relaxed.only(0)))
        with timed(self.stats, "lp"):
            solver_ = PairSolver(self.question, self.ball, cam, SolvedProgram(triangle, solver))
            return self._solve("lp", solver_, deadline)

    def milp(self, solver: Backend, deadline: Deadline) -> str:
        """The exact MILP on every pair left, until one is broken or stays undecided. Returns why it stopped, or ''."""
        return self._exact("milp", SolvedProgram(big_m, solver), solver, deadline)

    def bab(self, leaves: Backend, others: Backend | None, deadline: Deadline) -> str:
        """Branch and bound on every pair left, likewise; ``leaves`` solves linear programs.

        Rivals are counted and classes kept by MILPs only, by ``others``.
        """
        return self._exact("bab", Branched(leaves, self.device), others, deadline)

    def attack(self, targets: Targets, options: PgdOptions, deadline: Deadline = NEVER) -> Witness | None:
        """PGD, unless a witness is already known; it gives up when time is over."""
        if self.witness is None and not self._attacked:
            with timed(self.stats, "attack"):
                found = pgd(self.question, self.ball, targets, self.device, options, deadline)
            self._attacked = True
            if found is not None:
                self.found(found)
        return self.witness

    def found(self, witness: Witness) -> None:
        """Keeps a replayed witness and checks the ordering against everything proven so far."""
        if self.witness is None or witness.margin < self.witness.margin:
            self.witness = witness
        self._check_order()

    # --- how -------------------------------------------------------------------------------------------------

    def _exact(self, name: str, decide: Decider, milp: Backend | None, deadline: Deadline) -> str:
        relaxed = self._relaxed(deadline)
        # phases say what the planes of pooling windows do, exactly
        known = replace(relaxed.only(0), planes={})
        cam = CamExpressions(self.question, Expressions(self.question.net.graph, known))
        keeping = None if milp is None else SolvedProgram(big_m, milp)
        with timed(self.stats, name):
            reason = self._solve(name, PairSolver(self.question, self.ball, cam, decide, keeping), deadline)
            if self.question.topk.allowed and not self.settled and not reason:
                if milp is None:
                    return "how many rivals pass at once is for a MILP to count (method 'milp' or 'auto')"
                reason = self._count(relaxed, CountSolver(self.question, self.ball, cam, milp), deadline)
        return reason

    def _relaxed(self, deadline: Deadline) -> Relaxed:
        self.bound("crown", deadline)
        assert self.margins.relaxed is not None  # crown has computed it, maybe under another deadline
        return replace(self.margins.relaxed, deadline=deadline)

    def _solve(self, name: str, solver: PairSolver, deadline: Deadline) -> str:
        """Pair by pair. Where every pair has to hold, the first that does not ends it; else the likeliest to hold come
        first, and whether enough of them do is for the caller to see."""
        every_one = self.question.topk.allowed == 0
        entries = self.undecided if every_one else self.undecided[::-1]
        for entry in entries:
            if not bool(self.margins.open[0][entry]):
                continue  # its pixel needs no more
            if deadline.over:
                return f"time limit reached with {len(self.undecided)} pairs undecided"
            self._report(f"eps {self.ball.eps:.4g}, {len(self.undecided)} pairs left, margin >= {self.margin:.4g}")
            share = deadline if every_one else deadline.within(max(PAIR_SECONDS, deadline.left / 4))
            answer = solver.solve(self.pair(entry), share)
            self._record(name, entry, answer)
            if answer.passes and self._broken(entry, answer):
                return ""
            if answer.passes and self.question.predicted is not None:
                for answer in solver.solve_keeping_class(self.pair(entry), self._relaxed(deadline), deadline):
                    self._record(name, entry, answer)
                    if answer.passes and self._broken(entry, answer):
                        return ""
                    if not answer.passes:
                        break
            if every_one and not float(self.lower[entry]) > 0:
                i, j = self.pair(entry)
                return f"{name} leaves pixels {i} and {j} undecided{_because(name, answer)}"
        return "" if self.certified or TABLE[name].exact else f"{name} leaves {len(self.undecided)} pairs undecided"

    def _count(self, relaxed: Relaxed, solver: CountSolver, deadline: Deadline) -> str:
        """Whether so many rivals can pass one top pixel at once, for each top pixel that its pairs leave open."""
        topk = self.question.topk
        for row in torch.nonzero(~(self.margins.per_pixel[0] > 0)).flatten().tolist():
            pixel = int(topk.top[row])
            likely = topk.rivals[self.margins.open[0][row]].tolist()
            ahead = topk.rivals[topk.ahead[row]].tolist()
            self._report(f"eps {self.ball.eps:.4g}, pixel {pixel} against {len(likely)} rivals at once")
            answer = solver.solve(pixel, likely, ahead, relaxed, deadline)
            self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), answer.binaries)
            self.stats["nodes"] = self.stats.get("nodes", 0) + answer.nodes
            if answer.slack > 0:
                # the last rival allowed may be one of those that were not counted, but proven positive
                others = self.lower[row][self.lower[row] > 0].min()
                self.margins.slack[0, row] = min(answer.slack, float(others))
                self.by_solver[row] = True
                self._check_order()
            elif answer.witness is not None:
                self.found(answer.witness)
                return ""
            else:
                return f"milp leaves pixel {pixel} undecided ({answer.reason or NO_REPLAY})"
        return ""

    def _record(self, name: str, entry: Entry, answer: PairAnswer) -> None:
        bound, rounding = answer.lower, 2 * answer.error
        dual = float(self.margins.by_relaxed[0][entry])
        if name == "lp" and not answer.reason and -math.inf < bound < dual - rounding - answer.loose:
            raise BoundOrderError(
                f"the LP bound {answer.lower:.9g} of pair {self.pair(entry)} is below a dual bound {dual:.9g} on the "
                "same relaxation"
            )
        # a bound may hold for images that keep the class, an incumbent be another
        any_class = self.question.predicted is None
        beaten = answer.upper < float(self.lower[entry]) - rounding
        if any_class and TABLE[name].exact and answer.image is not None and beaten:
            raise BoundOrderError(
                f"{name} found {answer.upper:.9g} for pair {self.pair(entry)} below a proven bound "
                f"{float(self.lower[entry]):.9g}"
            )
        self.stats["solved_pairs"] = self.stats.get("solved_pairs", 0) + 1
        self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), answer.binaries)
        self.stats["nodes"] = self.stats.get("nodes", 0) + answer.nodes
        if bound > float(self.lower[entry]):
            self.lower[entry] = bound
            self.by_solver[entry] = answer.proof == "solver"
        self._check_order()

    def _broken(self, entry: Entry, answer: PairAnswer) -> bool:
        """Whether the solver's point, replayed and if need be polished, is a witness."""
        assert answer.image is not None
        found = replay(self.question, self.ball, answer.image)
        if found is None and self.question.topk.allowed == 0:
            found = polish(self.question, self.ball, answer.image, self.pair(entry))
        if found is not None:
            self.found(found)
        return found is not None

    def pair(self, entry: Entry) -> tuple[int, int]:
        """The flat pixel indices of an entry."""
        topk = self.question.topk
        return int(topk.top[entry[0]]), int(topk.rivals[entry[1]])

    def _check_order(self) -> None:
        """No proven bound may exceed the value at a replayed image."""
        if self.witness is None:
            return
        topk, there = self.question.topk, self.question.topk.gaps(self.witness.cam[None])[0]
        excess = torch.where(topk.own, -torch.inf, self.lower - there)
        if float(excess.max()) > 0:
            i, j = self.pair(divmod(int(excess.argmax()), len(topk.rivals)))
            what, by = f"CAM_{i} - CAM_{j}", float(excess.max())
        else:
            beyond = self.margins.slack[0] - topk.slack(there)
            what, by = f"the slack of pixel {int(topk.top[int(beyond.argmax())])}", float(beyond.max())
        if by > 0:
            raise BoundOrderError(
                f"at eps={self.ball.eps:g} a lower bound of {what} exceeds its value at a replayed image by {by:.3g}; "
                "nothing is certified, please report this"
            )


def _because(name: str, answer: PairAnswer) -> str:
    if answer.reason:
        return f" ({answer.reason})"
    if name == "lp":
        return f" (its bound is {answer.lower:.6g}: method too weak here)"
    return f" (minimum in [{answer.lower:.6g}, {answer.upper:.6g}]: {_why_open(answer)})"


def _why_open(answer: PairAnswer) -> str:
    """What keeps a pair undecided that was searched to its end."""
    if abs(answer.upper) <= 2 * answer.error:
        return TOO_CLOSE
    return NO_REPLAY if answer.passes else "its bounds come no closer"
