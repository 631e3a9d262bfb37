"""One phase pattern as a linear program: the triangle relaxation where units that are on or off have lost their hull.

With z in units of its width and s = relu(z), a unit that is on has ``s = z`` and one that is off ``s = 0``. That z has
the sign of its phase is asked for with a penalty, at ``e`` in [0, 1]:  ``z + e >= 0`` (on), ``z - e <= 0`` (off). So
the program always has a point, its optimum is no higher than the pattern's, and for a pattern that no image has it
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
        """``z * pre-activation + s * activation + e * broken`` of every unit."""
        own = sparse.csr_array(
            (np.concatenate([s, e]), (np.tile(unit, 2), np.concatenate([inputs + unit, inputs + units + unit]))),
            shape=(units, inputs + 2 * units),
        )
        wide = sparse.hstack([program.rows, sparse.csr_array((units, units))])
        return sparse.csr_array(sparse.diags_array(z) @ wide + own)

    one, c, slack = np.ones(units), program.constants, program.slack
    zero = np.zeros(units)
    parts = [
        (rows(one, -one, zero), slack - c, open_ | on),  # s >= z
        (rows(-program.upper, one, zero), program.upper * (c - program.lower + slack), open_),  # s <= u (z - l)
        (rows(-one, one, zero), c + slack, on),  # s <= z
        (rows(-one, zero, -one), c + slack, on),  # z + e >= 0
        (rows(one, zero, -one), slack - c, off),  # z - e <= 0
    ]
    matrix, upper = cleared(
        sparse.csr_array(sparse.vstack([r[mask] for r, _, mask in parts])),
        np.concatenate([u[mask] for _, u, mask in parts]),
    )
    problem = Problem(
        c=np.concatenate([program.outputs[[goal]].toarray()[0], penalty * ~open_]),
        offset=float(program.output_constants[goal]),
        A=matrix,
        row_lower=np.full(len(upper), -np.inf),
        row_upper=upper,
        # a unit that is on may dip below zero as far as e lets it
        col_lower=np.concatenate([-np.ones(inputs), np.where(on, -1.0, 0.0), zero]),
        col_upper=np.concatenate([np.ones(inputs), np.where(off, 0.0, program.upper), one]),
        integrality=np.zeros(inputs + 2 * units, dtype=bool),
    )
    return within_ball(program, problem)
