"""Pretends that a package is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def hidden(monkeypatch: pytest.MonkeyPatch, package: str) -> Iterator[None]:
    """Inside, importing ``package`` fails."""
    with monkeypatch.context() as patch:
        # Submodules too: an imported one would still be found.
        for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, package, None)
        yield
