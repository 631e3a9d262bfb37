"""Sums of floats are bounded from below whatever their order and size; in fractions they are exact."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.tally import Tally


def terms(seed: int, decades: float) -> list[np.ndarray]:
    """Of three sums: some blocks of terms, which cancel nearly."""
    rng = np.random.default_rng(seed)
    blocks = []
    for size in (1, 7, 400):
        some = rng.normal(size=(3, size)) * 10.0 ** rng.uniform(-decades, decades, (3, size))
        blocks += [some, -some * (1 + rng.normal(size=some.shape) * 1e-12)]
    return blocks


def exactly(blocks: list[np.ndarray]) -> list[Fraction]:
    return [sum((Fraction(v) for b in blocks for v in b[row].tolist()), Fraction(0)) for row in range(3)]


@pytest.mark.parametrize("decades", [0.0, 6.0, 140.0])
@pytest.mark.parametrize("seed", range(3))
def test_never_above_the_exact_sum_and_close(seed, decades):
    tally, blocks = Tally(Float64(), 3), terms(seed, decades)
    for block in blocks:
        tally.add(block.reshape(3, 1, -1))
    for low, exact, doubt, size in zip(tally.lower, exactly(blocks), tally.uncertain, tally.size, strict=True):
        assert Fraction(float(low)) <= exact
        assert exact - Fraction(float(low)) <= 3 * Fraction(float(doubt)) + Fraction(5e-324)
        assert doubt <= 1e-12 * size + 1e-320


def test_in_fractions_it_is_the_sum_rounded_down():
    tally, blocks = Tally(Exact(), 3), terms(0, 6.0)
    for block in blocks:
        tally.add(Exact().of(block))
    assert tally.value.tolist() == exactly(blocks)
    for low, exact in zip(tally.lower, exactly(blocks), strict=True):
        assert Fraction(low) <= exact < Fraction(math.nextafter(low, math.inf))


@pytest.mark.parametrize("arithmetic", [Float64(), Exact()])
def test_what_else_may_be_off_is_taken_off(arithmetic):
    tally = Tally(arithmetic, 2)
    tally.add(arithmetic.of([[1.0], [1.0]]))
    tally.may_be_off(arithmetic.of([0.25, 0.0]))
    tally.may_be_off(arithmetic.of([0.125])[0])
    assert tally.lower[0] == pytest.approx(0.625, abs=1e-6) and tally.lower[0] <= 0.625
    assert tally.lower[1] == pytest.approx(0.875, abs=1e-6) and tally.lower[1] <= 0.875


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_overflows_proves_nothing(bad):
    tally = Tally(Float64(), 2)
    tally.add(np.array([[1.0, bad], [1.0, 1.0]]))
    with np.errstate(all="ignore"):  # as the checker calculates
        lower = tally.lower
    assert lower[0] == -math.inf and lower[1] > 1.9


def test_products_that_underflow_are_counted():
    """Each term is the float 0, but may stand for a product of almost half the smallest float."""
    tally = Tally(Float64(), 1)
    tally.add(np.zeros((1, 1000)))
    assert Fraction(float(tally.lower[0])) <= -500 * Fraction(math.ulp(0.0))
