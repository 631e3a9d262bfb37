"""``corgi-opt study run | status | report | export``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from corgi_opt.cli.answers import answered
from corgi_opt.cli.options import Device, Json, unfolded
from corgi_opt.cli.output import emit, say
from corgi_opt.errors import InputError
from corgi_opt.study.engine import run
from corgi_opt.study.plan import Plan, import_for
from corgi_opt.study.report import write_report
from corgi_opt.study.store import Progress, Store

study_app = typer.Typer(
    no_args_is_help=True,
    help="Many questions about many images and networks, answered one by one into a store that survives crashes.",
)

UNFINISHED = 2
"""Exit code of a study with cells left to do, or without an answer."""

PlanFile = Annotated[str, typer.Argument(metavar="PLAN", help="a .toml file, or file.py:function")]
Folder = Annotated[
    Path | None, typer.Option("--out", help="the study's folder; default: beside the plan, PLAN without .toml")
]


@dataclass(frozen=True)
class How:
    """Where the cells of a study are answered, which of them, and when one is given up: what ``study.run`` takes."""

    workers: Annotated[int | None, typer.Option("--workers", min=1, help="processes here; default: one a core")] = None
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="of a dask cluster: tcp://HOST:PORT")] = None
    memory_limit: Annotated[str | None, typer.Option("--memory-limit", help="of one cell, like '4 GiB'")] = None
    grace: Annotated[float, typer.Option("--grace", help="seconds beyond its time limit before a cell is ended")] = 60.0
    device: Device = "auto"
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="also cells without an answer")] = False


@study_app.command("run")
@unfolded
def run_command(plan: PlanFile, *, out: Folder = None, how: How, as_json: Json = False) -> None:
    """Answers what the study has no answer for yet. Stop it whenever you like and run it again.

    Exit code 0: every cell has an answer; 2: some failed, timed out or crashed; 130: stopped by Ctrl-C.
    """
    loaded, folder = Plan.load(plan), folder_of(plan, out)
    tell = emit if as_json else _say_progress
    raise typer.Exit(_code(answered(lambda: run(loaded, folder, **asdict(how)), tell)))


@study_app.command("status")
def status_command(plan: PlanFile, out: Folder = None, as_json: Json = False) -> None:
    """How far the study is, also before its first answer. Exit code 0: every cell has an answer, 2: not."""
    keys = [cell.key for cell in Plan.load(plan).cells()]
    folder = folder_of(plan, out)
    if Store.there(folder):
        with Store.reading(folder) as store:
            progress = store.progress(keys)
    else:
        progress = Progress(len(keys), len(keys), {})
    (emit if as_json else _say_progress)(progress)
    raise typer.Exit(_code(progress))


@study_app.command("report")
def report_command(plan: PlanFile, out: Folder = None, as_json: Json = False) -> None:
    """Writes report.html (one file, no network) and the figures as PNG and PDF into the study's folder."""
    folder = folder_of(plan, out)
    import_for(plan)  # its methods and properties have names and colours, and there may be figures of one's own
    report = write_report(folder)
    if as_json:
        emit({"report": str(report.page), "figures": [str(f) for f in report.figures], "rows": report.rows})
    else:
        say(f"{report.page}: {report.rows} cells, {len(report.figures)} figures")


@study_app.command("export")
def export_command(
    plan: PlanFile,
    file: Annotated[Path, typer.Argument(help="a .parquet or .csv file")],
    out: Folder = None,
) -> None:
    """Writes the store as one table."""
    with Store.reading(folder_of(plan, out)) as store:
        store.export(file)
    say(str(file))


def folder_of(plan: str, out: Path | None) -> Path:
    """Where a plan's results are. Raises InputError."""
    if out is not None:
        return out
    if plan.endswith(".toml"):
        return Path(plan).with_suffix("")
    raise InputError("name the study's folder: --out DIR (a plan in Python has none of its own)")


def _say_progress(progress: Progress) -> None:
    say(str(progress))


def _code(progress: Progress) -> int:
    """Whether every cell has an answer."""
    return 0 if progress.states.get("done", 0) == progress.cells else UNFINISHED
