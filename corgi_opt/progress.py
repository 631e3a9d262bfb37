"""A line that says what a long call is doing, where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from corgi_opt.errors import InputError

Report = Callable[[str], None]
"""Takes a short text: what is left to do."""


def silent(text: str) -> None:
    """Reports to nobody."""


@contextmanager
def reporting(wanted: bool | None, title: str) -> Iterator[Report]:
    """A tqdm line for the duration of a block. ``wanted=None``: in a notebook or on a terminal.

    Raises InputError for anything but True, False and None.
    """
    if wanted is not None and not isinstance(wanted, bool):
        raise InputError(f"progress must be True, False or None (shown when interactive), got {wanted!r}")
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    if wanted is False or (wanted is None and not interactive):
        yield silent
        return
    from tqdm.auto import tqdm

    with tqdm(desc=title, bar_format="{desc} [{elapsed}] {postfix}", leave=False) as bar:
        yield lambda text: bar.set_postfix_str(text)
