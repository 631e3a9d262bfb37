"""The bounds that the checker proves of one network over one region: intervals, and D(mu) at CROWN's multipliers.

The bound is that of bounding/dual.py, computed anew, less bounds of all rounding errors:

* at a weighted node, the coefficients ``lam`` that are computed for an operand differ from ``M' mu`` by at most
  ``gamma_n |M|'|mu|`` (n products each), which is worth that times the operand's magnitude: ``gamma_n |mu|' |M| mag``;
  at a selection by nothing;
* where two consumers' coefficients are added, by one rounding;
* at a ReLU, mu *is* what was computed, whatever it is; ``phi`` is off by a few roundings of its terms;
* sums are bounded by the sums of their terms' magnitudes (tally.py).

So the value is a lower bound over the exact network whose weights these floats are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import UNIT, Arithmetic, Array, Numbers
from corgi_opt.proof.memory import blocks
from corgi_opt.proof.network import Network
from corgi_opt.proof.operations import Combine, Curved, Input, Relu, Selection, Weighted
from corgi_opt.proof.region import Region, add_minimum
from corgi_opt.proof.rows import Rows, Shape
from corgi_opt.proof.tally import GENEROUS, Tally
from corgi_opt.proof.threads import MOST, at_once

Indices = NDArray[np.int64]

PHI_AT_ONCE = 30_000
"""Coefficients whose phi is added at once, so that they stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Claims:
    """Bounds of some neurons ``flat`` (K,) of one node that CROWN's multipliers justify; infinite: no claim."""

    flat: Indices
    lower: Array
    upper: Array


AtRelu = Callable[[int, Rows, Tally], Rows]
"""From functionals of a ReLU node's value to functionals of its input; constants and errors go to the tally."""


