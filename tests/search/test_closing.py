"""Which eps an exact method is asked about, and for how long: against made-up methods whose effort is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from corgi_opt.search.closing import Closing, Probe

RTOL, SECONDS = 0.01, 2.0


@dataclass
class Run:
    """One search: what was asked, and the bracket; ``effort(eps)``: seconds that the made-up method takes there.

    The true radius is 1: below it an eps is certified, at it and above it is broken, if the seconds suffice.
    """

    effort: Callable[[float], float]
    low: float
    high: float
    near: bool
    rtol: float = RTOL
    asked: list[Probe] = field(default_factory=list)
    spent: float = 0.0
    closing: Closing = field(init=False)

    def __post_init__(self) -> None:
        self.closing = Closing(self.rtol, SECONDS, self.near)

    def step(self) -> bool:
        probe = self.closing.ask(self.low, self.high)
        if probe is None:
            return False
        assert self.low < probe.eps < self.high
        self.asked.append(probe)
        took = self.effort(probe.eps)
        self.spent += min(took, probe.seconds)
        if took > probe.seconds:
            self.closing.undecided(probe, f"undecided at {probe.eps}", final=math.isinf(took))
        elif probe.eps < 1:
            self.low = probe.eps
            self.closing.certified()
        else:
            self.high = probe.eps
            self.closing.broken()
        return True

    def until(self, seconds: float, probes: int = 200) -> Run:
        while self.spent < seconds and len(self.asked) < probes and self.step():
            pass
        return self

    @property
    def epses(self) -> list[float]:
        return [p.eps for p in self.asked]


def easy(eps: float) -> float:
    return 0.1


def test_a_tight_attack_takes_one_probe():
    run = Run(easy, 0.3, 1.0, near=True).until(60)
    assert run.epses == [pytest.approx(1 / (1 + 0.9 * RTOL))]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("high", [1.0, 1.004, 1.3, 8.0])
def test_an_easy_bracket_closes(near, high):
    run = Run(easy, 0.3, high, near).until(1e9)
    assert run.low < 1 <= run.high <= run.low * (1 + RTOL)
    assert len(run.asked) <= 20
    assert all(p.seconds == SECONDS for p in run.asked)


def test_it_begins_in_the_middle_where_the_attack_is_far():
    assert Run(easy, 0.25, 1.0, near=False).until(0.05).epses == [0.5]


@pytest.mark.parametrize("near", [True, False])
def test_after_one_undecided_probe_it_bisects(near):
    """What costs too much near the attack is not tried just below again: half the way down (in log eps)."""
    run = Run(lambda eps: 1e6 if eps > 0.5 else 0.1, 0.4, 1.0, near)
    run.step()
    first = run.epses[0]
    run.step()
    assert run.epses[1] == pytest.approx(math.sqrt(0.4 * first))


def test_the_seconds_double_and_what_was_undecided_is_asked_again():
    """The effort doubles with every 2 %: the budget follows it, and one eps is asked with ever more seconds."""
    run = Run(lambda eps: 0.1 * 2 ** ((eps - 0.5) / 0.02), 0.5, 1.0, near=True).until(2000)
    seconds = [p.seconds for p in run.asked]
    assert seconds == sorted(seconds)
    assert set(seconds) == {SECONDS * 2**n for n in range(len(set(seconds)))}
    again = [eps for eps in set(run.epses) if run.epses.count(eps) > 1]
    assert again
    for eps in again:
        tries = [p.seconds for p in run.asked if p.eps == eps]
        assert all(b >= 2 * a for a, b in pairwise(tries))
    # what is certified in the end takes a fair share of all the seconds alone
    assert run.effort(run.low) >= 2000 / 20


@pytest.mark.parametrize("budget", [20, 100, 1000])
@pytest.mark.parametrize("steep", [0.01, 0.03, 0.1])
def test_what_is_had_in_a_time_is_near_what_can_be_had(budget, steep):
    """In ``budget`` seconds: at least what one probe of a sixteenth of them proves, or 1 % less."""

    def effort(eps: float) -> float:
        return 0.05 * 2 ** ((eps - 0.6) / steep)

    run = Run(effort, 0.6, 1.0, near=False).until(budget)
    could = 0.6 + steep * math.log2(budget / 16 / 0.05)
    assert run.low >= min(could, 1 / (1 + RTOL)) * (1 - 0.03)


def test_an_eps_that_no_time_decides_splits_the_bracket():
    """Too close to zero for float arithmetic: certified up to it, broken down to it, and it is not asked again."""
    run = Run(lambda eps: math.inf if abs(eps - 1) < 0.02 else 0.1, 0.5, 1.5, near=False).until(1e9)
    assert run.closing.ask(run.low, run.high) is None
    assert len(set(run.epses)) == len(run.epses) < 30
    final = [e for e in run.epses if abs(e - 1) < 0.02]
    assert min(final) <= run.low * (1 + RTOL / 4) and run.high <= max(final) * (1 + RTOL / 4)
    assert "undecided at" in run.closing.why(run.low, run.high)


def test_doubts_outside_of_the_bracket_are_forgotten():
    closing = Closing(RTOL, SECONDS, near=False)
    closing.undecided(Probe(0.9, SECONDS), "why", final=False)
    assert closing.why(0.5, 1.0) == "why"
    assert closing.why(0.5, 0.8) == "" == closing.why(0.95, 1.0)
    probe = closing.ask(0.5, 0.8)
    assert probe == Probe(math.sqrt(0.5 * 0.8), SECONDS)


def test_from_nothing_certified():
    run = Run(lambda eps: 0.1 if eps < 0.01 else 1e9, 0.0, 1.0, near=True).until(100)
    assert 0 < run.low < 0.01


@pytest.mark.parametrize("failures", [1, 3])
def test_it_backs_off_from_an_attack_that_missed(failures):
    """Every counterexample that a probe finds sends the next one four times as far down."""
    closing, high = Closing(RTOL, SECONDS, near=True), 1.0
    for n in range(failures + 1):
        probe = closing.ask(0.01, high)
        assert probe is not None
        assert probe.eps == pytest.approx(high / (1 + 0.9 * RTOL * 4**n))
        high = probe.eps
        closing.broken()
    closing.certified()
    probe = closing.ask(0.01, high)
    assert probe is not None and probe.eps == pytest.approx(high / (1 + 0.9 * RTOL))
