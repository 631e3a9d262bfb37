"""Rows that keep further outputs from being negative: drawn programs against enumeration with the same demand."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_programs import at, drawn, least, optimum, outputs_at, points

from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.premise_rows import premised
from corgi_opt.encode.triangle import triangle

NONE = np.zeros(3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [1, 2])
def test_the_optimum_is_the_least_where_the_premises_hold(seed, first):
    program = drawn(seed, outputs=3)
    expected = least(program, held=first)
    problem = premised(program, big_m(program), NONE, first)
    if np.isinf(expected):
        with pytest.raises(AssertionError):
            optimum(problem)
        return
    assert optimum(problem) == pytest.approx(expected, abs=1e-6)
    assert optimum(premised(program, triangle(program), NONE, first)) <= expected + 1e-6


def test_some_premises_matter_and_some_are_met_by_nothing():
    gaps = [least(drawn(seed, outputs=3), held=1) - least(drawn(seed, outputs=3)) for seed in range(5)]
    assert max(g for g in gaps if np.isfinite(g)) > 0.1


def test_an_input_is_a_point_iff_it_satisfies_them_to_within_their_errors():
    program, errors = drawn(0, outputs=3), np.array([0.0, 0.2, -0.2])
    problem = premised(program, big_m(program), errors, 1)
    seen = set()
    for t in points(program, 60):
        v = at(program, t)
        allowed = bool((outputs_at(program, v)[1:] >= -errors[1:]).all())
        assert (problem.violation(np.r_[v, v[program.inputs :] > 0]) < 1e-9) == allowed
        seen.add(allowed)
    assert seen == {False, True}
