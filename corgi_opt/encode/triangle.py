"""The triangle relaxation (Ehlers 2017): the best convex hull of each ReLU on its own.

With z in units of its width, l <= z <= u, u - l = 1, and s = relu(z):

    s >= 0,   s >= z,   s <= u (z - l)

Where a direct plane for a whole pooling window is tighter than the triangles of its differences, it is a row as well.
"""

from __future__ import annotations

import numpy as np
from corgi_solvers import Problem
from scipy import sparse

from corgi_opt.encode.norms import within_ball
from corgi_opt.encode.program import Program, cleared


def triangle(program: Program) -> Problem:
    """The LP whose optimum is the largest D(mu) of the first output over all multipliers, in units of its scale."""
    units, inputs = program.units, program.inputs
    s = sparse.csr_array((np.ones(units), (np.arange(units), inputs + np.arange(units))), shape=(units, inputs + units))
    scaled = program.rows.multiply(program.upper[:, None]).tocsr()
    above_z = program.rows - s  # z - s <= -constant
    below_chord = s - scaled  # s - u z <= u (constant - l)
    rows, upper = cleared(
        sparse.csr_array(sparse.vstack([above_z, below_chord, program.cuts])),
        np.concatenate(
            [
                program.slack - program.constants,
                program.upper * (program.constants - program.lower + program.slack),
                program.cut_upper,
            ]
        ),
    )
    problem = Problem(
        c=program.outputs[[0]].toarray()[0],
        offset=float(program.output_constants[0]),
        A=rows,
        row_lower=np.full(len(upper), -np.inf),
        row_upper=upper,
        col_lower=np.concatenate([-np.ones(inputs), np.zeros(units)]),
        col_upper=np.concatenate([np.ones(inputs), program.upper]),
        integrality=np.zeros(inputs + units, dtype=bool),
    )
    return within_ball(program, problem)
