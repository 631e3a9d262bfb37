"""What a certificate claims: atoms in groups, each a linear statement on the last feature map, as plain arrays.

A *part* is ``head . A_p``, a head vector (so much of every class's row of weights) times the last feature map at a
pixel, or the mean of that over the map and the bias (a logit). An atom is ``sum of coef * part > 0``. Claimed is that
in every group at least ``need`` atoms hold at every image of the region; or, of a counterexample, that this fails at
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Arithmetic, Array, Float64, Numbers
from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.network import Network
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.tally import GENEROUS

Indices = NDArray[np.int64]

MEAN = -1
"""The ``place`` of a logit."""

MOST_ATOMS = 4_000_000
"""Most atoms of one statement."""


@dataclass(frozen=True, eq=False)
class Statement:
    """F parts: ``heads`` (D, classes), ``head`` (F,), ``place`` (F,), a flat pixel or MEAN. A atoms: ``terms`` (A, T)
    of parts, ``coefs`` (A or 1, T). G groups: ``members`` (G, S) of atoms (-1: none), ``need`` (G,).

    ``anchors`` (B, 2): parts of which the first is larger than the second at the centre. They tie the atoms to what
    they are said to be about (that these are the brightest pixels).
    """

    heads: Array
    head: Indices
    place: Indices
    terms: Indices
    coefs: Array
    members: Indices
    need: Indices
    anchors: Indices

    def of(self, network: Network) -> Statement:
        """The statement itself, once it is known to fit the network. Raises ProofError where it does not."""
        parts, atoms = len(self.head), len(self.terms)
        _, height, width = network.nodes[network.features].shape
        _require(self.heads.ndim == 2 and self.heads.shape[1] == len(network.weight), "another number of classes")
        _require(bool(np.isfinite(self.heads).all() and np.isfinite(self.coefs).all()), "numbers that are not finite")
        _require(self.head.shape == self.place.shape == (parts,), "parts of unlike lengths")
        _require(_within(self.head, 0, len(self.heads)), "head vectors that do not exist")
        _require(_within(self.place, MEAN, height * width), "pixels that do not exist")
        _require(self.terms.ndim == 2 and 0 < atoms <= MOST_ATOMS, f"no atoms, or more than {MOST_ATOMS:,}")
        _require(self.coefs.shape in ((1, self.terms.shape[1]), self.terms.shape), "coefficients of another shape")
        _require(_within(self.terms, 0, parts), "parts that do not exist")
        _require(
            self._at_places_of_their_own(), "an atom of no parts, or of several at one place, which would round unseen"
        )
        _require(self.members.ndim == 2 and len(self.members) > 0, "no groups")
        _require(_within(self.members, -1, atoms), "atoms that do not exist")
        named = self.members[self.members >= 0]
        _require(len(np.unique(named)) == len(named), "an atom in two groups")
        sizes = (self.members >= 0).sum(axis=1)
        _require(self.need.shape == (len(self.members),) and bool((self.need >= 1).all()), "groups that need nothing")
        _require(bool((self.need <= sizes).all()), "groups that need more than they have")
        _require(self.anchors.ndim == 2 and self.anchors.shape[1] == 2, "anchors that are no pairs")
        _require(_within(self.anchors, 0, parts), "anchors that do not exist")
        return self

    def _at_places_of_their_own(self) -> bool:
        """Whether every atom has parts, all at different pixels, or one logit."""
        used = np.broadcast_to(self.coefs != 0, self.terms.shape)
        spare = -2 - np.arange(self.terms.shape[1])  # a place of its own for what is not used
        places = np.sort(np.where(used, self.place[self.terms], spare), axis=1)
        alone = (places != MEAN).all(axis=1) | (used.sum(axis=1) == 1)
        return bool(used.any(axis=1).all() and (places[:, 1:] != places[:, :-1]).all() and alone.all())

    @property
    def logits(self) -> bool:
        """Whether any part is a logit, so that the bias matters."""
        return bool((self.place == MEAN).any())

    def slack(self, atoms: Array) -> Array:
        """The margin (G,) of each group, of atoms (A,) or bounds on them: the need-th largest."""
        held = np.where(self.members >= 0, atoms[self.members], -np.inf)
        place = held.shape[1] - self.need
        return np.asarray(np.take_along_axis(np.sort(held, axis=1), place[:, None], axis=1)[:, 0])

    def least(self, low: Array, high: Array) -> Array:
        """Lower bounds of the atoms (A,) for parts between ``low`` and ``high`` (F,); see :meth:`_total`."""
        return self._total(self.terms, self.coefs, low, high)

    def most(self, low: Array, high: Array) -> Array:
        """Upper bounds of the atoms (A,) for parts between ``low`` and ``high`` (F,)."""
        return -self._total(self.terms, -self.coefs, low, high)

    def anchored(self, low: Array, high: Array) -> bool:
        """Whether all anchors hold for parts between ``low`` and ``high`` (F,)."""
        return bool((low[self.anchors[:, 0]] > high[self.anchors[:, 1]]).all())

    @staticmethod
    def _total(terms: Indices, coefs: Array, low: Array, high: Array) -> Array:
        """Lower bounds (A,) of ``sum of coefs * part``. A rounded difference of two floats has the sign of the exact
        one, so it stands as it is (ties are decided by it); from longer sums and from products the error is taken off.
        """
        total, size = np.zeros(len(terms)), np.zeros(len(terms))
        with np.errstate(all="ignore"):
            for term in range(terms.shape[1]):
                coef = np.broadcast_to(coefs[:, term], len(terms))
                side = np.where(coef > 0, low[terms[:, term]], high[terms[:, term]])
                share = np.where(coef == 0, 0.0, coef * side)
                total, size = total + share, size + np.abs(share)
            if terms.shape[1] > 2 or not np.isin(coefs, (0.0, 1.0, -1.0)).all():
                gamma = Float64().gamma(2 * terms.shape[1] + 4)
                total = np.nextafter(total - GENEROUS * gamma * size - terms.shape[1] * Float64.tiny, -np.inf)
        return np.where(np.isnan(total), -np.inf, total)


@dataclass(frozen=True, eq=False)
class TopPixels:
    """Each of the pixels ``top``, the brightest at the centre, is among the ``within`` brightest of the CAM of
    ``class_idx``. The claim of files of versions 1 and 2."""

    class_idx: int
    top: tuple[int, ...]
    within: int

    logits: ClassVar[bool] = False

    def of(self, network: Network) -> Statement:
        """The statement as atoms in groups. Raises ProofError where it does not fit the network."""
        _, height, width = network.nodes[network.features].shape
        pixels, top, classes = height * width, np.array(self.top, dtype=np.int64), len(network.weight)
        if not 0 <= self.class_idx < classes:
            raise ProofError(f"class {self.class_idx} does not exist")
        if len(np.unique(top)) != len(top) or not len(top) or top.min() < 0 or top.max() >= pixels:
            raise ProofError("its top pixels are not distinct pixels of the map")
        if not len(top) <= self.within < pixels:
            raise ProofError(f"within={self.within} for {len(top)} of {pixels} pixels")
        if len(top) * pixels > MOST_ATOMS:
            raise ProofError(f"it is about more than {MOST_ATOMS:,} pairs of pixels")
        every, rest = np.arange(pixels), np.setdiff1d(np.arange(pixels), top)
        alone = self.within == len(top)
        pairs, outside = _pairs(top, rest if alone else every), _pairs(top, rest)
        members = np.arange(len(pairs)).reshape(-1, 1) if alone else np.arange(len(pairs)).reshape(len(top), -1)
        need = np.full(len(members), 1 if alone else pixels - self.within)
        head = np.zeros((1, classes))
        head[0, self.class_idx] = 1.0
        zeros = np.zeros(pixels, dtype=np.int64)
        anchors = outside[:0] if alone else outside  # alone, the atoms themselves say which pixels are the top
        return Statement(head, zeros, every, pairs, np.array([[1.0, -1.0]]), members, need, anchors).of(network)


def _pairs(first: Indices, second: Indices) -> Indices:
    both = np.stack(np.meshgrid(first, second, indexing="ij"), axis=2).reshape(-1, 2)
    return np.asarray(both[both[:, 0] != both[:, 1]])


def _within(values: Indices, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ProofError(f"its statement has {what}")


class Objectives(NamedTuple):
    """Some of many functionals, those numbered ``which`` (R,): ``rows`` of the last feature map plus ``shift`` (R,),
    which is off by ``doubt`` (R,) at most."""

    which: Indices
    rows: Rows
    shift: Numbers
    doubt: Array

    def lower(self, bounds: Array, arithmetic: Arithmetic) -> Array:
        """Lower bounds (R,) of the functionals, from lower bounds ``bounds`` (R,) of their rows."""
        if not (self.shift != 0).any() and not self.doubt.any():
            return bounds
        whole = np.full(len(bounds), -np.inf)
        there = np.isfinite(bounds)
        whole[there] = arithmetic.down(arithmetic.of(bounds[there]) + self.shift[there])
        with np.errstate(invalid="ignore"):
            below = np.nextafter(np.nextafter(whole, -np.inf) - self.doubt, -np.inf)
        return np.where(np.isnan(below), -np.inf, below)


class Objective:
    """Combinations of a statement's parts as functionals of the last feature map."""

    def __init__(self, bounds: Bounds, statement: Statement) -> None:
        self.bounds, self.statement = bounds, statement
        network, of = bounds.network, bounds.arithmetic.of
        self._channels, self._height, self._width = network.nodes[network.features].shape
        heads, weight = statement.heads, network.weight
        self._vectors = _product(of(heads), of(weight))  # (D, C)
        self._shifts = _product(of(heads), of(network.bias[:, None]))[:, 0]
        # nothing is rounded where a head vector is a row of the weights
        rounded = ~((np.count_nonzero(heads, axis=1) <= 1) & np.isin(heads, (0.0, 1.0, -1.0)).all(axis=1))
        terms = bounds.arithmetic.gamma(2 * heads.shape[1] + 8)
        self._off = np.where(rounded[:, None], terms * (np.abs(heads) @ np.abs(weight)), 0.0).astype(np.float64)
        self._shift_off = np.asarray(terms * 2 * (np.abs(heads) @ np.abs(network.bias)), dtype=np.float64)

    def rows(self, terms: Indices, coefs: Array) -> Iterator[Objectives]:
        """The combinations of parts ``terms`` (Q, T) with ``coefs`` (Q, T), on the rectangles that span their pixels
        (the whole map for a logit); those of one size of rectangle come together."""
        place = self.statement.place[terms]
        used, whole = coefs != 0, ((place == MEAN) & (coefs != 0)).any(axis=1)
        ends = [self._ends(at, used, whole, n) for at, n in zip(np.divmod(place, self._width), self._size, strict=True)]
        corners = np.stack([low for low, _ in ends], axis=1)
        sizes = np.stack([high - low + 1 for low, high in ends], axis=1)
        for size in np.unique(sizes, axis=0):
            which = np.flatnonzero((sizes == size).all(axis=1))
            largest = self._channels * int(np.prod(size))
            step = max(1, self.bounds.arithmetic.at_once // largest)
            for start in range(0, len(which), step):
                some = which[start : start + step]
                yield self._made(some, terms[some], coefs[some], corners[some], (int(size[0]), int(size[1])))

    @property
    def _size(self) -> tuple[int, int]:
        return self._height, self._width

    @staticmethod
    def _ends(at: Indices, used: NDArray[np.bool_], whole: NDArray[np.bool_], n: int) -> tuple[Indices, Indices]:
        low, high = np.where(used, at, n).min(axis=1), np.where(used, at, 0).max(axis=1)
        return np.where(whole, 0, low), np.where(whole, n - 1, high)

    def _made(
        self, which: Indices, terms: Indices, coefs: Array, corners: Indices, size: tuple[int, int]
    ) -> Objectives:
        arithmetic, magnitude = self.bounds.arithmetic, self.bounds.magnitude(self.bounds.network.features)
        pixels, count = self._height * self._width, len(which)
        table = arithmetic.zeros(count, self._channels, *size)
        shift, doubt, row = arithmetic.zeros(count), np.zeros(count), np.arange(count)
        by_place = magnitude.reshape(self._channels, -1).T  # (P, C)
        for term in range(terms.shape[1]):
            head, place = self.statement.head[terms[:, term]], self.statement.place[terms[:, term]]
            coef, logit = arithmetic.of(coefs[:, term]), (place == MEAN) & (coefs[:, term] != 0)
            own = coef[:, None] * self._vectors[head]
            off = np.abs(coefs[:, term, None]) * self._off[head]
            if not np.isin(coefs[:, term], (0.0, 1.0, -1.0)).all():
                off = off + arithmetic.gamma(8) * np.abs(coefs[:, term, None] * np.asarray(own, dtype=np.float64))
            y, x = np.divmod(np.maximum(place, 0), self._width)
            at = np.flatnonzero(~logit & (coefs[:, term] != 0))
            table[row[at], :, y[at] - corners[at, 0], x[at] - corners[at, 1]] += own[at]
            doubt[at] += (off[at] * by_place[np.maximum(place[at], 0)]).sum(axis=1)
            at = np.flatnonzero(logit)
            if len(at):
                table[at] += (own[at] / arithmetic.of([pixels])[0])[:, :, None, None]
                shift[at] = shift[at] + coef[at] * self._shifts[head[at]]
                rounded = off[at] + arithmetic.gamma(16) * np.abs(np.asarray(own[at], dtype=np.float64))
                doubt[at] += (rounded * by_place.mean(axis=0)).sum(axis=1)
                doubt[at] += np.abs(coefs[at, term]) * self._shift_off[head[at]]
        if not isinstance(arithmetic, Float64):
            doubt = np.zeros(count)
        doubt = np.where(doubt > 0, GENEROUS * doubt * (1 + 1e-9) + 1e-300, 0.0)
        return Objectives(which, Rows(table, corners), shift, doubt)

    def values(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Floats (F,), (F,) that the parts of a last feature map between ``low`` and ``high`` (C, P) lie between. Meant
        for an image, where ``low`` and ``high`` are next to each other."""
        arithmetic = self.bounds.arithmetic
        of, weight = arithmetic.of, self._vectors
        size = np.maximum(np.abs(low), np.abs(high))
        plus, minus = np.maximum(weight, of(0.0)), np.minimum(weight, of(0.0))
        numbers = of(low), of(high)
        ends = (
            _product(plus, numbers[0]) + _product(minus, numbers[1]),
            _product(plus, numbers[1]) + _product(minus, numbers[0]),
        )
        absolute = np.abs(np.asarray(weight, dtype=np.float64)) + self._off
        error = arithmetic.gamma(2 * len(size) + 8) * (absolute @ size) * 2 + self._off @ size
        error = error + len(size) * 4 * arithmetic.tiny
        # exactly zero where nothing is multiplied: pixels that are dead may tie
        idle = ~((absolute != 0).astype(np.float64) @ (size > 0).astype(np.float64) > 0)
        error = np.where(idle, 0.0, error)
        return self._picked(ends, error, size)

    def _picked(self, ends: tuple[Numbers, Numbers], error: Any, size: Array) -> tuple[Array, Array]:
        arithmetic, of = self.bounds.arithmetic, self.bounds.arithmetic.of
        head, place, whole = self.statement.head, self.statement.place, self.statement.place == MEAN
        at_pixels = [arithmetic.down(ends[0] - of(error)), arithmetic.up(ends[1] + of(error))]
        low, high = (side[head, np.maximum(place, 0)] for side in at_pixels)
        if whole.any():
            pixels = size.shape[1]
            means = [
                (ends[side].sum(axis=1) + sign * of(error).sum(axis=1)) / of(pixels) + self._shifts
                for side, sign in ((0, -1), (1, 1))
            ]
            absolute = np.abs(np.asarray(self._vectors, dtype=np.float64)) + self._off
            bias = np.abs(self.statement.heads) @ np.abs(self.bounds.network.bias)
            off = arithmetic.gamma(2 * pixels + 32) * ((absolute @ size).mean(axis=1) + bias) * 2 + self._shift_off
            off = np.asarray(off, dtype=np.float64) if isinstance(arithmetic, Float64) else np.zeros(len(bias))
            low = np.where(whole, arithmetic.down(means[0] - of(off))[head], low)
            high = np.where(whole, arithmetic.up(means[1] + of(off))[head], high)
        return np.asarray(low), np.asarray(high)


def _product(first: Numbers, second: Numbers) -> Numbers:
    """``first @ second``, of floats or of fractions."""
    return np.asarray(first @ second)
