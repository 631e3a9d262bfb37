"""A time budget that everything in one call shares."""

from __future__ import annotations

import time
from numbers import Real

from corgi_opt.errors import InputError


class Deadline:
    """A total time budget in seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 when time is over."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left <= 0.0

    def check(self) -> None:
        """Raises TimeoutError when time is over."""
        if self.over:
            raise TimeoutError("time limit")

    def within(self, seconds: float) -> Deadline:
        """A deadline in so many seconds, but no later than this one."""
        part = Deadline(seconds)
        part._end = min(part._end, self._end)
        return part


def check_time_limit(time_limit: object) -> Deadline:
    """The budget of a caller's ``time_limit`` in seconds, from now on. Raises InputError."""
    if isinstance(time_limit, bool) or not isinstance(time_limit, Real) or not float(time_limit) > 0:
        raise InputError(f"time_limit must be a positive number of seconds, got {time_limit!r}")
    return Deadline(float(time_limit))


NEVER = Deadline(float("inf"))
"""No budget at all."""
