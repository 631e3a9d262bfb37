"""Problems as MPS files, for solvers that live outside this process.

Free format, every number as the shortest decimal that reads back as the same float64. (PuLP's writer prints 13
significant digits, its LP format 12: another problem.) What readers disagree on is spelled out: both bounds of
every column, so neither the default [0, inf) of a column nor that of an integer one matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike

import numpy as np
import numpy.typing as npt

from corgi_solvers.errors import ProblemError
from corgi_solvers.problem import Problem

OBJECTIVE = "obj"
INFINITY = 1e30  # and more is infinite to every reader, as a column bound


def write_mps(problem: Problem, path: str | PathLike[str]) -> npt.NDArray[np.int64]:
    """Write ``problem`` to ``path`` as free-format MPS; column j is named ``x{j}``, row i ``r{i}``.

    Returns, for each row of the file in order, the number of the problem's row it stands for, (rows of the
    file,). A row without sides is left out. A two-sided row is one row with a RANGES entry where that keeps both
    sides exactly; where it would not (a range is a width, added back by the reader), it is two rows, ``r{i}`` and
    ``r{i}_upper``. The offset stands, negated, as the right-hand side of the objective row: HiGHS, CBC, SCIP,
    Gurobi and CPLEX read it so.

    Raises ProblemError on a problem with balls, which MPS cannot say, and OSError where ``path`` cannot be
    written.
    """
    if problem.is_soc:
        raise ProblemError("an MPS file cannot hold balls (second-order cones)")
    rows = [row for i in range(problem.m) for row in _rows(i, problem.row_lower[i], problem.row_upper[i])]
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.writelines(line + "\n" for line in _lines(problem, rows))
    return np.array([row.source for row in rows], dtype=np.int64)


class _Row:
    """One row of the file: its kind (E, L, G), right-hand side and range, and the problem's row it stands for."""

    def __init__(self, source: int, kind: str, side: float, width: float | None = None, suffix: str = "") -> None:
        self.source, self.kind, self.side, self.width = source, kind, side, width
        self.name = f"r{source}{suffix}"


def _rows(i: int, lower: float, upper: float) -> list[_Row]:
    """The row ``lower <= . <= upper`` as no, one or two rows of the file."""
    if lower == upper:
        return [_Row(i, "E", lower)]
    if lower == -math.inf:
        return [] if upper == math.inf else [_Row(i, "L", upper)]
    if upper == math.inf:
        return [_Row(i, "G", lower)]
    with np.errstate(over="ignore"):  # an infinite width is no width: two rows
        width = float(np.float64(upper) - np.float64(lower))
        for each in (width, math.nextafter(width, 0.0), math.nextafter(width, math.inf)):
            if 0 < each < math.inf and lower + each == upper:  # a G row: [side, side + width]
                return [_Row(i, "G", lower, each)]
            if 0 < each < math.inf and upper - each == lower:  # an L row: [side - width, side]
                return [_Row(i, "L", upper, each)]
    return [_Row(i, "G", lower), _Row(i, "L", upper, suffix="_upper")]


def _lines(problem: Problem, rows: list[_Row]) -> Iterator[str]:
    yield "NAME corgi"
    yield "ROWS"
    yield f" N {OBJECTIVE}"
    yield from (f" {row.kind} {row.name}" for row in rows)
    yield "COLUMNS"
    yield from _columns(problem, rows)
    yield "RHS"
    if problem.offset:
        yield f" RHS {OBJECTIVE} {_number(-problem.offset)}"
    yield from (f" RHS {row.name} {_number(row.side)}" for row in rows if row.side)
    if any(row.width is not None for row in rows):
        yield "RANGES"
        yield from (f" RNG {row.name} {_number(row.width)}" for row in rows if row.width is not None)
    yield "BOUNDS"
    for j, (lower, upper) in enumerate(zip(problem.col_lower, problem.col_upper, strict=True)):
        yield from _bounds(f"x{j}", float(lower), float(upper))
    yield "ENDATA"


def _columns(problem: Problem, rows: list[_Row]) -> Iterator[str]:
    names: list[list[str]] = [[] for _ in range(problem.m)]
    for row in rows:
        names[row.source].append(row.name)
    by_column, inside = problem.A.tocsc(), False
    for j in range(problem.n):
        if bool(problem.integrality[j]) != inside:
            inside = not inside
            yield f" MARKER 'MARKER' {'INTORG' if inside else 'INTEND'!r}"
        yield f" x{j} {OBJECTIVE} {_number(problem.c[j])}"  # also a zero: it keeps an empty column in the file
        for k in range(by_column.indptr[j], by_column.indptr[j + 1]):
            for name in names[by_column.indices[k]]:
                yield f" x{j} {name} {_number(by_column.data[k])}"
    if inside:
        yield " MARKER 'MARKER' 'INTEND'"


def _bounds(name: str, lower: float, upper: float) -> Iterator[str]:
    """Always with a number: CBC reads every line of the section with as many words as it finds in the first."""
    if lower == upper:
        yield f" FX BND {name} {_number(lower)}"
    else:  # the lower bound first: some readers open it at the sight of an upper one below zero
        yield f" LO BND {name} {_number(max(lower, -INFINITY))}"
        yield f" UP BND {name} {_number(min(upper, INFINITY))}"


def _number(value: float) -> str:
    """The shortest decimal that reads back as the same float64."""
    return repr(float(value))
