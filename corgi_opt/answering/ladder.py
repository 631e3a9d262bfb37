"""All rungs for one question at one eps: relaxations, then LP, MILP or branch and bound for the atoms left."""

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
from corgi_opt.search.atom import AtomAnswer, AtomSolver, PartExpressions
from corgi_opt.search.attack import PgdOptions, Targets, pgd, polish, replay
from corgi_opt.search.branch import TOO_CLOSE
from corgi_opt.search.counting import CountSolver
from corgi_opt.search.decide import Branched, Decider, SolvedProgram

ATOM_SECONDS = 2.0
"""What an atom may take at least, where some are allowed to fail: one that takes long most likely does."""

NO_REPLAY = "the image that is found is no counterexample when it is replayed"
"""Why an answer may be no answer."""


class Ladder:
    """All that is proven so far about one question at one eps. Bounds only ever tighten.

    ``lower`` (A,): best proven lower bound of each atom of ``question.groups``. ``witness``: the counterexample with
    the smallest margin met. ``above``: the same question at a larger eps; what is proven there holds here.
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
        self._there: Tensor | None = None
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
    def undecided(self) -> list[int]:
        """Open atoms, the most doubtful first."""
        atoms = torch.nonzero(self.margins.open[0]).flatten()
        order = torch.argsort(self.lower[atoms], stable=True)
        found: list[int] = atoms[order].tolist()
        return found

    @property
    def certified(self) -> bool:
        return self.margin > 0

    @property
    def settled(self) -> bool:
        return self.certified or self.witness is not None

    @property
    def proof(self) -> Proof:
        """Rests on the solver where any atom needed it."""
        return "solver" if bool(self.by_solver.any()) else "float64"

    # --- the rungs -------------------------------------------------------------------------------------------

    def bound(self, name: str, deadline: Deadline = NEVER) -> float:
        """Runs a relaxation on the atoms that are open; returns the best proven margin over those.

        Raises TimeoutError; what was proven by then stays.
        """
        rung = TABLE[name].bound
        assert rung is not None  # a relaxation
        found = float(rung(self.margins, deadline)[0])
        self._check_order()
        return found

    def lp(self, solver: Backend, deadline: Deadline) -> str:
        """The triangle LP on every atom left, until one that matters stays undecided. Returns why it stopped, or ''."""
        relaxed = self._relaxed(deadline)
        parts = PartExpressions(self.question, Expressions(self.question.net.graph, relaxed.only(0)))
        with timed(self.stats, "lp"):
            atoms = AtomSolver(self.question, self.ball, parts, SolvedProgram(triangle, solver))
            return self._solve("lp", atoms, deadline)

    def milp(self, solver: Backend, deadline: Deadline) -> str:
        """The exact MILP on every atom left, until one is broken or stays undecided. Returns why it stopped, or ''."""
        return self._exact("milp", SolvedProgram(big_m, solver), solver, deadline)

    def bab(self, leaves: Backend, others: Backend | None, deadline: Deadline) -> str:
        """Branch and bound on every atom left, likewise; ``leaves`` solves linear programs.

        Atoms are counted and premises kept to by MILPs only, by ``others``.
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
            self.witness, self._there = witness, self.question.see(witness.image).atoms
        self._check_order()

    # --- how -------------------------------------------------------------------------------------------------

    def _exact(self, name: str, decide: Decider, milp: Backend | None, deadline: Deadline) -> str:
        relaxed = self._relaxed(deadline)
        # phases say what the planes of pooling windows do, exactly
        known = replace(relaxed.only(0), planes={})
        parts = PartExpressions(self.question, Expressions(self.question.net.graph, known))
        keeping = None if milp is None else SolvedProgram(big_m, milp)
        with timed(self.stats, name):
            reason = self._solve(name, AtomSolver(self.question, self.ball, parts, decide, keeping), deadline)
            if not self.question.groups.every and not self.settled and not reason:
                if milp is None:
                    return "how many fail at once is for a MILP to count (method 'milp' or 'auto')"
                reason = self._count(relaxed, CountSolver(self.question, self.ball, parts, milp), deadline)
        return reason

    def _relaxed(self, deadline: Deadline) -> Relaxed:
        self.bound("crown", deadline)
        assert self.margins.relaxed is not None  # crown has computed it, maybe under another deadline
        return replace(self.margins.relaxed, deadline=deadline)

    def _solve(self, name: str, solver: AtomSolver, deadline: Deadline) -> str:
        """Atom by atom. Where every one has to hold, the first that does not ends it; else the likeliest to hold come
        first, and whether enough of them do is for the caller to see."""
        groups = self.question.groups
        for atom in self.undecided if groups.every else self.undecided[::-1]:
            if not bool(self.margins.open[0, atom]):
                continue  # its group needs no more
            if deadline.over:
                return f"time limit reached with {len(self.undecided)} pairs undecided"
            self._report(f"eps {self.ball.eps:.4g}, {len(self.undecided)} pairs left, margin >= {self.margin:.4g}")
            share = deadline if groups.every else deadline.within(max(ATOM_SECONDS, deadline.left / 4))
            answer = solver.solve(atom, share)
            self._record(name, atom, answer)
            if answer.passes and self._broken(atom, answer):
                return ""
            if answer.passes and self.question.premises is not None:
                for answer in solver.solve_premised(atom, self._relaxed(deadline), deadline):
                    self._record(name, atom, answer)
                    if answer.passes and self._broken(atom, answer):
                        return ""
                    if not answer.passes:
                        break
            if groups.every and not float(self.lower[atom]) > 0:
                return f"{name} leaves {groups.named(atom)} undecided{_because(name, answer)}"
        return "" if self.certified or TABLE[name].exact else f"{name} leaves {len(self.undecided)} pairs undecided"

    def _count(self, relaxed: Relaxed, solver: CountSolver, deadline: Deadline) -> str:
        """Whether so many atoms can fail at once that a group does, for each group that its atoms leave open."""
        groups = self.question.groups
        for group in torch.nonzero(~(self.margins.per_group[0] > 0)).flatten().tolist():
            mine, what = groups.atoms_of(group), groups.named_group(group)
            likely = mine[self.margins.open[0, mine]].tolist()
            ahead = mine[self.question.ahead[mine]].tolist()
            self._report(f"eps {self.ball.eps:.4g}, {what} against {len(likely)} at once")
            answer = solver.solve(group, likely, ahead, relaxed, deadline)
            self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), answer.binaries)
            self.stats["nodes"] = self.stats.get("nodes", 0) + answer.nodes
            if answer.slack > 0:
                # the last that may fail may be one of those that were not counted, but proven positive
                others = self.lower[mine][self.lower[mine] > 0]
                self.margins.slack[0, group] = min([answer.slack, *others.tolist()])
                self.by_solver[mine] = True
                self._check_order()
            elif answer.witness is not None:
                self.found(answer.witness)
                return ""
            else:
                return f"milp leaves {what} undecided ({answer.reason or NO_REPLAY})"
        return ""

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
        self.stats["solved_pairs"] = self.stats.get("solved_pairs", 0) + 1
        self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), answer.binaries)
        self.stats["nodes"] = self.stats.get("nodes", 0) + answer.nodes
        if bound > float(self.lower[atom]):
            self.lower[atom] = bound
            self.by_solver[atom] = answer.proof == "solver"
        self._check_order()

    def _broken(self, atom: int, answer: AtomAnswer) -> bool:
        """Whether the solver's point, replayed and if need be polished, is a witness."""
        assert answer.image is not None
        found = replay(self.question, self.ball, answer.image)
        if found is None and self.question.groups.every:
            found = polish(self.question, self.ball, answer.image, atom)
        if found is not None:
            self.found(found)
        return found is not None

    def _named(self, atom: int) -> str:
        return self.question.groups.named(atom)

    def _check_order(self) -> None:
        """No proven bound may exceed the value at a replayed image."""
        if self._there is None:
            return
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
    if abs(answer.upper) <= 2 * answer.error:
        return TOO_CLOSE
    return NO_REPLAY if answer.passes else "its bounds come no closer"
