"""What a dask worker does with a cell: hands it to a process of its own, and watches that.

dask suspects every task that is on a worker when the worker dies. Here the process that a cell may take down holds that
cell and no other, so the one to blame is known; and a cell that hangs can be ended, which no thread can.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

TRIES = 3
"""How often a cell is tried whose process dies. Anybody may kill a process; so many deaths are the cell's fault."""

START_SECONDS = 300.0
"""How long a process may take to start: it imports torch, on a machine that may be busy."""

BUILD_SECONDS = 600.0
"""How long a cell may take until its question is asked: its network is built and exported, once a process."""

LOOK_SECONDS = 0.05
"""The time between two looks at the process's memory."""

_children: dict[int, Child] = {}
"""The process of each thread of the worker."""


def run_cell(task: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a task on a dask worker, in a process of the thread's own that is kept for the next task.

    Returns the columns of the row that the answer fills, whatever happens to the process. A task may also ask for what
    :func:`corgi_opt.study.own.known_here` says.
    """
    return run_guarded(task, task["memory_limit"] or _share_of_memory())


def run_guarded(task: Mapping[str, Any], memory_limit: float) -> dict[str, Any]:
    """The same on a dask worker or elsewhere. ``memory_limit`` in bytes.

    A cell has ``task["hard_limit"]`` seconds from when its question is asked. Until then it has ``task["build_limit"]``
    (default: BUILD_SECONDS).
    """
    why, peak = "", 0.0
    for _ in range(TRIES):
        child = _child(task.get("imports", []))
        try:
            limits = (task.get("build_limit", BUILD_SECONDS), task["hard_limit"])
            reply = child.ask(json.dumps(task), limits, memory_limit)
        except ChildLostError as lost:
            why = lost.why
            peak = max(peak, child.peak)
            _forget()
            if lost.state is not None:
                return {"state": lost.state, "reason": why, "peak_mb": peak, "seconds": lost.seconds}
        else:
            return {**reply, "peak_mb": child.peak}
    return {"state": "crashed", "reason": f"its process died {TRIES} times: {why}", "peak_mb": peak}


def _child(imports: Sequence[Sequence[str]]) -> Child:
    """This thread's process. One that serves a plan with other imports is ended: what those register stays in it."""
    me = threading.get_ident()
    if me in _children and not (_children[me].alive and _children[me].imports == imports):
        _forget()
    if me not in _children:
        _children[me] = Child(imports)
    return _children[me]


def _forget() -> None:
    """Ends this thread's process, if it has one."""
    child = _children.pop(threading.get_ident(), None)
    if child is not None:
        child.end()


def end_children() -> None:
    """Ends the processes that wait for a next cell, on a worker that lives on."""
    while _children:
        _children.popitem()[1].end()


def _share_of_memory() -> float:
    """The bytes that a thread of this worker may use: its share of what dask allows the worker, or the machine has."""
    import psutil
    from distributed import get_worker

    worker = get_worker()
    limit = worker.memory_manager.memory_limit or psutil.virtual_memory().total
    return float(limit) / worker.state.nthreads


class ChildLostError(Exception):
    """The process died or was ended. ``state``: the cell's, where that is decided; None: the cell is tried again."""

    def __init__(self, why: str, state: str | None, seconds: float) -> None:
        super().__init__(why)
        self.why, self.state, self.seconds = why, state, seconds


class Child:
    """One process of study/child.py, for plans with the same ``imports``. ``peak``: its largest resident memory during
    the last cell, in MB, sampled."""

    def __init__(self, imports: Sequence[Sequence[str]]) -> None:
        self.imports, self.peak = imports, 0.0
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "corgi_opt.study.child", json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: str, limits: tuple[float, float], memory: float) -> dict[str, Any]:
        """The reply to one line. ``limits``: seconds until the question is asked, and from then on. Raises
        ChildLostError."""
        if not self._ready:
            self.peak = 0.0
            self._wait("starting a process", START_SECONDS, memory, late=None)
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._lost(0.0) from None
        self.peak = 0.0
        reply = self._wait("building the network", limits[0], memory, late="timeout")
        return self._wait("the cell", limits[1], memory, late="timeout") if "asked" in reply else reply

    def _wait(self, what: str, seconds: float, memory: float, late: str | None) -> dict[str, Any]:
        """The next line. ``late``: the state of the cell where it takes longer. Raises ChildLostError."""
        start = time.monotonic()
        while True:
            try:
                line = self._replies.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                line = None
            spent = time.monotonic() - start
            if line == "":
                raise self._lost(spent)
            self._look()
            if line is not None:
                return dict(json.loads(line))
            if self.peak * 2**20 > memory:
                raise ChildLostError(f"its process used more than {memory / 2**20:.0f} MB", "crashed", spent)
            if spent > seconds:
                raise ChildLostError(f"{what} took more than {seconds:g} s", late, spent)

    def _look(self) -> None:
        import psutil

        try:
            now = psutil.Process(self._process.pid).memory_info().rss / 2**20
        except psutil.Error:
            return
        self.peak = max(self.peak, now)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def _lost(self, spent: float) -> ChildLostError:
        code = self._process.wait()
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, self._words.tell() - 1000))
        said = self._words.read().decode(errors="replace").strip()
        return ChildLostError(f"it {how}{f'; its last words: {said}' if said else ''}", None, spent)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        self._words.close()
