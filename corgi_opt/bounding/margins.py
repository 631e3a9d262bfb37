"""What relaxations prove about one question, at one eps or at several in one batch. Bounds only ever tighten.

Each rung bounds only the atoms that are still open, inside the receptive fields of their parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import Relaxed, crown_pass
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import (
    atom_bounds,
    interval_parts,
    part_bounds,
    places_of,
    share_in_atoms,
)
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.tolerance import below, gamma
from corgi_opt.errors import BoundOrderError
from corgi_opt.network.cone import reach_of
from corgi_opt.problem.atoms import Parts
from corgi_opt.problem.question import Question

SETTLED = 1e-6
"""A bound this far above zero, relative to the question's scale, in float32 is positive in float64 as well."""

ATOMS_AT_ONCE = 256
"""Most atoms that get a bound of their own at one eps, the most doubtful first."""


@dataclass(frozen=True, eq=False)
class Known:
    """What holds at one eps, and so at every smaller one.

    Bounds of atoms (1, A), of the slack of each group (1, G), and of nodes (1, C, H, W).
    """

    lower: Tensor
    slack: Tensor
    intervals: Mapping[str, Interval] | None


class Margins:
    """Lower bounds ``lower`` (B, A) of the atoms of ``question.groups``, over B regions of one question. ``slack``
    (B, G): lower bounds of each group's margin, where more is known of it than its atoms say.

    ``own``: by rung what it computed itself (B, A), minus infinity where it did not look. ``by_relaxed``: the best that
    any D on this question's own relaxation gives; the triangle LP on it is no lower. In float64 they are proven,
    rounding accounted for (tolerance.py); in float32 they are estimates that steer a search.
    ``above``: what is known at one eps that is at least as large as all of these. ``goal``: atoms proven to be above it
    are not looked at any further; 0 asks for signs only.
    """

    def __init__(
        self,
        question: Question,
        epses: Sequence[float],
        dtype: torch.dtype,
        device: torch.device,
        above: Known | None = None,
        goal: float = 0.0,
    ) -> None:
        self.question, self._above, self.goal = question, above, goal
        self.regions = Regions.of([question.ball(e) for e in epses], dtype, device)
        groups = question.groups
        self.lower = torch.full((len(epses), len(groups)), -torch.inf, dtype=torch.float64)
        self.slack = torch.full((len(epses), len(groups.need)), -torch.inf, dtype=torch.float64)
        if above is not None:
            self.lower = torch.maximum(self.lower, above.lower)
            self.slack = torch.maximum(self.slack, above.slack)
        self.by_relaxed = torch.full_like(self.lower, -torch.inf)
        self.relaxed: Relaxed | None = None
        self.stats: dict[str, float] = {}
        self._net = question.net.to(dtype, device)
        self.own: dict[str, Tensor] = {}
        self._rung = ""
        self._joint: dict[str, Tensor] = {}
        self._done: dict[str, Tensor] = {}

    @property
    def margin(self) -> Tensor:
        """The best lower bound on each margin (B,)."""
        return self.per_group.amin(dim=1)

    @property
    def per_group(self) -> Tensor:
        """The best lower bound on the margin of each group (B, G)."""
        return torch.maximum(self.question.groups.slack(self.lower), self.slack)

    @property
    def open(self) -> Tensor:
        """Atoms (B, A) that are not proven above the goal, but might be, and whose group that could help."""
        unproven = ~(self.lower > self.goal) & ~(self.per_group > self.goal)[:, self.question.groups.group]
        return unproven & ~self.question.ahead

    def known(self, case: int) -> Known:
        """What is known about one region."""
        one = slice(case, case + 1)
        if self.relaxed is None:
            return Known(self.lower[one], self.slack[one], None)
        return Known(
            self.lower[one],
            self.slack[one],
            {n: Interval(b.lower[one], b.upper[one]) for n, b in self.relaxed.intervals.items()},
        )

    # --- the rungs: each returns the margins (B,) that it computed, over the atoms that were open when it began ---
    # They raise TimeoutError; what was proven by then stays, and a rung that was cut off can be called again.

    def ibp(self, deadline: Deadline = NEVER) -> Tensor:
        """Interval arithmetic."""
        return self._once("ibp", self._ibp, deadline)

    def corgi(self, deadline: Deadline = NEVER) -> Tensor:
        """The paper's bound."""
        return self._once("corgi", self._corgi, deadline)

    def crown(self, deadline: Deadline = NEVER) -> Tensor:
        """CROWN per part, then per atom that is still open."""
        return self._once("crown", self._crown, deadline)

    def dual(self, deadline: Deadline = NEVER) -> Tensor:
        """Dual ascent on the atoms that CROWN leaves, or on their parts where those share no input."""
        self.crown(deadline)
        return self._once("dual", self._dual, deadline)

    # --- how -------------------------------------------------------------------------------------------------

    def _once(self, name: str, rung: Callable[[Deadline], None], deadline: Deadline) -> Tensor:
        if name not in self._done:
            entered = self.open | self.question.ahead
            self._rung = name
            self.own.setdefault(name, torch.full_like(self.lower, -torch.inf))
            with timed(self.stats, name):
                rung(deadline)
            found = self.question.groups.margin(torch.where(entered, self.own[name], torch.inf))
            # with nothing open on entry the rung had nothing to do: what is known stands
            self._done[name] = torch.where(found.isinf() & (found > 0), self.margin, found)
        return self._done[name]

    def _ibp(self, deadline: Deadline) -> None:
        deadline.check()
        known = interval_bounds(self._net.graph, self.regions)
        self._take(interval_parts(self._net, self._parts, known[self._net.features]))

    def _corgi(self, deadline: Deadline) -> None:
        matter = reach_of(self._net.pooled, self._net.features, self._pixels_of(self.open))
        features = corgi_bounds(self._net, self.regions, matter, deadline)
        self._take(interval_parts(self._net, self._parts, features))

    def _crown(self, deadline: Deadline) -> None:
        sides = self.question.groups.sides_of(self.open)
        matter = reach_of(self._net.graph, self._net.features, self._pixels_of(self.open))
        above = None if self._above is None else self._above.intervals
        self.relaxed = crown_pass(self._net.graph, self.regions, matter=matter, above=above, deadline=deadline)
        self.stats["unstable_relus"] = sum(
            int((self.relaxed.intervals[n].unstable & matter[n]).sum()) for n in self._net.graph.preactivations
        )
        self._take(part_bounds(self._net, self._parts, self.relaxed.bound, *sides))
        self.stats["pairs_after_crown"] = int(self.open.sum())
        with timed(self.stats, "pair_crown"):
            self._together(self.relaxed.bound)
        self.stats["pairs_after_pair_crown"] = int(self.open.sum())

    def _dual(self, deadline: Deadline) -> None:
        assert self.relaxed is not None  # dual() has just computed it
        self.relaxed = replace(self.relaxed, deadline=deadline)
        self.own["dual"] = torch.maximum(self.own["dual"], self.own["crown"])  # that is where every ascent begins
        self._together(partial(ascend, self.relaxed, enough=self.goal + SETTLED * self.question.scale))
        entries = torch.nonzero(self.open)
        apart = entries[~share_in_atoms(self._net, self.question.groups, entries[:, 1])]
        if len(apart):
            marked = torch.zeros_like(self.open).index_put(tuple(apart.T), torch.tensor(True))
            sides = self.question.groups.sides_of(marked)
            self._take(part_bounds(self._net, self._parts, partial(ascend, self.relaxed), *sides))
        self.stats["pairs_after_dual"] = int(self.open.sum())

    def _together(self, bound: Callable[[str, Rows], Tensor]) -> None:
        """Bounds the most doubtful open atoms whose parts share an input (others gain nothing), each as one
        objective."""
        entries = self._doubtful()
        entries = entries[share_in_atoms(self._net, self.question.groups, entries[:, 1])]
        if not len(entries):
            return
        found = torch.full_like(self.lower, -torch.inf)
        values = atom_bounds(self._net, self.question.groups, bound, entries[:, 1], entries[:, 0])
        found[tuple(entries.T)] = values.cpu().double()
        self._joint[self._rung] = found
        if self._rung == "dual":
            self._require_order("dual", "crown")
        self._keep(found)

    @property
    def _parts(self) -> Parts:
        return self.question.groups.parts

    def _take(self, parts: Interval) -> None:
        """Atoms' bounds from parts' (B, F)."""
        groups = self.question.groups
        found, size = groups.least(*(side.cpu().double() for side in parts))
        self._keep(below(found) if groups.differences else found - gamma(groups.terms.shape[1]) * size)

    def _keep(self, found: Tensor) -> None:
        found = torch.where(found.isnan(), -torch.inf, found)  # NaN proves nothing and must not stick
        self.own[self._rung] = torch.maximum(self.own[self._rung], found)
        self.lower = torch.maximum(self.lower, found)
        if self.relaxed is not None:
            self.by_relaxed = torch.maximum(self.by_relaxed, found)

    def _require_order(self, name: str, weaker: str) -> None:
        """Raises BoundOrderError where a rung computed less of an atom, as one objective, than a weaker one did of the
        same objective on the same relaxation, by more than rounding: that goes by what parts can be over the region.

        What is had part by part is left out: CROWN's lines cross beyond a neuron's interval, where backward passes may
        go, so that a sum of bounds can be above the bound of the sum.
        """
        if self.regions.eps.dtype != torch.float64 or self.relaxed is None or weaker not in self._joint:
            return
        low, high = self.relaxed.intervals[self._net.features]
        most = self._parts.vectors(self._net.weight).abs() @ torch.maximum(low.abs(), high.abs()).flatten(2)
        found = self._joint[name]
        short = torch.where(found > -torch.inf, self._joint[weaker] - found, -torch.inf)
        if float(short.max()) > SETTLED * max(self.question.scale, float(most.max())):
            what, by = self.question.groups.named(int(short.amax(dim=0).argmax())), float(short.max())
            raise BoundOrderError(
                f"the {name} bound of {what} is {by:.3g} below the {weaker} bound on the same relaxation; nothing is "
                "certified, please report this"
            )

    def _doubtful(self) -> Tensor:
        """Open atoms as entries (E, 2) of ``lower``, the lowest first, at most ATOMS_AT_ONCE for each region."""
        entries = []
        for case, (bounds, wanted) in enumerate(zip(self.lower, self.open, strict=True)):
            found = torch.nonzero(wanted)
            order = torch.argsort(bounds[tuple(found.T)], stable=True)[:ATOMS_AT_ONCE]
            entries.append(F.pad(found[order], (1, 0), value=case))
        return torch.cat(entries)

    def _pixels_of(self, atoms: Tensor) -> Tensor:
        """The map (B, H, W) of pixels that any marked atom (B, A) is made of."""
        low, high = self.question.groups.sides_of(atoms)
        return places_of(self._net, self._parts, low | high).to(self.regions.eps.device)


@contextmanager
def timed(stats: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds of a block to ``stats["seconds_<name>"]``."""
    start = time.monotonic()
    try:
        yield
    finally:
        stats[f"seconds_{name}"] = stats.get(f"seconds_{name}", 0.0) + time.monotonic() - start
