"""Keeps Ctrl-C working while a solver written in C++ runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1  # on Windows a lock wait does not notice Ctrl-C; it is noticed between two waits
GRACE_SECONDS = 1.5  # how long a solver gets to notice ``cancel`` before it is left behind


def run_interruptibly(work: Callable[[], T], cancel: threading.Event, *, grace: float = GRACE_SECONDS) -> T:
    """Run ``work`` in a thread of its own and wait for it; return its result or raise its exception.

    When the wait is interrupted (KeyboardInterrupt, or whatever a signal handler raises), ``cancel`` is set, the
    work gets ``grace`` seconds to notice, and the exception is raised again. A solver deep in a phase that never
    looks is then left behind in its daemon thread: it still stops at its next look, its result is dropped.
    """
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed over, not swallowed: the waiting thread raises it
            future.set_exception(error)

    try:
        threading.Thread(target=body, name="corgi-solver", daemon=True).start()
        while not future.done():
            wait([future], timeout=POLL_SECONDS)
    except BaseException:
        cancel.set()
        wait([future], timeout=grace)
        raise
    return future.result()
