"""All rungs for one question at one eps: relaxations, then LP, MILP or branch and bound for the atoms left."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt._progress import Report, silent
from corgi_opt.answering.goals import Goal, Sign
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.margins import Margins, timed
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import BoundOrderError
from corgi_opt.methods import TABLE
from corgi_opt.problem.question import Question
from corgi_opt.problem.results import Proof
from corgi_opt.problem.witness import Witness
from corgi_opt.search.atom import AtomAnswer, AtomSolver, PartExpressions
from corgi_opt.search.attack import PgdOptions, Targets, pgd, polishing
from corgi_opt.search.branch import STARTS, TOO_CLOSE
from corgi_opt.search.counting import CountSolver
from corgi_opt.search.decide import Branched, Decider, SolvedProgram
from corgi_opt.search.replay import meet, witness_of
from corgi_opt.search.splitting import SplitSolver

LOG = logging.getLogger(__name__)

ATOM_SECONDS = 2.0
"""What an atom may take at least, where some are allowed to fail: one that takes long most likely does."""

NO_REPLAY = "the image that is found is no counterexample when it is replayed"
"""Why an answer may be no answer."""


SIGN = Sign()


class Ladder:
    """All that is proven so far about one question at one eps. Bounds only ever tighten.

    ``lower`` (A,): best proven lower bound of each atom of ``question.groups``. ``met``: the smallest margin of an
    image of the region that was replayed; ``witness``: the image, where that is a counterexample. ``goal``: how far the
    margin has to be bounded. ``above``: the same question at a larger eps; what is proven there holds here.
    """

    def __init__(
        self,
        question: Question,
        eps: float,
        device: torch.device,
        above: Ladder | None = None,
        report: Report = silent,
        goal: Goal = SIGN,
    ) -> None:
        self.question, self.device, self.goal, self._report = question, device, goal, report
        # a smaller region lies in the larger one, which has been checked
        self.ball = question.checked_ball(eps) if above is None else question.ball(eps)
        known = None if above is None else above.margins.known(0)
        self.margins: Margins = Margins(question, [eps], torch.float64, device, known)
        self.met, self._there = question.gap, question.at
        self.witness: Witness | None = None
        self.corgi = math.nan
        self.by_solver = torch.zeros_like(self.lower, dtype=torch.bool)
        if above is not None:
            self.by_solver |= above.by_solver
        self._attacked = False
        self._branched: Branched | None = None

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
    def undecided(self) -> list[int]:
        """Open atoms, the most doubtful first."""
        atoms = torch.nonzero(self.margins.open[0]).flatten()
        order = torch.argsort(self.lower[atoms], stable=True)
        found: list[int] = atoms[order].tolist()
        return found

    @property
    def unproven(self) -> int:
        """How many atoms that hold at the image are not proven to, and could help their group."""
        groups = self.question.groups
        open_groups = ~(self.margins.per_group[0] > 0)
        return int((~(self.lower > 0) & ~self.question.ahead & open_groups[groups.group]).sum())

    @property
    def certified(self) -> bool:
        return self.margin > 0

    @property
    def settled(self) -> bool:
        """Whether the goal is reached."""
        return self.goal.reached(self.margin, self.met)

    @property
    def proof(self) -> Proof:
        """Rests on the solver where any atom needed it."""
        return "solver" if bool(self.by_solver.any()) else "float64"

    # --- the rungs -------------------------------------------------------------------------------------------

    def bound(self, name: str, deadline: Deadline = NEVER) -> float:
        """Runs a relaxation on the atoms that are open; returns the margin that it computed over those.

        Raises TimeoutError; what was proven by then stays.
        """
        rung = TABLE[name].bound
        assert rung is not None  # a relaxation
        self._aim(exact=False)
        margin = float(rung(self.margins, deadline)[0])
        if LOG.isEnabledFor(logging.DEBUG):  # counting them takes longer than saying so
            LOG.debug("%s: eps=%.6g, margin >= %.4g, %d pairs unproven", name, self.ball.eps, margin, self.unproven)
        if name == "corgi":
            self.corgi = margin
        self._check_order()
        return margin

    def lp(self, solver: Backend, deadline: Deadline) -> str:
        """The triangle LP, atom by atom. Returns why it stopped, or ''."""
        relaxed = self._relaxed(deadline)
        parts = PartExpressions(self.question, Expressions(self.question.net.graph, relaxed.only(0)))
        with timed(self.stats, "lp"):
            atoms = AtomSolver(self.question, self.ball, parts, SolvedProgram(triangle, solver))
            return self._solve("lp", atoms, relaxed, deadline)

    def split(self, deadline: Deadline) -> str:
        """Branch and bound on intervals, atom by atom; for layers that no solver takes. Returns why it stopped, or
        ''."""
        relaxed = self._relaxed(deadline)
        self._aim(exact=True)
        with timed(self.stats, "split"):
            return self._solve("split", SplitSolver(self.question), relaxed, deadline)

    def milp(self, solver: Backend, deadline: Deadline) -> str:
        """The exact MILP, atom by atom, until the goal is reached. Returns why it stopped before, or ''."""
        return self._exact("milp", SolvedProgram(big_m, solver), solver, deadline)

    def bab(self, leaves: Backend, others: Backend | None, deadline: Deadline) -> str:
        """Branch and bound, likewise; ``leaves`` solves linear programs.

        Atoms are counted and premises kept to by MILPs only, by ``others``.
        """
        if self._branched is None or self._branched.solver != leaves:
            starts = STARTS if self.question.premises is None else 0
            self._branched = Branched(leaves, self.device, starts=starts)
        return self._exact("bab", self._branched, others, deadline)

    def attack(self, targets: Targets, options: PgdOptions, deadline: Deadline = NEVER) -> Witness | None:
        """PGD, unless a witness is already known; it gives up when time is over."""
        if self.witness is None and not self._attacked:
            with timed(self.stats, "attack"):
                witness = pgd(self.question, self.ball, targets, self.device, options, deadline)
            self._attacked = True
            if witness is not None:
                self.meet(witness.image)
        return self.witness

    def meet(self, image: Tensor) -> bool:
        """Replays an image (1, C, H, W) and keeps the one with the smallest margin; whether that is no more than what
        atoms are to be proven above. Checks all that is proven so far against it."""
        met = meet(self.question, self.ball, image)
        if met is None:
            return False
        if met.margin < self.met:
            self.met, self._there = met.margin, met.atoms
            self.witness = witness_of(self.question, self.ball, met)
            LOG.debug("met an image with margin %.4g at eps=%.6g", met.margin, self.ball.eps)
        self._check_order()
        return met.margin <= self.margins.goal

    # --- how -------------------------------------------------------------------------------------------------

    def _aim(self, exact: bool) -> None:
        self.margins.goal = self.goal.level(self.margin, self.met, exact)

    def _relaxed(self, deadline: Deadline) -> Relaxed:
        self.bound("crown", deadline)
        assert self.margins.relaxed is not None  # crown has computed it, maybe under another deadline
        return replace(self.margins.relaxed, deadline=deadline)

    def _exact(self, name: str, decide: Decider, milp: Backend | None, deadline: Deadline) -> str:
        """All that is open, once for every level that the goal asks for."""
        relaxed = self._relaxed(deadline)
        # phases say what the planes of pooling windows do, exactly
        parts = PartExpressions(
            self.question, Expressions(self.question.net.graph, replace(relaxed.only(0), planes={}))
        )
        keeping = None if milp is None else SolvedProgram(big_m, milp)
        atoms = AtomSolver(self.question, self.ball, parts, decide, keeping)
        counting = None if milp is None else CountSolver(self.question, self.ball, parts, milp)
        tried, reason = math.inf, ""
        with timed(self.stats, name):
            while True:
                self._aim(exact=True)
                if not self.undecided:
                    return ""
                if self.margins.goal == tried:
                    return reason
                tried = self.margins.goal
                reason = self._solve(name, atoms, relaxed, deadline)
                if not reason and not self.question.groups.every:
                    reason = self._count(counting, relaxed, deadline)

    def _solve(self, name: str, solver: AtomSolver | SplitSolver, relaxed: Relaxed, deadline: Deadline) -> str:
        """Atom by atom, until an image is met where the margin is no more than the level. Returns why it stopped before
        all are above it, or ''.

        Where every atom has to be, the lowest comes first, and one that stays open ends it. Else the likeliest to be
        above come first, and whether enough of them are is for the caller to see.
        """
        groups, ends, done = self.question.groups, self.goal.ends(TABLE[name].exact), set[int]()
        LOG.info("%s: eps=%.6g, %d pairs to decide", name, self.ball.eps, len(self.undecided))
        while (atom := self._next(done)) is not None:
            if deadline.over:
                return f"time limit reached with {len(self.undecided)} pairs undecided"
            done.add(atom)
            self._report(f"eps {self.ball.eps:.4g}, {len(self.undecided)} pairs left, margin >= {self.margin:.4g}")
            share = deadline if groups.every else deadline.within(max(ATOM_SECONDS, deadline.left / 4))
            for answer in solver.attempts(atom, relaxed, share, self.margins.goal):
                self._record(name, atom, answer)
                if answer.image is None or not answer.passes:
                    break
                if self._falls(answer.image, atom, ends and groups.every) and ends:
                    return ""
            if ends and groups.every and not float(self.lower[atom]) > self.margins.goal:
                return f"{name} leaves {groups.named(atom)} undecided{_because(name, answer)}"
        return ""

    def _next(self, done: Collection[int]) -> int | None:
        """The open atom to be solved next. Where every one has to be above the level, none when the lowest is done."""
        if self.question.groups.every:
            return next((atom for atom in self.undecided[:1] if atom not in done), None)
        return next((atom for atom in self.undecided[::-1] if atom not in done), None)

    def _count(self, solver: CountSolver | None, relaxed: Relaxed, deadline: Deadline) -> str:
        """Whether so many atoms can fall at once that a group does, for each group that its atoms leave open."""
        groups, level = self.question.groups, self.margins.goal
        for group in torch.nonzero(~(self.margins.per_group[0] > level)).flatten().tolist():
            if self.met <= level:
                return ""
            if solver is None:
                return "how many fail at once is for a MILP to count (method 'milp' or 'auto')"
            mine, what = groups.atoms_of(group), groups.named_group(group)
            likely = mine[self.margins.open[0, mine]].tolist()
            ahead = mine[self.question.ahead[mine]].tolist()
            self._report(f"eps {self.ball.eps:.4g}, {what} against {len(likely)} at once")
            for answer in solver.attempts(group, likely, ahead, relaxed, deadline, level):
                self._tally(answer.binaries, answer.nodes)
                if answer.slack > level:
                    # the last that may fall may be one of those that were not counted, but proven above
                    others = self.lower[mine][self.lower[mine] > level]
                    self.margins.slack[0, group] = min([answer.slack, *others.tolist()])
                    self.by_solver[mine] = True
                    self._check_order()
                    break
                if answer.image is not None and self._falls(answer.image, answer.atom, True):
                    return ""
                if answer.reason:
                    return f"milp leaves {what} undecided ({answer.reason})"
            else:
                return f"milp leaves {what} undecided ({NO_REPLAY})"
        return ""

    def _falls(self, image: Tensor, atom: int, polished: bool) -> bool:
        """Whether the margin falls to the level at an image, replayed and if need be polished."""
        near = polishing(self.question, self.ball, image, atom) if polished else (image,)
        return any(self.meet(x) for x in near)

    def _record(self, name: str, atom: int, answer: AtomAnswer) -> None:
        bound, rounding = answer.lower, 2 * answer.error
        dual = float(self.margins.by_relaxed[0, atom])
        if name == "lp" and not answer.reason and -math.inf < bound < dual - rounding - answer.loose:
            raise BoundOrderError(
                f"the LP bound {answer.lower:.9g} of {self._named(atom)} is below a dual bound {dual:.9g} on the "
                "same relaxation"
            )
        # a bound may hold for images that satisfy the premises, an incumbent be another
        free = self.question.premises is None
        beaten = answer.upper < float(self.lower[atom]) - rounding
        if free and TABLE[name].exact and answer.image is not None and beaten:
            raise BoundOrderError(
                f"{name} found {answer.upper:.9g} for {self._named(atom)} below a proven bound "
                f"{float(self.lower[atom]):.9g}"
            )
        said = (name, self._named(atom), answer.lower, answer.upper, answer.nodes, answer.reason)
        LOG.debug("%s: %s in [%.4g, %.4g], %d nodes %s", *said)
        self.stats["solved_pairs"] = self.stats.get("solved_pairs", 0) + 1
        self._tally(answer.binaries, answer.nodes)
        if bound > float(self.lower[atom]):
            self.lower[atom] = bound
            self.by_solver[atom] = answer.proof == "solver"
        self._check_order()

    def _tally(self, binaries: int, nodes: int) -> None:
        self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), binaries)
        self.stats["nodes"] = self.stats.get("nodes", 0) + nodes

    def _named(self, atom: int) -> str:
        return self.question.groups.named(atom)

    def _check_order(self) -> None:
        """No proven bound may exceed the value at a replayed image."""
        groups, excess = self.question.groups, self.lower - self._there
        what, by = f"the difference of {self._named(int(excess.argmax()))}", float(excess.max())
        if not by > 0:
            beyond = self.margins.slack[0] - groups.slack(self._there)
            what, by = f"the slack of {groups.named_group(int(beyond.argmax()))}", float(beyond.max())
        if by > 0:
            raise BoundOrderError(
                f"at eps={self.ball.eps:g} a lower bound of {what} exceeds its value at a replayed image by {by:.3g}; "
                "nothing is certified, please report this"
            )


def _because(name: str, answer: AtomAnswer) -> str:
    if answer.reason:
        return f" ({answer.reason})"
    if name == "lp":
        return f" (its bound is {answer.lower:.6g}: method too weak here)"
    return f" (minimum in [{answer.lower:.6g}, {answer.upper:.6g}]: {_why_open(answer)})"


def _why_open(answer: AtomAnswer) -> str:
    """What keeps a pair undecided that was searched to its end."""
    if abs(answer.upper - answer.goal) <= 2 * answer.error:
        return TOO_CLOSE
    return NO_REPLAY if answer.passes else "its bounds come no closer"
