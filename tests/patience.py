"""Which cases of a test run always, and which only where there is time for all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], always: Container[Any]) -> list[Any]:
    """Cases to parametrize with: those of ``always`` in every run, the others with ``-m slow``."""

    def param(case: Any) -> Any:
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=[] if case in always else [pytest.mark.slow])

    return [param(case) for case in cases]


def diagonal(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few of all combinations: as many as the longest axis has values, and every value of every axis is in one."""
    return [tuple(axis[at % len(axis)] for axis in axes) for at in range(max(map(len, axes)))]
