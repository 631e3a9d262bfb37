"""CVXPY, the door to conic solvers: LPs and problems with balls, by interior point (Clarabel) or splitting (SCS).

What was measured about CVXPY 1.9 and Clarabel 0.11 and shapes this backend:

- ``Problem.solve`` warns, raises or hands back zeros depending on how a run ends. The documented lower level
  (``get_problem_data``, ``solve_via_data``) is used instead, and the solver's own status.
- Clarabel's optimum is no bound: it was seen 5e-9 above the true minimum. Its multipliers give one. After a time
  limit they still do.
- Clarabel lets other threads run, so Ctrl-C is seen; it cannot be told to stop, and is left behind until it does.

MIPs are not taken: CVXPY hands back no dual bound, and an incumbent alone proves nothing.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from corgi_solvers.arrays import Vector
from corgi_solvers.backend import Capabilities
from corgi_solvers.claims import DUAL_TOLERANCE, Claim, require_arguments, require_plain_numbers, vouch, without_solver
from corgi_solvers.errors import BackendMissingError, ProblemError
from corgi_solvers.installed import installed, older
from corgi_solvers.interrupt import run_interruptibly
from corgi_solvers.problem import Problem, dual_objective
from corgi_solvers.solution import Solution, Status

PIP = "pip install -U 'cvxpy>=1.5' clarabel"

MINIMUM_VERSION = (1, 5)

TOLERANCE = 1e-9
INFEASIBILITY = 1e-8  # multipliers of size 1 prove infeasibility from this value on

SETTINGS: dict[str, dict[str, object]] = {
    "clarabel": {"tol_gap_abs": TOLERANCE, "tol_gap_rel": TOLERANCE, "tol_feas": TOLERANCE, "max_threads": 1},
    "scs": {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 50_000},
}
TIME_LIMIT = {"clarabel": "time_limit", "scs": "time_limit_secs"}

RAW_STATUS = {  # what is not here is unexpected, hence an error
    "Solved": Status.OPTIMAL,
    "PrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostSolved": Status.LIMIT,
    "InsufficientProgress": Status.LIMIT,
    "MaxIterations": Status.LIMIT,
    "MaxTime": Status.LIMIT,
    "solved": Status.OPTIMAL,  # from here on, SCS
    "infeasible": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "solved (inaccurate - reached max_iters)": Status.LIMIT,
    "solved (inaccurate - reached time_limit_secs)": Status.LIMIT,
}


@dataclass(frozen=True)
class Cvxpy:
    """A conic solver behind CVXPY. Holds settings only: it pickles, and one object may serve many problems.

    ``solver``: "clarabel", or "scs", which is slower and less exact by orders of magnitude. Raises ProblemError
    on another name.
    """

    solver: str = "clarabel"

    name: ClassVar[str] = "cvxpy"
    capabilities: ClassVar[Capabilities] = Capabilities(lp=True, mip=False, soc=True)

    def __post_init__(self) -> None:
        if self.solver not in SETTINGS:
            raise ProblemError(f"there is no solver {self.solver!r} behind CVXPY here; there are {', '.join(SETTINGS)}")

    def available(self) -> bool:
        """Whether CVXPY and the solver are installed; looked up without importing either."""
        return installed("cvxpy") and installed(self.solver)

    def require(self) -> None:
        """Raises BackendMissingError without CVXPY >= 1.5 or the solver."""
        for package, pip in (("cvxpy", PIP), (self.solver, f"pip install {self.solver}")):
            if not installed(package):
                raise BackendMissingError(package, "is not installed", pip)
        if older("cvxpy", MINIMUM_VERSION):
            raise BackendMissingError("cvxpy", "is too old", PIP)

    def solve(
        self,
        problem: Problem,
        *,
        time_limit: float = math.inf,
        decide_at: float | None = None,
    ) -> Solution:
        """Minimise ``problem`` within ``time_limit`` seconds of the solver's own time.

        These solvers cannot be stopped early, so ``decide_at`` is ignored: every run goes to its end. The bound is
        ``dual_objective`` of the row duals, at a limit too. OPTIMAL needs a feasible point that the bound meets;
        INFEASIBLE needs multipliers that prove it, else it is ERROR. Ctrl-C raises KeyboardInterrupt within 2 s.

        Raises ProblemError if ``time_limit`` or ``decide_at`` is NaN, or ``problem`` has integer columns, nonzero
        |a_ij| <= 1e-12 or finite numbers of 1e20 and more. BackendMissingError without CVXPY or the solver.
        """
        require_arguments(time_limit, decide_at)
        if problem.is_mip:
            raise ProblemError("the CVXPY backend takes no integer columns: use highs or pulp, or problem.relaxed()")
        require_plain_numbers(problem, f"CVXPY's {self.solver}")
        self.require()
        import cvxpy

        start = time.perf_counter()
        label = f"cvxpy:{self.solver}"
        if time_limit <= 0:
            return vouch(problem, Claim(Status.LIMIT, "not run"), label, start)
        claim = without_solver(problem) or run_interruptibly(
            lambda: _run(cvxpy, problem, self.solver, time_limit),
            threading.Event(),
            grace=0.0,  # nothing in there looks at the event
        )
        return vouch(problem, claim, label, start)


def _run(cvxpy: ModuleType, problem: Problem, solver: str, time_limit: float) -> Claim:
    """The solver's claim; an ERROR claim where CVXPY or the solver raises."""
    x, model, rows = _build(cvxpy, problem)
    options = dict(SETTINGS[solver])
    if time_limit < math.inf:
        options[TIME_LIMIT[solver]] = time_limit
    try:
        data, chain, inverse = model.get_problem_data(solver.upper(), solver_opts=options)
        raw = chain.solve_via_data(model, data, warm_start=False, verbose=False, solver_opts=options)
        solution = chain.invert(raw, inverse)
    except (cvxpy.error.SolverError, ValueError, ArithmeticError) as error:
        return Claim(Status.ERROR, repr(error), version=cvxpy.__version__)

    word = _raw_status(raw)
    status = RAW_STATUS.get(word, Status.ERROR)
    row_dual = _row_dual(problem, rows, solution.dual_vars)
    if status is Status.INFEASIBLE and not _proves_infeasible(problem, row_dual):
        status, word = Status.ERROR, f"{word}, unproven"
    return Claim(
        status,
        word,
        x=solution.primal_vars.get(x.id) if solution.primal_vars else None,
        row_dual=row_dual,
        iterations=int(solution.attr.get(cvxpy.settings.NUM_ITERS) or 0),
        version=cvxpy.__version__,
    )


