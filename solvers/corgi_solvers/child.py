"""Runs a solver as a child process that never outlives its caller's interest in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.1  # on Windows a wait for a process does not notice Ctrl-C; it is noticed between two waits


def run_child(
    command: Sequence[str | Path],
    log: Path,
    *,
    deadline: float,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run ``command`` with its output in ``log``; return its exit code, None if it was killed at ``deadline``.

    ``deadline`` is a value of ``time.perf_counter``. Whatever interrupts the wait (KeyboardInterrupt, or what a
    signal handler raises) kills the child, and its children, before it is raised again. The child has a session
    of its own: a Ctrl-C in the terminal reaches it through here only. Raises OSError if it cannot be started.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=os.name == "posix",
        )
        try:
            while True:
                left = deadline - time.perf_counter()
                if left <= 0:
                    return None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=min(left, POLL_SECONDS))
        finally:
            if process.poll() is None:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
