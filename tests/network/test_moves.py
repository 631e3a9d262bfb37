"""Calls that only move values are read as torch moves them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reading import ramp, require_read


@pytest.mark.parametrize(
    "change",
    [
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
    ],
)
def test_it_is_read_with_its_arguments(change):
    require_read(change)
