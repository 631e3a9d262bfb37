"""Tables for a terminal or a notebook, of text as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
