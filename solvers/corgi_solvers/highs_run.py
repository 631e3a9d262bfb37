"""One HiGHS object at work: load a problem, run, watch, and read the outcome fail-closed."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from corgi_solvers.arrays import Vector
from corgi_solvers.errors import SolverError
from corgi_solvers.problem import Problem, dual_objective
from corgi_solvers.solution import Report, Solution, Status

OptionValue = bool | int | float | str

RAW_STATUS = {  # what is not here is unexpected, hence an error
    "kOptimal": Status.OPTIMAL,
    "kInfeasible": Status.INFEASIBLE,
    "kUnbounded": Status.UNBOUNDED,
    "kTimeLimit": Status.LIMIT,
    "kIterationLimit": Status.LIMIT,
    "kSolutionLimit": Status.LIMIT,
    "kMemoryLimit": Status.LIMIT,
    "kInterrupt": Status.INTERRUPTED,
}

ROW_WISE, MINIMISE = 2, 1  # passModel's codes


class HighsRun:
    """One HiGHS object with one problem in it; made, used and left in the one thread that runs it.

    ``highspy`` is the imported module, ``options`` must hold ``dual_feasibility_tolerance``; setting ``cancel``
    stops the run at its next look. Raises SolverError where HiGHS refuses an option or the problem.
    """

    def __init__(
        self,
        highspy: ModuleType,
        options: Mapping[str, OptionValue],
        problem: Problem,
        cancel: threading.Event,
    ) -> None:
        self._highspy = highspy
        self._problem = problem
        self._cancel = cancel
        self._dual_tolerance = float(options["dual_feasibility_tolerance"])
        self._handle = _silent(highspy)()
        for name, value in options.items():
            self._set(name, value)
        self._pass_model()

    def __enter__(self) -> HighsRun:
        return self

    def __exit__(self, *_: object) -> None:
        # The scheduler belongs to this thread. Left to the thread's own teardown it can deadlock on Windows.
        self._highspy.Highs.resetGlobalScheduler(True)

    def minimise(self, deadline: float, decide_at: float | None = None) -> Solution:
        """Solve what is loaded until ``deadline``, a value of ``time.perf_counter``; see ``Highs.solve``."""
        start = time.perf_counter()
        if self._cancel.is_set():
            return self._without_run(Status.INTERRUPTED, -math.inf, start)
        if deadline <= start:
            return self._without_run(Status.LIMIT, -math.inf, start)
        if self._problem.n == 0:
            return self._without_columns(start)
        raw = self._run(deadline, decide_at)
        if raw == "kUnboundedOrInfeasible" or (raw == "kInfeasible" and not self._problem.is_boxed):
            raw = self._unbounded_or_infeasible(deadline)
        return self._read(raw, decide_at, start)

    def _change_objective(self, problem: Problem) -> None:
        """Take over the costs of ``problem``, which must agree with the loaded one in everything else."""
        if problem.n:
            columns = np.arange(problem.n, dtype=np.int32)
            self._check("changeColsCost", self._handle.changeColsCost(problem.n, columns, problem.c))
        self._problem = problem

    def _pass_model(self) -> None:
        p, A = self._problem, self._problem.A
        status = self._handle.passModel(
            p.n,
            p.m,
            A.nnz,
            ROW_WISE,
            MINIMISE,
            p.offset,
            p.c,
            p.col_lower,
            p.col_upper,
            p.row_lower,
            p.row_upper,
            A.indptr.astype(np.int32),
            A.indices.astype(np.int32),
            A.data,
            p.integrality.astype(np.int32),
        )
        self._check("passModel", status)

    def _run(self, deadline: float, decide_at: float | None) -> str:
        """One run of HiGHS; returns the name of its model status."""
        handle, is_mip = self._handle, self._problem.is_mip
        # An LP's limit counts over all runs of the object, a MIP's counts from this run's start.
        spent = 0.0 if is_mip else handle.getRunTime()
        self._set("time_limit", max(spent + deadline - time.perf_counter(), 0.0))

        watch = _Watch(self._problem, self._cancel, decide_at)
        subscriptions: list[tuple[Any, Callable[[Any], None]]] = [(handle.cbSimplexInterrupt, watch.on_simplex)]
        if is_mip:
            subscriptions = [
                (handle.cbMipImprovingSolution, watch.on_improving_solution),
                (handle.cbMipInterrupt, watch.on_mip),
            ]
        for event, listener in subscriptions:
            event.subscribe(listener)
        try:
            handle.run()  # what it returns says less than the model status does
        finally:
            for event, listener in subscriptions:
                event.unsubscribe(listener)
        return str(handle.getModelStatus().name)

    def _unbounded_or_infeasible(self, deadline: float) -> str:
        """Tell the two apart: a feasible one has an optimum once its objective is taken away."""
        loaded = self._problem
        self._change_objective(loaded.with_objective(np.zeros(loaded.n), loaded.offset))
        raw = self._run(deadline, None)
        self._change_objective(loaded)
        return {"kOptimal": "kUnbounded", "kInfeasible": "kInfeasible"}.get(raw, "kUnboundedOrInfeasible")

    def _read(self, raw: str, decide_at: float | None, start: float) -> Solution:
        """The Solution after a run that ended in model status ``raw``; reads only what that status vouches for."""
        status, x, row_dual = RAW_STATUS.get(raw, Status.ERROR), None, None
        objective, bound = math.inf, math.inf if status is Status.INFEASIBLE else -math.inf

        if status in (Status.OPTIMAL, Status.LIMIT, Status.INTERRUPTED):
            info, solution = self._handle.getInfo(), self._handle.getSolution()
            if solution.value_valid and info.primal_solution_status == self._highspy.kSolutionStatusFeasible:
                x = np.array(solution.col_value, dtype=np.float64)
                objective = self._problem.objective(x)
            if self._problem.is_mip:
                bound = _mip_bound(info)
            elif solution.dual_valid:
                row_dual = np.array(solution.row_dual, dtype=np.float64)
                bound = dual_objective(self._problem, row_dual, tolerance=self._dual_tolerance)

        if status is Status.OPTIMAL and not math.isfinite(objective):
            return Solution(Status.ERROR, math.inf, -math.inf, None, None, self._report(raw, start))
        if status is Status.INTERRUPTED and decide_at is not None and (bound > decide_at or objective <= decide_at):
            status = Status.DECIDED
        return Solution(status, objective, bound, x, row_dual, self._report(raw, start))

    def _without_columns(self, start: float) -> Solution:
        """n = 0: the only point is the empty one. HiGHS would not look at the rows."""
        problem = self._problem
        if problem.violation(np.zeros(0)) > 0:
            return self._without_run(Status.INFEASIBLE, math.inf, start)
        return self._without_run(Status.OPTIMAL, problem.offset, start, np.zeros(0), np.zeros(problem.m))

    def _without_run(
        self,
        status: Status,
        bound: float,
        start: float,
        x: Vector | None = None,
        row_dual: Vector | None = None,
    ) -> Solution:
        objective = math.inf if x is None else self._problem.objective(x)
        report = Report("highs", str(self._handle.version()), time.perf_counter() - start, 0, 0, "not run")
        return Solution(status, objective, bound, x, row_dual, report)

    def _report(self, raw: str, start: float) -> Report:
        info = self._handle.getInfo()
        return Report(
            solver="highs",
            version=str(self._handle.version()),
            seconds=time.perf_counter() - start,
            nodes=max(int(info.mip_node_count), 0),  # -1 where no MIP was solved
            iterations=max(int(info.simplex_iteration_count), 0),
            raw_status=raw,
        )

    def _set(self, name: str, value: OptionValue) -> None:
        self._check(f"option {name} = {value!r}", self._handle.setOptionValue(name, value))

    def _check(self, what: str, status: Any) -> None:
        if status != self._highspy.HighsStatus.kOk:
            raise SolverError(f"HiGHS answered {status.name} to {what}")


@functools.cache
def _silent(highspy: ModuleType) -> Any:
    """``highspy.Highs``, but for what its constructor prints.

    highspy 1.16 sets the object's callback in there, and HiGHS then prints a banner to stdout, unless its output is
    off by then: no option can be set sooner from outside. Only our own objects are silent.
    """
    parent: Any = highspy.Highs

    class Silent(parent):  # type: ignore[misc]
        def enableCallbacks(self) -> None:  # noqa: N802  (highspy's name)
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()

    return Silent


class _Watch:
    """The listeners of one run: each stops it when it is cancelled or decided, and always assigns the flag."""

    def __init__(self, problem: Problem, cancel: threading.Event, decide_at: float | None) -> None:
        self._problem = problem
        self._cancel = cancel
        self._decide_at = decide_at
        self._met = False

    def on_simplex(self, event: Any) -> None:
        event.data_in.user_interrupt = self._cancel.is_set()

    def on_improving_solution(self, event: Any) -> None:
        """Evaluate the incumbent here, as the Solution will be: HiGHS's rounding of its value does not decide."""
        if self._decide_at is not None and self._problem.objective(event.data_out.mip_solution) <= self._decide_at:
            self._met = True
        event.data_in.user_interrupt = self._cancel.is_set() or self._met

    def on_mip(self, event: Any) -> None:
        proven = self._decide_at is not None and event.data_out.mip_dual_bound > self._decide_at
        event.data_in.user_interrupt = self._cancel.is_set() or self._met or proven


def _mip_bound(info: Any) -> float:
    """HiGHS's dual bound; the field holds 0 when the MIP solver never ran, which a node count of -1 shows."""
    bound = float(info.mip_dual_bound)
    return bound if info.valid and info.mip_node_count >= 0 and not math.isnan(bound) else -math.inf
