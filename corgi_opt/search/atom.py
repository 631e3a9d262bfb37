"""One atom, exactly or by LP: its minimum over the region, or just its sign.

Parts whose receptive fields meet are one program. Where those of two do not and the region is a box, each is a program
of its own, as ``min (a - b) = min a + min (-b)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from corgi_solvers import ProblemError
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.objective import share_in_atoms
from corgi_opt.encode.expressions import Expression, Expressions, combined
from corgi_opt.encode.parts import expressed
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.errors import NumericalError
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Proof
from corgi_opt.search.attack import drive_down, only
from corgi_opt.search.decide import Decider, SolvedProgram
from corgi_opt.search.leaves import Leaves
from corgi_opt.search.premises import IN_PART, premises

NO_PREMISE = "that the class is kept is for a MILP to say (method 'milp' or 'auto')"
"""Why an answer may be no answer."""


@dataclass(frozen=True, eq=False)
class AtomAnswer:
    """Proven ``lower`` <= the atom's minimum <= ``upper`` (the solver's incumbent, to be replayed, at ``image``).

    ``lower`` is proven, on ``proof``'s level; ``error``: what tolerances and rounding may hide of ``upper``. ``goal``:
    what it was asked to be above. ``loose``: what the encoding itself may cost a relaxation. ``binaries``: unstable
    ReLUs encoded; ``nodes``: branch-and-bound nodes; ``reason``: why it is not decided. ``trees``: of the atom, or of
    each of its two terms, where they were kept.
    """

    lower: float
    upper: float
    image: Tensor | None
    error: float
    binaries: int
    nodes: int
    proof: Proof
    reason: str
    trees: tuple[Leaves | None, ...] = ()
    loose: float = 0.0
    goal: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether it is believed that the atom is no more than the goal at ``image``."""
        return self.image is not None and self.upper - self.goal <= 2 * self.error


UNSOLVABLE = (TooLargeError, TimeoutError, NumericalError, ProblemError)
"""Why an atom has no answer: its program is too large, time is over, or its numbers are none that a solver takes."""

NOTHING = AtomAnswer(-math.inf, math.inf, None, 0.0, 0, 0, "float64", "")

CLEARLY = -4.0
"""An image clearly satisfies the premises where it does by so many times what tolerances may hide."""


@dataclass(eq=False)
class PartExpressions:
    """Parts of one question at one eps as expressions, each made once."""

    question: Question
    expressions: Expressions
    _known: dict[int, Expression] = field(default_factory=dict)

    def parts(self, wanted: Sequence[int], deadline: Deadline) -> Mapping[int, Expression]:
        """At least the parts ``wanted``. Raises TimeoutError."""
        missing = [p for p in dict.fromkeys(wanted) if p not in self._known]
        if missing:
            terms = torch.tensor(missing)[:, None]
            ones, parts = torch.ones(len(missing), 1, dtype=torch.float64), self.question.groups.parts
            self._known.update(
                zip(missing, expressed(self.question.net, parts, self.expressions, terms, ones, deadline), strict=True)
            )
        return self._known

    def atoms(self, wanted: Sequence[int], deadline: Deadline) -> list[Expression]:
        """The atoms ``wanted``. Raises TimeoutError.

        A difference of two parts is that of their expressions; what has other coefficients is a pass of its own, which
        accounts for what they round.
        """
        groups = self.question.groups
        if not groups.differences:
            some = torch.tensor(list(wanted))
            return expressed(
                self.question.net, groups.parts, self.expressions, groups.terms[some], groups.coefs[some], deadline
            )
        parts = self.parts([p for atom in wanted for p, _ in self.terms(atom)], deadline)
        return [combined([(coef, parts[p]) for p, coef in self.terms(atom)]) for atom in wanted]

    def terms(self, atom: int) -> list[tuple[int, float]]:
        """The parts of an atom, with their coefficients."""
        groups = self.question.groups
        both = zip(groups.terms[atom].tolist(), groups.coefs[atom].tolist(), strict=True)
        return [(part, coef) for part, coef in both if coef]


