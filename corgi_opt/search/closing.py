"""Which eps an exact method is asked about next, and for how long, to close the bracket of a radius.

An exact method may take any time at an eps, and more the nearer that is to the true radius. A probe therefore has few
seconds. An eps that stays undecided splits the bracket, and the search goes on below it. After two such probes in a
row, or where little of the bracket is left below it, the seconds double, and the lowest undecided eps is asked about
again, which goes on where it was cut off. So half of all seconds go into the last few probes, and no probe waits for a
hopeless one.
"""

from __future__ import annotations

from dataclasses import dataclass

from corgi_opt.search.crossing import middle

NEAR, BACK = 0.9, 4.0
"""How many rtol below a counterexample a search begins; the factor of that distance after each failure."""

PATIENCE = 2
"""Undecided probes in a row before the seconds double."""

LITTLE = 0.25
"""Share of the bracket (in log eps) below an undecided eps that is not looked at before that eps has had more time."""


@dataclass(frozen=True)
class Probe:
    """An eps to ask about, and the seconds for it."""

    eps: float
    seconds: float


@dataclass(frozen=True)
class Doubt:
    """An eps that stayed undecided after so many seconds, and why; ``final``: more seconds would not help."""

    eps: float
    seconds: float
    why: str
    final: bool


class Closing:
    """The state of one search. ``near``: it begins just below the nearest counterexample, else in the middle."""

    def __init__(self, rtol: float, seconds: float, near: bool) -> None:
        self._rtol, self._seconds, self._near = rtol, seconds, near
        self._step = NEAR * rtol
        self._doubts: dict[float, Doubt] = {}
        self._in_a_row = 0
        self._least, self._decided = seconds, False

    def ask(self, low: float, high: float) -> Probe | None:
        """The next probe of the bracket from ``low`` (certified) to ``high`` (broken); None where nothing is left."""
        inside = self._inside(low, high)
        if high <= low * (1 + self._rtol):
            return None
        end = min((d.eps for d in inside if d.final), default=high)  # nothing above it will be certified
        waiting = [d for d in inside if d.eps < end]
        if waiting:
            return self._patient(low, end, waiting)
        if end > low * (1 + self._rtol / 4):
            near = end / (1 + self._step) if self._near else 0.0
            return Probe(max(near, middle(low, end)), self._seconds)
        last = max((d.eps for d in inside), default=high)
        # what cannot be certified may still be broken
        return Probe(middle(last, high), self._seconds) if high > last * (1 + self._rtol / 4) else None

    def _patient(self, low: float, end: float, waiting: list[Doubt]) -> Probe:
        """The next probe where more seconds may settle some doubts: below them, or at one of them again."""
        first = min((d.eps for d in waiting if d.seconds >= self._seconds), default=end)
        little = low * max(1 + self._rtol, (end / low) ** LITTLE) if low > 0 else 0.0
        if self._in_a_row >= PATIENCE or first <= little:
            self._seconds, self._in_a_row, first = 2 * self._seconds, 0, end
        # an eps that was asked about keeps the atoms that were proven there
        again = min((d.eps for d in waiting if d.seconds < self._seconds and d.eps < first), default=None)
        return Probe(middle(low, first) if again is None else again, self._seconds)

    @property
    def stuck(self) -> bool:
        """Whether nothing was decided although the seconds have doubled."""
        return self._seconds > self._least and not self._decided

    def certified(self) -> None:
        self._step, self._in_a_row, self._decided = NEAR * self._rtol, 0, True

    def broken(self) -> None:
        """The probe gave a counterexample nearer than all before: the next probe begins farther below it."""
        self._step, self._decided = BACK * self._step, True

    def undecided(self, probe: Probe, why: str, final: bool) -> None:
        self._doubts[probe.eps] = Doubt(probe.eps, probe.seconds, why, final)
        self._step, self._in_a_row = BACK * self._step, self._in_a_row + 1

    def why(self, low: float, high: float) -> str:
        """Why the bracket is not closed: the reason of its lowest doubt, or an empty string."""
        return min(self._inside(low, high), key=lambda d: d.eps).why if self._inside(low, high) else ""

    def _inside(self, low: float, high: float) -> list[Doubt]:
        return [d for d in self._doubts.values() if low < d.eps < high]
