"""The big-M encoding of drawn programs: every input is a point of it, and its optimum that of enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_programs import at, drawn, least, optimum, outputs_at, points

from corgi_opt.encode.big_m import big_m

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_its_optimum_is_that_of_enumeration(seed):
    program = drawn(seed)
    assert optimum(big_m(program)) == pytest.approx(least(program), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_input_is_a_point_with_the_value_of_its_output(seed):
    program = drawn(seed)
    problem = big_m(program)
    for t in points(program, 30):
        v = at(program, t)
        point = np.r_[v, v[program.inputs :] > 0]
        assert problem.violation(point) < 1e-9
        assert problem.objective(point) == pytest.approx(outputs_at(program, v)[0], abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_binary_that_lies_about_its_unit_is_no_point(seed):
    program = drawn(seed)
    problem = big_m(program)
    for t in points(program, 10):
        v = at(program, t)
        z = program.rows.toarray() @ v + program.constants
        for unit in np.flatnonzero(np.abs(z) > 1e-3):
            on = v[program.inputs :] > 0
            on[unit] = ~on[unit]
            assert problem.violation(np.r_[v, on]) > 1e-4


def test_without_units_it_is_a_box():
    program = drawn(0, inputs=3, units=0)
    problem = big_m(program)
    assert (problem.m, problem.n, problem.is_mip) == (0, 3, False)
    held = program.outputs.toarray()[0]
    assert optimum(problem) == pytest.approx(program.output_constants[0] - np.abs(held).sum(), abs=1e-9)
