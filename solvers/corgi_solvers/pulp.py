"""PuLP, the door to other LP and MILP solvers: CBC, which it brings along up to PuLP 3, SCIP, Gurobi, CPLEX, HiGHS.

PuLP's own status cannot be used: it is "Optimal" at a time limit with an incumbent (CBC, HiGHS, SCIP), and
"Infeasible" for HiGHS's "unbounded or infeasible". So PuLP builds the solver's model, and the solver's own status,
multipliers and dual bound are read behind its back. Everything runs in a child process, which Ctrl-C and time
limits can kill: CBC as itself (see ``cbc``), the others in a Python of their own (see ``pulp_worker``), which costs
half a second to start.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corgi_solvers.backend import Capabilities
from corgi_solvers.cbc import CbcSettings, run_cbc
from corgi_solvers.child import run_child
from corgi_solvers.claims import Claim, require_arguments, require_plain_numbers, vouch, without_solver
from corgi_solvers.errors import BackendBrokenError, BackendMissingError, ProblemError
from corgi_solvers.installed import installed, older
from corgi_solvers.problem import Problem
from corgi_solvers.pulp_engines import Limits
from corgi_solvers.solution import Solution, Status

MINIMUM_VERSION = (3, 3, 2)  # the first with the interface that PuLP 4 keeps
PIP = "pip install -U 'pulp>=3.3.2'"
CBC_PIP = "pip install 'pulp>=3.3.2,<4'"  # the last that brings CBC 2.10; PuLP 4's "cbc" is a CBC in development

SOLVERS = {  # name -> (the package with the solver, its pip command)
    "cbc": ("pulp", CBC_PIP),
    "highs": ("highspy", "pip install -U 'highspy>=1.15.1'"),
    "scip": ("pyscipopt", "pip install pyscipopt"),
    "gurobi": ("gurobipy", "pip install gurobipy"),
    "cplex": ("cplex", "pip install cplex"),
}
"""The solvers whose raw status is understood. For the others that PuLP knows there is only PuLP's status, see above."""

_ONE = np.ones(1)
SMALLEST = Problem(_ONE, 0.0, np.ones((1, 1)), _ONE, 2 * _ONE, 0 * _ONE, 3 * _ONE, np.ones(1, dtype=bool))
"""A MIP within any licence's limits, min x, 1 <= x <= 2, x in 0..3: a solver that cannot solve it does not work."""

PROBE_SECONDS = 60.0

_worked: set[str] = set()
"""Solvers that solved ``SMALLEST`` in this process."""

START_SECONDS = 10.0  # how much longer than its time limit a child may take, to start, load and write its answer


