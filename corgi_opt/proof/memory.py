"""How much memory a check may take: the file decides sizes, so they are bounded before anything is allocated.

In all a check keeps to about 1 GiB beside the network itself: the file's content (archive.py), the rows of one tree at
a time (here), and what a backward pass holds at once (``Arithmetic.at_once``).
"""

from __future__ import annotations

from collections.abc import Iterator

from corgi_opt.errors import ProofError

MOST_BYTES = 3 * 2**27
"""Largest set of rows of one tree: 384 MiB."""

ENTRIES_AT_ONCE = 1_000_000
"""Entries of a tree's rows that are processed at once."""


def require_room(size: int, what: str) -> None:
    """Raises ProofError for more bytes than a check may take."""
    if size > MOST_BYTES:
        raise ProofError(f"{what} would take {size / 2**20:,.0f} MiB; a check may take {MOST_BYTES / 2**20:,.0f} MiB")


def blocks(rows: int, width: int, at_once: int = ENTRIES_AT_ONCE) -> Iterator[slice]:
    """Consecutive slices of so many rows, each of about ``at_once`` entries at most, ``width`` in a row."""
    size = max(1, at_once // max(width, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
