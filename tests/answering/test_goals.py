"""How far a margin has to be bounded: goals against every margin and value met, drawn at random."""

from __future__ import annotations

import math

import pytest

from corgi_opt.answering.goals import Halved, Sign, Value

MARGINS = [(-math.inf, 1.0), (-2.0, 1.0), (-2.0, -1.0), (0.5, 1.0), (1.0, 1.0), (-1e-9, 1e-9)]


@pytest.mark.parametrize(("margin", "met"), MARGINS)
def test_a_sign_is_known_when_either_side_says_so(margin, met):
    assert Sign().reached(margin, met) == (margin > 0 or met <= 0)
    assert Sign().level(margin, met, exact=True) == Sign().level(margin, met, exact=False) == 0.0
    assert Sign().ends(exact=True) and Sign().ends(exact=False)


@pytest.mark.parametrize(("margin", "met"), MARGINS)
@pytest.mark.parametrize("kind", [Value, Halved])
def test_a_value_is_bracketed_to_within_its_tolerance(kind, margin, met):
    """An oracle that decides every level: what it proves becomes the margin, what it breaks the value met."""
    goal, truth, steps = kind(0.01), met - 0.37, 0
    low, high = min(margin, truth), met
    assert goal.level(low, high, exact=True) > -math.inf
    while not goal.reached(low, high) and (level := goal.level(low, high, exact=True)) > low:
        low, high = (level, high) if truth > level else (low, max(truth, level - 0.005))
        steps += 1
        assert low <= truth <= high
    assert high - low <= 0.01 + 1e-12 and steps < 200
    assert goal.level(margin, met, exact=False) == met
    assert goal.ends(exact=True) and not goal.ends(exact=False)


def test_halves_are_fewer_steps_where_the_first_image_is_far_from_the_worst():
    steps = {}
    for kind in (Value, Halved):
        goal, truth, low, high = kind(0.01), -40.0, -100.0, 1.0
        count = 0
        while (level := goal.level(low, high, exact=True)) > low:
            low, high = (level, high) if truth > level else (low, level)
            count += 1
        steps[kind] = count
    assert steps[Halved] < 20 < steps[Value]
