"""One pair of CAM pixels, exactly or by LP: the minimum of ``CAM_i - CAM_j`` over the region, in its own cone.

Pixels whose receptive fields meet share a joint cone. Where they do not, ``min (a - b) = min a - max b`` and each
pixel is solved in its own, smaller cone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from corgi_solvers import Highs, Problem, Solution, Status
from torch import Tensor

from corgi_opt.bounds.crown import Bounded
from corgi_opt.bounds.objective import share_inputs
from corgi_opt.encode.program import Program, compile_cone, expression_bytes
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.cone import Cone
from corgi_opt.network.ops import Window
from corgi_opt.search.deadline import Deadline
from corgi_opt.spec import Ball

Encoding = Callable[[Program], Problem]

MOST_BYTES = 4 * 2**30
"""Largest cone that is encoded; a larger one is left undecided instead of exhausting the machine."""


@dataclass(frozen=True, eq=False)
class PairAnswer:
    """Proven ``lower`` <= min (CAM_i - CAM_j) <= ``upper`` (the solver's incumbent, to be replayed, at ``image``).

    ``binaries``: unstable ReLUs encoded; ``nodes``: branch-and-bound nodes; ``reason``: why it is not decided.
    """

    lower: float
    upper: float
    image: Tensor | None
    binaries: int
    nodes: int
    reason: str


@dataclass(frozen=True, eq=False)
class PairSolver:
    """Solves pairs of one question at one eps with one encoding: ``triangle`` (LP bound) or ``big_m`` (exact).

    ``net`` is the float64 CPU network, ``bounded`` what is proven about it over the region.
    """

    net: CamNetwork
    ball: Ball
    class_idx: int
    bounded: Bounded
    encoding: Encoding
    solver: Highs

    def solve(self, pair: tuple[int, int], threshold: float, deadline: Deadline) -> PairAnswer:
        """Bounds the pair's minimum; an exact solve stops as soon as it is decided against ``threshold``."""
        i, j = pair
        if bool(share_inputs(self.net, torch.tensor([pair]))[0]):
            return self._minimise([(i, 1.0), (j, -1.0)], self.ball.center, threshold, deadline)
        # min CAM_i - max CAM_j = min CAM_i + min(-CAM_j): the second is only asked about the sign of the sum
        first = self._minimise([(i, 1.0)], self.ball.center, None, deadline)
        background = self.ball.center if first.image is None else first.image
        second = self._minimise([(j, -1.0)], background, threshold - first.lower, deadline)
        return PairAnswer(
            lower=first.lower + second.lower,
            upper=first.upper + second.upper,
            image=second.image,
            binaries=first.binaries + second.binaries,
            nodes=first.nodes + second.nodes,
            reason=first.reason or second.reason,
        )

    def _minimise(
        self, terms: list[tuple[int, float]], background: Tensor, threshold: float | None, deadline: Deadline
    ) -> PairAnswer:
        cone = self._cone(terms)
        needed = expression_bytes(cone, self.bounded.intervals)
        if needed > MOST_BYTES:
            reason = f"its cone takes about {needed / 2**30:.0f} GiB to encode, more than {MOST_BYTES / 2**30:g}"
            return PairAnswer(-math.inf, math.inf, None, 0, 0, reason)
        program = compile_cone(cone, self.ball, self.bounded)
        solution = self.solver.solve(self.encoding(program), time_limit=deadline.left, decide_at=threshold)
        image = None if solution.x is None else program.image(solution.x, background)
        # The image itself satisfies every row, so "infeasible" is a failure of the solver and proves nothing.
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT)
        return PairAnswer(
            lower=solution.bound if proven and math.isfinite(solution.bound) else -math.inf,
            upper=solution.objective,
            image=image,
            binaries=program.units,
            nodes=solution.report.nodes,
            reason=_reason(solution),
        )

    def _cone(self, terms: list[tuple[int, float]]) -> Cone:
        width = self.net.map_shape[1]
        places = [(p // width, p % width) for p, _ in terms]
        top, left = min(y for y, _ in places), min(x for _, x in places)
        bottom, right = max(y for y, _ in places), max(x for _, x in places)
        weight = self.net.weight[self.class_idx]
        objective = torch.zeros(len(weight), bottom - top + 1, right - left + 1, dtype=torch.float64)
        for (y, x), (_, sign) in zip(places, terms, strict=True):
            objective[:, y - top, x - left] += sign * weight
        window = Window(top, left, bottom - top + 1, right - left + 1)
        return Cone.of(self.net.graph, self.net.features, window, objective)


def _reason(solution: Solution) -> str:
    if solution.status in (Status.OPTIMAL, Status.DECIDED):
        return ""
    if solution.status is Status.LIMIT:
        return "time limit"
    return f"solver ended {solution.status.name.lower()} ({solution.report.raw_status})"
