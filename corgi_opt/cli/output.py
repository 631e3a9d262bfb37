"""What the command line prints: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

import typer
from rich.console import Console
from torch import Tensor

from corgi_opt.problem.results import Radius

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Prints a line as it is: no markup (messages hold brackets), no line breaks where the output is a file."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def emit(result: Any) -> None:
    """One JSON object on standard output; infinities and NaN as null."""
    typer.echo(json.dumps(plain(result), allow_nan=False))


def plain(value: Any) -> Any:
    """A result as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
        return {**found, **({"ratio": plain(value.ratio)} if isinstance(value, Radius) else {})}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
