"""Progress lines of long calls, on terminals and in notebooks."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from corgi_opt.errors import InputError

LINE_SECONDS = 30.0
"""The time between two lines of progress in a log."""

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
    """A tqdm bar of ``total`` cells, ``done`` of them done before; yields a function of the number of cells just done.

    ``wanted=None``: a bar in a notebook or on a terminal, elsewhere (in a log) a :class:`Lines`. Raises InputError as
    :func:`reporting`.
    """
    if not _shown(wanted):
        yield _count_for_nobody if wanted is False else Lines(title, total, done)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        bar = tqdm(desc=title, total=total, initial=done, unit="cell", smoothing=0.05)
    with bar:
        yield bar.update


def _count_for_nobody(steps: int) -> None:
    """Counts for nobody."""


class Lines:
    """Progress for a log: a line on standard error after the first cell that ends LINE_SECONDS after the last line.

    The rate is that since the first cell ended: until then processes were starting.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done = title, total, done
        self._first: tuple[float, int] | None = None  # when the first ended, and how many were done then
        self._last = time.monotonic()

    def __call__(self, steps: int) -> None:
        """So many more are done."""
        self._done += steps
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            print(self._said(now), file=sys.stderr, flush=True)
        self._first = self._first or (now, self._done)

    def _said(self, now: float) -> str:
        said = f"{self._title}: {self._done} of {self._total} cells"
        if self._first is None or now <= self._first[0]:
            return said
        rate, left = (self._done - self._first[1]) / (now - self._first[0]), self._total - self._done
        often = f"{60 * rate:.3g} a minute" if 60 * rate >= 1 else f"{3600 * rate:.3g} an hour"
        return f"{said}, {often}" + (f", about {_duration(left / rate)} left" if left else "")


def _duration(seconds: float) -> str:
    """Like ``2 h 05 min``, ``12 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


def _shown(wanted: bool | None) -> bool:
    if wanted is not None and not isinstance(wanted, bool):
        raise InputError(f"progress must be True, False or None (shown when interactive), got {wanted!r}")
    return _interactive() if wanted is None else wanted


def _interactive() -> bool:
    """Whether standard error is a terminal, or this is IPython or a notebook."""
    python = sys.modules.get("IPython")
    return sys.stderr.isatty() or (python is not None and python.get_ipython() is not None)
