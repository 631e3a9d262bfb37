"""Operations that only move values: whole channels, or single values from anywhere to anywhere.

Concatenations, slices, shuffles, pads, upsampling by repetition and their kin are these (translation.py says which).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corgi_opt.network.ops import Geometry, Places, Selection, Shape, Weighted, laid_out

NOTHING = -1
"""In place of a channel or a value: zero."""


@dataclass(frozen=True, eq=False)
class Channels(Selection):
    """``out[c] = in_i[index_i[c]]`` for the operand i whose index is not NOTHING there, or zero where there is none.

    ``index``: of each operand (C_out,), no channel twice; ``counts``: how many channels each operand has.
    """

    index: tuple[Tensor, ...]
    counts: tuple[int, ...]

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        n, _, h, w = inputs[0].shape
        out = inputs[0].new_zeros(n, len(self.index[0]), h, w)
        for x, index in zip(inputs, self.index, strict=True):
            to = torch.nonzero(index != NOTHING).flatten()
            out = out.index_copy(1, to, x[:, index[to]])
        return out

    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        below = []
        for count, index in zip(self.counts, self.index, strict=True):
            of = torch.nonzero(index != NOTHING).flatten()
            zeros = lam.new_zeros(len(lam), count, *lam.shape[2:])
            below.append(zeros.index_copy(1, index[of], lam[:, of]))
        return below

    def to(self, dtype: torch.dtype, device: torch.device) -> Channels:
        return replace(self, index=tuple(index.to(device) for index in self.index))


@dataclass(frozen=True, eq=False)
class Move(Weighted):
    """``out[v] = in_i[index_i[v]]`` for the operand i whose index is not NOTHING there, or zero; v and the indices are
    flat places of maps. A value may be read many times.

    ``index``: of each operand (C, H, W) as the result; ``shapes``: of the operands. Every window of the result is taken
    to read the whole of each operand.
    """

    index: tuple[Tensor, ...]
    shapes: tuple[Shape, ...]

    terms = 1

    @property
    def geometry(self) -> Geometry:
        rows, columns = (max(shape[axis] for shape in self.shapes) for axis in (1, 2))
        return Geometry((0, 0), (0, 0), (rows, columns))

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        out = inputs[0].new_zeros(len(inputs[0]), *self.index[0].shape)
        for x, index in zip(inputs, self.index, strict=True):
            taken = x.flatten(1)[:, index.clamp(min=0).flatten()].view(len(x), *index.shape)
            out = torch.where(index != NOTHING, taken, out)
        return out

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.apply(lower), self.apply(upper)

    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        for axis in (0, 1):
            lam = laid_out(lam, places, axis, shape[1 + axis])
        lam, size = lam.flatten(1), self.geometry.extent
        below = []
        for (channels, rows, columns), index in zip(self.shapes, self.index, strict=True):
            of = torch.nonzero(index.flatten() != NOTHING).flatten()
            flat = lam.new_zeros(len(lam), channels * rows * columns)
            sums = flat.index_add(1, index.flatten()[of], lam[:, of]).view(-1, channels, rows, columns)
            below.append(torch.nn.functional.pad(sums, (0, size[1] - columns, 0, size[0] - rows)))
        return below

    def absolute(self) -> Move:
        return self

    def linear(self) -> Move:
        return self

    def bias_map(self) -> None:
        return None

    def to(self, dtype: torch.dtype, device: torch.device) -> Move:
        return replace(self, index=tuple(index.to(device) for index in self.index))
