"""Tables for a terminal or a notebook, of text as it is."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; ``columns`` may be empty strings, and then there is no line of headings.

    Texts are shown as they are: no markup (messages hold brackets), no emoji (paths hold colons).
    """
    # few calls want rich, and importing the package does without
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE, show_header=any(columns))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """A small table for a notebook: names and values, numbers to six digits. A row whose value is None is left out."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(_said(value))}</td></tr>'
        for name, value in rows.items()
        if value is not None
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{cells}</table>"


def html_grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line of headings; the first cell of each row is one, too. Where there is no room for it, it
    scrolls."""
    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr><th>{html.escape(_said(first))}</th>"
        + "".join(f'<td style="text-align:left">{html.escape(_said(value))}</td>' for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    caption = f"<caption><b>{html.escape(title)}</b></caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}</div>'


def seconds_in_words(seconds: float) -> str:
    """Seconds for a reader: nobody needs the digits of a time below a hundredth of one."""
    return "below 0.01" if seconds < 0.005 else f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"


def _said(value: object) -> str:
    """A cell; a number that there is none of (0 / 0) is a dash."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)
