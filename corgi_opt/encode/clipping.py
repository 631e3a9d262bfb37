"""Output-constraint clipping: bounds of units that hold for counterexamples alone.

Only an image whose output is at most the goal can break an atom, so every pre-activation may be bounded over those
images only. Let ``f(x) >= lam't + kappa`` be a bound of the output and ``z(x) >= a't + alpha`` one of a pre-activation
(or of a negated one), t the image's variables. For any g >= 0 and any image with f(x) <= goal

    z(x) >= z(x) + g (f(x) - goal) >= alpha + g (kappa - goal) + min over the region of (a + g lam)'t,

which is concave in g (for a box the minimum is ``-||a + g lam||_1``). g is searched in the floats of the bounds given,
and any g proves what it proves: the value counts in float64, less what its own sums round.

Bounds that are clipped hold for the counterexamples of one output at one goal, and for nothing else. So they never
leave this module but in a :class:`Clipped`, which a search for such counterexamples takes, and whose bounds of the
output count up to the goal only: an image above the goal is none that they speak of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from corgi_opt.bounding.tolerance import gamma
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.phases import Below, PhaseBounds
from corgi_opt.encode.program import NARROW, Program

SEARCHED = 14
"""Halvings of the interval that holds the best g, on a logarithmic scale."""

RANGE = 1e6
"""The least g looked at is so many times less than the largest that can be best."""


@dataclass(frozen=True, eq=False)
class Clipped:
    """A program whose intervals hold for images with a first output of at most ``goal``, in units of its scale.

    ``phases`` (U,): 1 or -1 for units that are on or off in all of these. ``empty``: there is none such image.
    """

    program: Program
    goal: float
    phases: NDArray[np.int8]
    empty: bool = False

    def capped(self, lower: float) -> float:
        """A lower bound of the output over the whole region, from one over the images that this is about."""
        return min(lower, self.goal)


def best_shares(bounds: PhaseBounds, units: Below, output: Below, goal: float) -> Tensor:
    """The g (R,) that clip functionals ``units`` (R of them) best, by halving on the sign of the derivative.

    The derivative at g is ``kappa - goal + lam't`` at the region's t where ``(a + g lam)'t`` is least (Danskin).
    """
    lam = output.coefs
    away = float(output.constants[0]) - goal
    gap = -(away + float(bounds.least(lam)[0]))  # > 0, or the output is above the goal everywhere
    most = (2 * units.coefs.abs().sum(dim=0) / max(gap, 1e-12)).clamp(min=1e-12)
    low, high = (most / RANGE).log(), most.log()
    for _ in range(SEARCHED):
        g = ((low + high) / 2).exp()
        rises = away + (lam * bounds.lowest(units.coefs + g * lam)).sum(dim=0) > 0
        low, high = torch.where(rises, (low + high) / 2, low), torch.where(rises, high, (low + high) / 2)
    return low.exp()


def clipped_below(bounds: PhaseBounds, units: Below, output: Below, goal: float, shares: Tensor) -> Tensor:
    """Lower bounds (R,) of the functionals over images with an output of at most ``goal``; in float64 proven."""
    away = output.constants[0] - goal
    coefs = units.coefs + shares * output.coefs
    value = units.constants + shares * away + bounds.least(coefs)
    # sums of n products of order one each, and the sum of the two bounds
    size = (units.coefs.abs() + shares * output.coefs.abs()).sum(dim=0)
    size = size + units.constants.abs() + shares * (output.constants[0].abs() + abs(goal))
    return torch.nan_to_num(value - gamma(len(coefs) + 8) * size, nan=-math.inf)


def within(program: Program, lower: Vector, upper: Vector, goal: float) -> Clipped:
    """The program with its units' intervals met with ``lower``, ``upper`` (U,), which hold for images with an output of
    at most ``goal``; all in the program's own units."""
    low, high = np.maximum(lower, program.lower), np.minimum(upper, program.upper)
    if (low > high).any():
        return Clipped(program, goal, np.zeros(program.units, dtype=np.int8), empty=True)
    phases = np.where(low >= 0, 1, np.where(high <= 0, -1, 0)).astype(np.int8)
    # an interval holds zero and is not too narrow for a solver, whatever the phase says of it
    low, high = np.minimum(low, -NARROW), np.maximum(high, NARROW)
    width = high - low
    ones = np.ones(program.inputs)
    columns = np.concatenate([ones, width])
    rows, outputs = scaled(program.rows, 1 / width, columns), scaled(program.outputs, None, columns)
    constants = program.constants / width
    rounded = gamma(2) * (np.asarray(abs(rows).sum(axis=1)) + np.abs(constants) + 1)
    return Clipped(
        replace(
            program,
            rows=rows,
            constants=constants,
            slack=program.slack / width + rounded,
            lower=low / width,
            upper=high / width,
            widths=program.widths * width,
            grown=program.grown / width,
            cuts=scaled(program.cuts, None, columns),
            outputs=outputs,
            residue=program.residue + gamma(2) * np.asarray(abs(outputs).sum(axis=1)),
        ),
        goal,
        phases,
    )


def scaled(rows: sparse.csr_array, by: Vector | None, columns: Vector) -> sparse.csr_array:
    """Rows times ``by`` (their number, or None) and ``columns``, with the same nonzeros in the same places."""
    data = rows.data * columns[rows.indices]
    if by is not None:
        data = data * np.repeat(by, np.diff(rows.indptr))
    return sparse.csr_array((data, rows.indices, rows.indptr), rows.shape)