@dataclass(frozen=True, eq=False)
class AtomSolver:
    """Solves atoms of one question at one eps, each by ``decide``; over images that satisfy the premises, by
    ``keeping``."""

    question: Question
    ball: Ball
    parts: PartExpressions
    decide: Decider
    keeping: SolvedProgram | None = None

    def attempts(self, atom: int, relaxed: Relaxed, deadline: Deadline, goal: float) -> Iterator[AtomAnswer]:
        """What is known of the atom's minimum, each answer for who can not use the image of the one before.

        First over the whole region; then, where there are premises, over images that satisfy them.
        """
        yield self.solve(atom, deadline, goal)
        if self.question.premises is not None:
            yield from self._premised(atom, relaxed, deadline, goal)

    def solve(self, atom: int, deadline: Deadline, goal: float = 0.0) -> AtomAnswer:
        """Bounds the atom's minimum; an exact solve stops as soon as it is known to be above the goal, or not."""
        try:
            if self._is_apart(atom):
                known = self.parts.parts([part for part, _ in self.parts.terms(atom)], deadline)
                first, second = (combined([(coef, known[part])]) for part, coef in self.parts.terms(atom))
                answer = self._minimise_apart(atom, first.plus(-goal), second, goal, deadline)
            else:
                (value,) = self.parts.atoms([atom], deadline)
                answer = self._minimise(self.decide, value.plus(-goal), self.ball.center, 0.0, deadline)
            return _above(goal, answer)
        except UNSOLVABLE as stop:
            return replace(NOTHING, goal=goal, reason=str(stop))

    def _is_apart(self, atom: int) -> bool:
        """Whether it is a difference of parts that share no input (of other balls than L-inf they share the budget)."""
        groups = self.question.groups
        if self.ball.norm != "inf" or not groups.differences or len(self.parts.terms(atom)) != 2:
            return False
        return not bool(share_in_atoms(self.question.net, groups, torch.tensor([atom]))[0])

    def _premised(self, atom: int, relaxed: Relaxed, deadline: Deadline, goal: float) -> Iterator[AtomAnswer]:
        """Over images that satisfy the premises, or over some that need not (sound; ``reason`` says).

        Then over images that clearly satisfy them, for an image that replays: no lower bound.
        """
        if self.keeping is None:
            yield replace(NOTHING, goal=goal, reason=NO_PREMISE)
            return
        try:
            (value,) = self.parts.atoms([atom], deadline)
            held = premises(self.question, self.parts.expressions, relaxed, [atom], deadline)
            beyond, center = value.plus(-goal), self.ball.center
            answer = self._minimise(self.keeping, beyond, center, 0.0, deadline, held.expressions)
            yield _above(goal, answer if held.exact or answer.reason else replace(answer, reason=IN_PART))
            clearly = replace(self.keeping, slack=CLEARLY)
            answer = self._minimise(clearly, beyond, center, 0.0, deadline, held.expressions)
            yield _above(goal, replace(answer, lower=-math.inf))
        except UNSOLVABLE as stop:
            yield replace(NOTHING, goal=goal, reason=str(stop))

    def _minimise(
        self,
        decide: Decider,
        value: Expression,
        background: Tensor,
        decide_at: float,
        deadline: Deadline,
        not_negative: Sequence[Expression] = (),
    ) -> AtomAnswer:
        program = compile_program(self.parts.expressions, self.ball, [value, *not_negative], deadline)
        found = decide(program, decide_at, deadline)
        return AtomAnswer(
            lower=found.lower,
            upper=found.upper,
            image=None if found.variables is None else program.image(found.variables, background),
            error=found.error,
            binaries=program.units,
            nodes=found.nodes,
            proof=found.proof,
            reason=found.reason,
            trees=(found.tree,),
            loose=found.loose,
        )

    def _minimise_apart(
        self, atom: int, first: Expression, second: Expression, goal: float, deadline: Deadline
    ) -> AtomAnswer:
        """The sum of two minima over inputs of their own, each only as sharply as the sign of the sum asks for.

        ``first`` is the atom's first term less the goal, ``second`` its other.

        PGD says about where both are. What their sum has to spare is halved between them: one that is not proven to
        within its half is solved until it is, or until it falls below, which halves what there is to spare.
        """
        image = drive_down(self.question, self.ball, only(atom))
        values = self.question.values(image)[0]
        at = [coef * float(values[part]) for part, coef in self.parts.terms(atom)]
        upper, lower = [at[0] - goal, at[1]], [-math.inf, -math.inf]
        error, binaries, nodes, reason, proof = [0.0, 0.0], [0, 0], 0, "", NOTHING.proof
        trees: list[Leaves | None] = [None, None]
        loose = [0.0, 0.0]
        while not sum(lower) > 0 and sum(upper) > sum(error):
            if deadline.over:
                reason = "time limit"
                break
            before = lower[0], lower[1], upper[0], upper[1]
            half = sum(upper) / 2
            side = 0 if upper[0] - lower[0] >= upper[1] - lower[1] else 1
            done = lower[1 - side] >= upper[1 - side] - half
            target = -lower[1 - side] if done else upper[side] - half
            answer = self._minimise(self.decide, (first, second)[side], image, target, deadline)
            if answer.image is not None and answer.upper < upper[side]:
                image, upper[side] = answer.image, answer.upper
            if answer.lower > lower[side]:
                lower[side], trees[side] = answer.lower, answer.trees[0]
            error[side], binaries[side], nodes = answer.error, answer.binaries, nodes + answer.nodes
            loose[side] = answer.loose
            reason, proof = answer.reason, answer.proof
            stuck = not (lower[side] > target or upper[side] <= target + answer.error)
            gained = (lower[0], lower[1], upper[0], upper[1]) != before
            if reason or not gained or (stuck and min(lower) > -math.inf):
                break  # stopped, or as close as this encoding and float arithmetic come
        return AtomAnswer(
            lower=_sum_below(*lower),
            upper=sum(upper),
            image=image,
            error=sum(error),
            binaries=sum(binaries),
            nodes=nodes,
            proof=proof,
            reason=reason,
            trees=tuple(trees),
            loose=sum(loose),
        )


def _above(goal: float, answer: AtomAnswer) -> AtomAnswer:
    """The answer about an atom, from that about what it is above the goal."""
    return replace(answer, lower=_sum_below(answer.lower, goal), upper=answer.upper + goal, goal=goal)


def _sum_below(a: float, b: float) -> float:
    """A float below a sum that was rounded."""
    return math.nextafter(a + b, -math.inf)
