"""Child processes of tests, none of which outlives its test."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PATIENCE = 300.0
"""Seconds that a child may take before it counts as hanging: no test asks how long anything takes."""


def hear_ctrl_c() -> None:
    """SIGINT is KeyboardInterrupt here and in children, also where a shell runs tests in the background (and ignores it
    for them)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def ended(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A child process with its output in pipes; it is gone afterwards, however the test ends."""
    hear_ctrl_c()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        watchdog.cancel()
