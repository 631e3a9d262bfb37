"""What every backend answers: a linear objective over two-sided linear rows, boxes and integer columns.

    minimise    c'x + offset
    subject to  row_lower <= A x <= row_upper
                col_lower <=  x  <= col_upper
                x_j integer where integrality_j

m rows, n columns; either may be zero. A missing side is -inf or +inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from corgi_solvers.errors import ProblemError

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """A mixed-integer linear program; immutable, its arrays are read-only.

    Shapes: ``c``, ``col_lower``, ``col_upper``, ``integrality`` (n,); ``A`` (m, n), anything that
    ``scipy.sparse.csr_array`` takes, stored canonical (sorted, no duplicates, no explicit zeros);
    ``row_lower``, ``row_upper`` (m,). ``integrality`` is boolean.

    Raises ProblemError on a wrong shape, a NaN, an infinite coefficient, a lower bound above its upper bound
    or a bound infinite on the wrong side: such a problem is a bug of whoever built it, not an infeasible one.
    """

    c: Vector
    offset: float
    A: csr_array
    row_lower: Vector
    row_upper: Vector
    col_lower: Vector
    col_upper: Vector
    integrality: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        matrix = _frozen_matrix(self.A)
        m, n = matrix.shape
        fields = {
            "c": _frozen_vector("c", self.c, n),
            "offset": float(self.offset),
            "A": matrix,
            "row_lower": _frozen_vector("row_lower", self.row_lower, m),
            "row_upper": _frozen_vector("row_upper", self.row_upper, m),
            "col_lower": _frozen_vector("col_lower", self.col_lower, n),
            "col_upper": _frozen_vector("col_upper", self.col_upper, n),
            "integrality": _frozen_mask("integrality", self.integrality, n),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen; this is its own construction

        if not math.isfinite(self.offset):
            raise ProblemError(f"offset is {self.offset}; it must be finite")
        _require_finite("c", self.c)
        _require_finite("the nonzeros of A", matrix.data)
        _require_interval("row", self.row_lower, self.row_upper)
        _require_interval("col", self.col_lower, self.col_upper)

    @property
    def n(self) -> int:
        """Number of columns."""
        return int(self.c.size)

    @property
    def m(self) -> int:
        """Number of rows."""
        return int(self.row_lower.size)

    @property
    def is_mip(self) -> bool:
        """Whether any column must be integer."""
        return bool(self.integrality.any())

    def relaxed(self) -> Problem:
        """The linear relaxation: the same problem without integrality."""
        return replace(self, integrality=np.zeros(self.n, dtype=bool))

    def with_objective(self, c: npt.ArrayLike, offset: float) -> Problem:
        """The same rows, columns and integrality under another objective ``c`` (n,)."""
        return replace(self, c=np.asarray(c, dtype=np.float64), offset=offset)

    def objective(self, x: npt.ArrayLike) -> float:
        """c'x + offset at a point ``x`` (n,)."""
        return float(self.c @ self._point(x)) + self.offset

    def violation(self, x: npt.ArrayLike) -> float:
        """Largest absolute violation at ``x`` (n,) of a row, a column bound or integrality; 0 if feasible.

        A point with a NaN or an infinity satisfies nothing: inf.
        """
        point = self._point(x)
        if not np.isfinite(point).all():
            return math.inf
        activity = self.A @ point
        parts = [
            self.row_lower - activity,
            activity - self.row_upper,
            self.col_lower - point,
            point - self.col_upper,
            np.abs(point - np.round(point))[self.integrality],
        ]
        return max(float(part.max(initial=0.0)) for part in parts)

    def _point(self, x: npt.ArrayLike) -> Vector:
        point = np.asarray(x, dtype=np.float64)
        if point.shape != (self.n,):
            raise ProblemError(f"the point has shape {point.shape}; the problem has {self.n} columns")
        return point


