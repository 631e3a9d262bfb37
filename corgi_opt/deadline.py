"""A total time budget, shared by everything that one call does."""

from __future__ import annotations

import time


class Deadline:
    """A total time budget in seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left <= 0.0

    def check(self) -> None:
        """Raises TimeoutError when time is over."""
        if self.over:
            raise TimeoutError("time limit")

    def within(self, seconds: float) -> Deadline:
        """A shorter one that is part of this."""
        part = Deadline(seconds)
        part._end = min(part._end, self._end)
        return part


NEVER = Deadline(float("inf"))
"""No budget at all."""
