"""What is piecewise linear is read as what it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reading import ramp, require_read


@pytest.mark.parametrize(
    "change",
    [
        lambda y: F.leaky_relu(-y, -0.5),
        lambda y: F.relu(y - 0.1).flatten(1).mul(2.0).view(1, 2, 6, 6),
        lambda y: F.relu6(20 * y - 3),
        lambda y: F.hardtanh(4 * y - 1, -0.7, 0.9),
        lambda y: (3 * y - 1).clamp(-0.5, 0.5),
        lambda y: (3 * y - 1).clamp(min=0.2) - (y - 0.4).clamp(max=0.1),
        lambda y: y.clamp(torch.tensor(0.1), torch.tensor([[[0.5]], [[0.3]]])),
        lambda y: F.hardsigmoid(9 * y - 4),
        lambda y: F.prelu(y - 0.3, ramp(y, 2)),
        lambda y: F.prelu(y - 0.3, ramp(y, 1)),
        lambda y: F.rrelu(y - 0.3, 0.1, 0.3),
        lambda y: F.threshold(y, 0.4, 0.4),
        lambda y: (y - 0.4).abs(),
        lambda y: torch.maximum(y, y.flip(2)) - torch.minimum(2 * y, y.flip(3)),
        lambda y: torch.maximum(y, torch.tensor([[[0.5]], [[0.2]]])) + torch.minimum(torch.tensor(0.3), y),
        lambda y: torch.cat([y, 1 - y], 1).unflatten(1, (2, 2)).amax(2),
        lambda y: torch.cat([y, 1 - y], 1).unflatten(1, (2, 2)).min(1).values,
        lambda y: y.amax((2, 3), keepdim=True) + y,
        lambda y: (y + y[0].amax(0)) - (y - y[0].amin()),
    ],
)
def test_it_is_read_with_its_arguments(change):
    require_read(change)
