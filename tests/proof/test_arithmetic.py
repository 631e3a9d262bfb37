"""Floats whose rounding is counted, and fractions that have none: both against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from corgi_opt.proof.arithmetic import Exact, Float64, keeps_denormals

LARGEST = float(np.finfo(np.float64).max)


def fractions(values: object) -> list[Fraction]:
    return [Fraction(v) for v in np.asarray(values).flatten().tolist()]


@pytest.mark.parametrize("n", [1, 2, 7, 50, 400])
@pytest.mark.parametrize("decades", [0, 8])
def test_gamma_bounds_the_rounding_of_a_sum_in_any_order(n, decades):
    rng = np.random.default_rng(n)
    gamma = Fraction(Float64().gamma(n))
    for _ in range(20):
        a, b = (rng.normal(size=n) * 10.0 ** rng.uniform(-decades, decades, n) for _ in range(2))
        exact = sum((x * y for x, y in zip(fractions(a), fractions(b), strict=True)), Fraction(0))
        size = sum((abs(x * y) for x, y in zip(fractions(a), fractions(b), strict=True)), Fraction(0))
        one_by_one = 0.0
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            one_by_one += x * y
        for found in (float(a @ b), float((a * b).sum()), one_by_one):
            assert abs(Fraction(found) - exact) <= gamma * size


def test_gamma_is_about_n_roundings_and_above_their_closed_form():
    for n in (1, 100, 10**6):
        exact = Fraction(n, 2**53) / (1 - Fraction(n, 2**53))
        assert exact <= Fraction(Float64().gamma(n)) <= 2 * exact
    with pytest.raises(OverflowError):
        Float64().gamma(2**41)
    assert Exact().gamma(10**9) == 0


def test_tiny_bounds_what_underflows():
    assert Float64().tiny == math.ulp(0.0) and Exact().tiny == 0
    assert keeps_denormals()


def test_fractions_are_the_very_floats():
    values = np.array([[0.1, -0.0], [5e-324, LARGEST]])
    found = Exact().of(values)
    assert found.shape == (2, 2) and found.flatten().tolist() == fractions(values)
    for bad in (math.inf, -math.inf, math.nan):
        with pytest.raises(OverflowError):
            Exact().of([bad])


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(-1, 3), Fraction(2**53 + 1), Fraction(1, 10**400), 7])
def test_down_and_up_are_the_floats_around_a_number(value):
    exact, held = Exact(), np.array([value], dtype=object)
    low, high = (float(side(held)[0]) for side in (exact.down, exact.up))
    assert Fraction(low) <= value <= Fraction(high)
    assert high in (low, math.nextafter(low, math.inf))
    assert (low == high) == (Fraction(low) == value)


def test_what_is_beyond_the_floats_is_bounded_on_its_side():
    huge = np.array([Fraction(10) ** 400, -(Fraction(10) ** 400)], dtype=object)
    assert Exact().down(huge).tolist() == [LARGEST, -math.inf]
    assert Exact().up(huge).tolist() == [math.inf, -LARGEST]


def test_a_float_among_fractions_is_found():
    for operation in (Exact().down, Exact().root):
        with pytest.raises(TypeError, match="no exact number"):
            operation(np.array([Fraction(1), 0.5], dtype=object))


@pytest.mark.parametrize("square", [0.0, 2.0, 4.0, 1e-300, 3e200, 5e-324])
def test_roots_are_not_too_small(square):
    floats, exact = Float64().root(np.array([square])), Exact().root(Exact().of([square]))
    for root in (Fraction(float(floats[0])), exact[0]):
        assert root**2 >= Fraction(square)
    if square:
        assert exact[0] ** 2 <= Fraction(square) * (1 + Fraction(1, 2**150))
        assert float(floats[0]) <= math.sqrt(square) * (1 + 2**-50) + 5e-324
    else:
        assert exact[0] == 0
