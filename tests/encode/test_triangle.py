"""The triangle relaxation of drawn programs: no looser than the hull of each unit, and never above the minimum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from drawn_programs import at, drawn, least, optimum, outputs_at, points
from scipy import sparse

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.triangle import triangle

SEEDS = range(6)


def of_one_unit(program) -> float:
    """The LP's minimum in closed form: with a positive weight the unit is itself, with a negative one its chord."""
    held, row = program.outputs.toarray()[0], program.rows.toarray()[0]
    if held[program.inputs] >= 0:
        return least(program)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=program.inputs)))
    z = corners @ row[: program.inputs] + program.constants[0]
    chord = program.upper[0] * (z - program.lower[0]) / (program.upper[0] - program.lower[0])
    return float((corners @ held[: program.inputs] + held[program.inputs] * chord).min()) + program.output_constants[0]


def test_of_one_unit_it_is_the_hull():
    found = {np.sign(drawn(seed, units=1).outputs.toarray()[0, 2]) for seed in SEEDS}
    assert found == {-1.0, 1.0}
    for seed in SEEDS:
        program = drawn(seed, units=1)
        assert optimum(triangle(program)) == pytest.approx(of_one_unit(program), abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_the_relaxation_of_the_milp(seed):
    program = drawn(seed)
    relaxed = replace(big_m(program), integrality=np.zeros(program.inputs + 2 * program.units, dtype=bool))
    assert optimum(triangle(program)) == pytest.approx(optimum(relaxed), abs=1e-7)
    assert optimum(triangle(program)) <= least(program) + 1e-7


@pytest.mark.parametrize("seed", SEEDS)
def test_every_input_is_a_point_with_the_value_of_its_output(seed):
    program = drawn(seed)
    problem = triangle(program)
    assert not problem.is_mip
    for t in points(program, 30):
        v = at(program, t)
        assert problem.violation(v) < 1e-9
        assert problem.objective(v) == pytest.approx(outputs_at(program, v)[0], abs=1e-12)


def test_a_cut_is_a_row_as_it_is():
    program = drawn(1)
    v = triangle(program)
    plane = sparse.csr_array(program.outputs)
    limit = optimum(v) - program.output_constants[0] + 0.05
    cut = triangle(replace(program, cuts=-plane, cut_upper=np.array([-limit])))
    assert optimum(cut) == pytest.approx(optimum(v) + 0.05, abs=1e-7)
