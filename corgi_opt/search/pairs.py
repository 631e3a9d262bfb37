"""One pair of CAM pixels, exactly or by LP: the minimum of ``CAM_i - CAM_j`` over the region, or just its sign.

Pixels whose receptive fields meet are one program. Where they do not and the region is a box, each is a program of its
own, as ``min (a - b) = min a + min (-b)``.
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
from corgi_opt.bounding.objective import pixel_rows, share_inputs
from corgi_opt.encode.expressions import Expression, Expressions
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.errors import NumericalError
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Proof
from corgi_opt.search.attack import drive_apart
from corgi_opt.search.class_gaps import IN_PART, class_gaps
from corgi_opt.search.decide import Decider, SolvedProgram
from corgi_opt.search.leaves import Leaves

NO_CLASS = "the class is for a MILP to keep (method 'milp' or 'auto')"
"""Why an answer may be no answer."""


@dataclass(frozen=True, eq=False)
class PairAnswer:
    """Proven ``lower`` <= min (CAM_i - CAM_j) <= ``upper`` (the solver's incumbent, to be replayed, at ``image``).

    ``lower`` is proven, on ``proof``'s level; ``error``: what tolerances and rounding may hide of ``upper``. ``loose``:
    what the encoding itself may cost a relaxation. ``binaries``: unstable ReLUs encoded; ``nodes``: branch-and-bound
    nodes; ``reason``: why it is not decided. ``trees``: of ``CAM_i - CAM_j``, or of ``CAM_i`` and of ``-CAM_j``, where
    they were kept.
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

    @property
    def passes(self) -> bool:
        """Whether it is believed that at ``image`` the second pixel passes the first."""
        return self.image is not None and self.upper <= 2 * self.error


UNSOLVABLE = (TooLargeError, TimeoutError, NumericalError, ProblemError)
"""Why a pair has no answer: its program is too large, time is over, or its numbers are none that a solver takes."""

NOTHING = PairAnswer(-math.inf, math.inf, None, 0.0, 0, 0, "float64", "")

CLEARLY = -4.0
"""An image clearly keeps its class where it does by so many times what tolerances may hide."""


@dataclass(eq=False)
class CamExpressions:
    """CAM pixels of one question at one eps as expressions, each made once."""

    question: Question
    expressions: Expressions
    _pixels: dict[int, Expression] = field(default_factory=dict)

    def pixels(self, wanted: Sequence[int], deadline: Deadline) -> Mapping[int, Expression]:
        """At least the CAM pixels ``wanted``, by flat index. Raises TimeoutError."""
        missing = [p for p in dict.fromkeys(wanted) if p not in self._pixels]
        if missing:
            net, flat = self.question.net, torch.tensor(missing)
            rows = pixel_rows(net, self.question.class_idx, flat, torch.zeros_like(flat))
            self._pixels.update(zip(missing, self.expressions.of(net.features, rows, deadline), strict=True))
        return self._pixels


@dataclass(frozen=True, eq=False)
class PairSolver:
    """Solves pairs of one question at one eps, each by ``decide``; over images that keep the class, by ``keeping``."""

    question: Question
    ball: Ball
    cam: CamExpressions
    decide: Decider
    keeping: SolvedProgram | None = None

    def solve(self, pair: tuple[int, int], deadline: Deadline, goal: float = 0.0) -> PairAnswer:
        """Bounds the pair's minimum; an exact solve stops as soon as it is known to be above the goal, or not."""
        i, j = pair
        together = bool(share_inputs(self.question.net, torch.tensor([pair]))[0])
        try:
            pixels = self.cam.pixels(pair, deadline)
            first = pixels[i].plus(-goal)
            if together or self.ball.norm != "inf":  # the two would share the budget of any other ball
                answer = self._minimise(self.decide, first - pixels[j], self.ball.center, 0.0, deadline)
            else:
                answer = self._minimise_apart(pair, first, -pixels[j], goal, deadline)
            return replace(answer, lower=_sum_below(answer.lower, goal), upper=answer.upper + goal)
        except UNSOLVABLE as stop:
            return replace(NOTHING, reason=str(stop))

    def solve_keeping_class(self, pair: tuple[int, int], relaxed: Relaxed, deadline: Deadline) -> Iterator[PairAnswer]:
        """The same over images that keep the predicted class, or over some that need not (sound; ``reason`` says).

        Then, for who can not replay the first answer's image, over images that clearly keep it: no lower bound.
        """
        if self.keeping is None:
            yield replace(NOTHING, reason=NO_CLASS)
            return
        i, j = pair
        try:
            pixels = self.cam.pixels(pair, deadline)
            gaps = class_gaps(self.question, self.cam.expressions, relaxed, pair, deadline)
            value, center = pixels[i] - pixels[j], self.ball.center
            answer = self._minimise(self.keeping, value, center, 0.0, deadline, gaps.expressions)
            yield answer if gaps.exact or answer.reason else replace(answer, reason=IN_PART)
            clearly = replace(self.keeping, slack=CLEARLY)
            answer = self._minimise(clearly, value, center, 0.0, deadline, gaps.expressions)
            yield replace(answer, lower=-math.inf)
        except UNSOLVABLE as stop:
            yield replace(NOTHING, reason=str(stop))

    def _minimise(
        self,
        decide: Decider,
        value: Expression,
        background: Tensor,
        decide_at: float,
        deadline: Deadline,
        not_negative: Sequence[Expression] = (),
    ) -> PairAnswer:
        program = compile_program(self.cam.expressions, self.ball, [value, *not_negative], deadline)
        found = decide(program, decide_at, deadline)
        return PairAnswer(
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
        self, pair: tuple[int, int], first: Expression, second: Expression, goal: float, deadline: Deadline
    ) -> PairAnswer:
        """The sum of two minima over inputs of their own, each only as sharply as the sign of the sum asks for.

        ``first`` is ``CAM_i - goal``, ``second`` is ``-CAM_j``.

        PGD says about where both are. What their sum has to spare is halved between them: one that is not proven to
        within its half is solved until it is, or until it falls below, which halves what there is to spare.
        """
        image = drive_apart(self.question, self.ball, pair)
        at = self.question.net.model_cam(image, self.question.class_idx).flatten()
        upper, lower = [float(at[pair[0]]) - goal, -float(at[pair[1]])], [-math.inf, -math.inf]
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
        return PairAnswer(
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


def _sum_below(a: float, b: float) -> float:
    """A float below a sum that was rounded."""
    return math.nextafter(a + b, -math.inf)
