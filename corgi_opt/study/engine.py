"""Runs a plan's cells that have no answer yet, on dask.distributed, and keeps each answer as it comes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corgi_opt._checks import integer, not_negative
from corgi_opt._progress import counting
from corgi_opt.errors import InputError, Interrupted, MissingPackageError, StudyError, UnsupportedOpError
from corgi_opt.problem.clip import outermost, own_channels
from corgi_opt.study.answer import image_of, said_image
from corgi_opt.study.own import Import, Role, being_imported, hint, layers_left_out
from corgi_opt.study.plan import Cell, Plan
from corgi_opt.study.sharing import told, weakest_first
from corgi_opt.study.store import Progress, Row, Store, now
from corgi_opt.study.worker import START_SECONDS, end_children, run_cell

LOG = logging.getLogger(__name__)

AHEAD = 3
"""Cells that are given to the scheduler for each thread of a worker: one to do, and some that wait beside it."""

WORKERS_SECONDS = 60.0
"""How long an existing cluster may take to show a worker."""


GUARD = (
    "Each of a study's processes reads the script that starts it: put what starts it under "
    '`if __name__ == "__main__":`'
)
"""What to do in a script that starts a study."""


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
    (``"tcp://HOST:PORT"``), an existing dask cluster whose workers find the plan's models and imports under the same
    paths. ``memory_limit`` of one cell (``"4 GiB"``; default: the worker's share). A cell may take ``grace`` seconds
    longer than its own time limit before its process is ended; both are counted from when its question is asked, once
    the process has started and the network is built. ``retry_failed``: also those that failed, timed out or
    crashed before. A script starts it under ``if __name__ == "__main__":``: each process on this machine reads the
    script.

    Stop it whenever you like; the next run goes on from there. Ctrl-C raises Interrupted (``partial``: the progress).
    Raises InputError, StoreError, StudyError; MissingPackageError without dask. A property, method or solver that the
    workers do not know is a StudyError before any cell is answered.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # reads its parent's script
        raise StudyError(f"a worker's process came upon the start of a study in the script that it reads. {GUARD}")
    if being_imported() is not None:
        raise StudyError(f"{being_imported()}, which a plan imports, starts a study itself. {GUARD}")
    if workers is not None and scheduler is not None:
        raise InputError("give either workers (on this machine) or a scheduler (of an existing cluster)")
    if workers is not None:
        integer("workers", workers, 1, 10_000)
    grace, limit = not_negative("grace", grace), _bytes(memory_limit)
    cells = {cell.key: cell for cell in plan.cells()}
    with Store.writing(folder) as store:
        known = store.states()
        left = [c for key, c in cells.items() if key not in known or (retry_failed and known[key] != "done")]
        store.name_questions({key: cell.question for key, cell in cells.items()})
        if left:
            done = len(cells) - len(left)
            how = {"workers": workers, "scheduler": scheduler, "memory_limit": limit or None, "grace": grace}
            with _client(workers, scheduler) as client, counting(progress, plan.name, len(cells), done) as count:
                try:
                    require_known(client, left, plan.imports, limit)
                    store.began(plan.name, plan.said, {**how, "device": device})
                    LOG.info("study %s: %d of %d cells to do", plan.name, len(left), len(cells))

                    def task(cell: Cell) -> dict[str, Any]:
                        return task_of(cell, limit, grace, device, plan.imports, told(cell, store))

                    for cell, columns in _answers(client, weakest_first(left), task):
                        LOG.info("cell %s: %s", cell.key[:12], _in_short(cell, columns))
                        columns = {**columns, **_layers_hint(columns, plan.imports)}
                        store.put(row_of(cell, columns), arrays_of(columns))
                        count(1)
                except KeyboardInterrupt as stop:
                    raise Interrupted(store.progress(cells)) from stop
        return store.progress(cells)


def _in_short(cell: Cell, columns: Mapping[str, Any]) -> str:
    """A cell and what came out of it, for a log."""
    outcome = columns.get("status") or columns.get("reason", "")
    said = f"{cell.model.name}, {cell.image.name}, {cell.ask.kind} by {cell.ask.method}: {columns['state']} {outcome}"
    return said.splitlines()[0]


def require_known(client: Any, cells: Iterable[Cell], imports: Sequence[Import], memory_limit: float) -> None:
    """Asks a worker whether it knows what cells use of one's own, as it is in this process. Raises StudyError."""
    owns = {(part.role, part.name): part for cell in cells for part in cell.own}
    solvers: set[tuple[Role, str]] = {("solver", c.ask.solver) for c in cells if c.ask.solver is not None}
    uses = sorted(owns.keys() | solvers)
    if not uses and not imports:
        return
    task = {"imports": _said(imports), "uses": uses, "memory_limit": memory_limit, "hard_limit": START_SECONDS}
    future = client.submit(run_cell, task, key=f"imports-{uuid.uuid4().hex}", pure=False)
    try:
        reply = future.result()
    except Exception as error:
        reply = _lost(error)
    if "known" not in reply:
        raise StudyError(f"a worker cannot import what the plan names as imports: {reply['reason']}")
    for (role, name), there in zip(uses, reply["known"], strict=True):
        here = owns.get((role, name))
        if there is None:
            homes = () if here is None else here.homes
            advice = "" if homes else " Register it in a file of its own, and start this process anew."
            raise StudyError(
                f"{role} {name!r} is registered in this process and not in those that answer cells.{advice} "
                f"{hint(role, homes)}"
            )
        if there != ("" if here is None else here.sha256):
            raise StudyError(
                f"{role} {name!r} is another one in the processes that answer cells than in this process: have it from "
                "the plan's imports only"
            )


