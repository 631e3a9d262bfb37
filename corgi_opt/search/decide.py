"""Two ways to decide a program: hand its encoding to a solver, or branch and bound on ReLU phases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from corgi_solvers import Backend, Problem, Solution, Status, safe_bound

from corgi_opt._deadline import Deadline
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.premise_rows import premised
from corgi_opt.encode.program import Program
from corgi_opt.problem.results import Proof
from corgi_opt.search.branch import branch
from corgi_opt.search.leaves import Leaves

Encoding = Callable[[Program], Problem]

TOLERANCE = 1e-8
"""To which solvers are trusted to keep a row, a bound or an integer: ten times what HiGHS is asked for."""


@dataclass(frozen=True, eq=False)
class Decided:
    """Proven ``lower`` <= the minimum of a program's first output <= ``upper``, its value at ``variables`` ([t, ...]).

    In the output's own unit. ``lower`` is proven, on ``proof``'s level; ``error``: what ``upper`` may be off by;
    ``reason``: why its side is not known. ``tree``: the leaves that prove ``lower``, where they were kept.
    ``loose``: how much lower that is than the relaxation itself, for what encodings do to it.
    """

    lower: float
    upper: float
    variables: Vector | None
    error: float
    nodes: int
    proof: Proof
    reason: str
    tree: Leaves | None = None
    loose: float = 0.0


class Decider(Protocol):
    """Bounds the minimum of a program's first output, at least until it is known to be above ``decide_at``, or not."""

    def __call__(self, program: Program, decide_at: float, deadline: Deadline) -> Decided: ...


@dataclass(frozen=True, eq=False)
class SolvedProgram:
    """By an encoding, ``triangle`` (an LP, a lower bound only) or ``big_m`` (exact), and a backend.

    All outputs but the first are kept from being negative, up to ``slack`` times what tolerances may hide (below zero:
    they have to be positive). An LP's ``lower`` is what its multipliers prove, whoever found them; a MILP's rests on
    the backend's word, and is less ``error``.
    """

    encoding: Encoding
    solver: Backend
    slack: float = 1.0

    def __call__(self, program: Program, decide_at: float, deadline: Deadline) -> Decided:
        errors = program.errors(TOLERANCE)
        scale, error = float(program.scales[0]), float(program.scales[0] * errors[0])
        problem = self.encoding(program)
        if len(errors) > 1:
            problem = premised(program, problem, self.slack * errors, first=1)
        solution = self.solver.solve(problem, time_limit=deadline.left, decide_at=(decide_at + error) / scale)
        # The image itself satisfies every row, so "infeasible" is a failure of the solver and proves nothing.
        proven = solution.status in (Status.OPTIMAL, Status.DECIDED, Status.LIMIT) and math.isfinite(solution.bound)
        proof: Proof = "solver"
        lower = solution.bound * scale - error if proven else -math.inf
        if not problem.is_mip:
            residue = float(program.residue[0])
            known = -math.inf if solution.row_dual is None else safe_bound(problem, solution.row_dual) - residue
            lower, proof = _down(known * scale), "float64"
        return Decided(
            lower=lower,
            upper=solution.objective * scale,
            variables=solution.x,
            error=error,
            nodes=solution.report.nodes,
            proof=proof,
            reason=why_undecided(solution),
            loose=scale * float(program.looseness[0]),
        )


@dataclass(frozen=True, eq=False)
class Branched:
    """By branch and bound. ``solver`` solves the linear programs of leaves; ``spare``: how far above a threshold bounds
    have to be (what another machine's arithmetic may make of the same tree)."""

    solver: Backend
    device: torch.device
    spare: float = 0.0
    keep_leaves: bool = False

    def __call__(self, program: Program, decide_at: float, deadline: Deadline) -> Decided:
        scale = float(program.scales[0])
        threshold = -_down(-(decide_at + self.spare) / scale)
        found = branch(program, threshold, self.solver, self.device, deadline, self.keep_leaves)
        return Decided(
            lower=_down(found.lower * scale),
            upper=found.upper * scale,
            variables=found.image,
            error=self.spare + scale * float(program.errors(0.0)[0]),
            nodes=found.nodes,
            proof="float64",
            reason=found.reason,
            tree=found.tree,
        )


def _down(value: float) -> float:
    """A float below what two roundings made this of."""
    return math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def why_undecided(solution: Solution) -> str:
    if solution.status in (Status.OPTIMAL, Status.DECIDED):
        return ""
    if solution.status is Status.LIMIT:
        return "time limit"
    return f"solver ended {solution.status.name.lower()} ({solution.report.raw_status})"
