"""The operations of a network, each with the rules that bounds need of it. Nothing else in proof/ tells one affine
operation from another, except that bounds.py recognises a maximum by its ``Combine``.

Beside the image, ReLU and what no rule is known of there are two kinds, both of maps (C, H, W):

* a *selection*: every value is one of its operands' or zero. Nothing is calculated, so nothing is rounded;
* a *weighted* sum ``sum_i M_i x_i + b``, whose rounding bounds.py counts from its numbers of terms.

A rule is about exact M; the rounding of its result is accounted for once, in bounds.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from corgi_opt.proof.arithmetic import Array, Numbers
from corgi_opt.proof.rows import Rows, Shape
from corgi_opt.proof.tally import Tally

Pair = tuple[int, int]


class Operation:
    """An operation. Its fields are what the network's hash is of: arrays, at most one tuple of arrays, and numbers,
    strings and tuples of them. A field never changes from one of these kinds to another."""

    @property
    def weights(self) -> tuple[Array, ...]:
        """The numbers that operands are multiplied by."""
        return ()

    def reads(self, size: Pair) -> Pair:
        """The size of the operand's window that a window of this size reads."""
        return size


@dataclass(frozen=True, eq=False)
class Input(Operation):
    """The image."""


@dataclass(frozen=True, eq=False)
class Relu(Operation):
    """``max(x, 0)``."""


@dataclass(frozen=True, eq=False)
class Curved(Operation):
    """One that is neither affine nor ReLU, by its name and its numbers: it has its place in the network's hash, and
    nothing is proven of a network that has one."""

    function: str
    numbers: tuple[float, ...]


class Selection(Operation, ABC):
    """Every value is one of the operands' or zero."""

    @abstractmethod
    def image(self, values: Sequence[Numbers], shape: Shape) -> Numbers:
        """The selection, a map of this shape, from the operands' maps."""

    @abstractmethod
    def adjoint(self, rows: Rows) -> list[Rows]:
        """Functionals of the selection as functionals of each operand."""


class Weighted(Operation, ABC):
    """``sum_i M_i x_i + b``. Every entry of every M_i is zero or one of ``weights``. Rules take the weights as an
    argument: given their absolute values, a rule is that of ``|M_i|``, given their positive parts, that of M_i's.
    """

    @property
    @abstractmethod
    def weights(self) -> tuple[Array, ...]: ...

    @property
    @abstractmethod
    def bias_map(self) -> Array:
        """``b``, (C or 1, 1, 1) or (C or 1, H, W)."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Products that a value of an ``M_i x_i`` is the sum of, at most."""

    @property
    @abstractmethod
    def adjoint_terms(self) -> int:
        """Products that a coefficient of an ``M_i' lam`` is the sum of, at most."""

    @abstractmethod
    def images(self, weights: Sequence[Numbers], values: Sequence[Numbers], shape: Shape) -> list[Numbers]:
        """``M_i x_i`` of each operand's map, which broadcast to this shape."""

    @abstractmethod
    def adjoint(self, weights: Sequence[Numbers], rows: Rows) -> list[Rows]:
        """``M_i' lam`` for each operand."""

    def add_bias(self, rows: Rows, bias: Numbers, tally: Tally) -> None:
        """Adds ``b' lam``; ``bias`` is the map, as numbers."""
        if self.bias_map.any():
            tally.add(rows.coefs * rows.over(bias))


Op = Input | Relu | Curved | Selection | Weighted


