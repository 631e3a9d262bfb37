"""The rows of a tree's units and of a functional over ``[x, relu]``, and lower bounds of what is made of them.

Units, the open ReLUs that the functional depends on, are variables beside the image; everything else is eliminated, so
a pre-activation is a row ``z = r'v + b`` over the variables before it, and the functional is one too. For any mu, and
any p <= 0 that is bounded by planes ``relu(z) <= a'v + c`` (encode/hull.py), with ``lam = q + R'mu + A'p``,

    q0 + b'mu - |mu|' slack + c'p + sum phi(lam - p, mu) + min over the region of lam_x'x

is no more than the functional wherever units are within the intervals that ``phi`` is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from corgi_opt.proof.tree import Tree

ROWS_AT_ONCE = 256


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
class Functionals:
    """R functionals over the variables: (R, n + U) and (R,); how far they may be off; ``|coefs| @ magnitude``."""

    coefs: Numbers
    constants: Numbers
    off_by: Any
    size: Numbers


@dataclass(frozen=True, eq=False)
class Lines:
    """How units are relaxed, all (R or 1, U): see :class:`Tree`. ``mixes`` None: by lines alone."""

    below: Array
    chord: Array
    mixes: Array | None
    pushes: Array


class Program:
    """The rows of a tree's units and of a functional, over ``[x, relu]``: computed anew, with bounds of their errors.

    Raises ProofError for a malformed tree, or one with more units than the memory of a check allows.
    """

    @np.errstate(all="ignore")  # what overflows ends as a bound of -inf
    def __init__(self, bounds: Bounds, tree: Tree, node: int, rows: Rows) -> None:
        self.bounds, self.arithmetic, self.tree = bounds, bounds.arithmetic, tree
        self.units = len(tree.node)
        self._bytes = 0
        # the rows over the units alone, of the functional and of units, and with the planes' slopes at least once more
        self.keep((1 + self.units) * self.units * (2 if tree.shares is None else 3))
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
        self.take_intervals(*self._intervals())

    def _assemble(self, into: _Into) -> None:
        """Makes the rows over ``[x, relu]`` from functionals and notes."""
        places = [np.unique(note.flat) for note in into.notes]
        self.image = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *places]))
        self.inputs = len(self.image)
        self.keep(len(into.units) * self.inputs * (1 if self.tree.shares is None else 2))
        every = self.arithmetic.zeros(len(into.units), self.inputs + self.units)
        every[:, self.inputs :] = into.units
        while into.notes:
            note = into.notes.pop()
            every[note.row, np.searchsorted(self.image, note.flat)] = note.value
        (self.objective, self.rows), (self.offset, self.constants) = (np.split(m, [1]) for m in (every, into.constants))
        self.off_by, self.slack = np.split(into.off_by, [1])

    def keep(self, numbers: int, extra: int = 0) -> None:
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

    def take_intervals(self, low: Array, high: Array) -> None:
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
                self.keep(len(value), 8 * len(value))
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

    def parts(self, count: int) -> Iterator[slice]:
        """Of so many functionals over all variables those that are held at once."""
        held = self.arithmetic.at_once // (4 * (self.inputs + self.units + 1))
        step = max(1, min(ROWS_AT_ONCE, held))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    @property
    def crown(self) -> tuple[Array, Array]:
        """Slopes (U,) of CROWN's lines below and above the units."""
        return crown_slopes(self.low, self.high)

    def functional(self, count: int) -> Functionals:
        """That which the tree is about, ``count`` times."""
        off = float(self.off_by[0]) if isinstance(self.arithmetic, Float64) else self.arithmetic.of(self.off_by)[0]
        size = self._sizes[1] if isinstance(self.arithmetic, Float64) else self.arithmetic.zeros(1)
        return Functionals(np.repeat(self.objective, count, axis=0), np.repeat(self.offset, count), off, size)

    def units_at(self, units: Indices, sign: Numbers) -> Functionals:
        """Pre-activations of some units, times ``sign`` (R,)."""
        size = self._sizes[0][units] if isinstance(self.arithmetic, Float64) else self.arithmetic.zeros(len(units))
        off = self.arithmetic.of(self.slack[units])
        return Functionals(sign[:, None] * self.rows[units], sign * self.constants[units], off, size)

    def descend(self, of_what: Functionals, lines: Lines, low: Array, high: Array) -> tuple[Numbers, Tally]:
        """Lower bounds of functionals where units are within ``low`` and ``high``: the coefficients (R, n + U) that
        reach the variables, of which those of the image are left to be counted, and the constants."""
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
        return lam, tally

    def add_minimum(self, tally: Tally, coefs: Numbers) -> None:
        """Adds the least values of functionals ``coefs`` (R, n) of the image over the region."""
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
