"""Calls that only move values are read as torch moves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import image, seeded
from patience import mostly_slow
from reading import Asked, ramp, require_read

import corgi_opt as co


def written(y: torch.Tensor, place: Any, value: Any) -> torch.Tensor:
    y = y.clone()
    y[place] = value
    return y


CHANGES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda y: y.flatten(2).unflatten(2, (6, 6)),
    lambda y: y.squeeze(0).unsqueeze(0),
    lambda y: y.view(1, 2, 12, 3),
    lambda y: torch.cat([y, -y, 2 * y[:, :1]], 1)[:, [0, 2]] + torch.cat([y[:, 1:], y[:, :1] * 3], 1),
    lambda y: torch.cat([y[..., :3], y[..., 3:].flip(3)], 3),
    lambda y: torch.stack([y[:, 0], y[:, 1] - 1], 1),
    lambda y: y[:, :, ::2, 1:5],
    lambda y: F.pad(y, (1, 2, 0, 1)),
    lambda y: F.pad(y, (1, 0, 0, 1), value=0.7),
    lambda y: F.pad(y, (-1, 0, 2, -2), value=-0.3),
    lambda y: F.pad(y, (2, 1, 1, 2), mode="reflect"),
    lambda y: F.pad(y, (2, 1, 1, 2), mode="replicate"),
    lambda y: F.pad(y, (2, 1, 1, 2), mode="circular"),
    lambda y: F.pad(y, (0, 0, 0, 0, 1, 1))[:, 1:3],
    lambda y: y.roll(2, 3).flip(2),
    lambda y: F.pixel_shuffle(torch.cat([y, -y, y + 1, 2 * y], 1), 2)[:, :, ::2],
    lambda y: F.pixel_unshuffle(y, 2)[:, 3:5],
    lambda y: F.channel_shuffle(torch.cat([y, -y], 1), 2)[:, 1:3],
    lambda y: F.interpolate(y, scale_factor=2),
    lambda y: F.interpolate(y, size=(9, 4), mode="nearest-exact"),
    lambda y: y.repeat(1, 1, 2, 1) + y.repeat_interleave(2, 2),
    lambda y: torch.cat([y[:, :1], ramp(y, 1, 1, 6, 6)], 1) - y,
    lambda y: torch.cat([y, torch.zeros_like(y), y.new_full((1, 1, 6, 6), 0.2)], 1)[:, 1:5:3],
    lambda y: torch.where(torch.arange(6) % 2 == 0, y, y.flip(3)),
    lambda y: torch.where(torch.arange(6) % 2 == 0, torch.where(torch.arange(6) < 3, -0.7, y), 0.3),
    lambda y: y.masked_fill(torch.arange(6) % 2 == 0, -0.2),
    lambda y: y.gather(1, torch.tensor([1, 0]).view(1, 2, 1, 1).expand(1, 2, 6, 6)),
    lambda y: F.unfold(y, 2, padding=1, stride=2)[:, 2:4].unflatten(2, (4, 4)),
    lambda y: y.tril(1) + y.triu(-1),
    lambda y: torch.moveaxis(y, (2, 3), (3, 2)) + torch.moveaxis(y, 3, 2).swapdims(2, 3) + y.ravel().view_as(y),
    lambda y: torch.dstack([z[0] for z in y.tensor_split(2, dim=3)]).view_as(y),
    lambda y: torch.hstack(y.tensor_split((1,), 1)[::-1]),
    lambda y: torch.column_stack([y[0, 0, :, :2], y[0, 1, :, 2:]]).expand(1, 2, 6, 6),
    lambda y: torch.tensordot(y, ramp(y, 2, 2), ([1], [0])).permute(0, 3, 1, 2),
    lambda y: written(y, (slice(None), 0), 0.2),
    lambda y: written(y, (..., slice(0, 1), slice(None)), y[..., -1:, :]),
    lambda y: written(y, (slice(None), [1, 0], slice(2)), ramp(y, 2, 6)),
]


@pytest.mark.parametrize("change", mostly_slow(CHANGES, CHANGES[::2]))
def test_it_is_read_with_its_arguments(change):
    require_read(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y + y[..., 9:].sum((2, 3), keepdim=True),
        lambda y: y + (y[:, :0] * y[:, :0]).sum(1, keepdim=True).relu(),
        lambda y: torch.cat([y[..., :0].sigmoid(), y, F.relu(y)[..., 6:]], 3),
        lambda y: y + F.relu(torch.cat([y, ramp(y, 1, 2, 6, 6)], 1)[:, 2:] - 0.1),
        lambda y: torch.mul(*torch.cat([y, ramp(y, 1, 2, 6, 6)], 1).chunk(2, 1)),
        lambda y: y - F.pad(y, (0, 0, 2, 0), value=0.5)[:, :, :2].amax((2, 3), keepdim=True),
        lambda y: y + F.pad(y, (0, 0, 2, 0), value=-0.5)[:, :, :2].abs().topk(2, 3).values.mean(),
        lambda y: y + sum(p.exp().mean() for p in torch.split(torch.zeros_like(y) + ramp(y, 1, 2, 6, 6), 1, 1)),
    ],
)
def test_what_turns_out_to_be_constant_is_calculated(change):
    """A slice of a border, an empty slice: whatever is made of them, curved or not, is a constant."""
    assert not co.from_torch(seeded(Asked, change=change), image(1, 6, 6)).curved
    require_read(change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda y: y + y[..., 9:].mean(), "constant that is not finite"),
        (lambda y: y + torch.bernoulli(F.pad(y, (1, 0), value=0.5)[..., :1]), "bernoulli is not supported"),
    ],
)
def test_constants_that_are_none(change, why):
    with pytest.raises(co.UnsupportedOpError, match=why):
        co.from_torch(seeded(Asked, change=change), image(1, 6, 6))


def test_what_is_added_to_a_place_is_no_move():
    def added(y):
        return y.index_put((torch.tensor([0]), torch.tensor([1])), y[:, 0], accumulate=True)

    with pytest.raises(co.UnsupportedOpError, match="It adds to what is there"):
        co.from_torch(seeded(Asked, change=added), image(1, 6, 6))
