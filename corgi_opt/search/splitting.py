"""Branch and bound on intervals: is an atom above a goal on the whole region, where layers are curved?

A *piece* is the images of the region at which some units, inputs of ReLUs and of curved nodes, lie in parts of their
intervals (for smooth activations Shi et al., arXiv 2405.21063). Planes and lines of cut units are made anew, and D may
take any multiple of a cut unit's value off its coefficients, as that value is known to lie within the cut (the
multipliers of a split, Wang et al., arXiv 2103.06624). Both are searched in float32, many pieces at once; a piece is
closed by its bound in float64 only.

A piece that stays open is cut in two, at the unit whose relaxation is worst for its bound: |lambda| times the gap of
its planes in the middle; a ReLU's input at zero, any other in the middle. Intervals of other units stay as they are. So
this closes gaps of small networks; where every halving of all pieces gains little, it stops.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.ascent import TURNING_TAPE, best_choices
from corgi_opt.bounding.choosing import (
    Choosing,
    ChoosingLines,
    ChoosingPlanes,
    ChoosingPulls,
    ChosenLines,
    ChosenPlanes,
    ChosenPulls,
)
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.curves import MIDDLE
from corgi_opt.bounding.dual import Interval, Relaxation, Rows, Step, descend, rows_at_once
from corgi_opt.bounding.objective import Objectives, objectives
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import ReluLines
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.bounding.turning import AT, TurningPlanes
from corgi_opt.network.ops import Affine, ReLU
from corgi_opt.network.smooth import Product
from corgi_opt.problem.question import Question
from corgi_opt.search.atom import NOTHING, AtomAnswer

MOST_AT_ONCE = 64
"""Pieces that are bounded at once."""

STEPS = 10
"""Steps of ascent of every piece."""

FIRST_LOOK, DOUBLINGS = 64, 24
"""Whether it gets anywhere is looked at after so many pieces, and each time there are twice as many: it stops where so
many doublings more, at the last one's gain, would not do."""

CLEARLY = 1e-4
"""A bound in float32 is enough, if it is above the goal by this share of how far that is from the objective's zero."""

NARROWEST = 1e-9
"""A unit is not cut where its interval is narrower than this share of the largest value of its layer."""

NO_CLOSER = "halving intervals brings its bounds no closer"
GAINS_LITTLE = "halving intervals gains too little here"
NOT_A_NUMBER = "the search's float32 arithmetic overflows"
TIME_LIMIT = "time limit"
"""Why a search ends undecided."""

Unit = tuple[str, int, int, int]
"""A neuron: its node, channel, row and column."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Images at which ``cuts`` units lie within parts of their intervals; ``lower``: a proven bound of the atom there.
    ``worst``: the unit to be cut next, and where; None: there is none to gain by. ``choices`` (C, h, w) by node: the
    best that were met, where the search of its halves begins."""

    cuts: Mapping[Unit, tuple[float, float]]
    lower: float = -math.inf
    worst: tuple[Unit, float] | None = None
    choices: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SplitSolver:
    """Bounds atoms of one question at one eps by splitting intervals; it knows no image."""

    question: Question

    def attempts(self, atom: int, relaxed: Relaxed, deadline: Deadline, goal: float) -> Iterator[AtomAnswer]:
        """One answer: what is proven of the atom's minimum over the whole region."""
        net, groups = self.question.net.to(torch.float64, relaxed.regions.eps.device), self.question.groups
        case = torch.zeros(1, dtype=torch.long)
        terms, coefs = groups.terms[[atom]], groups.coefs[[atom]]
        (objective,) = objectives(net, groups.parts, terms, coefs, case)
        found = split(relaxed, net.features, objective, goal, deadline)
        yield replace(NOTHING, lower=found.lower, nodes=found.pieces, reason=found.reason, goal=goal)


@dataclass(frozen=True, eq=False)
class Split:
    """What a search found: a proven ``lower`` bound, from so many ``pieces``, and why it is not above the goal."""

    lower: float
    pieces: int
    reason: str