@dataclass(frozen=True, eq=False)
class Conv(Weighted):
    """Cross-correlation with zero padding: weight (C_out, C_in/groups, kh, kw), bias (C_out,)."""

    weight: Array
    bias: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def weights(self) -> tuple[Array, ...]:
        return (self.weight,)

    @property
    def bias_map(self) -> Array:
        return self.bias[:, None, None]

    @property
    def terms(self) -> int:
        return math.prod(self.weight.shape[1:])

    @property
    def adjoint_terms(self) -> int:
        out, _, kh, kw = self.weight.shape
        return int(out // self.groups * kh * kw)

    def reads(self, size: Pair) -> Pair:
        (h, w), (sy, sx), (dy, dx), (kh, kw) = size, self.stride, self.dilation, self.weight.shape[2:]
        return (h - 1) * sy + dy * (kh - 1) + 1, (w - 1) * sx + dx * (kw - 1) + 1

    def images(self, weights: Sequence[Numbers], values: Sequence[Numbers], shape: Shape) -> list[Numbers]:
        ((weight,), (x,)), (_, height, width) = (weights, values), shape
        (py, px), (sy, sx), (dy, dx) = self.padding, self.stride, self.dilation
        each, per_group, kh, kw = weight.shape[0] // self.groups, *weight.shape[1:]
        need = self.reads((height, width))
        after = (max(0, need[0] - py - x.shape[1]), max(0, need[1] - px - x.shape[2]))
        padded = np.pad(x, ((0, 0), (py, after[0]), (px, after[1])))
        by_group = weight.reshape(self.groups, each, per_group, kh, kw)
        total = np.zeros((self.groups, each, height * width), dtype=x.dtype)
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dy, i * dy + (height - 1) * sy + 1, sy)
                taken = padded[:, rows, j * dx : j * dx + (width - 1) * sx + 1 : sx]
                total += by_group[:, :, :, i, j] @ taken.reshape(self.groups, per_group, -1)
        return [total.reshape(shape)]

    def adjoint(self, weights: Sequence[Numbers], rows: Rows) -> list[Rows]:
        (weight,), (count, _, h, w) = weights, rows.coefs.shape
        (sy, sx), (dy, dx) = self.stride, self.dilation
        each, per_group, kh, kw = weight.shape[0] // self.groups, *weight.shape[1:]
        lam = rows.coefs.reshape(count, self.groups, each, h * w)
        by_group = weight.reshape(self.groups, each, per_group, kh, kw)
        below = np.zeros((count, self.groups * per_group, *self.reads((h, w))), dtype=rows.coefs.dtype)
        for y in range(kh):
            for x in range(kw):
                part = by_group[:, :, :, y, x].transpose(0, 2, 1) @ lam
                to = below[:, :, y * dy : y * dy + (h - 1) * sy + 1 : sy, x * dx : x * dx + (w - 1) * sx + 1 : sx]
                to += part.reshape(to.shape)
        return [Rows(below, rows.corners * np.array(self.stride) - np.array(self.padding))]

    def add_bias(self, rows: Rows, bias: Numbers, tally: Tally) -> None:
        """Sums over positions first: the bias is the same at all of them."""
        tally.add(rows.coefs.sum(axis=(2, 3)) * bias[:, 0, 0])
        if tally.rounds:  # the error of the sums over positions
            size = np.abs(rows.coefs).sum(axis=(2, 3)) @ np.abs(self.bias)
            tally.may_be_off(tally.arithmetic.gamma(math.prod(rows.coefs.shape[2:]) + 2) * size)


@dataclass(frozen=True, eq=False)
class Tap(Selection):
    """``out[r, c] = in[stride*r + offset]`` per axis, zero off the map."""

    stride: Pair
    offset: Pair

    def reads(self, size: Pair) -> Pair:
        return (size[0] - 1) * self.stride[0] + 1, (size[1] - 1) * self.stride[1] + 1

    def image(self, values: Sequence[Numbers], shape: Shape) -> Numbers:
        ((x,), (_, height, width)) = values, shape
        row, column = (np.arange(n) * s + o for n, s, o in zip((height, width), self.stride, self.offset, strict=True))
        there = ((row >= 0) & (row < x.shape[1]))[:, None] & ((column >= 0) & (column < x.shape[2]))[None, :]
        taken = x[:, row.clip(0, x.shape[1] - 1)[:, None], column.clip(0, x.shape[2] - 1)[None, :]]
        return np.where(there[None], taken, taken * 0)

    def adjoint(self, rows: Rows) -> list[Rows]:
        """The same coefficients, at the positions that are read."""
        (h, w), (sy, sx) = rows.coefs.shape[2:], self.stride
        below = np.zeros((*rows.coefs.shape[:2], *self.reads((h, w))), dtype=rows.coefs.dtype)
        below[:, :, ::sy, ::sx] = rows.coefs
        return [Rows(below, rows.corners * np.array(self.stride) + np.array(self.offset))]


