"""One top pixel among rivals, exactly: can so many of them be as bright at once?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from corgi_solvers import Backend, Status

from corgi_opt.bounds.crown import Relaxed
from corgi_opt.bounds.objective import pair_bounds
from corgi_opt.deadline import Deadline
from corgi_opt.encode.counting import counting
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.margins import FLOAT64_SAFETY
from corgi_opt.question import Question
from corgi_opt.results import Witness
from corgi_opt.search.attack import polish, replay
from corgi_opt.search.pairs import TOLERANCE, CamExpressions, why_undecided
from corgi_opt.spec import Ball


@dataclass(frozen=True, eq=False)
class CountAnswer:
    """``left`` > 0: proven lower bound of what the pixel has left; ``witness``: it can fall out; else ``reason``."""

    left: float
    witness: Witness | None
    binaries: int
    nodes: int
    reason: str


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

        Those ahead are first taken to stay so, which is sound and mostly true; only where that suggests a
        counterexample that is none, they are encoded as well.
        """
        try:
            answer = self._solve(pixel, likely, len(ahead), relaxed, deadline)
            if answer.left > 0 or answer.witness is not None or answer.reason or not ahead:
                return answer
            return self._solve(pixel, [*likely, *ahead], 0, relaxed, deadline)
        except (TooLargeError, TimeoutError) as stop:
            return CountAnswer(-math.inf, None, 0, 0, str(stop))

    def _solve(self, pixel: int, rivals: Sequence[int], sure: int, relaxed: Relaxed, deadline: Deadline) -> CountAnswer:
        """With ``sure`` rivals taken to be ahead beside the ones that are encoded."""
        needed = self.question.topk.within - sure
        safety = FLOAT64_SAFETY * self.question.scale
        pixels = self.cam.pixels([pixel, *rivals], deadline)
        outputs = [pixels[pixel] - pixels[j] for j in rivals]
        program = compile_program(self.cam.expressions, self.ball, outputs, deadline)
        error = program.errors(TOLERANCE) + safety / program.scales
        upper = np.maximum(self._upper(pixel, rivals, relaxed) / program.scales, 4 * error)
        problem = counting(program, upper, 2 * error)
        decide_at = 0.5 - needed
        solution = self.solver.solve(problem, time_limit=deadline.left, decide_at=decide_at)
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT)
        if proven and solution.bound > decide_at:
            left = float((error * program.scales).min())
            return CountAnswer(left, None, program.units + len(rivals), solution.report.nodes, "")
        witness = None
        if solution.x is not None and solution.objective <= decide_at:
            image = program.image(solution.x, self.ball.center)
            witness = replay(self.question, self.ball, image)
            witness = witness or polish(self.question, self.ball, image, (pixel, rivals[0]))
        reason = why_undecided(solution)
        return CountAnswer(-math.inf, witness, program.units + len(rivals), solution.report.nodes, reason)

    def _upper(self, pixel: int, rivals: Sequence[int], relaxed: Relaxed) -> Vector:
        """Proven upper bounds of ``CAM_pixel - CAM_j``."""
        net = self.question.net.to(torch.float64, relaxed.regions.eps.device)
        pairs = torch.tensor([[j, pixel] for j in rivals], device=relaxed.regions.eps.device)
        found = pair_bounds(net, self.question.class_idx, relaxed.bound, pairs, torch.zeros_like(pairs[:, 0]))
        return -found.cpu().numpy() + FLOAT64_SAFETY * self.question.scale
