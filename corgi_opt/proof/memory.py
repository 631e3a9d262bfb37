"""How much memory a check may take: what a file lists decides sizes, so they are bounded before anything is made.

In all a check keeps to about 1 GiB beside the network itself: the file's content (archive.py), the rows of one tree at
a time (here), and what a backward pass holds at once (``Arithmetic.at_once``).
"""

from __future__ import annotations

from collections.abc import Iterator

from corgi_opt.errors import ProofError

MOST_BYTES = 3 * 2**27
"""Largest set of rows of one tree: 384 MiB."""

PIXELS_AT_ONCE = 1_000_000
"""Entries of a tree's rows that are looked at at once."""


def require_room(size: int, what: str) -> None:
    """Raises ProofError for more bytes than a check may take."""
    if size > MOST_BYTES:
        raise ProofError(f"{what} would take {size / 2**20:,.0f} MiB; a check may take {MOST_BYTES / 2**20:,.0f} MiB")


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Parts of a table with so many rows of this width."""
    size = max(1, PIXELS_AT_ONCE // max(width, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
