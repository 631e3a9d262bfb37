"""HiGHS, the engine: LPs by dual simplex, MIPs by branch and cut.

What was measured about highspy 1.15.1 and shapes this backend:

- Option setters and ``passModel`` return a status instead of raising: every one is checked.
- ``user_interrupt`` of a callback is sticky over runs: every callback assigns it, every time.
- ``solver`` other than "choose" makes HiGHS drop integrality, so it is set for LPs only. There it is "simplex":
  interior point overran a 2 s limit by 150 s, simplex keeps its limits.
- Inside one LP of a MIP (the root's, say) no callback fires: Ctrl-C and ``decide_at`` wait for its end, a time
  limit does not.
- The task scheduler, whose size ``threads`` sets, belongs to the calling thread. Every run has a thread of its
  own here, so backends with different ``threads`` can live in one process.
- An unbounded MIP is reported as "unbounded or infeasible", and about one unbounded LP in 100 as "infeasible": where
  the objective could run away, both are asked again without it. A problem without columns is called empty even when
  its rows are infeasible; |a_ij| <= ``small_matrix_value`` is dropped from the matrix.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import numpy as np

from corgi_solvers.backend import Capabilities
from corgi_solvers.claims import SMALLEST_ENTRY, first_entry, require_arguments, require_plain_numbers
from corgi_solvers.errors import BackendMissingError, ProblemError
from corgi_solvers.highs_run import HighsRun, OptionValue
from corgi_solvers.installed import installed
from corgi_solvers.interrupt import run_interruptibly
from corgi_solvers.problem import Problem
from corgi_solvers.solution import Solution

MINIMUM_VERSION = (1, 15, 1)  # 1.14.0 returns wrong MIP optima
PIP = "pip install -U 'highspy>=1.15.1'"

LARGEST_ENTRY = 1e15  # HiGHS refuses |a_ij| from here on


@dataclass(frozen=True)
class Highs:
    """The HiGHS backend. Holds settings only: it pickles, and one object may serve many problems.

    ``threads``: of one run; leave 1 where several processes share the machine.
    ``mip_rel_gap``, ``mip_abs_gap``: a MIP is OPTIMAL once either gap is met. HiGHS's own relative default (1e-4)
    would stop a minimum of -1800 anywhere within 0.18.
    ``feasibility_tolerance``: of rows, bounds, integrality and reduced costs. HiGHS's own integrality tolerance of
    1e-6, times a big-M of 1e3, lets a ReLU be 1e-3 off; on big-M ReLU problems 1e-9 cost no measurable time.

    Raises ProblemError on a setting HiGHS cannot take.
    """

    threads: int = 1
    mip_rel_gap: float = 1e-9
    mip_abs_gap: float = 1e-9
    feasibility_tolerance: float = 1e-9

    name: ClassVar[str] = "highs"
    capabilities: ClassVar[Capabilities] = Capabilities(lp=True, mip=True, soc=False)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ProblemError(f"threads is {self.threads}; it must be at least 1")
        if not (self.mip_rel_gap >= 0 and self.mip_abs_gap >= 0):
            raise ProblemError(f"MIP gaps must be >= 0, not {self.mip_rel_gap} and {self.mip_abs_gap}")
        # HiGHS takes no tolerance below 1e-10, and inside a MIP it uses a tenth of this one for reduced costs.
        if not 1e-9 <= self.feasibility_tolerance <= 1e-3:
            raise ProblemError(f"feasibility_tolerance is {self.feasibility_tolerance}; it must be in [1e-9, 1e-3]")

    @staticmethod
    def available() -> bool:
        """Whether highspy is installed; looked up without importing it."""
        return installed("highspy")

    @staticmethod
    def require() -> None:
        """Import highspy. Raises BackendMissingError without highspy >= 1.15.1."""
        _load_highspy()

    def solve(
        self,
        problem: Problem,
        *,
        time_limit: float = math.inf,
        decide_at: float | None = None,
    ) -> Solution:
        """Minimise ``problem`` within ``time_limit`` seconds of wall-clock time.

        With ``decide_at=t`` the caller only asks whether the minimum is above t. A MIP then ends as soon as its
        dual bound exceeds t or an incumbent has objective <= t: status DECIDED, objective and bound as they stand
        at that point. An LP is always solved to its end. A run that ends by itself keeps its own status, so look
        at ``bound > t`` and ``objective <= t``, not at the status.

        A MIP's bound is HiGHS's dual bound; an LP's is ``dual_objective`` of its row duals, also at a time limit.
        With ``time_limit <= 0`` nothing runs: status LIMIT, bound -inf. Ctrl-C raises KeyboardInterrupt within
        2 s.

        Raises ProblemError if ``time_limit`` or ``decide_at`` is NaN or ``problem`` holds what HiGHS would change
        in silence: nonzero |a_ij| <= 1e-12 (the caller must clear them, and account for it), finite bounds or
        costs of 1e20 and more; also on |a_ij| >= 1e15. BackendMissingError without highspy >= 1.15.1. SolverError
        if HiGHS refuses the problem for another reason.
        """
        require_arguments(time_limit, decide_at)
        _require_faithful(problem)
        highspy = _load_highspy()
        deadline = time.perf_counter() + time_limit
        cancel = threading.Event()

        def work() -> Solution:
            with HighsRun(highspy, self._options(problem), problem, cancel) as run:
                return run.minimise(deadline, decide_at)

        return run_interruptibly(work, cancel)

    def _options(self, problem: Problem) -> dict[str, OptionValue]:
        options: dict[str, OptionValue] = {
            "output_flag": False,
            "random_seed": 0,
            "threads": self.threads,
            "small_matrix_value": SMALLEST_ENTRY,  # the least that HiGHS takes
            "primal_feasibility_tolerance": self.feasibility_tolerance,
            "dual_feasibility_tolerance": self.feasibility_tolerance,
            "mip_feasibility_tolerance": self.feasibility_tolerance,
            "mip_rel_gap": self.mip_rel_gap,
            "mip_abs_gap": self.mip_abs_gap,
        }
        return options if problem.is_mip else options | {"solver": "simplex"}


def _load_highspy() -> ModuleType:
    if not Highs.available():
        raise BackendMissingError("highspy", "is not installed", PIP)
    import highspy

    version = (highspy.HIGHS_VERSION_MAJOR, highspy.HIGHS_VERSION_MINOR, highspy.HIGHS_VERSION_PATCH)
    if version < MINIMUM_VERSION:
        raise BackendMissingError("highspy", f"{'.'.join(map(str, version))} is too old", PIP)
    module: ModuleType = highspy
    return module


def _require_faithful(problem: Problem) -> None:
    """Raises ProblemError for what HiGHS would silently change into another problem, or refuse itself."""
    if problem.is_soc:
        raise ProblemError("HiGHS takes no balls (second-order cones): use the backend cvxpy:clarabel")
    large = np.abs(problem.A.data) >= LARGEST_ENTRY
    if large.any():
        raise ProblemError(
            f"{first_entry(problem, large)}; HiGHS refuses entries from {LARGEST_ENTRY:g} on: scale the row first"
        )
    require_plain_numbers(problem, "HiGHS")
