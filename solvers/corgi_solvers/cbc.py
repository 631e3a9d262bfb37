"""CBC as a child process: our own MPS file in, its binary solution out, its words read one by one.

PuLP only says where CBC is. Its own door to CBC was measured (PuLP 3.3.2, CBC 2.10.3) and not taken:

- Its MPS writer keeps 13 significant digits; CBC's text solution has 8. ``write_mps`` and ``-saveSolution`` (raw
  float64) lose none. CBC's own reader is up to 1.5 units in the last place off on one number in five: far inside
  its tolerances, and a continuous bound does not depend on it.
- It calls an incumbent at a time limit "Optimal", and leaves CBC running after Ctrl-C.
- CBC's preprocessing and cuts are wrong now and then, at any tolerance: of 400 random MIPs with 1-4 columns in
  {-1, 0, 1}, 3 ended "Optimal" above the true minimum, and others, feasible, ended "Integer infeasible" (known:
  coin-or/Cbc issues 466, 737, 740). With both off, 7,800 MIPs (such ones, knapsacks and ReLU big-M problems) had
  none. So both are off, and presolve with them: CBC is a second opinion here, not the engine.
- Without preprocessing, one in seven infeasible MIPs ends in a segmentation fault: status ERROR, no answer.
- An unbounded LP may be called "Infeasible", or "Optimal" where a free column has no entries. Claims of the first
  kind are asked again without objective; those of the second have no finite bound and end as LIMIT.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corgi_solvers.arrays import Vector
from corgi_solvers.child import run_child
from corgi_solvers.claims import Claim
from corgi_solvers.mps import write_mps
from corgi_solvers.problem import Problem
from corgi_solvers.solution import Status

TOLERANCE = 1e-9  # of rows, integrality and reduced costs
INCREMENT = 1e-9  # CBC prunes what is not better than its incumbent by this much
GRACE_SECONDS = 1.0  # how long CBC gets to see its own time limit

FIRST_LINE = {  # of the solution file, up to " - "; what is not here is unexpected, hence an error
    "Optimal": Status.OPTIMAL,
    "Optimal (within gap tolerance)": Status.OPTIMAL,
    "Infeasible": Status.INFEASIBLE,
    "Integer infeasible": Status.INFEASIBLE,
    "Unbounded": Status.UNBOUNDED,
    "Stopped on time": Status.LIMIT,
    "Stopped on time (no integer solution": Status.LIMIT,
    "Stopped on iterations": Status.LIMIT,
    "Stopped on nodes": Status.LIMIT,
    "Stopped on iterations (no integer solution": Status.LIMIT,
    "Stopped on nodes (no integer solution": Status.LIMIT,
}


@dataclass(frozen=True)
class CbcSettings:
    """The executable and the settings of one run; ``abs_gap`` and ``rel_gap`` end a MIP as OPTIMAL."""

    executable: str
    threads: int
    abs_gap: float
    rel_gap: float


def run_cbc(problem: Problem, settings: CbcSettings, deadline: float) -> Claim:
    """CBC's claim about ``problem``, by ``deadline`` (``time.perf_counter``), killed a second after it.

    A MIP's bound is the incumbent's objective less every gap and increment that was set, and only where CBC says
    it proved optimality; its word on a bound elsewhere is not read.
    """
    claim = _run(problem, settings, deadline)
    if claim.status not in (Status.INFEASIBLE, Status.UNBOUNDED):
        return claim
    feasible = _run(problem.with_objective(np.zeros(problem.n), 0.0), settings, deadline).status
    if feasible is Status.INFEASIBLE:
        return replace(claim, status=Status.INFEASIBLE)
    if feasible is Status.OPTIMAL and not problem.is_boxed:
        return replace(claim, status=Status.UNBOUNDED)
    status = Status.LIMIT if feasible is Status.LIMIT else Status.ERROR
    return replace(claim, status=status, x=None, row_dual=None)


def _run(problem: Problem, settings: CbcSettings, deadline: float) -> Claim:
    with tempfile.TemporaryDirectory(prefix="corgi-cbc-") as folder:
        model, text, binary, log = (Path(folder, name) for name in ("p.mps", "p.sol", "p.bin", "log"))
        rows = write_mps(problem, model)
        left = deadline - time.perf_counter()
        if left <= 0:
            return Claim(Status.LIMIT, "not run")
        command = _command(settings, left, model, text, binary)
        code = run_child(command, log, deadline=deadline + GRACE_SECONDS)
        words = log.read_text(encoding="utf-8", errors="replace")
        if code is None:
            return Claim(Status.LIMIT, "killed after its time limit", version=_version(words))
        return _read(problem, settings, rows, words, code, text, binary)


def _command(settings: CbcSettings, left: float, model: Path, text: Path, binary: Path) -> list[str | Path]:
    options: dict[str, object] = {
        "-timeMode": "elapsed",
        "-threads": settings.threads if settings.threads > 1 else 0,
        "-primalTolerance": TOLERANCE,
        "-dualTolerance": TOLERANCE,
        "-integerTolerance": TOLERANCE,
        "-increment": INCREMENT,
        "-allowableGap": settings.abs_gap,
        "-ratioGap": settings.rel_gap,
        "-preprocess": "off",
        "-cuts": "off",
        "-presolve": "off",
    }
    if left < math.inf:
        options["-sec"] = left
    words = [str(word) for pair in options.items() for word in pair]
    return [settings.executable, model, *words, "-solve", "-solution", text, "-saveSolution", binary]


def _read(
    problem: Problem,
    settings: CbcSettings,
    rows: npt.NDArray[np.int64],
    words: str,
    code: int,
    text: Path,
    binary: Path,
) -> Claim:
    """Fail-closed: a bad exit code, a missing or malformed file or a first line not in the table is an error."""
    version, nodes, iterations = _version(words), _count("Enumerated nodes", words), _count("Total iterations", words)
    if code != 0 or "read with 0 errors" not in words:
        return Claim(Status.ERROR, f"exit code {code}", version=version)
    line, point = _first_line(text), _binary_solution(binary, rows.size, problem.n)
    status = FIRST_LINE.get(line.split(" - ")[0].strip(), Status.ERROR)
    if point is None:
        return Claim(Status.ERROR, line or "no solution file", version=version)

    y, x = point
    row_dual = np.zeros(problem.m)
    np.add.at(row_dual, rows, y)
    claim = Claim(status, line, None, None, -math.inf, nodes, iterations, version)
    if status in (Status.OPTIMAL, Status.LIMIT):
        has_point = "no integer solution" not in line
        claim = replace(claim, x=x if has_point else None, row_dual=row_dual)
    if status is Status.OPTIMAL and problem.is_mip:
        objective = problem.objective(x)
        slack = max(settings.abs_gap, settings.rel_gap * abs(objective)) + INCREMENT
        claim = replace(claim, bound=objective - slack)
    return claim


def _first_line(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _binary_solution(path: Path, rows: int, columns: int) -> tuple[Vector, Vector] | None:
    """(row duals (rows,), x (columns,)), or None if the file is not exactly one solution of that size.

    Layout: two int32, rows and columns; then float64: objective, row activities, row duals, x, reduced costs.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    numbers = 1 + 2 * rows + 2 * columns
    if len(data) != 8 + 8 * numbers or struct.unpack("=ii", data[:8]) != (rows, columns):
        return None
    values = np.frombuffer(data, dtype=np.float64, offset=8)
    return values[1 + rows : 1 + 2 * rows], values[1 + 2 * rows : 1 + 2 * rows + columns]


def _version(words: str) -> str:
    match = re.search(r"^Version:\s*(\S+)", words, re.MULTILINE)
    return match.group(1) if match else ""


def _count(name: str, words: str) -> int:
    counts = re.findall(rf"^{name}:\s*(\d+)", words, re.MULTILINE)
    return int(counts[-1]) if counts else 0
