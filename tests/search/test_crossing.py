"""Where a falling function crosses zero: the bracket closes, and in few evaluations, also for unpleasant functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from corgi_opt.search.crossing import Crossing, Point, secant_root

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
    """A margin function that remembers what it was asked."""

    def __init__(self, margin: Callable[[float], float]) -> None:
        self.margin = margin
        self.found: dict[float, float] = {}

    def __call__(self, eps: float) -> float:
        assert eps not in self.found, "nothing is asked twice"
        self.found[eps] = self.margin(eps)
        return self.found[eps]


def crossed(asked: Recorded, low: Point, high: Point, rtol: float, first: float | None = None) -> tuple[Point, Point]:
    """The search to its end, or to more than MOST_EVALUATIONS."""
    search = Crossing(low, high, rtol, first)
    while not search.closed and len(asked.found) <= MOST_EVALUATIONS:
        eps = search.ask()
        search.tell(eps, asked(eps))
    return search.low, search.high


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
    assert all(first.eps < eps < last.eps for eps in asked.found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("root", [1e-6, 0.0123, 37.0])
@pytest.mark.parametrize("start", [0.0, 0.001, 0.7])
@pytest.mark.parametrize("rtol", [0.05, 0.01, 0.001])
def test_the_root_is_bracketed(shape, root, start, rtol):
    """From eps 0 or a certified eps below, to an eps above that is a few or many times the root."""
    for above in (1.02, 3.0, 30.0):
        asked = Recorded(lambda eps: SHAPES[shape](eps / root))
        low, high = Point(start * root, SHAPES[shape](start)), Point(above * root, SHAPES[shape](above))
        found = crossed(asked, low, high, rtol)
        check_bracket(asked, (low, high), found, rtol)
        assert found[0].eps < root * (1 + 1e-12) and found[1].eps >= root * (1 - 1e-12)
        assert len(asked.found) <= MOST_EVALUATIONS


@pytest.mark.parametrize("shape", SHAPES)
def test_an_upper_end_that_says_nothing(shape):
    """The upper end of a search is a witness: its margin is -inf until somebody bounds it."""
    asked = Recorded(lambda eps: SHAPES[shape](eps / 0.02))
    low, high = Point(0.0, SHAPES[shape](0.0)), Point(0.05, -math.inf)
    found = crossed(asked, low, high, 0.01)
    check_bracket(asked, (low, high), found, 0.01)
    assert found[0].eps < 0.02 <= found[1].eps * (1 + 1e-12)
    assert len(asked.found) <= MOST_EVALUATIONS


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
    found = crossed(asked, low, high, 0.01)
    check_bracket(asked, (low, high), found, 0.01)
    assert abs(found[0].eps - 1) <= 0.02 + 4 * noise
    assert len(asked.found) <= MOST_EVALUATIONS


def test_the_first_eps_is_asked_first_and_may_be_the_upper_end():
    asked = Recorded(lambda eps: 1 - eps)
    search = Crossing(Point(0.0, 1.0), Point(3.0, -math.inf), 0.01, first=3.0)
    assert search.ask() == 3.0 and not search.begun
    search.tell(3.0, asked(3.0))
    assert search.begun and search.high == Point(3.0, -2.0)
    certified = Crossing(Point(0.0, 1.0), Point(0.5, -math.inf), 0.01, first=0.5)
    certified.tell(0.5, 0.5)
    assert certified.closed and certified.low == Point(0.5, 0.5)


def test_few_evaluations_where_the_margin_is_like_a_bound_s():
    """Concave, as CROWN's margins are: from a far weaker method's eps and the upper end, to 1 %."""
    asked = Recorded(lambda t: 0.5 - 0.2 * t - 0.3 * t**2)
    low, high = crossed(asked, Point(1e-5, 0.5), Point(1.3, -math.inf), 0.01, first=1.3)
    assert low.eps < 1 <= high.eps
    assert len(asked.found) <= 8


def test_what_is_too_dear_is_not_asked_again():
    """No pass above a quarter can be paid for: the largest eps below is found, and ``high`` is not called broken."""
    search, asked = Crossing(Point(0.0, 1.0), Point(2.0, -math.inf), 0.01, first=2.0), Recorded(lambda eps: 1 - eps)
    refused: list[float] = []
    while not search.closed and len(asked.found) + len(refused) < MOST_EVALUATIONS:
        eps = search.ask()
        assert eps < min(refused, default=math.inf)
        if eps > 0.25:
            refused.append(eps)
            search.forgo(eps)
        else:
            search.tell(eps, asked(eps))
    assert search.closed and search.forgone and search.stopped
    assert 0.24 < search.low.eps <= 0.25 < search.high.eps
    assert search.high.margin == -math.inf


def test_the_unknown_far_above_is_gone_to_in_steps():
    """Nothing is known of the upper end: doubling, so that no eps is tried that is far beyond what holds."""
    asked = Recorded(lambda eps: 1 - eps)
    low, high = crossed(asked, Point(0.01, 0.99), Point(1e4, -math.inf), 0.01)
    assert max(asked.found) <= 2
    assert low.eps < 1 <= high.eps


def test_nothing_is_asked_where_nothing_is_open():
    asked = Recorded(lambda eps: 1 - eps)
    low, high = Point(0.995, 0.005), Point(1.004, -0.004)
    assert crossed(asked, low, high, 0.01) == (low, high)
    assert asked.found == {}


def test_a_function_that_never_holds():
    """No eps but 0 is certified: the search goes down, and may be stopped at any time."""
    low, high = crossed(Recorded(lambda eps: -1.0), Point(0.0, 1.0), Point(1.0, -1.0), 0.01)
    assert low == Point(0.0, 1.0)
    assert 0 < high.eps < 1e-6


@pytest.mark.parametrize("seed", range(30))
def test_what_is_asked_lies_strictly_inside(seed):
    random = np.random.default_rng(seed)
    low = 0.0 if seed % 5 == 0 else float(10 ** random.uniform(-6, 0))
    high = (low or 1e-3) * float(1 + 10 ** random.uniform(-3, 3))
    for rtol in (1e-4, 0.01, 0.3):
        for at_high in (0.0, -1e-9, -1.0, -1e9, -math.inf, math.nan):
            search = Crossing(Point(low, float(10 ** random.uniform(-9, 3))), Point(high, at_high), rtol)
            for _ in range(20):
                if search.closed:
                    break
                eps = search.ask()
                assert search.low.eps < eps < search.high.eps
                outcome = int(random.integers(4))
                if outcome == 0:
                    search.forgo(eps)
                else:
                    search.tell(eps, (1.0, -1.0, -math.inf)[outcome - 1])


def test_the_secant_meets_the_axis():
    assert secant_root(Point(1.0, 3.0), Point(2.0, -1.0)) == pytest.approx(1.75)
    assert secant_root(Point(0.0, 2.0), Point(4.0, 0.0)) == pytest.approx(4.0)
    for margin in (-math.inf, math.nan, 3.0, 4.0):
        assert secant_root(Point(1.0, 3.0), Point(2.0, margin)) is None


def test_ends_that_are_far_apart_are_halved_when_the_upper_costs_too_much():
    """By quarters it would take eleven more that cost too much to come from 2e-4 to 5e-11."""
    search = Crossing(Point(5e-11, 1.0), Point(2e-4, -math.inf), rtol=0.1, first=2e-4)
    search.forgo(search.ask())
    assert search.ask() == pytest.approx(1e-7)
    search.tell(1e-7, 1.0)
    assert 1e-7 < search.ask() <= 5e-5
    near = Crossing(Point(1e-6, 1.0), Point(2e-4, -math.inf), rtol=0.1, first=2e-4)
    near.forgo(near.ask())
    assert near.ask() == 5e-5
