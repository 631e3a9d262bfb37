"""Progress lines of long calls, on terminals and in notebooks."""

from __future__ import annotations

import sys
import warnings
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
    if not _shown(wanted):
        yield silent
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's, in a notebook without ipywidgets, where it prints text
        from tqdm.auto import tqdm

        # where nobody asked for it, only after a second
        bar = tqdm(desc=title, bar_format="{desc} [{elapsed}] {postfix}", leave=False, delay=0 if wanted else 1)
    with bar:
        yield lambda text: bar.set_postfix_str(text)


@contextmanager
def counting(wanted: bool | None, title: str, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """A tqdm bar of ``total`` steps, ``done`` of them done before; yields a function of the number of steps just done.

    Raises InputError as :func:`reporting`.
    """
    shown = _shown(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        bar = tqdm(desc=title, total=total, initial=done, unit="cell", disable=not shown, smoothing=0.05)
    with bar:
        yield bar.update


def _shown(wanted: bool | None) -> bool:
    if wanted is not None and not isinstance(wanted, bool):
        raise InputError(f"progress must be True, False or None (shown when interactive), got {wanted!r}")
    return _interactive() if wanted is None else wanted


def _interactive() -> bool:
    """Whether standard error is a terminal, or this is IPython or a notebook."""
    python = sys.modules.get("IPython")
    return sys.stderr.isatty() or (python is not None and python.get_ipython() is not None)
