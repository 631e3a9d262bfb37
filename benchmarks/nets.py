"""Residual networks for the benchmarks: random weights, a CAM head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """conv-relu-conv with a skip; the skip is strided where the block is."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, channels, 3, stride, 1)
        self.b = nn.Conv2d(channels, channels, 3, 1, 1)
        plain = inputs == channels and stride == 1
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


class CamNet(nn.Module):
    """``features`` -> global average -> linear."""

    def __init__(self, features: nn.Sequential, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features, self.classify = features, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.features(x).mean((2, 3)))
        return logits


def small_resnet(seed: int = 0) -> CamNet:
    """3x32x32 -> 8x16x16: a pooled stem and three blocks, 12,288 ReLUs and the pool's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stem = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
        return CamNet(nn.Sequential(*stem, *(Block(8, 8) for _ in range(3))), 8).eval()


def deep_resnet(seed: int = 0) -> CamNet:
    """3x64x64, 20 convolutions of 8 channels at full resolution: 655,360 ReLUs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ends = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()], [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        return CamNet(nn.Sequential(*ends[0], *(Block(8, 8) for _ in range(9)), *ends[1]), 8).eval()


def smooth_image(size: int, seed: int = 0) -> Tensor:
    """A random image (1, 3, size, size) in [0, 1] without fine detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
