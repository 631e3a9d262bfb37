"""Sums, products with constants, and sums over axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reading import ramp, require_read


@pytest.mark.parametrize(
    "change",
    [
        lambda y: torch.sub(y, 0.5 * y, alpha=-2.0),
        lambda y: torch.rsub(y, 2 * y, alpha=3.0),
        lambda y: torch.rsub(y, 0.3, alpha=3.0),
        lambda y: 0.3 - y / -0.7,
        lambda y: y.div(2, rounding_mode=None),
        lambda y: F.dropout(y, 0.0),
        lambda y: y + torch.arange(6.0),
        lambda y: y * torch.tensor([[[0.5]], [[-1.5]]]).clone(),
        lambda y: y + ramp(y, 1, 2, 6, 6)[:, :, :1] * y.mean(),
        lambda y: y.mean((2, 3), keepdim=True) + torch.arange(72.0).view(1, 2, 6, 6),
        lambda y: y.transpose(2, 3) + y,
        lambda y: y.sum((2, 3), keepdim=True) - y.sum(1, keepdim=True) + y.mean(3, keepdim=True) * 2,
        lambda y: y.flatten(2).mean(2)[..., None, None] + y.permute(0, 2, 3, 1).mean(2).permute(0, 2, 1)[..., None],
        lambda y: y.unflatten(1, (2, 1)).sum(1) - 0.2 * y,
        lambda y: torch.lerp(y, y.flip(2), 0.3) + torch.lerp(y, 1 - y, ramp(y, 2, 1, 1)),
        lambda y: torch.hstack([y[:, :1], y.diff(dim=1)]),
        lambda y: y.flip(2).mean((2, 3), keepdim=True) + y,
        lambda y: y + y[0].mean() - 0.1 * y[0].flip(2)[:, 1:].sum() + y[0].mean(-1)[None, ..., None],
        lambda y: y + y[0].sum(0),
        lambda y: y + y.flatten()[5:40].mean() + y.sum().sum() * 0.01 + y[0, 0].mean(1),
        lambda y: torch.addcmul(y, y.flip(3), torch.tensor(0.5), value=3),
    ],
)
def test_it_is_read_with_its_arguments(change):
    require_read(change)
