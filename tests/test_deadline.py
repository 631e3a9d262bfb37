"""Budgets by a clock that only the test moves: they end on time, and a part never outlives the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from clock import Clock

from corgi_opt import _deadline as module
from corgi_opt._deadline import NEVER, Deadline, check_time_limit
from corgi_opt.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    clock.stand_in(monkeypatch, module)
    return clock


def test_it_is_over_when_its_seconds_are(clock):
    deadline = Deadline(5.0)
    clock.now += 4.5
    assert deadline.left == 0.5 and not deadline.over
    deadline.check()
    clock.now += 0.5
    assert deadline.left == 0.0 and deadline.over
    clock.now += 7.0
    assert deadline.left == 0.0
    with pytest.raises(TimeoutError, match="time limit"):
        deadline.check()


@pytest.mark.parametrize(("part", "left"), [(2.0, 2.0), (4.0, 4.0), (60.0, 4.0), (math.inf, 4.0)])
def test_a_part_is_over_with_itself_or_the_whole(part, left, clock):
    whole = Deadline(5.0)
    clock.now += 1.0
    assert whole.within(part).left == left
    assert whole.left == 4.0  # is as long as before


def test_never_is_never_over(clock):
    clock.now += 1e12
    assert NEVER.left == math.inf and not NEVER.over
    assert NEVER.within(3.0).left == 3.0


@pytest.mark.parametrize("limit", [0.25, 3, np.float32(0.5), math.inf])
def test_a_time_limit_counts_from_now_on(limit, clock):
    clock.now += 50.0
    assert check_time_limit(limit).left == float(limit)


@pytest.mark.parametrize("limit", [0, -1, math.nan, True, "5", None, 1j])
def test_what_is_no_time_is_refused(limit):
    with pytest.raises(InputError, match="time_limit must be a positive number of seconds"):
        check_time_limit(limit)
