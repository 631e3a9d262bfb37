"""Checked, read-only arrays: what the dataclasses of this package are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from corgi_solvers.errors import ProblemError

Vector = npt.NDArray[np.float64]


def frozen_matrix(matrix: Any) -> csr_array:
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


def frozen_vector(name: str, values: npt.ArrayLike, size: int) -> Vector:
    """A read-only float64 array of shape (size,); one that already is and owns its data, is shared."""
    try:
        shareable = isinstance(values, np.ndarray) and values.flags.owndata and not values.flags.writeable
        vector = np.asarray(values, dtype=np.float64) if shareable else np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{name} is not an array of numbers: {error}") from error
    if vector.shape != (size,):
        raise ProblemError(f"{name} has shape {vector.shape}; it must be ({size},)")
    if np.isnan(vector).any():
        raise ProblemError(f"{name}[{first(np.isnan(vector))}] is NaN")
    vector.setflags(write=False)
    return vector


def frozen_mask(name: str, values: npt.ArrayLike, size: int) -> npt.NDArray[np.bool_]:
    """A read-only boolean copy of shape (size,). Numbers are refused: solvers use 2 and 3 for other kinds."""
    mask = np.array(values)
    if mask.shape != (size,):
        raise ProblemError(f"{name} has shape {mask.shape}; it must be ({size},)")
    if mask.dtype != np.bool_ and size:
        raise ProblemError(f"{name} has dtype {mask.dtype}; it must be boolean")
    mask = mask.astype(np.bool_)
    mask.setflags(write=False)
    return mask


def require_finite(name: str, values: Vector) -> None:
    if not np.isfinite(values).all():
        where = first(~np.isfinite(values))
        raise ProblemError(f"{name}: entry {where} is {values[where]}; it must be finite")


def require_interval(kind: str, lower: Vector, upper: Vector) -> None:
    wrong = (lower > upper) | (lower == math.inf) | (upper == -math.inf)
    if wrong.any():
        where = first(wrong)
        raise ProblemError(
            f"{kind}_lower[{where}] = {lower[where]} and {kind}_upper[{where}] = {upper[where]} hold no number"
        )


def first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
