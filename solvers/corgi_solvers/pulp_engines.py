"""The solvers behind PuLP, each in three steps: PuLP builds its model, it runs, its own status is read.

PuLP rows are one-sided, so a two-sided row is two of them and its multiplier is the sum of theirs. PuLP drops the
offset of an objective: the bounds here are without it. All these solvers give a minimisation's multipliers with
HiGHS's sign, >= 0 at a lower side. Statuses that are in no table are errors.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from corgi_solvers.arrays import Vector
from corgi_solvers.claims import INFINITY, Claim
from corgi_solvers.problem import Problem
from corgi_solvers.solution import Status

TOLERANCE = 1e-9  # of rows, integrality and reduced costs


@dataclass(frozen=True)
class Limits:
    """``seconds``: wall-clock, None for no limit; the gaps end a MIP as optimal."""

    seconds: float | None
    threads: int
    rel_gap: float
    abs_gap: float


class Model:
    """A Problem as a PuLP problem, ``lp``, in words that PuLP 3.3 and 4 both take.

    Columns without cost or entry in a row with a side are left out, as PuLP itself would. ``columns``: the names of the
    others, in their order, which is also that of their names; ``rows``: the names of the PuLP rows in their order, and
    the problem's row that each is of. Integer columns are kept, by rows of their own at the end: a MIP stays one.
    """

    def __init__(self, problem: Problem) -> None:
        import pulp

        self.problem = problem
        self.lp = pulp.LpProblem("corgi", pulp.LpMinimize)
        sided = np.isfinite(problem.row_lower) | np.isfinite(problem.row_upper)
        used = problem.c != 0
        used[problem.A[sided].indices] = True
        idle = problem.integrality & ~used
        whole = problem.integrality
        low, high = np.where(whole, np.ceil(problem.col_lower), problem.col_lower), problem.col_upper
        self._nearest: Vector = np.minimum(np.maximum(0.0, low), np.where(whole, np.floor(high), high))
        self._used = np.flatnonzero(used | idle)
        width = len(str(problem.n))
        self._variables = {int(j): self._variable(int(j), f"x{j:0{width}d}") for j in self._used}
        self.columns = [variable.name for variable in self._variables.values()]
        self.lp.setObjective(self._sum((int(j), problem.c[j]) for j in np.flatnonzero(problem.c)))
        self.rows: list[tuple[str, int]] = []
        A = problem.A
        for i, (begin, end) in enumerate(itertools.pairwise(A.indptr)):
            for name, sense, side in self._sides(i):
                terms = self._sum(zip(A.indices[begin:end], A.data[begin:end], strict=True))
                self.lp.addConstraint(sense(terms, side), name)
                self.rows.append((name, i))
        for j in np.flatnonzero(idle):
            self.lp.addConstraint(self._sum([(int(j), 1.0)]) == float(self._nearest[j]), f"idle{j}")

    def _variable(self, j: int, name: str) -> Any:
        low, high = _finite(self.problem.col_lower[j]), _finite(self.problem.col_upper[j])
        return self.lp.add_variable(name, low, high, "Integer" if self.problem.integrality[j] else "Continuous")

    def _sum(self, terms: Iterable[tuple[int, float]]) -> Any:
        import pulp

        return pulp.lpSum(float(a) * self._variables[int(j)] for j, a in terms)

    def _sides(self, i: int) -> Iterator[tuple[str, Callable[[Any, float], Any], float]]:
        """(name, comparison, side) of the PuLP rows for row ``i``; none for an empty row, which holds."""
        lower, upper = float(self.problem.row_lower[i]), float(self.problem.row_upper[i])
        if self.problem.A.indptr[i] == self.problem.A.indptr[i + 1]:
            return
        if lower == upper:
            yield f"r{i}", operator.eq, lower
            return
        if lower > -math.inf:
            yield f"r{i}_lower", operator.ge, lower
        if upper < math.inf:
            yield f"r{i}_upper", operator.le, upper

    def point(self, values: Iterable[float]) -> Vector:
        """(n,) from the values of ``columns``; those left out are as near to zero as they may be."""
        x = self._nearest.copy()
        x[self._used] = list(values)
        return x

    def row_dual(self, multipliers: Iterable[float]) -> Vector:
        """(m,) from the multipliers of ``rows``."""
        y = np.zeros(self.problem.m)
        for (_, i), multiplier in zip(self.rows, multipliers, strict=False):  # those of kept columns come after
            y[i] += multiplier
        return y


def _finite(bound: float) -> float | None:
    """PuLP's way to write a column bound: None where it is missing."""
    return float(bound) if math.isfinite(bound) else None