@dataclass(frozen=True)
class Pulp:
    """A solver behind PuLP. Holds settings only: it pickles, and one object may serve many problems.

    ``solver``: "cbc", "highs", "scip", "gurobi" or "cplex". ``threads``: of one run. ``mip_rel_gap``,
    ``mip_abs_gap``: a MIP is OPTIMAL once either is met; what they allow is off the bound.

    Raises ProblemError on a setting that cannot be taken.
    """

    solver: str = "cbc"
    threads: int = 1
    mip_rel_gap: float = 1e-9
    mip_abs_gap: float = 1e-9

    name: ClassVar[str] = "pulp"
    capabilities: ClassVar[Capabilities] = Capabilities(lp=True, mip=True, soc=False)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ProblemError(f"there is no solver {self.solver!r} behind PuLP here; there are {', '.join(SOLVERS)}")
        if self.threads < 1:
            raise ProblemError(f"threads is {self.threads}; it must be at least 1")
        if not (self.mip_rel_gap >= 0 and self.mip_abs_gap >= 0):
            raise ProblemError(f"MIP gaps must be >= 0, not {self.mip_rel_gap} and {self.mip_abs_gap}")

    def available(self) -> bool:
        """Whether PuLP and the package that holds the solver are installed; looked up without importing either.

        A missing executable or licence shows in ``require``.
        """
        return installed("pulp") and installed(SOLVERS[self.solver][0])

    def require(self) -> None:
        """Have the solver solve a problem of one variable, once in the life of this process (half a second).

        Raises BackendMissingError without PuLP >= 3.3.2, the solver's package or CBC's executable; BackendBrokenError
        where the solver cannot solve that, as without a licence.
        """
        self._require_packages()
        if self.solver in _worked:
            return
        claim = self._run(SMALLEST, PROBE_SECONDS, time.perf_counter())
        if claim.status not in (Status.OPTIMAL, Status.LIMIT):  # a slow solver is not broken
            package = "cbc" if self.solver == "cbc" else SOLVERS[self.solver][0]
            raise BackendBrokenError(package, claim.raw_status)
        _worked.add(self.solver)

    def _require_packages(self) -> None:
        for package, pip in (("pulp", PIP), SOLVERS[self.solver]):
            if not installed(package):
                raise BackendMissingError(package, "is not installed", pip)
        if older("pulp", MINIMUM_VERSION):
            raise BackendMissingError("pulp", "is too old", PIP)

    def solve(
        self,
        problem: Problem,
        *,
        time_limit: float = math.inf,
        decide_at: float | None = None,
    ) -> Solution:
        """Minimise ``problem`` within ``time_limit`` seconds of wall-clock time, the child's start not counted.

        These solvers cannot be stopped early, so ``decide_at`` is ignored: every run goes to its end. A
        continuous problem's bound is ``dual_objective`` of its row duals; SCIP gives none at a limit. A MIP's
        is the solver's dual bound, CBC's only once it is optimal. An answer that is not understood, or that
        contradicts itself, is ERROR with bound -inf. Ctrl-C kills the child and raises KeyboardInterrupt.

        Raises ProblemError if ``time_limit`` or ``decide_at`` is NaN, or ``problem`` has balls, nonzero
        |a_ij| <= 1e-12 or finite numbers of 1e20 and more. BackendMissingError without PuLP or the solver.
        """
        require_arguments(time_limit, decide_at)
        if problem.is_soc:
            raise ProblemError("PuLP takes no balls (second-order cones): use the backend cvxpy:clarabel")
        require_plain_numbers(problem, f"PuLP's {self.solver}")
        self._require_packages()
        start = time.perf_counter()
        label = f"pulp:{self.solver}"
        if time_limit <= 0:
            return vouch(problem, Claim(Status.LIMIT, "not run"), label, start)
        claim = without_solver(problem) or self._run(problem, time_limit, start)
        return vouch(problem, claim, label, start)

    def _run(self, problem: Problem, time_limit: float, start: float) -> Claim:
        if self.solver == "cbc":
            settings = CbcSettings(cbc_executable(), self.threads, self.mip_abs_gap, self.mip_rel_gap)
            return run_cbc(problem, settings, start + time_limit)
        return self._run_worker(problem, time_limit, start)

    def _run_worker(self, problem: Problem, time_limit: float, start: float) -> Claim:
        seconds = None if time_limit == math.inf else time_limit
        job = (self.solver, problem, Limits(seconds, self.threads, self.mip_rel_gap, self.mip_abs_gap))
        with tempfile.TemporaryDirectory(prefix="corgi-pulp-") as folder:
            question, answer, log = (Path(folder, name) for name in ("question", "answer", "log"))
            question.write_bytes(pickle.dumps(job))
            command: list[str | Path] = [sys.executable, "-m", "corgi_solvers.pulp_worker", question, answer]
            # The child must find this very package, and the solvers where this process finds them.
            environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            deadline = start + time_limit + START_SECONDS
            code = run_child(command, log, deadline=deadline, environment=environment)
            if code is None:
                return Claim(Status.LIMIT, "killed after its time limit")
            if code != 0:
                words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                return Claim(Status.ERROR, f"exit code {code}: {words[-1] if words else 'no output'}")
            return read_answer(answer)


def read_answer(path: Path) -> Claim:
    """The claim in a worker's answer, JSON; an ERROR claim if it is not exactly what a worker writes."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Claim(
            status=Status(said["status"]),
            raw_status=str(said["raw_status"]),
            x=_vector(said["x"]),
            row_dual=_vector(said["row_dual"]),
            bound=float(said["bound"]),
            nodes=int(said["nodes"]),
            iterations=int(said["iterations"]),
            version=str(said["version"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Claim(Status.ERROR, f"unreadable answer: {error!r}")


def cbc_executable() -> str:
    """The CBC that PuLP would run: one on the path, else the one in PuLP's wheel.

    Raises BackendMissingError if there is neither.
    """
    import pulp

    solvers: list[Any] = [pulp.COIN_CMD(msg=False)]
    if "PULP_CBC_CMD" in pulp.listSolvers():  # gone in PuLP 4, and deprecated until then
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            solvers.append(pulp.PULP_CBC_CMD(msg=False))
    for solver in solvers:
        if solver.available():
            return str(solver.path)
    raise BackendMissingError("cbc", "was not found by PuLP", CBC_PIP)


def _vector(values: Any) -> Any:
    return None if values is None else np.array(values, dtype=np.float64)
