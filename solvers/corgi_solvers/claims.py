"""From what a solver says to a Solution that can be relied on: everything checkable is checked, the rest distrusted.

The checks of arguments and problems serve every backend. Claims are for those whose solvers speak through somebody
else's interface; HiGHS's own answer is read field by field in ``highs_run``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from corgi_solvers.arrays import Vector
from corgi_solvers.errors import ProblemError
from corgi_solvers.problem import Problem, dual_objective
from corgi_solvers.solution import Report, Solution, Status

POINT_TOLERANCE = 1e-6  # violation, per unit of the point's size, up to which a point counts as feasible
GAP_TOLERANCE = 1e-5  # distance of bound and objective, per unit of their size, that "optimal" may leave
DUAL_TOLERANCE = 1e-7  # residue on a free column, per unit of the largest cost, that a solver may leave

SMALLEST_ENTRY = 1e-12  # solvers drop smaller entries of A, each below a threshold of its own
INFINITY = 1e20  # and take sizes from here on for infinite


@dataclass(frozen=True, eq=False)
class Claim:
    """What a solver said about a problem with m rows and n columns, translated but not yet believed.

    ``x`` (n,) and ``row_dual`` (m,), signed as in Solution, may hold anything; ``bound`` is a MIP's only.
    """

    status: Status
    raw_status: str
    x: Vector | None = None
    row_dual: Vector | None = None
    bound: float = -math.inf
    nodes: int = 0
    iterations: int = 0
    version: str = ""


def vouch(problem: Problem, claim: Claim, solver: str, start: float) -> Solution:
    """The Solution that ``claim`` supports; ``start`` is when the run began, in ``time.perf_counter`` seconds.

    A point that is not feasible is dropped. The bound of a continuous problem is ``dual_objective`` of its
    multipliers, whatever the status; that of a MIP is the solver's. OPTIMAL needs a point and a bound that meet:
    a continuous problem where they do not is one that stopped short, LIMIT; a MIP where they do not, or a bound
    above a feasible point, is a solver contradicting itself: ERROR, and nothing is claimed.
    """
    report = Report(solver, claim.version, time.perf_counter() - start, claim.nodes, claim.iterations, claim.raw_status)
    nothing = Solution(Status.ERROR, math.inf, -math.inf, None, None, report)
    if claim.status is Status.INFEASIBLE:
        return Solution(Status.INFEASIBLE, math.inf, math.inf, None, None, report)
    if claim.status not in (Status.OPTIMAL, Status.LIMIT, Status.INTERRUPTED):
        return replace(nothing, status=claim.status)

    x = _feasible(problem, claim.x)
    objective = math.inf if x is None else problem.objective(x)
    row_dual, bound = None, claim.bound
    if not problem.is_mip:
        row_dual = _finite(claim.row_dual, problem.m)
        bound = -math.inf if row_dual is None else _claimed_bound(problem, row_dual, x)
    if math.isnan(bound) or bound == math.inf:
        return nothing

    gap = GAP_TOLERANCE * max(1.0, abs(objective)) if x is not None else 0.0
    met = x is not None and objective - bound <= gap
    if problem.is_mip and ((x is not None and bound > objective + gap) or (claim.status is Status.OPTIMAL and not met)):
        return nothing
    status = Status.LIMIT if claim.status is Status.OPTIMAL and not met else claim.status
    return Solution(status, objective, bound, x, row_dual, report)


def _claimed_bound(problem: Problem, y: Vector, x: Vector | None) -> float:
    """``dual_objective`` of ``y``; where only residues on open columns forbid it, less what they may be worth.

    An interior-point or file-reading solver leaves reduced costs r_j of 1e-9 and more on free columns. Taken for
    zero they would lift the bound by r_j times the column's reach, seen 1e-6 above the truth. That reach is unknown;
    the feasible point ``x`` (n,) stands in for it, twice over. Without a point there is no such bound.
    """
    bound = dual_objective(problem, y)
    if bound > -math.inf or x is None:
        return bound
    tolerance = DUAL_TOLERANCE * max(1.0, float(np.abs(problem.c).max(initial=0.0)))
    reduced = np.abs(problem.c - problem.A.T @ y)
    closed = np.isfinite(problem.col_lower) & np.isfinite(problem.col_upper)
    worth = np.where(closed | (reduced > tolerance), 0.0, reduced * (1.0 + 2.0 * np.abs(x)))
    return dual_objective(problem, y, tolerance=tolerance) - float(worth.sum())


def without_solver(problem: Problem) -> Claim | None:
    """The exact answer where no solver is needed, None elsewhere.

    Solvers and the interfaces to them stumble over problems without rows, without columns or without entries: an
    empty row either always holds or never, and with no entries in rows with a side each column settles for itself.
    """
    empty = np.diff(problem.A.indptr) == 0
    sided = np.isfinite(problem.row_lower) | np.isfinite(problem.row_upper)
    if (empty & ((problem.row_lower > 0) | (problem.row_upper < 0))).any():
        return Claim(Status.INFEASIBLE, "an empty row never holds")
    if (sided & ~empty).any() or problem.is_soc:
        return None
    whole = problem.integrality
    low = np.where(whole, np.ceil(problem.col_lower), problem.col_lower)
    high = np.where(whole, np.floor(problem.col_upper), problem.col_upper)
    if (low > high).any():
        return Claim(Status.INFEASIBLE, "an integer column has no integer between its bounds")
    x = np.where(problem.c > 0, low, np.where(problem.c < 0, high, np.clip(0.0, low, high)))
    if not np.isfinite(x).all():
        return Claim(Status.UNBOUNDED, "a column without rows is unbounded")
    return Claim(Status.OPTIMAL, "no rows", x, np.zeros(problem.m), problem.objective(x))


def require_arguments(time_limit: float, decide_at: float | None) -> None:
    """Raises ProblemError if a limit is NaN."""
    for name, value in (("time_limit", time_limit), ("decide_at", decide_at)):
        if value is not None and math.isnan(value):
            raise ProblemError(f"{name} is NaN")


def first_entry(problem: Problem, wrong: npt.NDArray[np.bool_]) -> str:
    """``A[i, j] is v`` for the first of the stored entries of A that ``wrong`` (nnz,) marks."""
    k = int(wrong.argmax())
    row, column = int(np.searchsorted(problem.A.indptr, k, side="right")) - 1, problem.A.indices[k]
    return f"A[{row}, {column}] is {problem.A.data[k]:g}"


def require_plain_numbers(problem: Problem, solver: str) -> None:
    """Raises ProblemError where ``solver`` would silently take a number of ``problem`` for zero or infinite."""
    small = np.abs(problem.A.data) <= SMALLEST_ENTRY
    if small.any():
        raise ProblemError(f"{first_entry(problem, small)}; {solver} may drop it: clear it first")
    named = {name: getattr(problem, name) for name in ("c", "row_lower", "row_upper", "col_lower", "col_upper")}
    for name, values in (named | {"the entries of A": problem.A.data}).items():
        large = (np.abs(values) >= INFINITY) & np.isfinite(values)
        if large.any():
            where = int(large.argmax())
            raise ProblemError(
                f"{name}[{where}] is {values[where]:g}; {solver} takes sizes from {INFINITY:g} on for infinite"
            )


def _feasible(problem: Problem, x: Vector | None) -> Vector | None:
    point = _finite(x, problem.n)
    if point is None:
        return None
    size = max(1.0, float(np.abs(point).max(initial=0.0)))
    return point if problem.violation(point) <= POINT_TOLERANCE * size else None


def _finite(values: Vector | None, size: int) -> Vector | None:
    """``values`` as a float64 vector of that size; None if it is not one or not finite."""
    if values is None:
        return None
    try:
        vector = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return vector if vector.shape == (size,) and np.isfinite(vector).all() else None
