"""Runs a plan's cells that have no answer yet, on dask.distributed, and keeps each answer as it comes."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corgi_opt._checks import integer, not_negative
from corgi_opt._progress import counting
from corgi_opt.errors import InputError, Interrupted, MissingPackageError, StudyError
from corgi_opt.problem.clip import outermost, own_channels
from corgi_opt.study.answer import said_image
from corgi_opt.study.plan import Cell, Plan
from corgi_opt.study.store import Progress, Row, Store, now
from corgi_opt.study.worker import end_children, run_cell

AHEAD = 3
"""Cells that are given to the scheduler for each thread of a worker: one to do, and some that wait beside it."""

WORKERS_SECONDS = 60.0
"""How long an existing cluster may take to show a worker."""


GUARD = (
    "Each of a study's processes reads the script that starts it: put what starts it under "
    '`if __name__ == "__main__":`'
)
"""What whoever starts a study from a script has to know."""


def run(
    plan: Plan,
    folder: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_limit: str | float | None = None,
    device: str = "auto",
    retry_failed: bool = False,
    grace: float = 60.0,
    progress: bool | None = None,
) -> Progress:
    """Answers every cell of a plan that ``folder`` has no answer for, each as it comes, and returns how far it is.

    ``workers``: processes on this machine (default: one a core), each with one thread; or ``scheduler``
    (``"tcp://HOST:PORT"``), an existing dask cluster whose workers find the plan's models under the same paths.
    ``memory_limit`` of one cell (``"4 GiB"``; default: the worker's share). A cell may take ``grace`` seconds longer
    than its own time limit before its process is ended. ``retry_failed``: also those that failed, timed out or crashed
    before. A script starts it under ``if __name__ == "__main__":``: each process on this machine reads the script.

    Stop it whenever you like; the next run goes on from there. Ctrl-C raises Interrupted (``partial``: the progress).
    Raises InputError, StoreError, StudyError; MissingPackageError without dask.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # reads its parent's script
        raise StudyError(f"a worker's process came upon the start of a study in the script that it reads. {GUARD}")
    if workers is not None and scheduler is not None:
        raise InputError("give either workers (on this machine) or a scheduler (of an existing cluster)")
    if workers is not None:
        integer("workers", workers, 1, 10_000)
    grace, limit = not_negative("grace", grace), _bytes(memory_limit)
    cells = {cell.key: cell for cell in plan.cells()}
    with Store.writing(folder) as store:
        known = store.states()
        left = [c for key, c in cells.items() if key not in known or (retry_failed and known[key] != "done")]
        if left:
            store.began(plan.name, plan.said)
            done = len(cells) - len(left)
            with _client(workers, scheduler) as client, counting(progress, plan.name, len(cells), done) as count:
                try:
                    for cell, found in _answers(client, left, limit, grace, device):
                        store.put(row_of(cell, found))
                        count(1)
                except KeyboardInterrupt as stop:
                    raise Interrupted(store.progress(cells)) from stop
        return store.progress(cells)


def _answers(
    client: Any, cells: list[Cell], memory_limit: float, grace: float, device: str
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Cells with what came out, in the order in which they are done. Raises StudyError."""
    from distributed import as_completed

    waiting, running = iter(cells), {}
    done = as_completed(loop=client.loop)

    def give(count: int) -> None:
        for _, cell in zip(range(count), waiting, strict=False):
            future = client.submit(run_cell, task_of(cell, memory_limit, grace, device), key=_key(cell), pure=False)
            running[future.key] = cell
            done.add(future)

    give(AHEAD * max(1, _threads(client)))
    for future in done:
        cell = running.pop(future.key)
        if future.status == "finished":
            yield cell, future.result()
        elif future.status == "error":
            yield cell, _lost(future.exception())
        else:
            raise StudyError("the scheduler is gone; what was answered is kept: run the study again to go on")
        future.release()
        give(1)


def _key(cell: Cell) -> str:
    """A name that dask's own pages show well."""
    return f"cell-{cell.key}"


def _lost(error: BaseException) -> dict[str, Any]:
    """A cell whose worker died again and again, although the cell runs in a process of its own."""
    from distributed.scheduler import KilledWorker

    state = "crashed" if isinstance(error, KilledWorker) else "failed"
    return {"state": state, "reason": f"{type(error).__name__}: {error}"}


def task_of(cell: Cell, memory_limit: float, grace: float, device: str) -> dict[str, Any]:
    """What a worker is told, as JSON types. ``memory_limit`` 0: the worker's share."""
    source = cell.model.source
    return {
        "model": {
            "name": cell.model.name,
            "build": source.build,
            "weights": source.weights,
            "sha256": cell.model.sha256,
        },
        "image": said_image(cell.image.x),
        "ask": cell.ask.plain(),
        "device": device,
        "memory_limit": memory_limit,
        "hard_limit": cell.ask.time_limit + grace,
    }


def row_of(cell: Cell, found: Mapping[str, Any]) -> Row:
    ask = cell.ask
    low, high = outermost(ask.clip)
    return Row(
        **{
            "key": cell.key,
            "model": cell.model.name,
            "model_sha256": cell.model.sha256,
            "images": cell.image.group,
            "image": cell.image.name,
            "image_sha256": cell.image.sha256,
            "kind": ask.kind,
            "k": ask.k,
            "within": ask.k if ask.within is None else ask.within,
            "property": None if ask.property is None else json.dumps(ask.property),
            "eps": ask.eps,
            "method": ask.method,
            "norm": ask.norm,
            "clip_low": low,
            "clip_high": high,
            "class_idx": ask.class_idx,
            "keep_class": ask.keep_class,
            "rtol": ask.rtol,
            "solver": ask.solver,
            "time_limit": ask.time_limit,
            "seed": ask.seed,
            "clip": json.dumps(ask.plain()["clip"]) if own_channels(ask.clip) else None,
            "finished": now(),
            **found,
        }
    )


def _threads(client: Any) -> int:
    return sum(client.nthreads().values())


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of an existing cluster, or of one of processes on this machine. Raises StudyError."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingPackageError("distributed", "running a study", "pip install 'dask[distributed]'") from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=WORKERS_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise StudyError(f"no scheduler answers at {scheduler!r}: {error}") from error
        with client:
            try:
                client.wait_for_workers(1, timeout=WORKERS_SECONDS)
            except TimeoutError as error:
                raise StudyError(
                    f"the cluster at {scheduler!r} has no worker; start one: dask worker {scheduler}"
                ) from error
            yield client
            client.run(end_children)  # its workers live on
        return
    # a worker may be killed from outside as often as it likes: the cell's own process tells whose fault a death is
    with dask.config.set({"distributed.scheduler.allowed-failures": 10}):
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # dask serves pages in any case: on a port that nobody has
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            raise StudyError(f"the processes of the study do not start ({error}). {GUARD}") from error
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


def _bytes(limit: str | float | None) -> float:
    """0 for None. Raises InputError."""
    if limit is None:
        return 0.0
    from dask.utils import parse_bytes

    try:
        found = float(parse_bytes(limit))
    except (ValueError, TypeError) as error:
        raise InputError(f"memory_limit must be bytes or like '4 GiB', got {limit!r}") from error
    if not found > 0:
        raise InputError(f"memory_limit must be positive, got {limit!r}")
    return found