@dataclass(frozen=True, eq=False)
class Channels(Selection):
    """``out[c] = in_i[index[i, c]]`` for the operand i whose index is not -1 there, or zero; no channel of an operand
    twice. ``counts`` (operands,): how many channels each has."""

    index: Array
    counts: Array

    def image(self, values: Sequence[Numbers], shape: Shape) -> Numbers:
        out: Numbers = np.zeros(shape, dtype=values[0].dtype) + values[0].flat[0] * 0
        for x, index in zip(values, self.index, strict=True):
            out[index >= 0] = x[index[index >= 0]]
        return out

    def adjoint(self, rows: Rows) -> list[Rows]:
        below = []
        for count, index in zip(self.counts, self.index, strict=True):
            coefs = np.zeros((len(rows), int(count), *rows.coefs.shape[2:]), dtype=rows.coefs.dtype)
            coefs[:, index[index >= 0]] = rows.coefs[:, index >= 0]
            below.append(replace(rows, coefs=coefs))
        return below


@dataclass(frozen=True, eq=False)
class Move(Weighted):
    """``out[v] = in_i[index[i, v]]`` for the operand i whose index is not -1 there, or zero; v and the indices are flat
    places of maps. ``index`` (operands, C, H, W), ``shapes`` (operands, 3)."""

    index: Array
    shapes: Array

    terms = 1

    @property
    def weights(self) -> tuple[Array, ...]:
        return (np.ones(1),)

    @property
    def bias_map(self) -> Array:
        return np.zeros((1, 1, 1))

    @property
    def adjoint_terms(self) -> int:
        return max(1, *(int(np.bincount(one[one >= 0]).max(initial=0)) for one in self.index))

    def reads(self, size: Pair) -> Pair:
        return int(self.shapes[:, 1].max()), int(self.shapes[:, 2].max())

    def images(self, weights: Sequence[Numbers], values: Sequence[Numbers], shape: Shape) -> list[Numbers]:
        (one,) = weights
        return [np.where(at >= 0, x.ravel()[at.clip(0)], 0) * one for x, at in zip(values, self.index, strict=True)]

    def adjoint(self, weights: Sequence[Numbers], rows: Rows) -> list[Rows]:
        (one,), (_, height, width) = weights, self.index.shape[1:]
        whole, below, size = rows.laid_out(0, height).laid_out(1, width), [], self.reads((1, 1))
        lam = whole.coefs.reshape(len(rows), -1) * one
        for (channels, h, w), at in zip(self.shapes.tolist(), self.index, strict=True):
            flat, of = np.zeros((channels * h * w, len(rows)), dtype=lam.dtype), at.ravel()
            np.add.at(flat, of[of >= 0], lam.T[of >= 0])
            coefs = flat.T.reshape(len(rows), channels, h, w)
            pads = ((0, 0), (0, 0), (0, size[0] - h), (0, size[1] - w))
            below.append(Rows(np.pad(coefs, pads), np.zeros_like(rows.corners)))
        return below


@dataclass(frozen=True, eq=False)
class Combine(Weighted):
    """``sum_i coefs[i] * x_i + shift``, elementwise; each coefficient (C or 1, 1, 1) or (C or 1, H, W)."""

    coefs: tuple[Array, ...]
    shift: Array

    terms = adjoint_terms = 1

    @property
    def weights(self) -> tuple[Array, ...]:
        return self.coefs

    @property
    def bias_map(self) -> Array:
        return self.shift

    def images(self, weights: Sequence[Numbers], values: Sequence[Numbers], shape: Shape) -> list[Numbers]:
        return [coef * x for coef, x in zip(weights, values, strict=True)]

    def adjoint(self, weights: Sequence[Numbers], rows: Rows) -> list[Rows]:
        return [replace(rows, coefs=rows.coefs * rows.over(coef)) for coef in weights]
