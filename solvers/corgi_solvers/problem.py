"""What every backend answers: a linear objective over two-sided linear rows, boxes, integer columns and balls.

    minimise    c'x + offset
    subject to  row_lower <= A x <= row_upper
                col_lower <=  x  <= col_upper
                x_j integer where integrality_j
                || scale * x[columns] + shift ||_2 <= radius   for each of the balls

m rows, n columns; either may be zero. A missing side is -inf or +inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from corgi_solvers.arrays import Vector, frozen_mask, frozen_matrix, frozen_vector, require_finite, require_interval
from corgi_solvers.balls import NormBall, linear_minimum
from corgi_solvers.errors import ProblemError


@dataclass(frozen=True, eq=False)
class Problem:
    """A mixed-integer linear or second-order-cone program; immutable, its arrays are read-only.

    Shapes: ``c``, ``col_lower``, ``col_upper``, ``integrality`` (n,); ``A`` (m, n), anything that
    ``scipy.sparse.csr_array`` takes, stored canonical (sorted, no duplicates, no explicit zeros);
    ``row_lower``, ``row_upper`` (m,). ``integrality`` is boolean. ``balls``: second-order-cone rows, beside the m.

    Raises ProblemError on a wrong shape, a ball over a column that is not there, a NaN, an infinite coefficient,
    a lower bound above its upper bound or a bound infinite on the wrong side: such a problem is a bug of whoever
    built it, not an infeasible one.
    """

    c: Vector
    offset: float
    A: csr_array
    row_lower: Vector
    row_upper: Vector
    col_lower: Vector
    col_upper: Vector
    integrality: npt.NDArray[np.bool_]
    balls: tuple[NormBall, ...] = ()

    def __post_init__(self) -> None:
        matrix = frozen_matrix(self.A)
        m, n = matrix.shape
        fields = {
            "c": frozen_vector("c", self.c, n),
            "offset": float(self.offset),
            "A": matrix,
            "row_lower": frozen_vector("row_lower", self.row_lower, m),
            "row_upper": frozen_vector("row_upper", self.row_upper, m),
            "col_lower": frozen_vector("col_lower", self.col_lower, n),
            "col_upper": frozen_vector("col_upper", self.col_upper, n),
            "integrality": frozen_mask("integrality", self.integrality, n),
            "balls": tuple(self.balls),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen; this is its own construction

        if not math.isfinite(self.offset):
            raise ProblemError(f"offset is {self.offset}; it must be finite")
        require_finite("c", self.c)
        require_finite("the nonzeros of A", matrix.data)
        require_interval("row", self.row_lower, self.row_upper)
        require_interval("col", self.col_lower, self.col_upper)
        for k, ball in enumerate(self.balls):
            if ball.columns.max() >= n:
                raise ProblemError(f"balls[{k}] holds column {ball.columns.max()}; the problem has {n} columns")

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

    @property
    def is_soc(self) -> bool:
        """Whether there are balls, which only a conic solver can take."""
        return bool(self.balls)

    @property
    def is_boxed(self) -> bool:
        """Whether every column that the objective moves has both bounds, so that no minimum runs away."""
        moved = self.c != 0
        return bool(np.isfinite(self.col_lower[moved]).all() and np.isfinite(self.col_upper[moved]).all())

    def relaxed(self) -> Problem:
        """The continuous relaxation: the same problem, balls included, without integrality."""
        return replace(self, integrality=np.zeros(self.n, dtype=bool))

    def with_objective(self, c: npt.ArrayLike, offset: float) -> Problem:
        """The same rows, columns, balls and integrality under another objective ``c`` (n,)."""
        return replace(self, c=np.asarray(c, dtype=np.float64), offset=offset)

    def objective(self, x: npt.ArrayLike) -> float:
        """c'x + offset at a point ``x`` (n,)."""
        return float(self.c @ self._point(x)) + self.offset

    def violation(self, x: npt.ArrayLike) -> float:
        """Largest absolute violation at ``x`` (n,) of a row, a column bound, integrality or a ball; 0 if feasible.

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
            np.array([ball.violation(point) for ball in self.balls]),
        ]
        return max(float(part.max(initial=0.0)) for part in parts)

    def _point(self, x: npt.ArrayLike) -> Vector:
        point = np.asarray(x, dtype=np.float64)
        if point.shape != (self.n,):
            raise ProblemError(f"the point has shape {point.shape}; the problem has {self.n} columns")
        return point


def dual_objective(problem: Problem, y: npt.ArrayLike, *, tolerance: float = 0.0) -> float:
    """The Lagrangian bound of row multipliers ``y`` (m,) on the continuous relaxation, in plain float64.

    With r = c - A'y:  offset + sum_i (y_i > 0 ? y_i L_i : y_i U_i) + min over the columns' box of r'x, which is
    sum_j min(r_j l_j, r_j u_j); balls raise that last minimum, see ``balls.linear_minimum``, and need no
    multipliers from outside. For ANY y this is at most the minimum, up to rounding (which this function does not
    bound). A multiplier that presses against a missing row side is dropped; a reduced cost that presses against
    a missing column bound makes the bound -inf, unless its size is at most ``tolerance``, in which case it counts
    as zero: a simplex leaves such residues on basic free columns, so a solver's own claim needs it; a rigorous
    bound must not use it.

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
        if not np.isfinite(reduced).all():
            return -math.inf
        row_terms = multipliers[usable] * side[usable]
        columns = linear_minimum(problem.balls, reduced, problem.col_lower, problem.col_upper, tolerance=tolerance)
        value = problem.offset + float(row_terms.sum()) + columns
    return value if math.isfinite(value) else -math.inf
