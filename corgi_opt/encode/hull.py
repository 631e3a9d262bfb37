"""Planes above a ReLU that use the box of its inputs, not only the interval of its pre-activation.

The triangle's chord is the least concave function above relu(z) for z in [l, u]. Above ``relu(w'v + b)`` for v in a box
there are lower ones. For any a, as relu(z) = max(0, z),

    relu(w'v + b) <= a'v + c,   c = max( max over the box of -a'v,  max over the box of (w - a)'v + b ),

and over all a these describe the upper hull exactly (Anderson et al. 2020, "Strong mixed-integer programming
formulations for trained neural networks", whose cuts are the a with ``a_i in {0, w_i}``; in this form no separation is
needed). A chord is one number for each unit, a plane is one for each of its inputs: so planes are not chosen at every
node of a tree but once, by gradient ascent on D at the root, where they serve the objective best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.adam import Adam
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import Program

Single = NDArray[np.float32]

STEPS, RATE, RATE_ON, LAST_RATE = 120, 0.05, 0.02, 0.003
"""Steps of Adam, and its rate, falling geometrically."""


@dataclass(frozen=True, eq=False)
class HullPlanes:
    """``relu(z_u) <= slopes[u] @ [t, s] + shifts[u]`` for every unit u: csr (U, n+U), (U,).

    The search's other multipliers, both (U,) in [0, 1], are where a tree starts: ``mixes``, how much of a unit's upper
    line is its plane and how much its chord, and ``below``, the slope of its lower line.
    """

    slopes: sparse.csr_array
    shifts: Vector
    mixes: Vector
    below: Vector

    def over(self, program: Program) -> HullPlanes:
        """Planes of these slopes over the intervals of ``program``."""
        return replace(self, shifts=_shifts(program, self.slopes))


def layers(program: Program) -> list[tuple[int, int]]:
    """Runs of units (first, last) that read no unit of their own run."""
    rows, cuts = program.rows, [0]
    for unit in range(program.units):
        read = rows.indices[rows.indptr[unit] : rows.indptr[unit + 1]]
        if read.max(initial=-1) >= program.inputs + cuts[-1]:
            cuts.append(unit)
    ends = [*cuts[1:], program.units]
    return [(first, last) for first, last in zip(cuts, ends, strict=True) if last > first]


def hull_planes(
    program: Program,
    enough: float = math.inf,
    deadline: Deadline = NEVER,
    steps: int = STEPS,
    start: HullPlanes | None = None,
) -> HullPlanes:
    """The planes that raise the bound of the first output most, by gradient ascent in float32. The search ends early
    where the bound exceeds ``enough``, or when time is over. ``start``: planes that it goes on from.

    Each plane is valid whatever the search gives: its shift is computed last, in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a tree says itself what float32 cannot hold
        share, mix, below = _ascended(program, enough, steps, deadline, start)
    rows = program.rows
    share = np.clip(share, 0, 1)  # so that a plane's coefficients are no larger than its row's
    slopes = sparse.csr_array((rows.data * share.astype(np.float64), rows.indices, rows.indptr), rows.shape)
    return HullPlanes(slopes, _shifts(program, slopes), mix.astype(np.float64), below.astype(np.float64))


def _shifts(program: Program, slopes: sparse.csr_array) -> Vector:
    low, high = _box(program)

    def most(a: sparse.csr_array) -> Vector:
        return np.asarray(a.maximum(0) @ high + a.minimum(0) @ low)

    on = most(sparse.csr_array(program.rows - slopes)) + program.constants + program.slack
    # slack once more: what is computed with a plane rounds like what is computed with its row
    return np.maximum(most(sparse.csr_array(-slopes)), on) + program.slack


def _ascended(
    program: Program, enough: float, steps: int, deadline: Deadline, start: HullPlanes | None
) -> tuple[Single, Single, Single]:
    """The share of each nonzero of ``program.rows`` that its plane has; mixes and slopes below (U,) of the units."""
    dual = _Dual(program)
    slope, mix = (dual.chord > 0.5).astype(np.float32), np.full_like(dual.chord, 0.5)
    share = dual.chord[dual.unit]
    if start is not None:
        slope, mix = start.below.astype(np.float32), start.mixes.astype(np.float32)
        # nonzeros of both stand in the same places
        share = (start.slopes.data / program.rows.data).astype(np.float32)
    searched = slope, share, mix
    fast = RATE if start is None else RATE_ON
    memory = [Adam(torch.from_numpy(part)) for part in searched]
    for step in range(steps if program.units else 0):
        value, gradients = dual.at(slope, share, mix)
        if value > enough or deadline.over:
            break
        rate = fast * (LAST_RATE / fast) ** (step / max(1, steps - 1))
        for part, adam, gradient in zip(searched, memory, gradients, strict=True):
            part += rate * adam.step(torch.from_numpy(gradient)).numpy()
            np.clip(part, 0, 1, out=part)
    return share, mix, slope


