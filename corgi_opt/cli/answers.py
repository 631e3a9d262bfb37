"""How the answers of ``verify``, ``radius`` and ``compare`` are printed, and what is known when Ctrl-C stops them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer
from rich import box
from rich.table import Table

from corgi_opt.answering.comparison import Compared, Comparison, added_briefly
from corgi_opt.cli.output import console, say, to_stderr
from corgi_opt.errors import Interrupted
from corgi_opt.problem.results import Radius, Verdict

T = TypeVar("T")

INTERRUPTED = 130


def answered(ask: Callable[[], T], tell: Callable[[T], None]) -> T:
    """What ``ask`` returns, once ``tell`` has printed it.

    Where Ctrl-C stops it, what is known by then is told in the same way, and Exit is raised with the code 130.
    """
    try:
        answer = ask()
    except Interrupted as stop:
        to_stderr("interrupted; this is what was known by then:")
        tell(stop.partial)  # type: ignore[arg-type]  # of the kind that the call returns
        raise typer.Exit(INTERRUPTED) from stop
    tell(answer)
    return answer


def say_verdict(v: Verdict) -> None:
    colour = {"certified": "green", "falsified": "red", "unknown": "yellow"}[v.status]
    say(f"{v.status} at eps={v.eps:g}, {v.asked.short}: {v.reason}", style=f"bold {colour}")
    say(f"  margin in [{v.margin_lower:.6g}, {v.margin_upper:.6g}]; CORGI's bound {v.corgi_in_words}")
    say(f"  settled by {v.method}" + (f", proof: {v.proof}" if v.proof else ""))


def say_radius(r: Radius) -> None:
    if r.lower > 0:
        said = f"certified up to {r.lower:.6g}, falsified at {r.upper:.6g} (ratio {r.ratio:.4f})"
    else:
        said = f"nothing is certified: the proven radius is 0 (falsified at {r.upper:.6g})"
    say(said, style="bold")
    say(f"  {r.asked.short}, {r.method}; corgi {r.corgi_in_words}, attack {r.attack:.6g}")
    say(f"  {r.reason}")


def say_comparison(c: Comparison) -> None:
    for q in c.questions:
        console.print(_table(q))
        for name, answer in q.answers.items():
            say(f"{name}: {answer.reason}")


def _table(q: Compared) -> Table:
    about = q.asked.in_words
    margins = q.eps is not None
    table = Table(title=f"{about}, eps={q.eps:g}" if margins else about, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method")
    heads = (
        ("margin, proven", "met", "seconds")
        if margins
        else ("certified eps", "falsified eps", "ratio", "over corgi", "seconds")
    )
    for name in heads:
        table.add_column(name, justify="right")
    for name, answer in q.answers.items():
        seconds = added_briefly(q.seconds.get(name))
        if isinstance(answer, Radius):
            gain = f"{answer.lower / answer.corgi:.3f}" if answer.corgi > 0 else "-"
            table.add_row(name, f"{answer.lower:.6g}", f"{answer.upper:.6g}", f"{answer.ratio:.4f}", gain, seconds)
        else:
            table.add_row(name, f"{answer.margin_lower:.6g}", f"{answer.margin_upper:.6g}", seconds)
    return table
