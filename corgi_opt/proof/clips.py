"""Intervals of units, clipped for images alone where a functional is at most a goal.

Where ``f(x) >= lam'x + kappa`` and ``z(x) >= a'x + alpha``, any image with f(x) <= goal has, for any g >= 0,

    z(x) >= z(x) + g (f(x) - goal) >= alpha + g (kappa - goal) + min over the region of (a + g lam)'x.

z is bounded by CROWN's lines in the intervals of all leaves, f by the hints of whoever clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corgi_opt.proof.arithmetic import Array, Numbers
from corgi_opt.proof.bounds import Indices
from corgi_opt.proof.program import Lines, Program
from corgi_opt.proof.tally import GENEROUS, Tally
from corgi_opt.proof.tree import Clips, Descent


@dataclass(frozen=True, eq=False)
class Ends:
    """Intervals ``low``, ``high`` (R, U) of the units in R rows of a tree."""

    low: Array
    high: Array

    def __getitem__(self, part: slice | Indices) -> Ends:
        return Ends(self.low[part], self.high[part])

    def repeated(self, count: int) -> Ends:
        return Ends(np.repeat(self.low, count, axis=0), np.repeat(self.high, count, axis=0))

    @property
    def open(self) -> NDArray[np.bool_]:
        return (self.low < 0) & (self.high > 0)

    @property
    def crossed(self) -> NDArray[np.bool_]:
        return np.asarray((self.low > self.high).any(axis=1))

    def under(self, phases: NDArray[np.int8]) -> Ends:
        """With the signs (R, U) that units have."""
        low = np.where(phases > 0, np.maximum(self.low, 0.0), self.low)
        return Ends(low, np.where(phases < 0, np.minimum(self.high, 0.0), self.high))

    def met(self, row: Indices, sides: Indices, lower: Array) -> Ends:
        """With bounds ``lower`` (E,) of units in some rows or, where ``sides`` (E,) is U more, of their negatives."""
        low, high, units = self.low.copy(), self.high.copy(), self.low.shape[1]
        negative = sides >= units
        np.maximum.at(low, (row[~negative], sides[~negative]), lower[~negative])
        np.minimum.at(high, (row[negative], sides[negative] - units), -lower[negative])
        return Ends(low, high)


@dataclass(frozen=True, eq=False)
class Below:
    """Lower bounds ``coefs'x + value`` of R functionals over the image (R, n), (R,), which may be ``uncertain`` (R,)
    off. ``size`` (R,): ``|coefs|'x`` at the largest that an image may be; zeros in exact arithmetic."""

    coefs: Numbers
    value: Numbers
    uncertain: Numbers
    size: Numbers

    @classmethod
    def of(cls, program: Program, lam: Numbers, tally: Tally) -> Below:
        """Where coefficients ``lam`` (R, n + U) of a descent and its constants end up."""
        coefs = lam[:, : program.inputs]
        zeros = program.arithmetic.zeros(len(lam))
        size = np.abs(coefs) @ program.magnitude[: program.inputs] if tally.rounds else zeros
        return cls(coefs, tally.value, tally.uncertain, size)

    @classmethod
    def units(cls, program: Program, sides: Indices) -> Below:
        """Bounds of pre-activations by lines: of the unit ``sides`` (R,) or, where that is U more, of its negative."""
        below, chord = program.crown
        lines = Lines(below[None], chord[None], None, np.zeros((1, program.units)))
        sign = program.arithmetic.of(np.where(sides < program.units, 1.0, -1.0))
        units = program.units_at(sides % max(1, program.units), sign)
        return cls.of(program, *program.descend(units, lines, program.low, program.high))

    def __getitem__(self, part: slice | Indices) -> Below:
        return Below(self.coefs[part], self.value[part], self.uncertain[part], self.size[part])

    @classmethod
    def joined(cls, parts: list[Below]) -> Below:
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("coefs", "value", "uncertain", "size")))


def clipped(program: Program, own: Below, output: Below, share: Array, goal: float) -> Array:
    """Lower bounds (R,) of functionals with bounds ``own`` where those with bounds ``output`` (R, or one for all) are
    at most the goal; ``share`` (R,): g."""
    of, (count, inputs) = program.arithmetic.of, own.coefs.shape
    g, whole = of(share), Tally(program.arithmetic, count)
    for term in (own.value, g * output.value, -g * of(goal)):
        whole.add(term[:, None])
    whole.may_be_off(own.uncertain + g * output.uncertain * (GENEROUS if whole.rounds else 1))
    if whole.rounds:
        whole.may_be_off(program.arithmetic.gamma(4 * inputs + 8) * GENEROUS * (own.size + g * output.size))
        floor = 1.0 + inputs * float(program.magnitude[:inputs].sum())
        whole.may_be_off(4 * program.arithmetic.tiny * floor)
    program.add_minimum(whole, own.coefs + g[:, None] * output.coefs)
    return whole.lower


def clip(program: Program, clips: Clips, goal: float) -> bool:
    """Narrows the intervals of a program as its tree says; whether any image may be at or below the goal."""
    for slopes, mixes, shares in zip(clips.slopes, clips.mixes, clips.shares, strict=True):
        ends = Ends(program.low[None], program.high[None])
        hints = (np.clip(m[None].astype(np.float64), 0.0, 1.0) for m in (slopes, mixes))
        below, mix = hints
        lines = Lines(below, program.crown[1][None], mix, np.zeros((1, program.units)))
        output = Below.of(program, *program.descend(program.functional(1), lines, program.low, program.high))
        sides, found = np.flatnonzero(shares.flatten() >= 0), [np.zeros(0)]
        for some in program.parts(len(sides)):
            share = shares.flatten()[sides[some]]
            found.append(clipped(program, Below.units(program, sides[some]), output, share, goal))
        ends = ends.met(np.zeros(len(sides), dtype=np.int64), sides, np.concatenate(found))
        if ends.crossed[0]:
            return False
        program.take_intervals(ends.low[0], ends.high[0])
    return True


class Narrowing:
    """What rows of a tree clip on the way down to its leaves."""

    def __init__(self, program: Program, descent: Descent, goal: float) -> None:
        self._program, self._descent, self._goal = program, descent, goal
        self._first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(descent.counts, dtype=np.int64)])
        self._sides: Indices = np.unique(descent.sides).astype(np.int64)
        program.keep(len(self._sides) * program.inputs)
        parts = [Below.units(program, self._sides[some]) for some in program.parts(len(self._sides))]
        self._own = Below.joined(parts or [Below.units(program, self._sides)])

    def any(self, rows: Indices) -> bool:
        """Whether any of these rows clips."""
        return bool(self._descent.counts[rows].any())

    def narrowed(self, rows: Indices, output: Below, ends: Ends) -> Ends:
        """Intervals of rows, of whose functional ``output`` is a bound."""
        counts = self._descent.counts[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        entry = self._first[rows][row] + within
        sides, shares = self._descent.sides[entry].astype(np.int64), self._descent.shares[entry].astype(np.float64)
        own, found = np.searchsorted(self._sides, sides), [np.zeros(0)]
        for some in self._program.parts(len(entry)):
            about = self._own[own[some]], output[row[some]]
            found.append(clipped(self._program, *about, shares[some], self._goal))
        return ends.met(row, sides, np.concatenate(found))
