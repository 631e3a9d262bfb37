"""One group of atoms, exactly: can so many of them fail at once?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from corgi_solvers import Backend, Status
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.objective import atom_bounds
from corgi_opt.encode.counting import counting
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.premise_rows import premised
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.search.atom import PartExpressions
from corgi_opt.search.branch import TOO_CLOSE
from corgi_opt.search.decide import TOLERANCE, why_undecided
from corgi_opt.search.premises import IN_PART, premises


@dataclass(frozen=True, eq=False)
class CountAnswer:
    """``slack``: proven lower bound of the group's margin, above ``goal`` or minus infinity. ``image``: where the group
    is believed to fall to the goal, through ``atom`` among others; ``reason``: why neither is known."""

    slack: float
    image: Tensor | None
    atom: int
    binaries: int
    nodes: int
    reason: str


@dataclass(frozen=True, eq=False)
class _Attempt:
    """``atoms`` to encode, with ``sure`` others taken to fall; whether they have to fall ``clearly``."""

    atoms: Sequence[int]
    sure: int
    premised: bool = False
    clearly: bool = False


@dataclass(frozen=True, eq=False)
class CountSolver:
    """Decides for groups of one question at one eps whether enough of their atoms can fall to a goal at once."""

    question: Question
    ball: Ball
    parts: PartExpressions
    solver: Backend

    def attempts(
        self,
        group: int,
        likely: Sequence[int],
        ahead: Sequence[int],
        relaxed: Relaxed,
        deadline: Deadline,
        goal: float = 0.0,
    ) -> Iterator[CountAnswer]:
        """``likely``: atoms that may fall; ``ahead``: those that have, at the image (all others are proven above it).

        Each attempt is sound, and for who can not use the image of the one before. Those ahead are first taken to stay
        so, which is mostly true; then they are encoded as well; then the premises are asked for, where there are any;
        and in the end atoms have to fall clearly, for a point that replays.
        """
        attempts = [_Attempt(likely, len(ahead))]
        attempts += [_Attempt([*likely, *ahead], 0)] if ahead else []
        attempts += [replace(attempts[-1], premised=True)] if self.question.premises is not None else []
        attempts += [replace(attempts[-1], clearly=True)]
        try:
            for attempt in attempts:
                yield self._solve(group, attempt, relaxed, deadline, goal)
        except (TooLargeError, TimeoutError) as stop:
            yield CountAnswer(-math.inf, None, -1, 0, 0, str(stop))

    def _solve(self, group: int, attempt: _Attempt, relaxed: Relaxed, deadline: Deadline, goal: float) -> CountAnswer:
        atoms = attempt.atoms
        outputs, exact = [value.plus(-goal) for value in self.parts.atoms(atoms, deadline)], True
        if attempt.premised:
            held = premises(self.question, self.parts.expressions, relaxed, atoms, deadline)
            outputs, exact = outputs + held.expressions, held.exact
        program = compile_program(self.parts.expressions, self.ball, outputs, deadline)
        errors = program.errors(TOLERANCE)
        scales = program.scales[: len(atoms)]
        error = errors[: len(atoms)]
        upper = np.maximum((self._upper(atoms, relaxed) - goal) / scales, 4 * error)
        problem = counting(program, upper, -4 * error if attempt.clearly else 2 * error)
        if attempt.premised:
            problem = premised(program, problem, errors, first=len(atoms))
        decide_at = 0.5 - (int(self.question.groups.enough[group]) - attempt.sure)
        solution = self.solver.solve(problem, time_limit=deadline.left, decide_at=decide_at)
        binaries, nodes = program.units + len(atoms), solution.report.nodes
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT)
        if proven and solution.bound > decide_at:
            # where atoms had to fall clearly, the others may just do: nothing is proven
            slack = -math.inf if attempt.clearly else goal + float((error * scales).min())
            return CountAnswer(slack, None, -1, binaries, nodes, "" if slack > goal else TOO_CLOSE)
        image = None
        if solution.x is not None and solution.objective <= decide_at:
            image = program.image(solution.x, self.ball.center)
        reason = why_undecided(solution) or ("" if exact else IN_PART)
        return CountAnswer(-math.inf, image, atoms[0], binaries, nodes, reason)

    def _upper(self, atoms: Sequence[int], relaxed: Relaxed) -> Vector:
        """Proven upper bounds (Q,) of some atoms."""
        net = self.question.net.to(torch.float64, relaxed.regions.eps.device)
        case = torch.zeros(len(atoms), dtype=torch.long)
        lower = atom_bounds(net, self.question.groups, relaxed.bound, torch.tensor(list(atoms)), case, sign=-1.0)
        return np.asarray(-lower.cpu().numpy())
