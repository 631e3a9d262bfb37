"""How many of a group's atoms can fail at once: the big-M encoding with one more binary per atom.

With atoms g_r (outputs of the program; of a top-k set the lead of a pixel over a rival), proven ``g_r <= u_r``, and b_r
in {0, 1} saying that r counts:

    maximise sum b_r   over   g_r <= delta_r + (u_r - delta_r) (1 - b_r)

An atom counts where it is delta_r or less; with delta_r > 0 rounding errs on the safe side.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from corgi_solvers import Problem
from scipy import sparse

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import Program, cleared


def counting(program: Program, upper: Vector, delta: Vector) -> Problem:
    """The MILP whose optimum is minus the number of the first R outputs that can count at once.

    ``upper``, ``delta`` (R,): in units of each output's scale, ``upper > delta``.
    """
    base, count = big_m(program), len(upper)
    wide = sparse.csr_array((count, base.n - program.outputs.shape[1]))
    rows, row_upper = cleared(
        sparse.csr_array(sparse.hstack([program.outputs[:count], wide, sparse.diags_array(upper - delta)])),
        upper - program.output_constants[:count],
    )
    return replace(
        base,
        c=np.concatenate([np.zeros(base.n), -np.ones(count)]),
        offset=0.0,
        A=sparse.csr_array(sparse.vstack([sparse.hstack([base.A, sparse.csr_array((base.m, count))]), rows])),
        row_lower=np.concatenate([base.row_lower, np.full(count, -np.inf)]),
        row_upper=np.concatenate([base.row_upper, row_upper]),
        col_lower=np.concatenate([base.col_lower, np.zeros(count)]),
        col_upper=np.concatenate([base.col_upper, np.ones(count)]),
        integrality=np.concatenate([base.integrality, np.ones(count, dtype=bool)]),
    )
