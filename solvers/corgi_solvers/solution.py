"""What a backend hands back: status, answer and report are three things, and none of them is a proof."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from corgi_solvers.arrays import Vector


class Status(Enum):
    """How a run ended. Only the first three are statements about the whole problem."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    LIMIT = "limit"  # a time, node or iteration limit
    DECIDED = "decided"  # stopped early: the minimum's side of ``decide_at`` is known
    INTERRUPTED = "interrupted"  # stopped from outside, undecided
    ERROR = "error"  # anything unexpected


@dataclass(frozen=True)
class Report:
    """How the answer came about.

    ``seconds`` is wall-clock time; ``nodes`` and ``iterations`` are the branch-and-bound nodes and simplex (or
    interior-point) iterations of this run; ``raw_status`` is the solver's own word for how it ended.
    """

    solver: str
    version: str
    seconds: float
    nodes: int
    iterations: int
    raw_status: str


@dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of minimising a Problem with m rows and n columns.

    ``objective``: value of the incumbent ``x``; inf if there is none.
    ``bound``: the solver's claim that the minimum is no lower; -inf when nothing is claimed, +inf if infeasible.
    ``x`` (n,): best point found that the solver calls feasible; integer columns may be off by its tolerance.
    ``row_dual`` (m,): multipliers of an LP's rows, >= 0 at a lower and <= 0 at an upper side; None for a MIP.

    ``bound`` is never derived from ``objective`` and rests on floating-point claims: rounding may put it
    above the true minimum by the solver's tolerance.
    """

    status: Status
    objective: float
    bound: float
    x: Vector | None
    row_dual: Vector | None
    report: Report