def _layers_hint(columns: Mapping[str, Any], imports: Sequence[Import]) -> dict[str, Any]:
    """The reason of a cell that failed at an operation, where this process knows layers that those of cells do not."""
    reason = str(columns.get("reason"))
    names = layers_left_out(imports) if reason.startswith(UnsupportedOpError.__name__) else ()
    if not names:
        return {}
    known = f"This process knows {', '.join(names)}, which none of the plan's imports registers."
    return {"reason": f"{reason} {known} {hint('layer')}"}


def _answers(
    client: Any, questions: Iterable[Sequence[Cell]], task: Callable[[Cell], Mapping[str, Any]]
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Cells with the columns of their answers, in the order in which they are done. Raises StudyError.

    Questions side by side; the cells of one question one after the other, each when the answer before it is kept, so
    that whatever runs where, a cell is told the same.
    """
    from distributed import as_completed

    waiting, running = deque(map(deque, questions)), dict[str, deque[Cell]]()
    done = as_completed(loop=client.loop)
    most = AHEAD * max(1, _threads(client))

    def give() -> None:
        while waiting and len(running) < most:
            cells = waiting.popleft()
            future = client.submit(run_cell, task(cells[0]), key=_key(cells[0]), pure=False)
            running[future.key] = cells
            done.add(future)

    give()
    for future in done:
        cells = running.pop(future.key)
        cell = cells.popleft()
        if future.status == "finished":
            yield cell, future.result()
        elif future.status == "error":
            yield cell, _lost(future.exception())
        else:
            raise StudyError("the scheduler is gone; what was answered is kept: run the study again to go on")
        future.release()
        if cells:
            waiting.appendleft(cells)
        give()


def _key(cell: Cell) -> str:
    """The task's name at dask, whose pages show it up to the dash."""
    return f"cell-{cell.key}"


def _lost(error: BaseException) -> dict[str, Any]:
    """The columns of a cell that dask gave up: its worker died again and again, although the cell runs in a process of
    its own."""
    from distributed.scheduler import KilledWorker

    state = "crashed" if isinstance(error, KilledWorker) else "failed"
    return {"state": state, "reason": f"{type(error).__name__}: {error}"}


def _said(imports: Iterable[Import]) -> list[list[str]]:
    return [[name.name, name.sha256] for name in imports]


def task_of(
    cell: Cell,
    memory_limit: float,
    grace: float,
    device: str,
    imports: Iterable[Import] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a worker is told, as JSON types. ``memory_limit`` 0: the worker's share. ``before``: what weaker methods had
    of the same question (:func:`corgi_opt.study.sharing.told`)."""
    source = cell.model.source
    return {
        "imports": _said(imports),
        "model": {
            "name": cell.model.name,
            "build": source.build,
            "weights": source.weights,
            "sha256": cell.model.sha256,
        },
        "image": said_image(cell.image.x),
        "ask": cell.ask.plain(),
        "before": before,
        "device": device,
        "memory_limit": memory_limit,
        "hard_limit": cell.ask.time_limit + grace,
    }


def row_of(cell: Cell, columns: Mapping[str, Any]) -> Row:
    """A cell's row. ``columns``: what came out of the cell, by name. They win over what was asked (``class_idx``)."""
    ask = cell.ask
    low, high = outermost(ask.clip)
    return Row(
        **{
            "key": cell.key,
            "question": cell.question,
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
            **{name: value for name, value in columns.items() if name != "arrays"},
        }
    )


def arrays_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The maps and images that came out of a cell, by name."""
    return {name: image_of(said).numpy() for name, said in columns.get("arrays", {}).items()}


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
    """A memory limit in bytes; 0 for None. Raises InputError."""
    if limit is None:
        return 0.0
    from dask.utils import parse_bytes

    try:
        size = float(parse_bytes(limit))
    except (ValueError, TypeError) as error:
        raise InputError(f"memory_limit must be bytes or like '4 GiB', got {limit!r}") from error
    if not size > 0:
        raise InputError(f"memory_limit must be positive, got {limit!r}")
    return size
