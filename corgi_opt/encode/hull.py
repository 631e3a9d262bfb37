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
from scipy import sparse
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import Program

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
    share, mix, below = _ascended(program, enough, steps, deadline, start)
    rows = program.rows
    share = share.clamp(0, 1)  # so that a plane's coefficients are no larger than its row's
    slopes = sparse.csr_array((rows.data * share.double().numpy(), rows.indices, rows.indptr), rows.shape)
    return HullPlanes(slopes, _shifts(program, slopes), mix.double().numpy(), below.double().numpy())


def _shifts(program: Program, slopes: sparse.csr_array) -> Vector:
    low, high = _box(program)

    def most(a: sparse.csr_array) -> Vector:
        return np.asarray(a.maximum(0) @ high + a.minimum(0) @ low)

    on = most(sparse.csr_array(program.rows - slopes)) + program.constants + program.slack
    # slack once more: what is computed with a plane rounds like what is computed with its row
    return np.maximum(most(sparse.csr_array(-slopes)), on) + program.slack


@torch.enable_grad()  # callers may be inside no_grad
def _ascended(
    program: Program, enough: float, steps: int, deadline: Deadline, start: HullPlanes | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of each nonzero of ``program.rows`` that its plane has; mixes and slopes below (U,) of the units."""

    def tensor(values: Vector) -> Tensor:
        return torch.from_numpy(values).float()

    rows, inputs = program.rows, program.inputs
    column = torch.from_numpy(rows.indices).long()
    unit = torch.from_numpy(np.repeat(np.arange(program.units), np.diff(rows.indptr)))
    weight, constant, lower, upper = (tensor(v) for v in (rows.data, program.constants, program.lower, program.upper))
    low, high = (tensor(side)[column] for side in _box(program))
    chord = upper / (upper - lower)
    slope, share, mix = (chord > 0.5).float(), chord[unit], torch.full_like(chord, 0.5)
    if start is not None:
        slope, mix = tensor(start.below), tensor(start.mixes)
        share = tensor(start.slopes.data) / weight  # nonzeros of both stand in the same places
    searched = [p.requires_grad_(True) for p in (slope, share, mix)]
    fast = RATE if start is None else RATE_ON
    adam = torch.optim.Adam(searched, lr=fast)
    costs = tensor(program.outputs[[0]].toarray()[0])
    for step in range(steps if program.units else 0):
        adam.param_groups[0]["lr"] = fast * (LAST_RATE / fast) ** (step / max(1, steps - 1))
        plane = share * weight
        rest = weight - plane
        off = torch.zeros_like(chord).index_add(0, unit, torch.maximum(-plane * low, -plane * high))
        on = constant.index_add(0, unit, torch.maximum(rest * low, rest * high))
        shift = chord * (1 - mix) * (constant - lower) + mix * torch.maximum(off, on)
        lam, value = costs, costs.new_tensor(float(program.output_constants[0]))
        for first, last in reversed(layers(program)):
            part, here = slice(first, last), slice(rows.indptr[first], rows.indptr[last])
            positive = lam[inputs + first : inputs + last].clamp(min=0)
            negative = lam[inputs + first : inputs + last].clamp(max=0)
            value = value + (positive * slope[part] * constant[part] + negative * shift[part]).sum()
            chords = positive * slope[part] + negative * chord[part] * (1 - mix[part])
            own = unit[here] - first
            passed = chords[own] * weight[here] + (negative * mix[part])[own] * plane[here]
            lam = lam.index_add(0, column[here], passed)
        value = value - lam[:inputs].abs().sum()  # over the box around a ball: a search needs no more
        if float(value.detach()) > enough or deadline.over:
            break
        adam.zero_grad()
        (-value).backward()
        adam.step()
        with torch.no_grad():
            for p in searched:
                p.clamp_(0, 1)
    return share.detach(), mix.detach(), slope.detach()


def _box(program: Program) -> tuple[Vector, Vector]:
    """Least and largest values (n+U,), (n+U,) of the variables."""
    low = np.concatenate([-np.ones(program.inputs), np.zeros(program.units)])
    return low, np.concatenate([np.ones(program.inputs), program.upper])
