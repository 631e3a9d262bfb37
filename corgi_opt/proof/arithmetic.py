"""Two arithmetics: float64, with bounds of its rounding errors, and exact fractions.

The same code runs in both. An array holds floats or Fractions; ``gamma(n)`` bounds the relative error of a sum of n
products, in any order and with or without fused operations (Higham 2002, section 3.1), ``tiny`` that of a product that
underflows. In fractions both are zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Numbers = NDArray[Any]
"""Arrays of float64, or of Fractions (dtype object)."""

UNIT = 2.0**-53
"""Unit roundoff of float64."""


class Arithmetic(ABC):
    """How numbers are kept, and what an operation on them may be off by."""

    tiny: float

    bytes_each: int
    """Most bytes that a number takes."""

    at_once: int
    """Coefficients of one node that a backward pass holds at once."""

    @abstractmethod
    def of(self, values: Any) -> Numbers:
        """Float64 values, exactly. Raises OverflowError for those that it has no number for."""

    @abstractmethod
    def gamma(self, n: int) -> Any:
        """A bound on the relative error of a sum of n products."""

    @abstractmethod
    def down(self, values: Numbers) -> NDArray[np.float64]:
        """Floats that are no larger, elementwise."""

    def up(self, values: Numbers) -> NDArray[np.float64]:
        """Floats that are no smaller, elementwise."""
        return -self.down(-values)

    @abstractmethod
    def root(self, square: Numbers) -> Numbers:
        """Numbers no less than the square roots of numbers >= 0."""

    def zeros(self, *shape: int) -> Numbers:
        return self.of(np.zeros(shape))


def keeps_denormals() -> bool:
    """Whether products that underflow are rounded, as ``tiny`` takes them to be, and not flushed to zero."""
    return bool((np.array([2.0**-1073]) * np.array([0.5]) != 0).all())


class Float64(Arithmetic):
    tiny = 2.0**-1074
    bytes_each, at_once = 8, 2_000_000

    def of(self, values: Any) -> Numbers:
        return np.asarray(values, dtype=np.float64)

    def gamma(self, n: int) -> float:
        """``n u / (1 - n u)``, rounded up generously."""
        if n > 2**40:
            raise OverflowError("a sum too long to bound its rounding")
        return n * UNIT * (1 + 2.0**-10)

    def down(self, values: Numbers) -> NDArray[np.float64]:
        """The values as they are: their errors have been taken off already, by ``gamma``."""
        return np.asarray(values, dtype=np.float64)

    def root(self, square: Numbers) -> Numbers:
        return np.asarray(np.nextafter(np.sqrt(square), np.inf))


class Exact(Arithmetic):
    tiny = 0
    bytes_each, at_once = 1024, 16_000  # a Fraction of integers of some thousand bits

    def of(self, values: Any) -> Numbers:
        floats = np.asarray(values, dtype=np.float64)
        if not np.isfinite(floats).all():
            raise OverflowError("a number that is not finite is no fraction")
        fractions = np.empty(floats.shape, dtype=object)
        for place, value in zip(np.ndindex(floats.shape), floats.flatten().tolist(), strict=True):
            fractions[place] = Fraction(value)
        return fractions

    def gamma(self, n: int) -> int:
        return 0

    def down(self, values: Numbers) -> NDArray[np.float64]:
        flat = np.asarray(values, dtype=object).flatten()
        return np.array([_float_below(_exact(v)) for v in flat], dtype=np.float64).reshape(np.shape(values))

    def root(self, square: Numbers) -> Numbers:
        flat = np.asarray(square, dtype=object).flatten()
        roots = np.empty(flat.shape, dtype=object)
        roots[:] = [_root_above(_exact(v)) for v in flat]
        return roots.reshape(np.shape(square))


def _exact(value: object) -> Fraction:
    """The number as a Fraction. Raises TypeError for a float, which means that a calculation on the way was rounded."""
    if isinstance(value, (int, Fraction)):
        return Fraction(value)
    raise TypeError(f"{value!r} is no exact number")


def _float_below(value: Fraction) -> float:
    try:
        nearest = float(value)
    except OverflowError:
        return -math.inf if value < 0 else float(np.finfo(np.float64).max)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)


def _root_above(value: Fraction) -> Fraction:
    """A fraction no less than the square root, by about 2^-200 of its size."""
    if value == 0:
        return Fraction(0)
    shift = max(0, 400 - value.numerator.bit_length() + value.denominator.bit_length())
    shift += shift % 2
    scaled = -(-(value.numerator << shift) // value.denominator)
    return Fraction(math.isqrt(scaled) + 1, 1 << (shift // 2))
