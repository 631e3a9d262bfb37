"""Least values of linear functionals over a region, against exact optima and feasible points in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.region import Norm, Region, add_minimum
from corgi_opt.proof.tally import Tally

NORMS: tuple[Norm, ...] = ("inf", "1", "2")


def drawn(rng: np.random.Generator, decades: float) -> tuple[Region, np.ndarray]:
    """A region of a few inputs, some of them at an end of the box, and coefficients (R, N)."""
    count = int(rng.integers(1, 6))
    center = rng.normal(0, 1, (1, 1, count)) * 10.0 ** rng.uniform(-decades, decades)
    eps = float(np.abs(center).max() * 10.0 ** rng.uniform(-4, 1))
    clip = None
    if rng.random() < 0.7:
        clip = (float(center.min() - rng.choice([0, 0.5]) * eps), float(center.max() + rng.choice([0, 1.5]) * eps))
        clip = clip if clip[0] < clip[1] else None
    lam = rng.normal(0, 1, (4, count)) * 10.0 ** rng.uniform(-decades, decades, (4, count))
    return Region(center, eps, NORMS[rng.integers(3)], clip), lam * (rng.random((4, count)) < 0.9)


def found(region: Region, lam: np.ndarray, arithmetic: Float64 | Exact) -> np.ndarray:
    tally = Tally(arithmetic, len(lam))
    center, lower, upper = (m.reshape(1, -1) for m in (region.center, region.lower, region.upper))
    add_minimum(tally, region.norm, region.eps, arithmetic.of(lam), center, lower, upper, arithmetic)
    return tally.lower


def room(region: Region, row: list[Fraction]) -> list[Fraction]:
    """How far each input may go the way that lowers the functional."""
    eps = Fraction(region.eps)
    far = []
    for c, a in zip((Fraction(v) for v in region.center.flatten().tolist()), row, strict=True):
        low, high = c - eps, c + eps
        if region.clip is not None:
            least, most = region.clip
            assert isinstance(least, float) and isinstance(most, float)  # one interval for all channels
            low, high = max(low, Fraction(least)), min(high, Fraction(most))
        far.append(c - low if a > 0 else high - c)
    return far


def root(square: Fraction) -> Fraction:
    """A lower bound of the square root, to about 2^-200."""
    import math

    shift = 400 + 2 * square.denominator.bit_length()
    return Fraction(math.isqrt((square.numerator << shift) // square.denominator), 1 << (shift // 2))


def least(region: Region, row: list[Fraction]) -> tuple[Fraction, Fraction]:
    """The least of ``row @ x`` over the region: a value that is reached, and one that is not undercut."""
    at_center = sum((a * Fraction(c) for a, c in zip(row, region.center.flatten().tolist(), strict=True)), Fraction(0))
    far, eps = room(region, row), Fraction(region.eps)
    if region.norm == "inf":
        value = at_center - sum((abs(a) * r for a, r in zip(row, far, strict=True)), Fraction(0))
        return value, value
    if region.norm == "1":  # the budget goes to the largest coefficients
        value, left = at_center, eps
        for size, most in sorted(((abs(a), r) for a, r in zip(row, far, strict=True)), reverse=True):
            value, left = value - size * min(most, left), left - min(most, left)
        return value, value
    low, high = Fraction(0), eps / max((abs(a) for a in row), default=Fraction(1)) if any(row) else Fraction(0)
    high = 2 * (high + 1) * (1 + sum(1 for _ in row))
    if any(row):
        high = max(r / abs(a) for a, r in zip(row, far, strict=True) if a)

    def moved(t: Fraction) -> list[Fraction]:
        return [min(r, t * abs(a)) for a, r in zip(row, far, strict=True)]

    if sum(m * m for m in moved(high)) > eps * eps:
        for _ in range(90):  # d = min(room, t |a|), with ||d|| = eps
            middle = (low + high) / 2
            low, high = (middle, high) if sum(m * m for m in moved(middle)) <= eps * eps else (low, middle)
    else:
        low = high
    values = [
        at_center - sum((abs(a) * m for a, m in zip(row, moved(t), strict=True)), Fraction(0)) for t in (low, high)
    ]
    return values[0], values[1]


@pytest.mark.parametrize("arithmetic", [Float64(), Exact()])
@pytest.mark.parametrize(("decades", "count"), [(0.0, 60), (4.0, 60), (60.0, 40)])
def test_bounds_are_the_exact_optima_but_for_rounding(decades, count, arithmetic):
    rng = np.random.default_rng(int(decades))
    for _ in range(count):
        region, lam = drawn(rng, decades)
        for value, row in zip(found(region, lam, arithmetic).tolist(), lam.tolist(), strict=True):
            reached, bound = least(region, [Fraction(a) for a in row])
            assert Fraction(value) <= reached
            size = sum(abs(Fraction(a)) for a in row) * Fraction(float(np.abs(region.center).max()) + region.eps)
            assert Fraction(value) >= bound - Fraction(1e-11) * size - Fraction(1e-150)


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_of_a_region_holds_it(norm):
    rng = np.random.default_rng(3)
    rounded = 0
    for _ in range(300):
        center, eps = rng.normal(0, 1, (1, 1, 2)) * 10.0 ** rng.uniform(-9, 9), float(10.0 ** rng.uniform(-12, 6))
        region = Region(center, eps, norm, None)
        for c, low, high in zip(*(m.flatten().tolist() for m in (center, region.lower, region.upper)), strict=True):
            assert Fraction(low) <= Fraction(c) - Fraction(eps) and Fraction(c) + Fraction(eps) <= Fraction(high)
            rounded += Fraction(c - eps) > Fraction(c) - Fraction(eps)
        clipped = Region(center, eps, norm, (float(center.min()), float(center.max() + eps / 2)))
        assert clipped.lower.min() == center.min() and clipped.upper.max() <= center.max() + eps / 2
        assert (Region(center, 0.0, norm, None).lower == center).all()
    assert rounded > 100  # plain subtraction does round upwards


def test_garbage_gives_no_bound():
    region = Region(np.ones((1, 1, 2)), 0.1, "2", None)
    lam = np.array([[np.nan, 1.0], [np.inf, 1.0], [1e308, 1e308], [1.0, 1.0]])
    with np.errstate(all="ignore"):
        values = found(Region(region.center * 1e10, 1e9, "2", None), lam, Float64())
    assert (values[:3] == -np.inf).all() and np.isfinite(values[3])
