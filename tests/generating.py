"""Networks of every kind that generators go through, and generators of a pass that is done."""

from __future__ import annotations

import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.generators import Generators
from corgi_opt.problem.region import Norm


class Joined(nn.Module):
    """Concatenations, a strided branch, and a map turned upside down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.c, self.fc = nn.Conv2d(4, 3, 3, stride=2, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([x, self.a(x).relu()], dim=1)
        h = torch.cat([self.b(h).relu().flip(2), h[:, 1:]], dim=1)
        return self.fc(self.c(h).relu().mean((2, 3)))


NETS = {
    "plain": (Plain, (1, 6, 6)),
    "residual": (Residual, (1, 6, 5)),
    "deep": (Deep, (1, 9, 7)),
    "pooled": (Pooled, (1, 8, 8)),
    "joined": (Joined, (1, 8, 7)),
    "everything": (Everything, (3, 10, 10)),
}


def ball(net: co.CamNetwork, eps: float, norm: Norm = "inf", clip: tuple[float, float] | None = (0.0, 1.0)) -> co.Ball:
    center = image(*net.input_shape, seed=4).double()
    center[..., 0, :] = 0.0  # on the box's edge: moves are of one sign there
    return co.Ball(center, eps, norm, clip)


def generators(relaxed: Relaxed, dtype: torch.dtype, deadline: Deadline = NEVER) -> Generators:
    return Generators(relaxed.graph, relaxed.regions, relaxed.intervals, relaxed.lines, deadline, dtype)