class Bounds:
    """Proven bounds ``lower[node]``, ``upper[node]`` (C, H, W) of every node that was reached so far, in floats."""

    def __init__(self, network: Network, region: Region, arithmetic: Arithmetic) -> None:
        self.network, self.region, self.arithmetic = network, region, arithmetic
        self.lower: dict[int, Array] = {}
        self.upper: dict[int, Array] = {}
        self._numbers: dict[int, tuple[list[Numbers], Numbers]] = {}  # weights and bias of a weighted node
        self._worth: dict[int, list[Array]] = {}  # |M_i| mag of each of its operands
        self._center, self._low, self._high = region.center, region.lower, region.upper

    # --- forwards --------------------------------------------------------------------------------------------

    @np.errstate(all="ignore")  # what overflows ends as a bound of infinite size
    def reach(self, node: int, claims: Claims | None = None) -> None:
        """Bounds the next node: by intervals, and where ``claims`` say so by D; its operands must be known.

        Raises ProofError for a claim that D does not support.
        """
        low, high = self._interval(node)
        self.lower[node] = np.where(np.isnan(low), -np.inf, low)
        self.upper[node] = np.where(np.isnan(high), np.inf, high)
        self._prepare(node)
        if claims is not None:
            self._justify(node, claims)
            self.take(node, claims)
        if (self.lower[node] > self.upper[node]).any():
            raise ProofError(f"node {node}: bounds contradict each other")

    def take(self, node: int, claims: Claims) -> None:
        """Takes in bounds that are proven."""
        low, high = self.lower[node].flatten(), self.upper[node].flatten()
        low[claims.flat] = np.maximum(low[claims.flat], claims.lower)
        high[claims.flat] = np.minimum(high[claims.flat], claims.upper)
        self.lower[node], self.upper[node] = low.reshape(self.lower[node].shape), high.reshape(self.upper[node].shape)

    def _interval(self, node: int) -> tuple[Array, Array]:
        op, inputs = self.network.nodes[node].op, self.network.nodes[node].inputs
        if isinstance(op, Curved):
            raise ProofError(f"node {node} is {op.function}, of which no rule is known here: nothing is proven")
        if isinstance(op, Input):
            return self._low, self._high
        known = [(self.lower[i], self.upper[i]) for i in inputs]
        if isinstance(op, Relu):
            return np.maximum(known[0][0], 0.0), np.maximum(known[0][1], 0.0)
        shape = self.network.nodes[node].shape
        if isinstance(op, Selection):
            low, high = (op.image([side[end] for side in known], shape) for end in (0, 1))
            return low, high
        interval = self._weighted_interval(op, known, shape)
        return self._maximum(node, op, interval) if isinstance(op, Combine) else interval

    def _weighted_interval(self, op: Weighted, known: list[tuple[Array, Array]], shape: Shape) -> tuple[Array, Array]:
        """``M+ l + M- u + b`` and ``M+ u + M- l + b``, less and plus what rounding may hide: nothing where no product
        is other than zero, so that what is constant for such a reason has a point for an interval."""
        numbers = [tuple(self.arithmetic.of(side) for side in sides) for sides in known]
        weights, bias, terms = op.weights, op.bias_map, op.terms * len(known)

        def image(parts: Sequence[Numbers], values: Sequence[Numbers]) -> Numbers:
            return np.broadcast_to(reduce(add, op.images(parts, values, shape)), shape)

        of = self.arithmetic.of
        plus, minus = [of(np.maximum(w, 0.0)) for w in weights], [of(np.minimum(w, 0.0)) for w in weights]
        lows, highs = [low for low, _ in numbers], [high for _, high in numbers]
        low = image(plus, lows) + image(minus, highs) + of(bias)
        high = image(plus, highs) + image(minus, lows) + of(bias)
        largest = [np.maximum(np.abs(a), np.abs(b)) for a, b in known]
        size = image([np.abs(w) for w in weights], largest)
        error = self.arithmetic.gamma(2 * terms + 8) * (size + np.abs(bias)) * GENEROUS
        error = error + (2 * terms + 8) * self.arithmetic.tiny
        if (size == 0).any():  # there are no products, or they underflow
            there = [[(m != 0).astype(np.float64) for m in maps] for maps in (weights, largest)]
            error = np.where(image(*there) > 0, error, 0.0)
        return self.arithmetic.down(low - of(error)), self.arithmetic.up(high + of(error))

    def _maximum(self, node: int, op: Combine, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        """The interval of a sum, met with that of a maximum where the sum is ``a + relu(b - a) = max(a, b)``."""
        inputs, nodes = self.network.nodes[node].inputs, self.network.nodes
        for rise, weight in zip(inputs, op.coefs, strict=True):
            gap = nodes[rise].inputs[0] if isinstance(nodes[rise].op, Relu) else rise
            difference = nodes[gap].op
            if gap == rise or not isinstance(difference, Combine) or len(difference.coefs) != 2:
                continue
            (b, a), (b_coef, a_coef) = nodes[gap].inputs, difference.coefs
            one = (weight == 1) & (b_coef == 1) & (a_coef == -1) & (difference.shift == 0) & (op.shift == 0)
            others = [(i, c) for i, c in zip(inputs, op.coefs, strict=True) if i != rise]
            if a == b or sorted(i for i, _ in others).count(a) != 1:
                continue
            for i, coef in others:
                one = one & (coef == (1 if i == a else 0))
            where = np.broadcast_to(one, interval[0].shape)
            low = np.where(where, np.maximum(self.lower[a], self.lower[b]), -np.inf)
            high = np.where(where, np.maximum(self.upper[a], self.upper[b]), np.inf)
            interval = np.maximum(interval[0], low), np.minimum(interval[1], high)
        return interval

    def _justify(self, node: int, claims: Claims) -> None:
        """Raises ProofError where D does not show what is claimed."""
        count = self.lower[node].size
        if (claims.flat < 0).any() or (claims.flat >= count).any() or len(np.unique(claims.flat)) != len(claims.flat):
            raise ProofError(f"node {node}: bounds of neurons that do not exist, or of one twice")
        below, above = claims.lower > -np.inf, claims.upper < np.inf
        lower, upper = self.neurons(node, claims.flat[below], claims.flat[above])
        for what, proven, said in (
            ("lower", lower, claims.lower[below]),
            ("upper", -upper, -claims.upper[above]),
        ):
            if not (proven >= said).all():  # NaN counts as no
                worst = int(np.argmax(said - proven))
                raise ProofError(f"node {node}: {what} bound {said[worst]!r} claimed, {proven[worst]!r} proven")

    def neurons(self, node: int, from_below: Indices, from_above: Indices) -> tuple[Array, Array]:
        """D's lower bounds of some neurons of a node, and its upper bounds of some."""
        flat = np.concatenate([from_below, from_above])
        signs = np.where(np.arange(len(flat)) < len(from_below), 1.0, -1.0)
        size = max(1, self.arithmetic.at_once // self.network.nodes[node].shape[0])
        parts = [np.zeros(0)]
        for start in range(0, len(flat), size):
            some = slice(start, start + size)
            parts.append(self.bound(node, self.neuron_rows(node, flat[some], signs[some])))
        values = np.concatenate(parts)
        return values[: len(from_below)], -values[len(from_below) :]

    def neuron_rows(self, node: int, flat: Indices, signs: Array) -> Rows:
        """Each neuron ``flat`` (K,) of a node times its sign (K,), as a functional."""
        shape = self.network.nodes[node].shape
        channel, y, x = np.unravel_index(flat, shape)
        coefs = np.zeros((len(channel), shape[0], 1, 1))
        coefs[np.arange(len(channel)), channel] = signs[:, None, None]
        return Rows(self.arithmetic.of(coefs), np.stack([y, x], axis=1))

    def _prepare(self, node: int) -> None:
        """For backward passes: a weighted node's numbers, and what errors in its operands' coefficients are worth."""
        op, inputs = self.network.nodes[node].op, self.network.nodes[node].inputs
        if isinstance(op, Weighted):
            weights, shape = op.weights, self.network.nodes[node].shape
            self._numbers[node] = [self.arithmetic.of(w) for w in weights], self.arithmetic.of(op.bias_map)
            worth = op.images([np.abs(w) for w in weights], [self.magnitude(i) for i in inputs], shape)
            self._worth[node] = [each + op.terms * self.arithmetic.tiny for each in worth]

    def magnitude(self, node: int) -> Array:
        """Bounds of the absolute values (C, H, W) of a node."""
        return np.maximum(np.abs(self.lower[node]), np.abs(self.upper[node]))

    # --- backwards -------------------------------------------------------------------------------------------

    def bound(self, node: int, rows: Rows) -> Array:
        """Proven lower bounds (R,), in floats, of functionals of ``node``, by D at CROWN's multipliers."""
        size = max(1, self.arithmetic.at_once // (MOST * self.largest(node, rows)))

        def part(start: int) -> Array:
            some = rows.part(start, size)
            tally = Tally(self.arithmetic, len(some))
            at_image = self.descend(node, some, tally, self._relax)
            if at_image is not None:
                self._add_minimum(at_image, tally)
            return tally.lower

        return np.concatenate([np.zeros(0), *at_once(part, range(0, len(rows), size))])

    def descend(self, node: int, rows: Rows, tally: Tally, at_relu: AtRelu) -> Rows | None:
        """Functionals of ``node`` at the image (None: they read no input); constants and errors go to the tally."""
        pending = {node: rows}
        for at in self.network.ancestors(node):
            if at not in pending:
                continue
            here = pending.pop(at).on(self.network.nodes[at].shape)
            op, inputs = self.network.nodes[at].op, self.network.nodes[at].inputs
            assert not isinstance(op, Curved)  # bounds of its node would have been asked for before
            if isinstance(op, Input):
                return here
            below = [at_relu(at, here, tally)] if isinstance(op, Relu) else self._through(at, op, here, tally)
            for operand, part in zip(inputs, below, strict=True):
                if operand in pending:
                    part = pending[operand].plus(part, self.network.nodes[operand].shape)
                    self._worth_of(part, self.magnitude(operand), UNIT * GENEROUS, tally)
                pending[operand] = part
        return None

    def _through(self, at: int, op: Selection | Weighted, rows: Rows, tally: Tally) -> list[Rows]:
        if isinstance(op, Selection):
            return op.adjoint(rows)
        inputs, (weights, bias), terms = self.network.nodes[at].inputs, self._numbers[at], op.adjoint_terms
        op.add_bias(rows, bias, tally)
        below = op.adjoint(weights, rows)
        for operand, worth in zip(inputs, self._worth[at], strict=True):
            self._worth_of(rows, worth, self.arithmetic.gamma(terms + 2), tally)
            if tally.rounds:
                tally.may_be_off(2 * terms * self.arithmetic.tiny * float(self.magnitude(operand).sum()))
        return below

    def _worth_of(self, rows: Rows, worth: Array, relative: Any, tally: Tally) -> None:
        """Adds to the tally what a relative error of the coefficients is worth."""
        if tally.rounds:
            tally.may_be_off(relative * GENEROUS * (np.abs(rows.coefs) * rows.over(worth)).sum(axis=(1, 2, 3)))

    def _relax(self, at: int, rows: Rows, tally: Tally) -> Rows:
        """CROWN's multipliers (Zhang et al. 2018), and ``phi`` for them."""
        (source,) = self.network.nodes[at].inputs
        low, high = self.lower[source], self.upper[source]
        below, above = crown_slopes(low, high)
        k = len(low)
        maps = rows.gather(np.concatenate([low, high, below, above]))
        of = self.arithmetic.of
        low, high = maps[:, :k], maps[:, k : 2 * k]
        mu = rows.coefs * np.where(rows.coefs > 0, of(maps[:, 2 * k : 3 * k]), of(maps[:, 3 * k :]))
        add_phi(tally, rows.coefs, mu, low, high)
        return Rows(mu, rows.corners)

    def _add_minimum(self, rows: Rows, tally: Tally) -> None:
        k = len(self._low)
        maps = rows.gather(np.concatenate([self._center, self._low, self._high]))
        center, low, high = (maps[:, k * n : k * (n + 1)].reshape(len(rows), -1) for n in range(3))
        lam = rows.coefs.reshape(len(rows), -1)
        add_minimum(tally, self.region.norm, self.region.eps, lam, center, low, high, self.arithmetic)

    def largest(self, node: int, rows: Rows) -> int:
        """About how many coefficients a row has at most on its way down."""
        sizes = {node: rows.coefs.shape[2:]}
        largest = 1
        for at in self.network.ancestors(node):
            if at not in sizes:
                continue
            op, (channels, height, width) = self.network.nodes[at].op, self.network.nodes[at].shape
            h, w = min(sizes[at][0], height), min(sizes[at][1], width)
            largest = max(largest, channels * h * w)
            need = op.reads((h, w))
            for operand in self.network.nodes[at].inputs:
                before = sizes.get(operand, (0, 0))
                sizes[operand] = (max(before[0], need[0]), max(before[1], need[1]))
        return largest


def crown_slopes(low: Array, high: Array) -> tuple[Array, Array]:
    """Slopes of CROWN's lines below and above a ReLU; any others would do."""
    open_ = (low < 0) & (high > 0)
    on = (low >= 0).astype(np.float64)
    chord = np.where(open_, high / np.where(open_, high - low, 1.0), on)
    return np.where(open_, (high > -low).astype(np.float64), on), np.where(np.isfinite(chord), chord, 0.0)


def add_phi(tally: Tally, lam: Numbers, mu: Numbers, low: Array, high: Array) -> None:
    """Adds ``phi = min of lam relu(z) - mu z over z in [low, high]``, which is at one of low, high and 0."""
    width, zeros = math.prod(lam.shape[1:]), tally.arithmetic.zeros
    low, high = (np.broadcast_to(side, lam.shape) for side in (low, high))
    value, size, error = zeros(len(lam)), zeros(len(lam)), np.zeros(len(lam))
    for some in blocks(len(lam), width, PHI_AT_ONCE):
        least = _phi(tally.arithmetic, lam[some], mu[some], low[some], high[some])
        value[some] = least.reshape(len(least), width).sum(axis=1)
        if tally.rounds:
            size[some] = np.abs(least).reshape(len(least), width).sum(axis=1)
            error[some] = _rounded(lam[some], mu[some], low[some], high[some]).reshape(len(least), width).sum(axis=1)
    tally.add_sums(value, size, width)
    if tally.rounds:
        tally.may_be_off(4 * UNIT * GENEROUS * error)
        tally.may_be_off(3 * tally.arithmetic.tiny * width)


def _phi(arithmetic: Arithmetic, lam: Numbers, mu: Numbers, low: Array, high: Array) -> Numbers:
    of = arithmetic.of
    at_low = lam * of(np.maximum(low, 0.0)) - mu * of(low)
    at_high = lam * of(np.maximum(high, 0.0)) - mu * of(high)
    least = np.minimum(at_low, at_high)
    return np.asarray(np.where((low < 0) & (high > 0), np.minimum(least, arithmetic.zeros(1)), least))


def _rounded(lam: Array, mu: Array, low: Array, high: Array) -> Array:
    """The magnitudes that phi may have rounded."""
    # where mu and lam agree on a unit that is on, or mu is zero on one that is off, nothing was rounded
    exact = ((low >= 0) & (mu == lam)) | ((high <= 0) & (mu == 0))
    return np.where(exact, 0.0, (np.abs(lam) + np.abs(mu)) * np.maximum(np.abs(low), np.abs(high)))
