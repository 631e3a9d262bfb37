"""Sums whose rounding is bounded: the terms of lower bounds, row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from corgi_opt.proof.arithmetic import Arithmetic, Array, Float64, Numbers

GENEROUS = 1 + 2.0**-20
"""A factor that is larger than the rounding of the error bounds themselves."""


class Tally:
    """R sums: ``value``, the sum ``size`` of their terms' magnitudes, and ``error``, a bound of other errors."""

    def __init__(self, arithmetic: Arithmetic, rows: int) -> None:
        self.arithmetic, self.rounds = arithmetic, isinstance(arithmetic, Float64)
        self.value, self.size, self.error = (arithmetic.zeros(rows) for _ in range(3))
        self.count = 0

    def add(self, terms: Numbers) -> None:
        """Adds (R, ...) terms, each of which took a few relative roundings at most."""
        flat = terms.reshape(len(self.value), math.prod(terms.shape[1:]))
        size = np.abs(flat).sum(axis=1) if self.rounds else self.size
        self.add_sums(flat.sum(axis=1), size, flat.shape[1])

    def add_sums(self, value: Numbers, size: Numbers, count: int) -> None:
        """Adds what ``count`` such terms of each row sum up to, and their magnitudes, both (R,)."""
        self.value = self.value + value
        if self.rounds:
            self.size = self.size + size
            self.count += count

    def may_be_off(self, by: Any) -> None:
        """Adds to the error, (R,) or one for all."""
        self.error = self.error + by

    @property
    def uncertain(self) -> Numbers:
        """How far the values (R,) may be off, either way."""
        if not self.rounds:
            return self.error
        summed = self.arithmetic.gamma(2 * self.count + 32) * self.size
        return np.asarray(((self.error + summed) * GENEROUS + 4 * self.count * self.arithmetic.tiny) * GENEROUS)

    @property
    def lower(self) -> Array:
        """Floats that are no larger than the sums; -inf where anything overflowed."""
        if not self.rounds:
            return self.arithmetic.down(self.value - self.error)
        below = np.nextafter(self.value - self.uncertain, -np.inf)
        return np.where(np.isfinite(below), below, -np.inf)
