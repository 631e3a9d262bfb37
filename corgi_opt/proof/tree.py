"""A functional on a region that is cut by the signs of some ReLUs: a tree whose leaves are bounded one by one.

Units, the open ReLUs that the functional depends on, are variables beside the image; everything else is eliminated, so
a pre-activation is a row ``z = r'v + b`` over the variables before it, and the functional is one too. For any mu, and
any p <= 0 that is bounded by planes ``relu(z) <= a'v + c`` (encode/hull.py), with ``lam = q + R'mu + A'p``,

    q0 + b'mu - |mu|' slack + c'p + sum phi(lam - p, mu) + min over the region of lam_x'x

is no more than the functional wherever the signs that a leaf stands for hold; ``phi`` is over the part of a unit's
interval with that sign. Leaves say mu and p by slopes, shares of planes and pushes, which are hints and prove nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Array, Float64, Numbers
from corgi_opt.proof.bounds import Bounds, Indices, add_phi, crown_slopes
from corgi_opt.proof.memory import blocks, require_room
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import add_minimum
from corgi_opt.proof.rows import Rows, Shape
from corgi_opt.proof.tally import GENEROUS, Tally

LEAVES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class _Note:
    """Some coefficients of functionals over the image: which functional, flat place, value."""

    row: NDArray[np.int32]
    flat: NDArray[np.int32]
    value: Numbers

    @classmethod
    def of(cls, row: Indices, flat: Indices, value: Numbers) -> _Note:
        return cls(row.astype(np.int32), flat.astype(np.int32), value)


def _entries(rows: Rows, shape: Shape) -> tuple[Indices, Indices, Numbers]:
    """Coefficients other than zero: their rows, flat places in a map of this shape, and values."""
    row, channel, y, x = np.nonzero(rows.coefs)
    _, height, width = shape
    flat = (channel * height + rows.corners[row, 0] + y) * width + rows.corners[row, 1] + x
    return row, flat, rows.coefs[row, channel, y, x]


@dataclass(frozen=True, eq=False)
class _Into:
    """Functionals over the variables while they are made: coefficients of units (R, U), constants (R,), how far these
    may be off (R,), and notes of coefficients over the image."""

    units: Numbers
    constants: Numbers
    off_by: Array
    notes: list[_Note]


@dataclass(frozen=True, eq=False)
class Clips:
    """K times that the intervals of U units are clipped, for images where the functional is at most ``goal``.

    Each time from a bound of the functional, by ``slopes`` and ``mixes`` (K, U) as those of a leaf without phases, and
    bounds of units at CROWN's lines: ``z + g (functional - goal)`` is no more than z there, for any g >= 0. ``shares``
    (K, 2, U): g for every pre-activation and for every negated one; negative: it stays as it is. Hints, all of them.
    """

    goal: float
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    shares: Array


@dataclass(frozen=True, eq=False)
class Tree:
    """L leaves over U units: ReLU nodes ``node`` (U,), flat places in their maps ``flat`` (U,), ordered by both.

    ``phases`` (L, U) int8: 1 on, -1 off, 0 either. Hints, all (L, U): ``slopes`` of the line below an open unit, in
    [0, 1]; ``mixes``, the share of lam < 0 that goes to the unit's plane; ``pushes``, taken off mu. ``inputs`` (n,):
    flat places in the image; ``shares`` (U, n + U): of a unit's row, what its plane's slopes are; None: no planes.
    ``clips``: how the units' intervals are clipped before leaves are bounded; None: not at all.
    """

    node: Indices
    flat: Indices
    phases: NDArray[np.int8]
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    pushes: Array
    inputs: Indices
    shares: NDArray[np.float32] | None
    clips: Clips | None = None


def covers(phases: NDArray[np.int8]) -> bool:
    """Whether leaves (L, U) leave no sign pattern out: one that is all open, or both halves of a split by some unit.

    Leaves of a tree are split by its root's unit, all of them; so are those of each half.
    """
    pending = [np.arange(len(phases))]
    done = [np.zeros(phases.shape[1], dtype=bool)]
    while pending:
        part, split = pending.pop(), done.pop()
        if not len(part):
            return False
        here = phases[part][:, ~split]
        if (here == 0).all(axis=1).any():
            continue
        by = np.flatnonzero((here != 0).all(axis=0))
        if not len(by):
            return False
        unit = int(np.flatnonzero(~split)[by[0]])
        split = split.copy()
        split[unit] = True
        for side in (1, -1):
            pending.append(part[phases[part, unit] == side])
            done.append(split)
    return True


@dataclass(frozen=True, eq=False)
class _Functionals:
    """R functionals over the variables: (R, n + U) and (R,); how far they may be off; ``|coefs| @ magnitude``."""

    coefs: Numbers
    constants: Numbers
    off_by: Any
    size: Numbers


@dataclass(frozen=True, eq=False)
class _Lines:
    """How units are relaxed, all (R or 1, U): see :class:`Tree`. ``mixes`` None: by lines alone."""

    below: Array
    chord: Array
    mixes: Array | None
    pushes: Array


class Program:
    """The rows of a tree's units and of a functional, over ``[x, relu]``: computed anew, with bounds of their errors.

    ``shift``: what the tree's goal counts beside the functional. Raises ProofError for a malformed tree, or one with
    more units than the memory of a check allows.
    """

    @np.errstate(all="ignore")  # what overflows ends as a bound of -inf
    def __init__(self, bounds: Bounds, tree: Tree, node: int, rows: Rows, shift: float = 0.0) -> None:
        self.bounds, self.arithmetic, self.tree = bounds, bounds.arithmetic, tree
        self.units = len(tree.node)
        self._bytes = 0
        # the rows over the units alone, of the functional and of units, and with the planes' slopes at least once more
        self._keep((1 + self.units) * self.units * (2 if tree.shares is None else 3))
        self._checked_units()
        nodes = bounds.network.nodes
        self._column = {
            int(at): np.full(int(np.prod(nodes[int(at)].shape)), -1, dtype=np.int64) for at in np.unique(tree.node)
        }
        for unit, (at, flat) in enumerate(zip(tree.node.tolist(), tree.flat.tolist(), strict=True)):
            self._column[at][flat] = unit
        ends = np.searchsorted(tree.node, [*sorted(self._column), len(nodes)])  # units are in the order of their nodes
        self._blocks = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        zeros, count = self.arithmetic.zeros, 1 + self.units  # the functional comes first
        into = _Into(zeros(count, self.units), zeros(count), np.zeros(count), [])
        self._take_down(node, rows, 0, into)
        for at, block in zip(sorted(self._column), self._blocks, strict=True):
            (source,) = nodes[at].inputs
            step = max(1, self.arithmetic.at_once // nodes[source].shape[0])
            for start in range(block.start, block.stop, step):
                flat = tree.flat[start : min(start + step, block.stop)]
                taken = bounds.neuron_rows(source, flat, np.ones(len(flat)))
                self._take_down(source, taken, 1 + start, into)
        self._assemble(into)
        self.planes: Numbers | None
        self.shifts: Numbers | None
        self.crossed, self.goal = False, None if tree.clips is None else tree.clips.goal - shift
        self._take_intervals(*self._intervals())
        if tree.clips is not None:
            for step in range(len(tree.clips.shares)):
                if not self.crossed:
                    self._clip(tree.clips, step)

    def _assemble(self, into: _Into) -> None:
        """Makes the rows over ``[x, relu]`` from functionals and notes."""
        places = [np.unique(note.flat) for note in into.notes]
        self.image = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *places]))
        self.inputs = len(self.image)
        self._keep(len(into.units) * self.inputs * (1 if self.tree.shares is None else 2))
        every = self.arithmetic.zeros(len(into.units), self.inputs + self.units)
        every[:, self.inputs :] = into.units
        while into.notes:
            note = into.notes.pop()
            every[note.row, np.searchsorted(self.image, note.flat)] = note.value
        (self.objective, self.rows), (self.offset, self.constants) = (np.split(m, [1]) for m in (every, into.constants))
        self.off_by, self.slack = np.split(into.off_by, [1])

    def _keep(self, numbers: int, extra: int = 0) -> None:
        """Raises ProofError before the rows take more memory than a check may."""
        self._bytes += numbers * self.arithmetic.bytes_each + extra
        require_room(self._bytes, f"a tree of {self.units:,} units")

    def _sized(self, rows: Numbers) -> Numbers:
        """``|rows| @ magnitude`` (R,), a few rows at a time; empty in exact arithmetic, which needs none."""
        if not isinstance(self.arithmetic, Float64):
            return self.arithmetic.zeros(0)
        parts = [np.abs(rows[some]) @ self.magnitude for some in blocks(len(rows), rows.shape[1])]
        return np.concatenate(parts or [np.zeros(0)])

    def _intervals(self) -> tuple[Array, Array]:
        """Units' intervals over the whole region."""
        bounds, tree = self.bounds, self.tree
        sources = {at: bounds.network.nodes[at].inputs[0] for at in self._column}
        units = list(zip(tree.node.tolist(), tree.flat.tolist(), strict=True))
        low, high = (
            np.array([side[sources[at]].flat[flat] for at, flat in units], dtype=np.float64)
            for side in (bounds.lower, bounds.upper)
        )
        return low, high

    def _take_intervals(self, low: Array, high: Array) -> None:
        """Units' intervals, and what follows from them: the box and magnitudes of all variables, and the planes."""
        self.low, self.high = low, high
        ends = (side.flatten()[self.image] for side in (self.bounds.region.lower, self.bounds.region.upper))
        zeros = np.zeros(self.units)
        self.least, self.most = (
            np.concatenate([end, side]) for end, side in zip(ends, (zeros, np.maximum(high, 0.0)), strict=True)
        )
        self.magnitude = np.maximum(np.abs(self.least), np.abs(self.most))
        self.planes, self.shifts = self._planes()
        self._sizes = [self._sized(m) for m in (self.rows, self.objective, self.planes) if m is not None]

    def _checked_units(self) -> None:
        tree, network = self.tree, self.bounds.network
        order = np.lexsort((tree.flat, tree.node))
        if not np.array_equal(order, np.arange(self.units)):
            raise ProofError("a tree's units are out of order")
        for at, flat in zip(tree.node.tolist(), tree.flat.tolist(), strict=True):
            known = 0 <= at < len(network.nodes) and isinstance(network.nodes[at].op, Relu)
            if not known or not 0 <= flat < np.prod(network.nodes[at].shape):
                raise ProofError(f"a tree's unit ({at}, {flat}) is no ReLU of this network")
        if self.units and (np.diff(tree.node * 2**40 + tree.flat) == 0).any():
            raise ProofError("a tree names a unit twice")
        count = math.prod(network.nodes[0].shape)
        if len(tree.inputs) > count or (np.diff(tree.inputs) <= 0).any() or not _within(tree.inputs, count):
            raise ProofError("a tree's inputs are out of order, or not of the image")

    def _take_down(self, node: int, rows: Rows, first: int, into: _Into) -> None:
        """Writes functionals of a node over the variables into rows ``first`` and following."""
        size = max(1, self.arithmetic.at_once // self.bounds.largest(node, rows))
        for start in range(0, len(rows), size):
            part = rows.part(start, size)
            here = slice(first + start, first + start + len(part))
            tally = Tally(self.arithmetic, len(part))
            at_image = self.bounds.descend(node, part, tally, partial(self._gate, into.units[here]))
            if at_image is not None:
                row, flat, value = _entries(at_image, self.bounds.network.nodes[0].shape)
                self._keep(len(value), 8 * len(value))
                into.notes.append(_Note.of(row + here.start, flat, value))
            into.constants[here] = tally.value
            into.off_by[here] = self.arithmetic.up(tally.uncertain)

    def _gate(self, into: Numbers, at: int, rows: Rows, tally: Tally) -> Rows:
        """Active units pass coefficients on, inactive ones drop them, those of the tree have them noted. Other open
        units count as on or off, whichever is nearer, and the difference goes to the tally's error."""
        (source,) = self.bounds.network.nodes[at].inputs
        low, high = self.bounds.lower[source], self.bounds.upper[source]
        unit = self._column.get(at, np.full(low.size, -1, dtype=np.int64))
        open_, listed = (low < 0) & (high > 0), (unit >= 0).reshape(low.shape)
        on = (low >= 0) | (open_ & ~listed & (-low <= high))
        row, flat, value = _entries(Rows(rows.coefs * rows.gather(open_.astype(np.int64)), rows.corners), low.shape)
        noted = unit[flat] >= 0
        into[row[noted], unit[flat[noted]]] = value[noted]
        if not noted.all():
            worth, most = self.arithmetic.zeros(len(rows)), self.arithmetic.of(np.minimum(-low, high).flatten())
            np.add.at(worth, row[~noted], np.abs(value[~noted]) * most[flat[~noted]])
            tally.may_be_off(worth + len(row) * self.arithmetic.tiny)
        return Rows(rows.coefs * rows.gather(on.astype(np.int64)), rows.corners)

    def _planes(self) -> tuple[Numbers, Numbers] | tuple[None, None]:
        """``relu(z) <= a'v + c`` for every unit: slopes (U, n + U), and c (U,) no smaller than it has to be.

        For a = share * row, c = max(max over the box of -a'v, max over the box of (row - a)'v + b).
        """
        if self.tree.shares is None:
            return None, None
        of, tree = self.arithmetic.of, self.tree
        assert tree.shares is not None
        _, at, mine = np.intersect1d(self.image, tree.inputs, return_indices=True)
        planes, shifts = self.arithmetic.zeros(*self.rows.shape), self.arithmetic.zeros(self.units)
        for some in blocks(*self.rows.shape):
            rows = self.rows[some]
            shares = np.zeros(rows.shape)
            shares[:, at] = tree.shares[some][:, mine]
            shares[:, self.inputs :] = tree.shares[some, len(tree.inputs) :]
            slopes = rows * of(shares)
            none = self.arithmetic.zeros(len(rows))
            off = _greatest(self, -slopes, none, np.zeros(len(rows)))
            on = _greatest(self, rows - slopes, self.constants[some], self.slack[some])
            planes[some], shifts[some] = slopes, of(np.maximum(off, on))
        return planes, shifts

    def lower(self) -> Array:
        """Bounds (L,) of the functional, leaf by leaf; where intervals are clipped, no higher than the goal of that."""
        most = np.inf if self.goal is None else self.goal
        if self.crossed:
            return np.full(len(self.tree.phases), most)
        parts = [np.zeros(0)]
        for start in range(0, len(self.tree.phases), self._at_once):
            parts.append(np.minimum(self._leaves(slice(start, start + self._at_once)), most))
        return np.concatenate(parts)

    @property
    def _at_once(self) -> int:
        """Functionals over all variables that are held at once."""
        return max(1, min(LEAVES_AT_ONCE, self.arithmetic.at_once // (4 * (self.inputs + self.units + 1))))

    @np.errstate(all="ignore")
    def _leaves(self, some: slice) -> Array:
        tree = self.tree
        phases = tree.phases[some]
        slopes, mixes, pushes = (m[some].astype(np.float64) for m in (tree.slopes, tree.mixes, tree.pushes))
        low = np.where(phases > 0, np.maximum(self.low, 0.0), self.low)
        high = np.where(phases < 0, np.minimum(self.high, 0.0), self.high)
        open_ = phases == 0
        chord = np.where(open_, crown_slopes(self.low, self.high)[1], phases > 0)
        below = np.where(open_, slopes, phases > 0)
        lines = _Lines(below, chord, np.where(open_, mixes, 0.0), pushes)
        coefs, tally = self._descend(self._functional(len(phases)), lines, low, high)
        self._add_minimum(tally, coefs)
        return np.where((low > high).any(axis=1), np.inf, tally.lower)  # a sign that a unit cannot have

    @np.errstate(all="ignore")
    def _clip(self, clips: Clips, step: int) -> None:
        """Meets the units' intervals with what holds where the functional is at most the goal."""
        assert self.goal is not None
        of, below, chord = self.arithmetic.of, *crown_slopes(self.low, self.high)
        zeros, low, high = np.zeros((1, self.units)), self.low.copy(), self.high.copy()
        hints = (m[step][None].astype(np.float64) for m in (clips.slopes, clips.mixes))
        slopes, mixes = (np.clip(m, 0.0, 1.0) for m in hints)
        lam, about = self._descend(self._functional(1), _Lines(slopes, chord[None], mixes, zeros), low, high)
        lines = _Lines(below[None], chord[None], None, zeros)
        sides, units = np.nonzero(clips.shares[step] >= 0)
        magnitude = self.magnitude[: self.inputs]
        for start in range(0, len(units), self._at_once):
            side, unit = (m[start : start + self._at_once] for m in (sides, units))
            share, sign = of(clips.shares[step][side, unit]), of(np.where(side == 0, 1.0, -1.0))
            own, tally = self._descend(self._units(unit, sign), lines, self.low, self.high)
            whole = Tally(self.arithmetic, len(unit))
            for term in (tally.value, share * about.value, -share * of(self.goal)):
                whole.add(term[:, None])
            whole.may_be_off(tally.uncertain + share * about.uncertain * (GENEROUS if tally.rounds else 1))
            coefs = own + share[:, None] * lam
            if tally.rounds:
                size = (np.abs(own) + share[:, None] * np.abs(lam)) @ magnitude
                whole.may_be_off(self.arithmetic.gamma(4 * self.inputs + 8) * GENEROUS * size)
                whole.may_be_off(4 * self.arithmetic.tiny * (1.0 + self.inputs * float(magnitude.sum())))
            self._add_minimum(whole, coefs)
            for side_of, there, better in ((low, side == 0, np.maximum), (high, side == 1, np.minimum)):
                value = whole.lower[there] if side_of is low else -whole.lower[there]
                side_of[unit[there]] = better(side_of[unit[there]], value)
        self.crossed = bool((low > high).any())
        if not self.crossed:
            self._take_intervals(low, high)

    def _functional(self, count: int) -> _Functionals:
        """That which the tree is about, ``count`` times."""
        off = float(self.off_by[0]) if isinstance(self.arithmetic, Float64) else self.arithmetic.of(self.off_by)[0]
        size = self._sizes[1] if isinstance(self.arithmetic, Float64) else self.arithmetic.zeros(1)
        return _Functionals(np.repeat(self.objective, count, axis=0), np.repeat(self.offset, count), off, size)

    def _units(self, units: Indices, sign: Numbers) -> _Functionals:
        """Pre-activations of some units, times ``sign`` (R,)."""
        size = self._sizes[0][units] if isinstance(self.arithmetic, Float64) else self.arithmetic.zeros(len(units))
        off = self.arithmetic.of(self.slack[units])
        return _Functionals(sign[:, None] * self.rows[units], sign * self.constants[units], off, size)

    def _descend(self, of_what: _Functionals, lines: _Lines, low: Array, high: Array) -> tuple[Numbers, Tally]:
        """Coefficients (R, n) over the image, and constants, of lower bounds of functionals where units are within
        ``low`` and ``high``."""
        of, lam = self.arithmetic.of, of_what.coefs
        shape = len(lam), self.units
        mu, part = self.arithmetic.zeros(*shape), self.arithmetic.zeros(*shape)
        planes = None if lines.mixes is None else self.planes
        for block in reversed(self._blocks):
            here = lam[:, self.inputs + block.start : self.inputs + block.stop]
            if planes is not None:
                assert lines.mixes is not None
                part[:, block] = np.where(here < 0, here * of(np.clip(lines.mixes[:, block], 0.0, 1.0)), here * 0)
            rest = here - part[:, block]
            line = np.where(here > 0, of(lines.below[:, block]), of(lines.chord[:, block]))
            mu[:, block] = rest * line - of(lines.pushes[:, block])
            lam = lam + mu[:, block] @ self.rows[block]
            if planes is not None:
                lam = lam + part[:, block] @ planes[block]
        tally = Tally(self.arithmetic, len(lam))
        tally.add(of_what.constants[:, None])
        tally.add(mu * self.constants)
        if planes is not None:
            tally.add(part * self.shifts)
        tally.add(-np.abs(mu) * of(self.slack))
        rest = lam[:, self.inputs :] - part
        add_phi(tally, rest, mu, low, high)
        tally.may_be_off(of_what.off_by)
        self._rounding(tally, mu, part, rest, of_what.size)
        return lam[:, : self.inputs], tally

    def _add_minimum(self, tally: Tally, coefs: Numbers) -> None:
        region = self.bounds.region
        center, least, most = (m.flatten()[self.image][None] for m in (region.center, region.lower, region.upper))
        add_minimum(tally, region.norm, region.eps, coefs, center, least, most, self.arithmetic)

    def _rounding(self, tally: Tally, mu: Numbers, part: Numbers, rest: Numbers, size: Numbers) -> None:
        """Adds how far the computed coefficients may move the bound from that of the exact ones at mu and p."""
        if not tally.rounds:
            return
        terms = 4 * self.units + 8  # products, and additions of blocks
        size = np.abs(mu) @ self._sizes[0] + size
        if self.planes is not None:
            size = size + np.abs(part) @ self._sizes[2]
        gamma = self.arithmetic.gamma(terms)
        size = size + np.abs(rest) @ self.magnitude[self.inputs :]
        tally.may_be_off(gamma * GENEROUS * size)
        tally.may_be_off(4 * terms * self.arithmetic.tiny * (1.0 + float(self.magnitude.sum())))


def _greatest(program: Program, rows: Numbers, constants: Numbers, slack: Array) -> Array:
    """Upper bounds (U,) of ``rows @ v + constants + slack`` over the box of the variables."""
    of = program.arithmetic.of
    tally = Tally(program.arithmetic, len(rows))
    tally.add(-rows * np.where(rows > 0, of(program.most), of(program.least)))
    tally.add(-constants[:, None])
    tally.add(-of(slack)[:, None])
    return np.asarray(-tally.lower)


def _within(flat: Indices, count: int) -> bool:
    return not len(flat) or bool(flat[0] >= 0 and flat[-1] < count)