def highs(model: Model, limits: Limits) -> Claim:
    import highspy
    import pulp

    solver = pulp.HiGHS(
        msg=False,
        timeLimit=limits.seconds,
        gapRel=limits.rel_gap,
        gapAbs=limits.abs_gap,
        threads=limits.threads,
        primal_feasibility_tolerance=TOLERANCE,
        dual_feasibility_tolerance=TOLERANCE,
        mip_feasibility_tolerance=TOLERANCE,
        small_matrix_value=1e-12,
    )
    solver.createAndConfigureSolver(model.lp)
    solver.buildSolverModel(model.lp)
    solver.callSolver(model.lp)

    handle = model.lp.solverModel
    raw, info, solution = str(handle.getModelStatus().name), handle.getInfo(), handle.getSolution()
    status = {
        "kOptimal": Status.OPTIMAL,
        "kInfeasible": Status.INFEASIBLE,
        "kUnbounded": Status.UNBOUNDED,
        "kTimeLimit": Status.LIMIT,
    }.get(raw, Status.ERROR)
    feasible = solution.value_valid and info.primal_solution_status == highspy.kSolutionStatusFeasible
    return Claim(
        status,
        raw,
        x=model.point(solution.col_value) if feasible else None,
        row_dual=model.row_dual(solution.row_dual) if solution.dual_valid else None,
        bound=float(info.mip_dual_bound) if info.valid and info.mip_node_count >= 0 else -math.inf,
        nodes=max(int(info.mip_node_count), 0),
        iterations=max(int(info.simplex_iteration_count), 0),
        version=str(handle.version()),
    )


def scip(model: Model, limits: Limits) -> Claim:
    import pulp
    import pyscipopt

    solver = pulp.SCIP_PY(msg=False, timeLimit=limits.seconds, gapRel=limits.rel_gap, gapAbs=limits.abs_gap)
    solver.buildSolverModel(model.lp)
    handle, is_lp = model.lp.solverModel, not model.problem.is_mip
    handle.setParam("numerics/feastol", TOLERANCE)
    handle.setParam("numerics/dualfeastol", TOLERANCE)
    if is_lp:  # its multipliers are those of the LP as it stands, so nothing may touch it; rows with one entry are
        # lost to it all the same, as bounds, and count as 0: a looser bound
        off = pyscipopt.SCIP_PARAMSETTING.OFF
        handle.setPresolve(off)
        handle.setHeuristics(off)
        handle.disablePropagation()
    solver.callSolver(model.lp)

    raw = str(handle.getStatus())
    status = {
        "optimal": Status.OPTIMAL,
        "infeasible": Status.INFEASIBLE,
        "unbounded": Status.UNBOUNDED,
        "timelimit": Status.LIMIT,
    }.get(raw, Status.ERROR)
    best = handle.getBestSol() if handle.getNSols() > 0 else None
    variables = {v.name: v for v in handle.getVars()}
    constraints = {c.name: c for c in handle.getConss(transformed=False)}
    bound = float(handle.getDualbound())
    return Claim(
        status,
        raw,
        x=model.point(best[variables[name]] for name in model.columns) if best is not None else None,
        row_dual=(
            model.row_dual(handle.getDualsolLinear(constraints[name]) for name, _ in model.rows)
            if is_lp and status is Status.OPTIMAL
            else None
        ),
        bound=bound if abs(bound) < INFINITY else -math.inf,
        nodes=int(handle.getNTotalNodes()),
        iterations=int(handle.getNLPIterations()),
        version=str(handle.version()),
    )


