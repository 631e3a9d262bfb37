"""One pair of CAM pixels, exactly or by LP: the minimum of ``CAM_i - CAM_j`` over the region, or just its sign.

Pixels whose receptive fields meet are one program. Where they do not and the region is a box, each is a program of its
own, as ``min (a - b) = min a + min (-b)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from corgi_solvers import Backend, Problem, Solution, Status
from torch import Tensor

from corgi_opt.bounds.crown import Relaxed
from corgi_opt.bounds.objective import pixel_rows, share_inputs
from corgi_opt.deadline import Deadline
from corgi_opt.encode.expressions import Expression, Expressions
from corgi_opt.encode.kept import keeping_class
from corgi_opt.encode.program import Program, TooLargeError, compile_program
from corgi_opt.question import Question
from corgi_opt.search.attack import drive_apart
from corgi_opt.search.kept import class_gaps
from corgi_opt.spec import Ball

Encoding = Callable[[Program], Problem]

TOO_CLOSE, IN_PART = "too close to zero for float arithmetic", "the class is kept in part only"
"""Why an answer may be no answer."""

TOLERANCE = 1e-8
"""To which solvers are trusted to keep a row, a bound or an integer: ten times what HiGHS is asked for."""


@dataclass(frozen=True, eq=False)
class PairAnswer:
    """Proven ``lower`` <= min (CAM_i - CAM_j) <= ``upper`` (the solver's incumbent, to be replayed, at ``image``).

    ``lower`` rests on the solver's word, less ``error``: what its tolerances may hide. ``binaries``: unstable ReLUs
    encoded; ``nodes``: branch-and-bound nodes; ``reason``: why it is not decided.
    """

    lower: float
    upper: float
    image: Tensor | None
    error: float
    binaries: int
    nodes: int
    reason: str

    @property
    def passes(self) -> bool:
        """Whether the solver believes that at its image the second pixel passes the first."""
        return self.image is not None and self.upper <= 2 * self.error


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
    """Solves pairs of one question at one eps with one encoding: ``triangle`` (LP bound) or ``big_m`` (exact)."""

    question: Question
    ball: Ball
    cam: CamExpressions
    encoding: Encoding
    solver: Backend

    def solve(self, pair: tuple[int, int], deadline: Deadline) -> PairAnswer:
        """Bounds the pair's minimum; an exact solve stops as soon as its sign is decided."""
        i, j = pair
        together = bool(share_inputs(self.question.net, torch.tensor([pair]))[0])
        try:
            pixels = self.cam.pixels(pair, deadline)
            if together or self.ball.norm != "inf":  # the two would share the budget of any other ball
                return self._minimise(pixels[i] - pixels[j], self.ball.center, 0.0, deadline)
            return self._minimise_apart(pair, pixels[i], -pixels[j], deadline)
        except (TooLargeError, TimeoutError) as stop:
            return PairAnswer(-math.inf, math.inf, None, 0.0, 0, 0, str(stop))

    def solve_keeping_class(self, pair: tuple[int, int], relaxed: Relaxed, deadline: Deadline) -> PairAnswer:
        """The same over images that keep the predicted class, or over some that need not (sound; ``reason`` says)."""
        i, j = pair
        try:
            pixels = self.cam.pixels(pair, deadline)
            gaps = class_gaps(self.question, self.cam.expressions, relaxed, pair, deadline)
            answer = self._minimise(pixels[i] - pixels[j], self.ball.center, 0.0, deadline, gaps.expressions)
        except (TooLargeError, TimeoutError) as stop:
            return PairAnswer(-math.inf, math.inf, None, 0.0, 0, 0, str(stop))
        return answer if gaps.exact or answer.reason else replace(answer, reason=IN_PART)

    def _minimise(
        self,
        value: Expression,
        background: Tensor,
        decide_at: float,
        deadline: Deadline,
        not_negative: Sequence[Expression] = (),
    ) -> PairAnswer:
        program = compile_program(self.cam.expressions, self.ball, [value, *not_negative], deadline)
        errors = program.errors(TOLERANCE)
        scale, error = float(program.scales[0]), float(program.scales[0] * errors[0])
        problem = self.encoding(program)
        if not_negative:
            problem = keeping_class(program, problem, errors, first=1)
        solution = self.solver.solve(problem, time_limit=deadline.left, decide_at=(decide_at + error) / scale)
        # The image itself satisfies every row, so "infeasible" is a failure of the solver and proves nothing.
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT) and math.isfinite(solution.bound)
        return PairAnswer(
            lower=solution.bound * scale - error if proven else -math.inf,
            upper=solution.objective * scale,
            image=None if solution.x is None else program.image(solution.x, background),
            error=error,
            binaries=program.units,
            nodes=solution.report.nodes,
            reason=why_undecided(solution),
        )

    def _minimise_apart(
        self, pair: tuple[int, int], first: Expression, second: Expression, deadline: Deadline
    ) -> PairAnswer:
        """The sum of two minima over inputs of their own, each only as sharply as the sign of the sum asks for.

        PGD says about where both are. What their sum has to spare is halved between them: one that is not proven to
        within its half is solved until it is, or until it falls below, which halves what there is to spare.
        """
        image = drive_apart(self.question, self.ball, pair)
        at = self.question.net.model_cam(image, self.question.class_idx).flatten()
        upper, lower = [float(at[pair[0]]), -float(at[pair[1]])], [-math.inf, -math.inf]
        error, binaries, nodes, reason = [0.0, 0.0], [0, 0], 0, ""
        while sum(lower) <= 0 and sum(upper) > sum(error):
            half = sum(upper) / 2
            side = 0 if upper[0] - lower[0] >= upper[1] - lower[1] else 1
            done = lower[1 - side] >= upper[1 - side] - half
            target = -lower[1 - side] if done else upper[side] - half
            answer = self._minimise((first, second)[side], image, target, deadline)
            if answer.image is not None and answer.upper < upper[side]:
                image, upper[side] = answer.image, answer.upper
            lower[side] = max(lower[side], answer.lower)
            error[side], binaries[side], nodes = answer.error, answer.binaries, nodes + answer.nodes
            reason = answer.reason
            stuck = not (lower[side] > target or upper[side] <= target + answer.error)
            if reason or (stuck and min(lower) > -math.inf):
                break  # stopped, or as close as this encoding and float arithmetic come
        return PairAnswer(sum(lower), sum(upper), image, sum(error), sum(binaries), nodes, reason)


def why_undecided(solution: Solution) -> str:
    if solution.status in (Status.OPTIMAL, Status.DECIDED):
        return ""
    if solution.status is Status.LIMIT:
        return "time limit"
    return f"solver ended {solution.status.name.lower()} ({solution.report.raw_status})"
