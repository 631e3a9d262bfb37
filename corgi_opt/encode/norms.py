"""Restricts the box of a program to its ball: by rows for an L1 ball, a cone for an L2 ball, not at all for L-inf.

With ``d = reach * t + shift`` the distance of each input to the centre in units of eps:

    L1:  a >= d,  a >= -d,  sum a <= 1      (one more column per input)
    L2:  ||d||_2 <= 1
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from corgi_solvers import NormBall, Problem
from scipy import sparse

from corgi_opt.encode.program import TINY, Program, cleared


def within_ball(program: Program, problem: Problem) -> Problem:
    """``problem``, whose first columns are the inputs of ``program``, over the region itself instead of its box."""
    if program.norm == "inf" or not program.inputs:
        return problem
    n = program.inputs
    if program.norm == "2":
        moved = program.reach > TINY  # an input whose box is narrower than TINY counts as unmoved
        columns = np.flatnonzero(moved)
        return replace(problem, balls=(NormBall(columns, program.reach[moved], program.shift[moved], 1.0),))
    # coefficients below TINY are cleared and their rows relaxed: such an input counts as unmoved
    d, shift = cleared(sparse.csr_array(sparse.diags_array(program.reach)), np.zeros(n))
    wide, one = sparse.csr_array((n, problem.n - n)), -sparse.eye_array(n)
    rows = [
        sparse.hstack([problem.A, sparse.csr_array((problem.m, n))]),
        sparse.hstack([d, wide, one]),
        sparse.hstack([-d, wide, one]),
        sparse.hstack([sparse.csr_array((1, problem.n)), np.ones((1, n))]),
    ]
    return replace(
        problem,
        c=np.concatenate([problem.c, np.zeros(n)]),
        A=sparse.csr_array(sparse.vstack(rows)),
        row_lower=np.concatenate([problem.row_lower, np.full(2 * n + 1, -np.inf)]),
        row_upper=np.concatenate([problem.row_upper, shift - program.shift, shift + program.shift, [1.0]]),
        col_lower=np.concatenate([problem.col_lower, np.zeros(n)]),
        col_upper=np.concatenate([problem.col_upper, np.ones(n)]),
        integrality=np.concatenate([problem.integrality, np.zeros(n, dtype=bool)]),
    )
