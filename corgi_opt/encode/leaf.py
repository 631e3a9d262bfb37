"""One phase pattern as a linear program: the triangle relaxation, with exact rows for units that are on or off.

With z in units of its width and s = relu(z), and a penalty on every e >= 0:

    open:  z - e <= s <= u (z - l) + e
    on:    z - e <= s <= z + e,  s >= 0
    off:   s = 0,  z <= e

So the program is always feasible and its optimum is no higher than the pattern's; for a pattern that no image has, it
rises with the penalty. (No solver's "infeasible" has to be believed.)
"""

from __future__ import annotations

import numpy as np
from corgi_solvers import Problem
from numpy.typing import NDArray
from scipy import sparse

from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.norms import within_ball
from corgi_opt.encode.program import Program, cleared


def leaf(program: Program, goal: int, phases: NDArray[np.int8], penalty: float) -> Problem:
    """The LP of output ``goal`` under ``phases`` (U,), in units of its scale, over columns ``[t, s, e]`` (n + 2U)."""
    units, inputs = program.units, program.inputs
    on, off, open_ = phases > 0, phases < 0, phases == 0
    unit = np.arange(units)

    def rows(z: Vector, s: Vector, e: Vector) -> sparse.csr_array:
        """``z * pre-activation + s * activation + e * excess`` of every unit."""
        own = sparse.csr_array(
            (np.concatenate([s, e]), (np.tile(unit, 2), np.concatenate([inputs + unit, inputs + units + unit]))),
            shape=(units, inputs + 2 * units),
        )
        wide = sparse.hstack([program.rows, sparse.csr_array((units, units))])
        return sparse.csr_array(sparse.diags_array(z) @ wide + own)

    one, c, slack = np.ones(units), program.constants, program.slack
    parts = [
        (rows(one, -one, -one), slack - c, open_ | on),
        (rows(-program.upper, one, -one), program.upper * (c - program.lower + slack), open_),
        (rows(-one, one, -one), c + slack, on),
        (rows(one, np.zeros(units), -one), slack - c, off),
    ]
    matrix, upper = cleared(
        sparse.csr_array(sparse.vstack([r[mask] for r, _, mask in parts])),
        np.concatenate([u[mask] for _, u, mask in parts]),
    )
    most = 3 + abs(program.rows).sum(axis=1) + np.abs(c)  # an excess that makes up for any z
    problem = Problem(
        c=np.concatenate([program.outputs[[goal]].toarray()[0], np.full(units, penalty)]),
        offset=float(program.output_constants[goal]),
        A=matrix,
        row_lower=np.full(len(upper), -np.inf),
        row_upper=upper,
        col_lower=np.concatenate([-np.ones(inputs), np.zeros(2 * units)]),
        col_upper=np.concatenate([np.ones(inputs), np.where(off, 0.0, program.upper), most]),
        integrality=np.zeros(inputs + 2 * units, dtype=bool),
    )
    return within_ball(program, problem)


def leaf_multipliers(program: Program, phases: NDArray[np.int8], row_dual: Vector) -> Vector:
    """mu (U,) of every unit, from the multipliers of a leaf's rows: the sum of what they put on its pre-activation."""
    on, off, open_ = phases > 0, phases < 0, phases == 0
    mu = np.zeros(program.units)
    start = 0
    for mask, z in ((open_ | on, 1.0), (open_, -program.upper), (on, -1.0), (off, 1.0)):
        count = int(mask.sum())
        mu[mask] -= row_dual[start : start + count] * np.broadcast_to(z, mask.shape)[mask]
        start += count
    return mu
