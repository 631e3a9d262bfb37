"""Names of classes: how a caller gives them, how a class is asked for by its name, and how it is said in words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from corgi_opt.errors import InputError

MOST_LISTED = 6
"""Names that a message lists."""


def checked_names(classes: Any) -> tuple[str, ...]:
    """Class names as a caller gives them, in the order of the scores; () for None.

    Several classes may share a name (some data sets have such). Raises InputError for what is no sequence of texts.
    """
    if classes is None:
        return ()
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence) or not len(classes):
        raise InputError(f"classes must be a list of names, one for each class score, got {classes!r:.80}")
    for at, name in enumerate(classes):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"classes must be a list of names, but its entry {at} is {name!r:.80}")
    return tuple(str(name) for name in classes)


def require_one_each(names: Sequence[str], scores: int) -> None:
    """Raises InputError unless there are no names, or one for each of the class scores."""
    if names and len(names) != scores:
        raise InputError(
            f"classes has {len(names)} names, but the network has {scores} class scores; give one for each"
        )


def index_of(name: str, names: Sequence[str]) -> int:
    """The class of this name. Raises InputError where there is none, or more than one."""
    if not names:
        raise InputError(
            f"class_idx={name!r} is a name, and this network knows no names of classes: pass the number, or build it "
            "with classes=[...]"
        )
    found = [at for at, one in enumerate(names) if one == name]
    if len(found) > 1:
        raise InputError(f"class_idx={name!r} is the name of classes {', '.join(map(str, found))}: pass the number")
    if not found:
        near = difflib.get_close_matches(name, names, MOST_LISTED) or names[:MOST_LISTED]
        more = ", ..." if len(near) < len(names) else ""
        raise InputError(f"there is no class {name!r}; there are {', '.join(map(repr, near))}{more}")
    return found[0]


def name_of(class_idx: int, names: Sequence[str]) -> str | None:
    """The name of a class; None where there are no names, or none of it (class 1 of a single score)."""
    return names[class_idx] if 0 <= class_idx < len(names) else None


def in_words(class_idx: int, name: str | None) -> str:
    """``7``, or ``7 (stop)`` where the name is known."""
    return str(class_idx) if name is None else f"{class_idx} ({name})"