def split(relaxed: Relaxed, node: str, objective: Objectives, goal: float, deadline: Deadline) -> Split:
    """Bounds one functional of a node over one region until it is above the goal, nothing is gained any more, or time
    is over.

    ``relaxed``: the region's, in float64; ``objective``: its one row.
    """
    cutter = _Cutter(relaxed, node, objective)
    open_: list[tuple[float, int, Piece]] = []
    number, closed, bounded, look = count(), math.inf, 0, FIRST_LOOK
    before, pending, reason = -math.inf, [Piece({})], ""
    while pending:
        for some in (pending[start : start + cutter.at_once] for start in range(0, len(pending), cutter.at_once)):
            bounded += len(some)
            for piece in some if deadline.over else cutter.bounded(some, goal):
                if piece.lower > goal:
                    closed = min(closed, piece.lower)
                else:
                    heapq.heappush(open_, (piece.lower, next(number), piece))
        pending = []
        if not open_:
            break
        lowest = open_[0][0]
        if bounded >= look:
            reason = GAINS_LITTLE if (lowest - before) * DOUBLINGS < goal - lowest else ""
            before, look = lowest, 2 * look
        reason = NOT_A_NUMBER if lowest == -math.inf else TIME_LIMIT if deadline.over else reason
        if reason:
            break
        taken = [heapq.heappop(open_) for _ in range(min(len(open_), max(1, cutter.at_once // 2)))]
        if all(piece.worst for _, _, piece in taken):
            pending = [half for _, _, piece in taken for half in cutter.halves(piece)]
        else:  # one that cannot be cut stays open for ever
            open_, reason = [*taken, *open_], NO_CLOSER
    return Split(min([closed, *(lower for lower, _, _ in open_)]), bounded, reason)


class _Cutter:
    """Bounds pieces of one region, and cuts them."""

    def __init__(self, relaxed: Relaxed, node: str, objective: Objectives) -> None:
        graph, below = relaxed.graph, relaxed.graph.ancestors(node)
        turning = {
            name: TurningPlanes.of(graph[name], relaxed.intervals, planes)
            for name, planes in relaxed.curves.items()
            if name in below
        }
        self._relaxed, self._node, self._objective = relaxed, node, objective
        self._exact = _Relaxations(relaxed, turning, node)
        in_float32 = {name: planes.to(torch.float32) for name, planes in turning.items()}
        self._quick = _Relaxations(relaxed.to(torch.float32), in_float32, node)
        self.at_once = min(MOST_AT_ONCE, max(2, rows_at_once(graph, node, objective.rows) // TURNING_TAPE))

    def halves(self, piece: Piece) -> tuple[Piece, Piece]:
        """The piece, cut in two at its worst unit; each is at least as good as the whole."""
        assert piece.worst is not None
        unit, at = piece.worst
        low, high = piece.cuts.get(unit) or self._exact.range_of(unit)
        first, second = ({**piece.cuts, unit: part} for part in ((low, at), (at, high)))
        return replace(piece, cuts=first), replace(piece, cuts=second)

    def bounded(self, pieces: Sequence[Piece], goal: float) -> list[Piece]:
        """The pieces with their bounds and the units to be cut next."""
        (shift,), (doubt,) = self._objective.shift.tolist(), self._objective.doubt.tolist()
        rows = self._objective.rows
        case = torch.arange(len(pieces), device=rows.coefs.device)
        coefs, corners = rows.coefs.expand(len(pieces), -1, -1, -1), rows.places.corners.expand(len(pieces), -1)
        rows = Rows.at(coefs, corners, case)
        quick, exact = self._quick.over(pieces), self._exact.over(pieces)
        graph, regions = self._quick.graph, self._quick.regions(len(pieces))
        choosing, enough = quick.choosing(), goal - shift + doubt + CLEARLY * abs(goal - shift)
        found = best_choices(
            graph, regions, self._node, rows.to(torch.float32), choosing, self._quick.direct, enough, STEPS
        )
        chosen = {name: _Seen(r) for name, r in exact.chosen(choosing, found).items()}
        value = descend(
            self._relaxed.graph,
            self._node,
            rows,
            self._exact.regions(len(pieces)),
            {**self._exact.direct, **chosen},
            self._relaxed.rounding,
        )
        value = value + shift - doubt
        worst = exact.worst({name: seen.rows for name, seen in chosen.items() if seen.rows is not None})
        bounds = [max(p.lower, -math.inf if math.isnan(v) else v) for p, v in zip(pieces, value.tolist(), strict=True)]
        return [
            Piece(piece.cuts, lower, unit, {name: choice[n] for name, choice in found.items()})
            for n, (piece, lower, unit) in enumerate(zip(pieces, bounds, worst, strict=True))
        ]


@dataclass(eq=False)
class _Seen:
    """A relaxation, and the rows that it met in the last pass."""

    inner: Relaxation
    rows: Rows | None = None

    def step(self, rows: Rows) -> Step:
        self.rows = rows
        return self.inner.step(rows)


class _Relaxations:
    """The relaxation of one region in one dtype, from which those of its pieces are made.

    ``readers``: by node whose units may be cut, the ReLUs and curved nodes that read it.
    """

    def __init__(self, relaxed: Relaxed, turning: Mapping[str, TurningPlanes], node: str) -> None:
        self.graph, self.intervals, self.direct = relaxed.graph, relaxed.intervals, relaxed.direct
        self.turning, self._regions, below = turning, relaxed.regions, relaxed.graph.ancestors(node)
        self.lines = {name: lines for name, lines in relaxed.lines.items() if name in below}
        self.readers: dict[str, list[str]] = {}
        for name in (*self.lines, *turning):
            for source in dict.fromkeys(self.graph[name].inputs):
                if isinstance(self.graph[source].op, Affine) and source not in self.direct:
                    self.readers.setdefault(source, []).append(name)

    def regions(self, count: int) -> Regions:
        """So many times the one region."""
        one = self._regions
        parts = (one.center, one.lower, one.upper, one.eps)
        return Regions(one.norm, *(t.expand(count, *t.shape[1:]) for t in parts))

    def range_of(self, unit: Unit) -> tuple[float, float]:
        """The unit's interval over the whole region."""
        name, *place = unit
        low, high = (float(side[(0, *place)]) for side in self.intervals[name])
        return low, high

    def over(self, pieces: Sequence[Piece]) -> _Pieces:
        return _Pieces(self, pieces)


class _Pieces:
    """The relaxation of N pieces: ``intervals`` (N, C, H, W) of nodes that are cut anywhere, ``cuts`` where."""

    def __init__(self, whole: _Relaxations, pieces: Sequence[Piece]) -> None:
        self._whole, self._count, self._pieces = whole, len(pieces), pieces
        self._at: dict[str, tuple[Tensor, ...]] = {}
        self._known: dict[str, Interval] = dict(whole.intervals)
        by_node: dict[str, list[tuple[int, int, int, int, float, float]]] = {}
        for number, piece in enumerate(pieces):
            for (name, channel, row, column), (low, high) in piece.cuts.items():
                by_node.setdefault(name, []).append((number, channel, row, column, low, high))
        for name, entries in by_node.items():
            lower, upper = (side.expand(len(pieces), -1, -1, -1).clone() for side in whole.intervals[name])
            *at, lows, highs = zip(*entries, strict=True)
            self._at[name] = tuple(torch.tensor(axis, device=lower.device) for axis in at)
            lower[self._at[name]] = torch.tensor(lows, dtype=lower.dtype, device=lower.device)
            upper[self._at[name]] = torch.tensor(highs, dtype=upper.dtype, device=upper.device)
            self._known[name] = Interval(lower, upper)
        self._lines = {name: self._relined(name) for name in whole.lines}
        self._turning = {name: self._replaned(name) for name in whole.turning}

    def _relined(self, name: str) -> ReluLines:
        source = self._whole.lines[name].source
        return ReluLines.crown(source, self._known[source]) if source in self._at else self._whole.lines[name]

    def _replaned(self, name: str) -> TurningPlanes:
        """Planes of a curved node, made anew where an operand is cut."""
        node, planes = self._whole.graph[name], self._whole.turning[name]
        cut = [self._at[source] for source in node.inputs if source in self._at]
        if not cut:
            return planes
        n, channel, row, column = (torch.cat(axis) for axis in zip(*cut, strict=True))
        known = {source: self._entries(source, n, channel, row, column) for source in node.inputs}
        new = TurningPlanes.of(node, known).maps
        channels = node.shape[0]
        maps = planes.maps.expand(self._count, -1, -1, -1).clone()
        at = torch.arange(new.shape[1], device=new.device)
        maps[n[:, None], at * channels + channel[:, None], row[:, None], column[:, None]] = new[:, :, 0, 0]
        return TurningPlanes(planes.sources, maps)

    def _entries(self, name: str, n: Tensor, *place: Tensor) -> Interval:
        """Intervals (E, 1, 1, 1) of some units of some pieces."""
        lower, upper = self._known[name]
        case = n if len(lower) > 1 else torch.zeros_like(n)
        return Interval(*(side[(case, *place)].view(-1, 1, 1, 1) for side in (lower, upper)))

    def choosing(self) -> dict[str, Choosing]:
        found: dict[str, Choosing] = {name: ChoosingLines(lines) for name, lines in self._lines.items()}
        found.update((name, ChoosingPlanes(planes)) for name, planes in self._turning.items())
        for name, at in self._at.items():
            interval = self._known[name]
            found[name] = ChoosingPulls(
                interval, torch.zeros_like(interval.lower).index_put(at, interval.lower.new_ones(()))
            )
        for name, choosing in found.items():
            known = [piece.choices.get(name) for piece in self._pieces]
            like = next((choice for choice in known if choice is not None), None)
            if like is not None:  # a node that is cut in some pieces only pulls nothing in the others
                choosing.start = torch.stack([torch.zeros_like(like) if c is None else c for c in known])
        return found

    def chosen(self, choosing: Mapping[str, Choosing], choices: Mapping[str, Tensor]) -> dict[str, Relaxation]:
        """The relaxations at the choices that were searched for these pieces."""
        found: dict[str, Relaxation] = {}
        for name, choice in choices.items():
            mine = choosing[name]
            if isinstance(mine, ChoosingPulls):
                cuts = len(self._at[name][0])
                found[name] = ChosenPulls(self._known[name], mine.pulls_of(choice), gamma(cuts))
            elif name in self._turning:
                found[name] = ChosenPlanes(self._turning[name], choice)
            else:
                found[name] = ChosenLines(self._lines[name], self._known, choice)
        return found

    def worst(self, met: Mapping[str, Rows]) -> list[tuple[Unit, float] | None]:
        """For each piece the unit whose relaxation costs its bound most, and where to cut it; ``met``: the rows of a
        pass, by node."""
        most = torch.zeros(self._count, dtype=torch.float64)
        found: list[tuple[Unit, float] | None] = [None] * self._count
        for source, readers in self._whole.readers.items():
            for reader in readers:
                if reader not in met:
                    continue
                rows = met[reader]
                cost = (rows.coefs.abs() * rows.gather(self._gap(reader, source))).flatten(1)
                best = cost.max(dim=1)
                for n in torch.nonzero(best.values.cpu() > most).flatten().tolist():
                    most[n] = best.values[n].cpu()
                    found[n] = self._unit(source, rows, n, int(best.indices[n]))
        return found

    def _gap(self, reader: str, source: str) -> Tensor:
        """How far apart the planes of a reader are, where it may be cut at ``source``: maps (N or 1, C, H, W)."""
        node, (low, high) = self._whole.graph[reader], self._known[source]
        width = high - low
        if isinstance(node.op, ReLU):
            gap = torch.where((low < 0) & (high > 0), -low * high / width, 0.0)
        elif isinstance(node.op, Product):
            first, second = (self._known[operand] for operand in node.inputs)
            gap = (first.upper - first.lower) * (second.upper - second.lower) / 4
        else:
            maps = self._turning[reader].maps.chunk(len(AT), dim=1)[AT.index(MIDDLE)]
            low_slope, floor, high_slope, ceiling = maps.chunk(4, dim=1)
            gap = (high_slope - low_slope) * (low / 2 + high / 2) + ceiling - floor
        return torch.where(width > NARROWEST * torch.maximum(low.abs(), high.abs()).amax(), gap, 0.0)

    def _unit(self, source: str, rows: Rows, n: int, index: int) -> tuple[Unit, float]:
        """The unit at an index of a row's window, and where to cut it."""
        _, height, width = rows.coefs.shape[1:]
        channel, (row, column) = index // (height * width), divmod(index % (height * width), width)
        top, left = rows.places.corners[n].tolist()
        place = (channel, top + row, left + column)
        low, high = (float(side[(n if len(side) > 1 else 0, *place)]) for side in self._known[source])
        relu = any(isinstance(self._whole.graph[reader].op, ReLU) for reader in self._whole.readers[source])
        return (source, *place), 0.0 if relu and low < 0 < high else low / 2 + high / 2
