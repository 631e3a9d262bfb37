"""A solver as a child process: its exit code and words, killed at its deadline, and with it all that it started."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from corgi_solvers.child import run_child

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is still to be waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("code", [0, 3])
def test_its_exit_code_and_both_its_outputs_are_kept(code: int, tmp_path: Path) -> None:
    said = f"import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit({code})"
    assert run_child(python(said), tmp_path / "log", deadline=time.perf_counter() + 60) == code
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_it_has_no_input_and_the_environment_that_is_given(tmp_path: Path) -> None:
    said = "import os, sys; print(repr(sys.stdin.read()), os.environ.get('GIVEN'), os.environ.get('HOME'))"
    environment = {"GIVEN": "yes"}
    run_child(python(said), tmp_path / "log", deadline=time.perf_counter() + 60, environment=environment)
    assert (tmp_path / "log").read_text() == "'' yes None\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: looks at /proc")
def test_at_its_deadline_it_is_killed_and_its_children_too(tmp_path: Path) -> None:
    said = "import os, time; pid = os.fork(); print(os.getpid(), flush=True) if pid else None\n"
    said += "print(os.getpid(), flush=True) if not pid else None; time.sleep(600)"
    start = time.perf_counter()
    assert run_child(python(said), tmp_path / "log", deadline=start + 1.0) is None
    assert 1.0 <= time.perf_counter() - start < 20.0
    pids = set(map(int, (tmp_path / "log").read_text().split()))
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


@posix
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: looks at /proc")
def test_whatever_interrupts_the_wait_ends_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"

    def interrupt() -> None:
        while not (log.exists() and log.read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_child(python(said), log, deadline=time.perf_counter() + 60)
    thread.join()
    assert gone(int(log.read_text()))


def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-solver"):
        run_child([tmp_path / "no-such-solver"], tmp_path / "log", deadline=time.perf_counter() + 60)
