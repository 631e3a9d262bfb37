"""Ctrl-C while a solver runs: how long its caller waits for it, and what becomes of its answer."""

from __future__ import annotations

import threading
from concurrent import futures

import pytest
from corgi_solvers import interrupt
from corgi_solvers.interrupt import run_interruptibly


def interrupted_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ctrl-C in the first wait; returns the waits, in seconds, as they are asked for. None of them takes any time."""
    waits: list[float] = []

    def wait(_: object, timeout: float) -> None:
        waits.append(timeout)
        if len(waits) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupt, "wait", wait)
    return waits


def test_a_solver_that_never_looks_is_left_behind_within_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, cancel, end = interrupted_once(monkeypatch), threading.Event(), threading.Event()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(end.wait, cancel)
    assert cancel.is_set()
    assert waits == [interrupt.POLL_SECONDS, interrupt.GRACE_SECONDS]
    assert sum(waits) < 2.0  # what Highs.solve promises
    end.set()


def test_one_that_cannot_be_told_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, end = interrupted_once(monkeypatch), threading.Event()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(end.wait, threading.Event(), grace=0.0)
    assert waits[1:] == [0.0]
    end.set()


def test_one_that_looks_has_ended_before_the_interrupt_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, ended = threading.Event(), []
    honest, waits = futures.wait, []

    def wait(which: list[futures.Future[None]], timeout: float) -> None:
        waits.append(timeout)
        if len(waits) == 1:
            raise KeyboardInterrupt
        honest(which)  # however long it takes it to look

    monkeypatch.setattr(interrupt, "wait", wait)

    def work() -> None:
        cancel.wait()
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, cancel)
    assert ended == [True]


def test_without_an_interrupt_the_answer_or_the_exception_is_handed_over() -> None:
    assert run_interruptibly(lambda: 7, threading.Event()) == 7
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0, threading.Event())
