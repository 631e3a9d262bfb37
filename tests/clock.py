"""A clock that goes only as far as a test moves it: what is said about time limits holds on any machine."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest


class Clock:
    """Seconds ``now``; every look moves it on by ``tick``. ``looks``: how often it was looked at."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick, self.looks = 0.0, tick, 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.tick
        return self.now

    def stand_in(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """For ``time.monotonic`` and ``time.perf_counter`` in these modules."""
        for module in modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self, perf_counter=self))
