"""Two ways to decide a program: hand its encoding to a solver, or branch and bound on ReLU phases."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from corgi_solvers import Backend, Problem, Solution, Status, safe_bound

from corgi_opt._deadline import Deadline
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.premise_rows import premised
from corgi_opt.encode.program import Program
from corgi_opt.problem.results import Proof
from corgi_opt.search.branch import STARTS, TIME_LIMIT, Branching
from corgi_opt.search.leaves import Leaves

MOST_KEPT_BYTES = 300_000_000
"""Memory for the open nodes of a search that may be gone on with."""

Encoding = Callable[[Program], Problem]

TOLERANCE = 1e-8
"""How far a solver's point may violate a row, a bound or integrality: ten times what HiGHS is asked for."""


@dataclass(frozen=True, eq=False)
class Decided:
    """Proven ``lower`` <= the minimum of a program's first output <= ``upper``, its value at ``variables`` ([t, ...]).

    In the output's own unit. ``lower`` is proven, on ``proof``'s level; ``error``: how far ``upper`` may be off;
    ``reason``: why it is not decided, or empty. ``tree``: the leaves that prove ``lower``, where they were kept.
    ``loose``: how much lower ``lower`` may be than the relaxation's optimum, as encodings widen intervals.
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
    """Bounds the minimum of a program's first output, at least until it is known whether it is above ``decide_at``."""

    def __call__(self, program: Program, decide_at: float, deadline: Deadline) -> Decided: ...


@dataclass(frozen=True, eq=False)
class SolvedProgram:
    """Decides by an encoding, ``triangle`` (an LP, a lower bound only) or ``big_m`` (exact), and a backend.

    All outputs but the first are kept >= ``-slack`` times their tolerance (so a negative ``slack`` asks for clearly
    positive ones). An LP's ``lower`` is what its multipliers prove, wherever they come from; a MILP's is the backend's
    bound less ``error``.
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
    """Decides by branch and bound. ``solver`` solves the linear programs of leaves; ``spare``: how far above the
    threshold bounds have to be, so that the checker, whose arithmetic differs, proves the same tree.

    ``starts``: as of :class:`Branching`. Asked again about the program whose search was cut off last, it goes on with
    that.
    """

    solver: Backend
    device: torch.device
    spare: float = 0.0
    keep_leaves: bool = False
    starts: int = STARTS
    _begun: dict[bytes, Branching] = field(default_factory=dict)

    def __call__(self, program: Program, decide_at: float, deadline: Deadline) -> Decided:
        scale = float(program.scales[0])
        threshold = -_down(-(decide_at + self.spare) / scale)
        key = program.fingerprint + struct.pack("d", threshold)
        search = self._begun.pop(key, None)
        if search is None:
            search = Branching(program, threshold, self.solver, self.device, self.keep_leaves, self.starts)
        searched = search.run(deadline)
        self._begun.clear()
        if searched.reason == TIME_LIMIT and search.bytes <= MOST_KEPT_BYTES:
            self._begun[key] = search
        return Decided(
            lower=_down(searched.lower * scale),
            upper=searched.upper * scale,
            variables=searched.image,
            error=self.spare + scale * float(program.errors(0.0)[0]),
            nodes=searched.nodes,
            proof="float64",
            reason=searched.reason,
            tree=searched.tree,
        )


def _down(value: float) -> float:
    """A float below the exact value that two roundings took to this."""
    return math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def why_undecided(solution: Solution) -> str:
    """Why a solver's run decided nothing; empty where it did."""
    if solution.status in (Status.OPTIMAL, Status.DECIDED):
        return ""
    if solution.status is Status.LIMIT:
        return "time limit"
    return f"solver ended {solution.status.name.lower()} ({solution.report.raw_status})"
