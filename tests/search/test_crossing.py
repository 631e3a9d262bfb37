"""Where a falling function crosses zero: the bracket closes, and in few evaluations, also for unpleasant functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from corgi_opt.search.crossing import Point, crossing, probes, secant_root

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "concave": lambda t: 1 - t**3,
    "very concave": lambda t: 1 - t**12,
    "convex": lambda t: math.exp(-3 * t) - math.exp(-3),
    "very convex": lambda t: 1 / (t + 1e-3) - 1 / (1 + 1e-3),
    "steps": lambda t: 5.0 - math.floor(5 * t) - (0 if t < 1 else 0.5) + (0.2 if t < 1 else 0),
    "one jump": lambda t: 1.0 if t < 1 else -1.0,
    "a jump before the root": lambda t: (10.0 if t < 0.5 else 0.1) - 0.1 * t,
    "jump to -inf": lambda t: 1 - 0.5 * t if t < 1 else -math.inf,
    "nan above": lambda t: 1 - 0.5 * t if t < 1 else math.nan,
    "flat, then steep": lambda t: 1.0 if t < 0.99 else 1 - 100 * (t - 0.99),
}
"""Falling functions of t = eps / root, positive below t = 1 and not above it."""

MOST_EVALUATIONS = 40


class Recorded:
    """A margin function that remembers what it was asked, for one question's batches."""

    def __init__(self, margin: Callable[[float], float]) -> None:
        self.margin = margin
        self.batches: list[list[float]] = []
        self.found: dict[float, float] = {}

    def __call__(self, epses: Sequence[float]) -> list[float]:
        self.batches.append(list(epses))
        margins = [self.margin(eps) for eps in epses]
        self.found.update(zip(epses, margins, strict=True))
        return margins

    @property
    def evaluations(self) -> int:
        return sum(len(batch) for batch in self.batches)


def check_bracket(asked: Recorded, start: tuple[Point, Point], found: tuple[Point, Point], rtol: float) -> None:
    """What a caller relies on, whatever the function: ends that were evaluated, resolved, and nothing given up."""
    (low, high), (first, last) = found, start
    assert low.margin > 0
    assert not high.margin > 0
    assert low.eps == first.eps or asked.found[low.eps] == low.margin
    assert high.eps == last.eps or not asked.found[high.eps] > 0
    assert first.eps <= low.eps < high.eps <= last.eps
    assert high.eps <= low.eps * (1 + rtol)
    # a certified eps is never lost: there is none above ``low``
    assert all(eps <= low.eps for eps, margin in asked.found.items() if margin > 0)
    for batch in asked.batches:
        assert 1 <= len(batch) <= 3
        assert all(first.eps < eps < last.eps for eps in batch)
        assert batch == sorted(set(batch))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("root", [1e-6, 0.0123, 37.0])
@pytest.mark.parametrize("start", [0.0, 0.001, 0.7])
@pytest.mark.parametrize("rtol", [0.05, 0.01, 0.001])
def test_the_root_is_bracketed(shape, root, start, rtol):
    """From eps 0 or a certified eps below, to an eps above that is a few or many times the root."""
    for above in (1.02, 3.0, 30.0):
        asked = Recorded(lambda eps: SHAPES[shape](eps / root))
        low, high = Point(start * root, SHAPES[shape](start)), Point(above * root, SHAPES[shape](above))
        found = crossing(asked, low, high, rtol)
        check_bracket(asked, (low, high), found, rtol)
        assert found[0].eps < root * (1 + 1e-12) and found[1].eps >= root * (1 - 1e-12)
        assert asked.evaluations <= MOST_EVALUATIONS


@pytest.mark.parametrize("shape", SHAPES)
def test_an_upper_end_that_says_nothing(shape):
    """The upper end of a search is a witness: its margin is -inf until somebody bounds it."""
    asked = Recorded(lambda eps: SHAPES[shape](eps / 0.02))
    low, high = Point(0.0, SHAPES[shape](0.0)), Point(0.05, -math.inf)
    found = crossing(asked, low, high, 0.01)
    check_bracket(asked, (low, high), found, 0.01)
    assert found[0].eps < 0.02 <= found[1].eps * (1 + 1e-12)
    assert asked.evaluations <= MOST_EVALUATIONS


@pytest.mark.parametrize("noise", [1e-12, 1e-7, 1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("seed", range(20))
def test_margins_that_do_not_fall_everywhere(noise, seed):
    """Bounds are not monotone in eps (a line's slope may switch), float32 adds its own noise: no call may fail."""
    random = np.random.default_rng(seed)
    wobble = random.standard_normal(64)

    def margin(t: float) -> float:
        # a function of t alone, so that asking twice gives the same
        return 1 - t + noise * float(wobble[hash(round(t, 13)) % 64])

    asked = Recorded(margin)
    low, high = Point(0.0, 1.0), Point(3.0, -2.0)
    found = crossing(asked, low, high, 0.01)
    check_bracket(asked, (low, high), found, 0.01)
    assert abs(found[0].eps - 1) <= 0.02 + 4 * noise
    assert asked.evaluations <= MOST_EVALUATIONS


def test_one_batch_that_fails_below_what_it_certifies():
    """Of three probes the lowest fails and the next one holds: the largest that holds counts."""
    asked = Recorded(lambda eps: -0.001 if 0.95 < eps < 0.999 else 1 - eps / 1.02)
    low, high = Point(0.9, 0.1), Point(1.2, -0.2)
    found = crossing(asked, low, high, 0.01)
    check_bracket(asked, (low, high), found, 0.01)


def test_nothing_is_asked_where_nothing_is_open():
    asked = Recorded(lambda eps: 1 - eps)
    low, high = Point(0.995, 0.005), Point(1.004, -0.004)
    assert crossing(asked, low, high, 0.01) == (low, high)
    assert asked.batches == []


def test_a_function_that_never_holds_ends():
    """No eps but 0 is certified: the search gives up far below, it does not run for ever."""
    asked = Recorded(lambda eps: -1.0)
    low, high = crossing(asked, Point(0.0, 1.0), Point(1.0, -1.0), 0.01)
    assert low == Point(0.0, 1.0)
    assert 0 < high.eps < 1e-6
    assert asked.evaluations <= 3 * 30


@pytest.mark.parametrize("seed", range(30))
def test_probes_lie_strictly_inside(seed):
    random = np.random.default_rng(seed)
    low = 0.0 if seed % 5 == 0 else float(10 ** random.uniform(-6, 0))
    high = (low or 1e-3) * float(1 + 10 ** random.uniform(-3, 3))
    for rtol in (1e-4, 0.01, 0.3):
        for at_high in (0.0, -1e-9, -1.0, -1e9, -math.inf, math.nan):
            if low > 0 and high <= low * (1 + rtol):
                continue  # never asked about a bracket that is closed
            found = probes(Point(low, float(10 ** random.uniform(-9, 3))), Point(high, at_high), rtol)
            assert 1 <= len(found) <= 3
            assert found == sorted(found)
            assert all(low < eps < high for eps in found)


def test_the_secant_meets_the_axis():
    assert secant_root(Point(1.0, 3.0), Point(2.0, -1.0)) == pytest.approx(1.75)
    assert secant_root(Point(0.0, 2.0), Point(4.0, 0.0)) == pytest.approx(4.0)
    for margin in (-math.inf, math.nan, 3.0, 4.0):
        assert secant_root(Point(1.0, 3.0), Point(2.0, margin)) is None
