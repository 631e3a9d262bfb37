"""Rows that restrict an encoding to images that satisfy the premises.

With the premises ``h_t`` (that the class is kept: ``logit_c - logit_t``) as further outputs of the program:
``h_t >= 0`` for each of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from corgi_solvers import Problem
from scipy import sparse

from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.program import Program, cleared


def premised(program: Program, problem: Problem, errors: Vector, first: int) -> Problem:
    """``problem``, an encoding of ``program``, where all outputs (F,) from ``first`` on are not negative.

    ``errors`` (F,): how far an output may be off by rounding, in its own unit; a row is relaxed by as much.
    """
    held = program.outputs[first:]
    wide = sparse.csr_array((held.shape[0], problem.n - held.shape[1]))
    rows, upper = cleared(
        sparse.csr_array(sparse.hstack([-held, wide])), program.output_constants[first:] + errors[first:]
    )
    return replace(
        problem,
        A=sparse.csr_array(sparse.vstack([problem.A, rows])),
        row_lower=np.concatenate([problem.row_lower, np.full(len(upper), -np.inf)]),
        row_upper=np.concatenate([problem.row_upper, upper]),
    )
