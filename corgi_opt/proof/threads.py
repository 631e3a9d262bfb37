"""Parts of a check that do not need each other, several at once: numpy lets go of Python's lock while it calculates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")
S = TypeVar("S")

MOST = 4
"""Parts that are calculated at once; what they hold together is what one may hold."""


def threads() -> int:
    """As many as the process has cores, or OMP_NUM_THREADS says, which is how numpy's own threads are limited."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(MOST, int(said) if said.isdecimal() else cores))


def at_once(run: Callable[[T], S], parts: Iterable[T]) -> list[S]:
    """What ``run`` gives for every part, in their order."""
    parts, count = list(parts), threads()

    def quietly(part: T) -> S:
        with np.errstate(all="ignore"):  # which numpy knows thread by thread
            return run(part)

    if min(count, len(parts)) < 2:
        return [quietly(part) for part in parts]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(quietly, parts))