def gurobi(model: Model, limits: Limits) -> Claim:
    import gurobipy
    import pulp

    options = {"FeasibilityTol": TOLERANCE, "OptimalityTol": TOLERANCE, "IntFeasTol": TOLERANCE}
    options |= {"MIPGapAbs": limits.abs_gap, "Threads": limits.threads, "DualReductions": 0}
    solver = pulp.GUROBI(msg=False, timeLimit=limits.seconds, gapRel=limits.rel_gap, manageEnv=True, **options)
    solver.buildSolverModel(model.lp)
    solver.callSolver(model.lp)

    handle, codes = model.lp.solverModel, gurobipy.GRB
    status = {
        codes.OPTIMAL: Status.OPTIMAL,
        codes.INFEASIBLE: Status.INFEASIBLE,
        codes.UNBOUNDED: Status.UNBOUNDED,
        codes.TIME_LIMIT: Status.LIMIT,
    }.get(handle.Status, Status.ERROR)
    is_mip = model.problem.is_mip
    claim = Claim(
        status,
        f"status {handle.Status}",
        x=model.point(handle.getVarByName(name).X for name in model.columns) if handle.SolCount > 0 else None,
        row_dual=(
            model.row_dual(handle.getConstrByName(name).Pi for name, _ in model.rows)
            if not is_mip and status is Status.OPTIMAL
            else None
        ),
        bound=float(handle.ObjBound) if is_mip and status in (Status.OPTIMAL, Status.LIMIT) else -math.inf,
        nodes=int(handle.NodeCount) if is_mip else 0,
        iterations=int(handle.IterCount),
        version=".".join(map(str, gurobipy.gurobi.version())),
    )
    solver.close()
    return claim


def cplex(model: Model, limits: Limits) -> Claim:
    import pulp

    is_mip = model.problem.is_mip
    solver = pulp.CPLEX_PY(  # mip=False: else it takes every problem for a MIP, and has no multipliers
        mip=is_mip, msg=False, timeLimit=limits.seconds, gapRel=limits.rel_gap, threads=limits.threads
    )
    solver.buildSolverModel(model.lp)
    handle = model.lp.solverModel
    parameters = handle.parameters
    parameters.mip.tolerances.absmipgap.set(limits.abs_gap)
    parameters.mip.tolerances.integrality.set(TOLERANCE)
    parameters.simplex.tolerances.feasibility.set(TOLERANCE)
    parameters.simplex.tolerances.optimality.set(TOLERANCE)
    parameters.preprocessing.reduce.set(1)  # primal reductions: infeasible and unbounded stay apart
    solver.callSolver(model.lp)

    solution, codes = handle.solution, handle.solution.status
    status = {
        codes.optimal: Status.OPTIMAL,
        codes.MIP_optimal: Status.OPTIMAL,
        codes.optimal_tolerance: Status.OPTIMAL,
        codes.infeasible: Status.INFEASIBLE,
        codes.MIP_infeasible: Status.INFEASIBLE,
        codes.unbounded: Status.UNBOUNDED,
        codes.MIP_unbounded: Status.UNBOUNDED,
        codes.abort_time_limit: Status.LIMIT,
        codes.MIP_time_limit_feasible: Status.LIMIT,
        codes.MIP_time_limit_infeasible: Status.LIMIT,
    }.get(solution.get_status(), Status.ERROR)
    reads = status in (Status.OPTIMAL, Status.LIMIT)
    return Claim(
        status,
        str(solution.get_status_string()),
        x=model.point(solution.get_values(model.columns)) if reads and solution.is_primal_feasible() else None,
        row_dual=(
            model.row_dual(solution.get_dual_values([name for name, _ in model.rows]))
            if not is_mip and reads and solution.is_dual_feasible()
            else None
        ),
        bound=float(solution.MIP.get_best_objective()) if is_mip and reads else -math.inf,
        nodes=int(solution.progress.get_num_nodes_processed()) if is_mip else 0,
        iterations=int(solution.progress.get_num_iterations()),
        version=str(handle.get_version()),
    )


ENGINES: dict[str, Callable[[Model, Limits], Claim]] = {
    "highs": highs,
    "scip": scip,
    "gurobi": gurobi,
    "cplex": cplex,
}
