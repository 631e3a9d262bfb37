"""What is asked of the margin at one eps: its sign, or its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Goal(Protocol):
    """How far the margin has to be bounded. ``margin``: its best proven lower bound so far; ``met``: the smallest value
    met so far, of an image of the region that was replayed. ``exact``: by a method that decides every atom."""

    def reached(self, margin: float, met: float) -> bool:
        """Whether no method need do any more."""
        ...

    def level(self, margin: float, met: float, exact: bool) -> float:
        """What an atom has to be proven above next; those that are need no better bound."""
        ...

    def ends(self, exact: bool) -> bool:
        """Whether an atom that is not above the level ends a method, where every atom has to be."""
        ...


@dataclass(frozen=True)
class Sign:
    """Whether the margin is positive."""

    def reached(self, margin: float, met: float) -> bool:
        return margin > 0 or met <= 0

    def level(self, margin: float, met: float, exact: bool) -> float:
        return 0.0

    def ends(self, exact: bool) -> bool:
        return True


@dataclass(frozen=True)
class Value:
    """The margin itself: from a relaxation as sharp as it gets, from an exact method to within ``tolerance``."""

    tolerance: float

    def reached(self, margin: float, met: float) -> bool:
        return margin >= met

    def level(self, margin: float, met: float, exact: bool) -> float:
        # what is above a value that is met can not be the margin
        return met - self.tolerance if exact else met

    def ends(self, exact: bool) -> bool:
        return exact


@dataclass(frozen=True)
class Halved(Value):
    """The same by halves, where no image is likely to be near the worst: an attack drives atoms down, not how many."""

    def level(self, margin: float, met: float, exact: bool) -> float:
        least = super().level(margin, met, exact)
        return min(least, (margin + met) / 2) if exact and margin > -math.inf else least
