"""The exact big-M encoding (Tjeng, Xiao & Tedrake 2019): one binary per unstable ReLU, proven bounds as the M.

With z in units of its width, l <= z <= u, u - l = 1, s = relu(z) and d in {0, 1} saying that the unit is on:

    s >= 0,   s >= z,   s <= z - l (1 - d),   s <= u d

Its continuous relaxation is the triangle.
"""

from __future__ import annotations

import numpy as np
from corgi_solvers import Problem
from scipy import sparse

from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.norms import within_ball
from corgi_opt.encode.program import Program, cleared


def big_m(program: Program) -> Problem:
    """The MILP whose optimum is the exact minimum of the first output over the region, in units of its scale."""
    units, inputs = program.units, program.inputs
    n = inputs + 2 * units
    unit = np.arange(units)

    def at(values: Vector, start: int) -> sparse.csr_array:
        return sparse.csr_array((values, (unit, start + unit)), shape=(units, n))

    ones = np.ones(units)
    z = sparse.csr_array(sparse.hstack([program.rows, sparse.csr_array((units, units))]))
    s, d_l, d_u = at(ones, inputs), at(program.lower, inputs + units), at(program.upper, inputs + units)
    stacked = [
        z - s,  # <= -constant
        s - z - d_l,  # <= constant - l
        s - d_u,  # <= 0
    ]
    rows, upper = cleared(
        sparse.csr_array(sparse.vstack(stacked)),
        np.concatenate(
            [
                program.slack - program.constants,
                program.constants - program.lower + program.slack,
                np.zeros(units),
            ]
        ),
    )
    problem = Problem(
        c=np.concatenate([program.outputs[[0]].toarray()[0], np.zeros(units)]),
        offset=float(program.output_constants[0]),
        A=rows,
        row_lower=np.full(3 * units, -np.inf),
        row_upper=upper,
        col_lower=np.concatenate([-np.ones(inputs), np.zeros(2 * units)]),
        col_upper=np.concatenate([np.ones(inputs), program.upper, ones]),
        integrality=np.concatenate([np.zeros(inputs + units, dtype=bool), np.ones(units, dtype=bool)]),
    )
    return within_ball(program, problem)