def _build(cvxpy: ModuleType, problem: Problem) -> tuple[Any, Any, list[_Rows]]:
    """(variable, CVXPY problem, its row constraints)."""
    x, A = cvxpy.Variable(problem.n), problem.A
    lower, upper = problem.row_lower, problem.row_upper
    below, above = np.isfinite(problem.col_lower), np.isfinite(problem.col_upper)
    equal = lower == upper
    rows = []
    if equal.any():
        rows.append(_Rows(A[equal] @ x == lower[equal], equal, -1.0))
    if (low := ~equal & np.isfinite(lower)).any():
        rows.append(_Rows(A[low] @ x >= lower[low], low, 1.0))
    if (high := ~equal & np.isfinite(upper)).any():
        rows.append(_Rows(A[high] @ x <= upper[high], high, -1.0))
    constraints = [row.constraint for row in rows]
    if below.any():
        constraints.append(x[below] >= problem.col_lower[below])
    if above.any():
        constraints.append(x[above] <= problem.col_upper[above])
    for ball in problem.balls:
        inside = cvxpy.multiply(ball.scale, x[ball.columns]) + ball.shift
        constraints.append(cvxpy.SOC(cvxpy.Constant(ball.radius), inside))
    return x, cvxpy.Problem(cvxpy.Minimize(problem.c @ x), constraints), rows


@dataclass(frozen=True, eq=False)
class _Rows:
    """A CVXPY constraint, the rows (a mask, (m,)) it stands for, and the sign that makes its multipliers ours.

    CVXPY's multipliers of an inequality are >= 0 on either side; those of ``left == right`` count ``left - right``
    in the Lagrangian, ours ``right - left``.
    """

    constraint: Any
    mask: npt.NDArray[np.bool_]
    sign: float


def _row_dual(problem: Problem, rows: list[_Rows], dual_vars: Any) -> Vector | None:
    """(m,) in HiGHS's signs; None where the solver left no multipliers of some row."""
    y = np.zeros(problem.m)
    for each in rows:
        values = dual_vars.get(each.constraint.id) if dual_vars else None
        if values is None or np.size(values) != int(each.mask.sum()):
            return None
        y[each.mask] += each.sign * np.ravel(values)
    return y


def _proves_infeasible(problem: Problem, ray: Vector | None) -> bool:
    """Whether the multipliers ``ray`` show, to rounding, that nothing is feasible: they bound 0'x above 0."""
    if ray is None or not np.isfinite(ray).all():
        return False
    size = float(np.abs(ray).max(initial=0.0))
    unit = ray / size if size > 0 else ray
    value = dual_objective(problem.with_objective(np.zeros(problem.n), 0.0), unit, tolerance=DUAL_TOLERANCE)
    return value > INFEASIBILITY


def _raw_status(raw: Any) -> str:
    """Clarabel answers with an object, SCS with a dictionary."""
    if isinstance(raw, dict):
        return str(raw.get("info", {}).get("status", "no status"))
    return str(getattr(raw, "status", "no status"))