class _Dual:
    """D of one program's first output at the root, over the box around its ball, and its derivatives: by hand, as a
    step takes a tenth of the time that way (Danskin: they are those at the minimiser of the relaxation)."""

    def __init__(self, program: Program) -> None:
        rows = program.rows
        self.unit, self._column = np.repeat(np.arange(program.units), np.diff(rows.indptr)), rows.indices
        self._weight, self._constant = rows.data.astype(np.float32), program.constants.astype(np.float32)
        self._lower = program.lower.astype(np.float32)
        low, high = _box(program)
        self._low, self._high = (side.astype(np.float32)[self._column] for side in (low, high))
        self.chord = (program.upper / (program.upper - program.lower)).astype(np.float32)
        self._costs = program.outputs[[0]].toarray()[0].astype(np.float32)
        self._offset, self._inputs = float(program.output_constants[0]), program.inputs
        self._filled = np.flatnonzero(np.diff(rows.indptr))  # reduceat takes no empty runs
        self._starts = rows.indptr[self._filled]
        self._plane = np.empty_like(self._weight)
        self._blocks = [_Run(program, first, last, self._weight, self._plane) for first, last in layers(program)]

    def at(self, slope: Single, share: Single, mix: Single) -> tuple[float, tuple[Single, Single, Single]]:
        """D and its derivatives by the three."""
        weight, plane = self._weight, self._plane
        np.multiply(share, weight, out=plane)
        rest = weight - plane
        off, on = self._most(-plane), self._constant + self._most(rest)
        top = np.maximum(off, on)
        lam, value = self._down(slope, mix, top)
        variables, z, above = self._up(lam, slope, mix, top)
        positive, negative = _signs(lam[self._inputs :])
        # of the largest of the plane's terms, by its coefficients
        by_off = np.where(plane > 0, self._low, self._high)
        by_on = np.where(rest > 0, self._high, self._low)
        by_plane = variables[self._column] - np.where((on > off)[self.unit], by_on, by_off)
        by_share = (negative * mix)[self.unit] * by_plane * weight
        return value, (positive * z, by_share, negative * (above - self.chord * (z - self._lower)))

    def _most(self, rows: Single) -> Single:
        """The largest value (U,) of rows with these nonzeros over the box."""
        found = np.zeros(len(self._constant), dtype=np.float32)
        terms = np.maximum(rows * self._low, rows * self._high)
        if len(terms):
            found[self._filled] = np.add.reduceat(terms, self._starts)
        return found

    def _down(self, slope: Single, mix: Single, top: Single) -> tuple[Single, float]:
        """The coefficients (n+U,) that reach the variables, and D."""
        lam, value = self._costs.copy(), self._offset
        chord = self.chord * (1 - mix)
        shift = chord * (self._constant - self._lower) + mix * top
        for run in reversed(self._blocks):
            part = run.part
            positive, negative = _signs(lam[self._inputs :][part])
            value += float(positive @ (slope[part] * self._constant[part]) + negative @ shift[part])
            chords = positive * slope[part] + negative * chord[part]
            lam[: run.reads] += run.to_weights @ chords + run.to_planes @ (negative * mix[part])
        return lam, value - float(np.abs(lam[: self._inputs]).sum())

    def _up(self, lam: Single, slope: Single, mix: Single, top: Single) -> tuple[Single, Single, Single]:
        """The minimiser (n+U,) of the relaxation, the pre-activations there (U,), and the planes' values (U,)."""
        variables, z, above = np.empty_like(lam), np.empty_like(slope), np.empty_like(slope)
        variables[: self._inputs] = -np.sign(lam[: self._inputs])
        for run in self._blocks:
            part, before = run.part, variables[: run.reads]
            z[part], above[part] = run.weights @ before + self._constant[part], run.planes @ before + top[part]
            chord = self.chord[part] * (z[part] - self._lower[part])
            upper = (1 - mix[part]) * chord + mix[part] * above[part]
            helps = lam[self._inputs :][part] > 0
            variables[self._inputs :][part] = np.where(helps, slope[part] * z[part], upper)
        return variables, z, above


class _Run:
    """Units that read none of their own: ``part`` of all, which read the first ``reads`` variables; their rows, and
    those of their planes, whose nonzeros are views of what all units have."""

    def __init__(self, program: Program, first: int, last: int, weight: Single, plane: Single) -> None:
        rows = program.rows
        here = slice(rows.indptr[first], rows.indptr[last])
        self.part, self.reads = slice(first, last), program.inputs + first
        ends = rows.indptr[first : last + 1] - rows.indptr[first]
        shape = (last - first, self.reads)
        self.weights, self.planes = (
            sparse.csr_array((data[here], rows.indices[here], ends), shape) for data in (weight, plane)
        )
        self.to_weights, self.to_planes = self.weights.T, self.planes.T
        self.planes.data = self.to_planes.data = plane[here]  # scipy has copied a short view of a long array


def _signs(lam: Single) -> tuple[Single, Single]:
    """The positive and the negative part."""
    return np.maximum(lam, 0), np.minimum(lam, 0)


def _box(program: Program) -> tuple[Vector, Vector]:
    """Least and largest values (n+U,), (n+U,) of the variables."""
    low = np.concatenate([-np.ones(program.inputs), np.zeros(program.units)])
    return low, np.concatenate([np.ones(program.inputs), program.upper])
