"""Files that a command will write: their folder is made, and what cannot be written is refused, before the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corgi_opt.drawing.maps import check_picture
from corgi_opt.errors import InputError


def writable(path: Path) -> Path:
    """The path, once its folder exists and a file can be written there. Raises InputError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):  # what is in it stays
            pass
        if not there:
            path.unlink()
    return path


def picture_file(path: Path) -> Path:
    """:func:`writable`, for a file whose name says a kind of picture. Raises InputError."""
    check_picture(path)
    return writable(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises InputError, with the path, where the file cannot be written in here."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; name another file") from error
