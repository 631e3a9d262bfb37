"""A small CAM network with anything between its body and its head, and the network that is read of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from nets import Plain, image, seeded
from torch import Tensor

import corgi_opt as co


def ramp(y: torch.Tensor, *shape: int) -> torch.Tensor:
    """Numbers from -1 to 1, in the precision of a map."""
    return torch.linspace(-1, 1, math.prod(shape)).to(y).view(shape)


class Asked(Plain):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(self.body(x)).mean((2, 3)))


def require_read(change: Callable[[Tensor], Tensor]) -> co.CamNetwork:
    """The network that is read of a model with this in its middle, when both compute the same."""
    x = image(1, 6, 6)
    model = seeded(Asked, change=change)
    net = co.from_torch(model, x)
    double = model.double()
    for seed in range(3):
        x = 2 * torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(net.logits(x), double(x)[0], rtol=1e-6, atol=1e-7)
    return net
