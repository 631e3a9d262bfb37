"""What the command line prints: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console

from corgi_opt.problem.plain import plain

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Prints a line as it is: no markup (messages hold brackets), no emoji (paths hold colons), no line breaks where
    the output is a file."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def to_stderr(text: str) -> None:
    """A line beside the answer: standard output holds answers only."""
    print(text, file=sys.stderr)


def emit(result: Any) -> None:
    """One JSON object on standard output; infinities and NaN as null."""
    typer.echo(json.dumps(plain(result), allow_nan=False))
