"""Stages of random CNNs that move values alone: whole channels, pieces of maps, single values, in many spellings."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fuzz_stages import Shape, Spelt
from torch import Tensor, nn

Move = Callable[[Tensor], Tensor]

ATEN: Any = torch.ops.aten


def half(x: Tensor) -> int:
    return max(1, x.shape[1] // 2)


def shuffled(x: Tensor) -> Tensor:
    """As ShuffleNet spells it."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


CHANNELS: dict[str, Move] = {
    "cat negated": lambda x: torch.cat([x, -x], 1),
    "cat twice": lambda x: torch.cat((x, x), dim=1),
    "cat rotated": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "cat zeros": lambda x: torch.cat([x, torch.zeros_like(x[:, :1])], 1),
    "cat new ones": lambda x: torch.cat([x.new_ones(len(x), 1, *x.shape[2:]), x], 1),
    "cat parameter": lambda x: torch.cat([x, torch.full((len(x), 1, *x.shape[2:]), 0.25).to(x)], 1),
    "option A": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "shuffle": shuffled,
    "F.channel_shuffle": lambda x: F.channel_shuffle(x, x.shape[1] // half(x)),
    "chunk": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], 1),
    "split": lambda x: torch.cat(x.split(half(x), dim=1)[::-1], 1),
    "split sizes": lambda x: torch.cat(torch.split(x, [1, x.shape[1] - 1], 1)[::-1], 1),
    "slice": lambda x: x[:, half(x) :],
    "narrow": lambda x: x.narrow(1, 0, half(x)),
    "index": lambda x: x[:, [*range(1, x.shape[1]), 0]],
    "native shuffle": lambda x: torch.native_channel_shuffle(x, x.shape[1] // half(x)),
    "split sizes, as torch has it": lambda x: torch.cat(ATEN.split.sizes(x, [1, x.shape[1] - 1], 1)[::-1], 1),
    "index_select": lambda x: x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1)),
    "gather": lambda x: x.gather(1, torch.arange(x.shape[1]).flip(0).view(1, -1, 1, 1).expand(x.shape)),
    "unbind and stack": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "select": lambda x: x.select(1, 0).unsqueeze(1) + x,
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1) + x[:, 0].squeeze().view(-1, 1, *x.shape[2:]),
    "squeeze dims": lambda x: x[None].squeeze((0,)),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x) - x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: x.tile((1, 2, 1, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "chunk of a slice": lambda x: x[:, :2].chunk(2, 1)[0].view_as(x[:, :1]),
    "items set": lambda x: set_item(x, (slice(None), [0]), x[:, -1:] + 1),
    "moveaxis": lambda x: torch.moveaxis(x, 1, 0).movedim((0, 1), (1, 0)),
    "alias": lambda x: ATEN.alias(x)[:, :-1],
    "dstack": lambda x: torch.dstack([x, -x]),
    "vstack": lambda x: torch.stack([torch.vstack([one, -one]) for one in x]),
    "hstack": lambda x: torch.hstack([x, x[:, :1]]),
    "numbers where": lambda x: torch.where(torch.arange(x.shape[3]) > 0, 0.2, x),
    "masked_fill tensor": lambda x: x.masked_fill(torch.arange(x.shape[3]) > 0, torch.tensor(0.3)),
    "triangles": lambda x: x.tril(1) - x.triu(1),
    "item set": lambda x: set_item(x, (slice(None), 0), 0.2),
}
"""What keeps rows and columns."""


def set_item(x: Tensor, place: Any, value: float | Tensor) -> Tensor:
    y = x.clone()
    y[place] = value
    return y


PIXELS: dict[str, Move] = {
    "flip": lambda x: x.flip(3),
    "flip both": lambda x: torch.flip(x, (2, 3)),
    "roll": lambda x: x.roll((1, -1), (2, 3)),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "transpose": lambda x: x.transpose(2, 3),
    "swapaxes": lambda x: x.swapaxes(-1, -2),
    "movedim": lambda x: x.movedim(3, 2),
    "movedim lists": lambda x: x.movedim((2, 3), (3, 2)),
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "T": lambda x: torch.stack([torch.stack([plane.T for plane in one]) for one in x]),
    "pad, as torch has it": lambda x: torch.constant_pad_nd(x, (1, 0, 0, 2), 0.3),
    "reflect, as torch has it": lambda x: ATEN.reflection_pad2d(x, [1, 1, 0, 1]),
    "replicate, as torch has it": lambda x: ATEN.replication_pad2d(x, [2, 0, 1, 1]),
    "reflect a line, as torch has it": lambda x: ATEN.reflection_pad1d(x.flatten(2), [2, 1])[:, :, None],
    "replicate a line, as torch has it": lambda x: ATEN.replication_pad1d(x.flatten(2), [1, 2])[:, :, None],
    "nearest, as torch has it": lambda x: ATEN.upsample_nearest2d.default(x, [3, 5]),
    "nearest-exact, as torch has it": lambda x: ATEN._upsample_nearest_exact2d.default(x, [5, 3]),
    "nearest of a line, as torch has it": lambda x: ATEN.upsample_nearest1d.default(x.flatten(2), [7])[:, :, None],
    "nearest-exact of a line, as torch has it": lambda x: ATEN._upsample_nearest_exact1d.default(x.flatten(2), [9])[
        :, :, None
    ],
    "cat rows": lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2),
    "cat flipped": lambda x: torch.cat([x, x.flip(3)], 3),
    "strided": lambda x: x[..., ::2, 1:],
    "even and odd": lambda x: torch.cat([x[:, :, ::2], x[:, :, 1::2]], 2),
    "unfold": lambda x: x.unfold(2, 2, 1)[..., 1],
    "F.unfold": lambda x: F.unfold(x, 2, padding=1).view(len(x), -1, x.shape[2] + 1, x.shape[3] + 1)[:, ::3],
    "pad": lambda x: F.pad(x, (1, 0, 0, 2)),
    "pad with a value": lambda x: F.pad(x, (1, 2), value=-0.4),
    "crop": lambda x: F.pad(x, (-1, 0, 0, 1)),
    "ZeroPad2d": lambda x: nn.ZeroPad2d((0, 1, 2, 0))(x),
    "ConstantPad2d": lambda x: nn.ConstantPad2d((1, 0, 1, 0), 0.5)(x),
    "reflect": lambda x: F.pad(x, (1, 1, 0, 1), mode="reflect"),
    "replicate": lambda x: nn.ReplicationPad2d((2, 0, 1, 1))(x),
    "circular": lambda x: F.pad(x, (1, 0, 1, 1), mode="circular"),
    "reflect in a line": lambda x: F.pad(x.flatten(2), (2, 1), mode="reflect")[:, :, None],
    "replicate in a line": lambda x: F.pad(x.flatten(2), (2, 1), mode="replicate").unsqueeze(3),
    "pixel_shuffle": lambda x: F.pixel_shuffle(torch.cat([x, -x, 2 * x, x + 1], 1), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, size=(3, 5)),
    "nearest-exact": lambda x: F.interpolate(x, size=(5, 3), mode="nearest-exact"),
    "nearest in a line": lambda x: F.interpolate(x.flatten(2), scale_factor=2)[:, :, None],
    "nearest-exact in a line": lambda x: F.interpolate(x.flatten(2), size=7, mode="nearest-exact")[:, :, None],
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "view, as torch has it": lambda x: ATEN._unsafe_view(x, [len(x), -1, x.shape[3], x.shape[2]]),
    "flatten and unflatten": lambda x: x.flatten(2).unflatten(2, (x.shape[3], x.shape[2])),
    "view_as": lambda x: x.flip(2).view_as(x),
    "a constant mask": lambda x: torch.where(torch.arange(x.shape[3]) % 2 == 0, x, x.flip(3)),
    "a constant mask and a number": lambda x: torch.where(torch.arange(x.shape[3]) % 2 == 0, x, 0.3),
    "masked_fill": lambda x: x.masked_fill(torch.arange(x.shape[3]) % 2 == 0, -0.2),
    "rows set": lambda x: set_item(x, (..., slice(0, 1), slice(None)), x[..., -1:, :]),
}
"""What moves pixels."""

ALL = {**CHANNELS, **{f"{name} (pixels)": move for name, move in PIXELS.items()}}


class Moved(Spelt):
    """One that moves values."""

    def forward(self, x: Tensor) -> Tensor:
        return ALL[self.how](x)


def moved(r: random.Random, shape: Shape) -> nn.Module:
    return nn.Sequential(*(Moved(r.choice(tuple(ALL))) for _ in range(r.choice((1, 1, 2)))))
