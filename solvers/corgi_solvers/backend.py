"""What every backend offers, and what it declares about itself before anything is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from corgi_solvers.problem import Problem
from corgi_solvers.solution import Solution


@dataclass(frozen=True)
class Capabilities:
    """Which problem classes a backend can take: linear, mixed-integer linear, second-order cone."""

    lp: bool
    mip: bool
    soc: bool


class Backend(Protocol):
    """A solver of Problems."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def available(self) -> bool:
        """Whether the solver is installed; looked up without importing it."""
        ...

    def require(self) -> None:
        """Make sure that the solver can be run here, before anything is spent on problems for it.

        May import it, or have it solve a tiny problem. Raises BackendMissingError where it is not installed or too
        old, BackendBrokenError where it is there and does not work.
        """
        ...

    def solve(self, problem: Problem, *, time_limit: float = math.inf, decide_at: float | None = None) -> Solution:
        """Minimise ``problem`` within ``time_limit`` seconds.

        With ``decide_at=t`` the caller only asks whether the minimum is above t: the run may end, with status
        DECIDED, as soon as ``bound > t`` or ``objective <= t``. A backend whose solver cannot stop early ignores it.
        """
        ...
