"""Parts that are calculated at once come back in their order, with errors, and the same however many there are."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from checked_networks import built, crowned
from checked_trees import pair_rows

from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.threads import MOST, at_once, threads


@pytest.mark.parametrize("count", ["1", "2", "4"])
def test_parts_come_back_in_their_order(count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    turn = threading.Event()

    def run(part: int) -> int:
        if part == 0 and int(count) > 1:
            assert turn.wait(60)  # the first ends after the second: there are several at once
        turn.set()
        return part * part

    assert at_once(run, range(9)) == [n * n for n in range(9)]
    assert at_once(run, []) == []


def test_threads_are_those_that_numpy_may_have(monkeypatch):
    for said, expected in (("1", 1), ("3", 3), ("0", 1), ("64", MOST)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads() == expected
    for nothing in ("", "2,1", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
        assert threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads() == 1


@pytest.mark.parametrize("count", ["1", "2"])
def test_errors_are_raised_and_overflow_is_not_warned_of(count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    assert at_once(lambda _: float(np.float64(1e300) * 1e300), range(4)) == [np.inf] * 4

    def fails(part: int) -> None:
        raise KeyError(part)

    with pytest.raises(KeyError):
        at_once(fails, range(4))


def test_bounds_are_the_same_with_one_thread_and_with_several(monkeypatch):
    _, network, _ = built("deep")
    known = crowned("deep")
    monkeypatch.setattr(type(known.arithmetic), "at_once", 3_000)
    found = []
    for count in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        bounds = Bounds(network, known.region, known.arithmetic)
        for node in range(network.features + 1):
            bounds.reach(node)
        open_ = np.flatnonzero((bounds.lower[1] < 0) & (bounds.upper[1] > 0))
        sides = bounds.neurons(1, open_, open_)
        found.append([*sides, bounds.bound(network.features, pair_rows(bounds)[0])])
    for one, several in zip(*found, strict=True):
        np.testing.assert_array_equal(one, several)
