"""How many outputs can be low at once: drawn programs against enumeration of units and of sets of outputs."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_programs import at, drawn, most_at_once, optimum, outputs_at, points

from corgi_opt.encode.counting import counting

COUNT = 3


def upper_of(program) -> np.ndarray:
    """Proven upper bounds of the outputs, by intervals."""
    held = program.outputs.toarray()
    high = np.r_[np.ones(program.inputs), program.upper]
    low = np.r_[-np.ones(program.inputs), np.zeros(program.units)]
    return np.maximum(held, 0) @ high + np.minimum(held, 0) @ low + program.output_constants


def thresholds(program, share: float) -> np.ndarray:
    """A share of the way from the lowest to the highest seen of each output."""
    seen = np.array([outputs_at(program, at(program, t)) for t in points(program, 60)])
    return seen.min(axis=0) + share * (seen.max(axis=0) - seen.min(axis=0))


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_minus_the_most_that_count_at_once(seed, share):
    program = drawn(seed, inputs=2, units=2, outputs=COUNT)
    delta = thresholds(program, share)
    found = optimum(counting(program, upper_of(program), delta))
    assert found == pytest.approx(-most_at_once(program, delta), abs=1e-6)


def test_the_cases_differ():
    found = set()
    for seed in range(4):
        program = drawn(seed, inputs=2, units=2, outputs=COUNT)
        found |= {most_at_once(program, thresholds(program, share)) for share in (0.1, 0.4)}
    assert len(found) > 1


def test_only_the_first_outputs_are_counted():
    program = drawn(2, outputs=COUNT)
    everything = upper_of(program) - 1e-6
    assert optimum(counting(program, upper_of(program)[:2], everything[:2])) == pytest.approx(-2, abs=1e-6)


def test_a_rival_that_counts_is_low_at_the_point_itself():
    program = drawn(1, outputs=COUNT)
    delta, upper = thresholds(program, 0.3), upper_of(program)
    problem = counting(program, upper, delta)
    for t in points(program, 20):
        v = at(program, t)
        low = outputs_at(program, v) <= delta
        point = np.r_[v, v[program.inputs :] > 0, low]
        assert problem.violation(point) < 1e-9
        for rival in np.flatnonzero(~low & (outputs_at(program, v) > delta + 1e-6)):
            lying = point.copy()
            lying[problem.n - COUNT + rival] = 1.0
            assert problem.violation(lying) > 1e-7
