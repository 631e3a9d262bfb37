"""One top pixel among rivals, exactly: can so many of them be as bright at once?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from corgi_solvers import Backend, Status

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.objective import pair_bounds
from corgi_opt.encode.class_rows import keeping_class
from corgi_opt.encode.counting import counting
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Witness
from corgi_opt.search.attack import polish, replay
from corgi_opt.search.branch import TOO_CLOSE
from corgi_opt.search.class_gaps import IN_PART, class_gaps
from corgi_opt.search.decide import TOLERANCE, why_undecided
from corgi_opt.search.pairs import CamExpressions


@dataclass(frozen=True, eq=False)
class CountAnswer:
    """``slack`` > 0: proven lower bound of the pixel's slack; ``witness``: it can fall out; else ``reason``."""

    slack: float
    witness: Witness | None
    binaries: int
    nodes: int
    reason: str


@dataclass(frozen=True, eq=False)
class _Attempt:
    """``rivals`` to encode, with ``sure`` others taken to be ahead; whether they have to pass ``clearly``."""

    rivals: Sequence[int]
    sure: int
    keep_class: bool = False
    clearly: bool = False


@dataclass(frozen=True, eq=False)
class CountSolver:
    """Decides for top pixels of one question at one eps whether enough rivals can pass at once."""

    question: Question
    ball: Ball
    cam: CamExpressions
    solver: Backend

    def solve(
        self, pixel: int, likely: Sequence[int], ahead: Sequence[int], relaxed: Relaxed, deadline: Deadline
    ) -> CountAnswer:
        """``likely``: rivals that may pass; ``ahead``: those as bright at the image (all others are proven not to).

        Each attempt is sound; a later one is made only where the one before found a point that is no counterexample.
        Those ahead are first taken to stay so, which is mostly true; then they are encoded as well; then the class is
        kept, where it has to be; and in the end rivals have to pass clearly, for a point that replays.
        """
        attempts = [_Attempt(likely, len(ahead))]
        attempts += [_Attempt([*likely, *ahead], 0)] if ahead else []
        attempts += [replace(attempts[-1], keep_class=True)] if self.question.predicted is not None else []
        attempts += [replace(attempts[-1], clearly=True)]
        try:
            for attempt in attempts:
                answer = self._solve(pixel, attempt, relaxed, deadline)
                if answer.slack > 0 or answer.witness is not None or answer.reason:
                    break
        except (TooLargeError, TimeoutError) as stop:
            return CountAnswer(-math.inf, None, 0, 0, str(stop))
        return answer

    def _solve(self, pixel: int, attempt: _Attempt, relaxed: Relaxed, deadline: Deadline) -> CountAnswer:
        rivals = attempt.rivals
        pixels = self.cam.pixels([pixel, *rivals], deadline)
        outputs, exact = [pixels[pixel] - pixels[j] for j in rivals], True
        if attempt.keep_class:
            gaps = class_gaps(self.question, self.cam.expressions, relaxed, [pixel, *rivals], deadline)
            outputs, exact = outputs + gaps.expressions, gaps.exact
        program = compile_program(self.cam.expressions, self.ball, outputs, deadline)
        errors = program.errors(TOLERANCE)
        scales = program.scales[: len(rivals)]
        error = errors[: len(rivals)]
        upper = np.maximum(self._upper(pixel, rivals, relaxed) / scales, 4 * error)
        problem = counting(program, upper, -4 * error if attempt.clearly else 2 * error)
        if attempt.keep_class:
            problem = keeping_class(program, problem, errors, first=len(rivals))
        decide_at = 0.5 - (self.question.topk.within - attempt.sure)
        solution = self.solver.solve(problem, time_limit=deadline.left, decide_at=decide_at)
        binaries, nodes = program.units + len(rivals), solution.report.nodes
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT)
        if proven and solution.bound > decide_at:
            # where rivals had to pass clearly, the others may tie: nothing is proven
            slack = -math.inf if attempt.clearly else float((error * scales).min())
            return CountAnswer(slack, None, binaries, nodes, "" if slack > 0 else TOO_CLOSE)
        witness = None
        if solution.x is not None and solution.objective <= decide_at:
            image = program.image(solution.x, self.ball.center)
            witness = replay(self.question, self.ball, image)
            witness = witness or polish(self.question, self.ball, image, (pixel, rivals[0]))
        reason = why_undecided(solution) or ("" if exact else IN_PART)
        return CountAnswer(-math.inf, witness, binaries, nodes, reason)

    def _upper(self, pixel: int, rivals: Sequence[int], relaxed: Relaxed) -> Vector:
        """Proven upper bounds of ``CAM_pixel - CAM_j``."""
        net = self.question.net.to(torch.float64, relaxed.regions.eps.device)
        pairs = torch.tensor([[j, pixel] for j in rivals], device=relaxed.regions.eps.device)
        found = pair_bounds(net, self.question.class_idx, relaxed.bound, pairs, torch.zeros_like(pairs[:, 0]))
        return np.asarray(-found.cpu().numpy())