def dual_objective(problem: Problem, y: npt.ArrayLike, *, tolerance: float = 0.0) -> float:
    """The Lagrangian bound of row multipliers ``y`` (m,) on the linear relaxation, in plain float64.

    With r = c - A'y:  offset + sum_i (y_i > 0 ? y_i L_i : y_i U_i) + sum_j min(r_j l_j, r_j u_j). For ANY y this
    is at most the minimum, up to rounding (which this function does not bound). A multiplier that presses
    against a missing row side is dropped; a reduced cost that presses against a missing column bound makes the
    bound -inf, unless its size is at most ``tolerance``, in which case it counts as zero: a simplex leaves such
    residues on basic free columns, so a solver's own claim needs it; a rigorous bound must not use it.

    Anything not finite on the way gives -inf. Raises ProblemError if ``y`` has the wrong shape.
    """
    multipliers = np.asarray(y, dtype=np.float64)
    if multipliers.shape != (problem.m,):
        raise ProblemError(f"y has shape {multipliers.shape}; the problem has {problem.m} rows")
    if not np.isfinite(multipliers).all():
        return -math.inf
    side = np.where(multipliers > 0, problem.row_lower, problem.row_upper)
    usable = (multipliers != 0) & np.isfinite(side)
    multipliers = np.where(usable, multipliers, 0.0)

    with np.errstate(over="ignore", invalid="ignore"):  # overflow ends as -inf below
        reduced = problem.c - problem.A.T @ multipliers
        bound = np.where(reduced > 0, problem.col_lower, problem.col_upper)
        negligible = (reduced == 0) | (~np.isfinite(bound) & (np.abs(reduced) <= tolerance))
        row_terms = multipliers[usable] * side[usable]
        col_terms = reduced[~negligible] * bound[~negligible]
        value = problem.offset + float(row_terms.sum()) + float(col_terms.sum())
    return value if math.isfinite(value) else -math.inf


def _frozen_matrix(matrix: Any) -> csr_array:
    """A canonical, read-only float64 CSR array; one that already is, is shared and not copied."""
    if (
        isinstance(matrix, csr_array)
        and matrix.dtype == np.float64
        and not any(part.flags.writeable for part in (matrix.data, matrix.indices, matrix.indptr))
        and matrix.has_canonical_format
        and matrix.data.all()
    ):
        return matrix
    canonical = csr_array(matrix, dtype=np.float64, copy=True)
    if canonical.ndim != 2:
        raise ProblemError(f"A has {canonical.ndim} dimension(s); it must be a matrix")
    canonical.sum_duplicates()
    canonical.eliminate_zeros()
    for part in (canonical.data, canonical.indices, canonical.indptr):
        part.setflags(write=False)
    return canonical


def _frozen_vector(name: str, values: npt.ArrayLike, size: int) -> Vector:
    """A read-only float64 array of shape (size,); one that already is and owns its data, is shared."""
    try:
        shareable = isinstance(values, np.ndarray) and values.flags.owndata and not values.flags.writeable
        vector = np.asarray(values, dtype=np.float64) if shareable else np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{name} is not an array of numbers: {error}") from error
    if vector.shape != (size,):
        raise ProblemError(f"{name} has shape {vector.shape}; A asks for ({size},)")
    if np.isnan(vector).any():
        raise ProblemError(f"{name}[{_first(np.isnan(vector))}] is NaN")
    vector.setflags(write=False)
    return vector


def _frozen_mask(name: str, values: npt.ArrayLike, size: int) -> npt.NDArray[np.bool_]:
    """A read-only boolean copy of shape (size,). Numbers are refused: solvers use 2 and 3 for other kinds."""
    mask = np.array(values)
    if mask.shape != (size,):
        raise ProblemError(f"{name} has shape {mask.shape}; A asks for ({size},)")
    if mask.dtype != np.bool_ and size:
        raise ProblemError(f"{name} has dtype {mask.dtype}; it must be boolean")
    mask = mask.astype(np.bool_)
    mask.setflags(write=False)
    return mask


def _require_finite(name: str, values: Vector) -> None:
    if not np.isfinite(values).all():
        where = _first(~np.isfinite(values))
        raise ProblemError(f"{name}: entry {where} is {values[where]}; it must be finite")


def _require_interval(kind: str, lower: Vector, upper: Vector) -> None:
    wrong = (lower > upper) | (lower == math.inf) | (upper == -math.inf)
    if wrong.any():
        where = _first(wrong)
        raise ProblemError(
            f"{kind}_lower[{where}] = {lower[where]} and {kind}_upper[{where}] = {upper[where]} hold no number"
        )


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
