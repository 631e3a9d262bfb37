"""Small networks with smooth activations and gates, in eval mode."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import image, seeded
from torch import Tensor, nn

import corgi_opt as co


class Curvy(nn.Module):
    """conv-f-(pool)-conv-f-GAP-linear on 1x6x6, weights large enough that functions bend within an interval."""

    def __init__(self, function: Callable[[Tensor], Tensor] = F.silu, pool: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 1) if pool else nn.Identity()
        self.head = nn.Linear(channels, 3)
        for conv in (self.first, self.second):
            assert conv.bias is not None
            nn.init.normal_(conv.weight, 0.0, 0.6)
            nn.init.normal_(conv.bias, 0.0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.function(self.first(x)))
        return self.head(self.function(self.second(y)).mean((2, 3)))


class Squeezed(nn.Module):
    """A squeeze-and-excitation block (Hu et al. 2018): channels times gates that see the whole map."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
        self.head = nn.Linear(channels, 3)
        nn.init.normal_(self.first.weight, 0.0, 0.6)
        nn.init.normal_(self.up.weight, 0.0, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(F.relu(self.second(y * gate) + y).mean((2, 3)))


class Mixed(nn.Module):
    """ReLU, a max pool, GELU, a product of two branches, a curved function of a rectified one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.right, self.head = nn.Conv2d(4, 3, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.gelu(3 * self.first(x)), 2, 1)
        y = F.mish(self.left(y)) * torch.tanh(F.relu(2 * self.right(y)) - 0.3)
        return self.head((F.relu(y) + 0.2 * y * y).mean((2, 3)))


class Line(nn.Module):
    """An image of one number, four pixels of a map, each a curved function of it: every answer is on a fine grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        self.spread = nn.ConvTranspose2d(3, 3, 2)
        for module in (self.first, self.head, self.spread):
            nn.init.normal_(module.weight, 0.0, 1.5)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0.0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first(x))
        return self.head(torch.tanh(self.spread(y)).mean((2, 3)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": lambda x: F.elu(x, 1.5),
    "selu": F.selu,
    "softplus": lambda x: F.softplus(x, 1.0, 2.0),
    "hardswish": lambda x: F.hardswish(3 * x),
    "mish": F.mish,
}

BUILT: dict[str, Callable[[int], nn.Module]] = {
    **{
        name: functools.partial(seeded, Curvy, function=function, pool=at % 2)
        for at, (name, function) in enumerate(ACTIVATIONS.items())
    },
    "squeezed": functools.partial(seeded, Squeezed),
    "mixed": functools.partial(seeded, Mixed),
}
"""By name, how a network of a seed is built; images are 1x6x6."""


def read(name: str, seed: int = 0) -> co.CamNetwork:
    return co.from_torch(BUILT[name](seed), image(1, 6, 6))
