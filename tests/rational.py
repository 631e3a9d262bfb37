"""CAM networks of one input and two pixels, with their exact answers in rational arithmetic.

The image is one number x. A (1, 2) convolution with padding spreads it over two pixels, which 1x1 convolutions then
treat alike; so each pixel's CAM is a piecewise linear function of x, and its least difference over an interval is at an
end or where a pre-activation is zero. Nothing is rounded: weights and ends are the floats that the network has.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn


class Scalar(nn.Module):
    """x (1, 1, 1, 1) -> first (two pixels) -> 1x1 convolutions, with a ReLU or none, and a skip or none -> head."""

    def __init__(self, channels: int, rectified: tuple[bool, ...], skips: tuple[bool, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, (1, 2), padding=(0, 1)).double()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 1).double() for _ in skips)
        self.head = nn.Linear(channels, 2).double()
        self.rectified, self.skips = rectified, skips

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.relu(h) if self.rectified[0] else h
        for conv, rectified, skip in zip(self.convs, self.rectified[1:], self.skips, strict=True):
            z = conv(h) + h if skip else conv(h)
            h = torch.relu(z) if rectified else z
        return self.head(h.mean((2, 3)))


@dataclass(frozen=True, eq=False)
class Exact:
    """The CAM of class 0 as Fractions."""

    model: Scalar

    def layers(self, x: Fraction, pixel: int) -> tuple[list[list[Fraction]], Fraction]:
        """Every layer's pre-activations at one pixel, and its CAM."""
        first = self.model.first
        assert first.bias is not None
        z = [
            Fraction(float(w)) * x + Fraction(float(b))
            for w, b in zip(first.weight[:, 0, 0, 1 - pixel], first.bias, strict=True)
        ]
        h, every = (_relu(z) if self.model.rectified[0] else z), [z]
        for conv, rectified, skip in zip(self.model.convs, self.model.rectified[1:], self.model.skips, strict=True):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            z = [
                sum((Fraction(float(w)) * v for w, v in zip(row, h, strict=True)), Fraction(float(b)))
                for row, b in zip(conv.weight[:, :, 0, 0], conv.bias, strict=True)
            ]
            z = [v + old for v, old in zip(z, h, strict=True)] if skip else z
            every.append(z)
            h = _relu(z) if rectified else z
        weights = self.model.head.weight[0]
        return every, sum((Fraction(float(w)) * v for w, v in zip(weights, h, strict=True)), Fraction(0))

    def cam(self, x: Fraction, pixel: int) -> Fraction:
        return self.layers(x, pixel)[1]

    def points(self, low: Fraction, high: Fraction) -> list[Fraction]:
        """The ends, and every zero of every pre-activation of either pixel between."""
        points = [low, high] if low < high else [low]
        for depth in range(1 + len(self.model.skips)):
            for pixel in (0, 1):
                values = [self.layers(x, pixel)[0][depth] for x in points]
                found = set(points)
                for a, b, left, right in zip(points, points[1:], values, values[1:], strict=False):
                    for p, q in zip(left, right, strict=True):
                        if p * q < 0:
                            found.add(a + (b - a) * p / (p - q))
                points = sorted(found)
        return points

    def least(self, low: Fraction, high: Fraction, top: int) -> Fraction:
        """The least of ``CAM_top - CAM_other`` between low and high."""
        return min(self.cam(x, top) - self.cam(x, 1 - top) for x in self.points(low, high))


def _relu(z: list[Fraction]) -> list[Fraction]:
    return [max(v, Fraction(0)) for v in z]


def draw(rng: np.random.Generator, decades: float) -> Scalar:
    """Up to four layers of up to four channels. Sizes of weights are over so many decades to either side of one, by
    layer, by channel or not at all; a layer without a ReLU often cancels what the one before it made."""
    depth, channels = int(rng.integers(0, 4)), int(rng.integers(1, 5))
    rectified = tuple(bool(rng.random() < 0.6) for _ in range(depth + 1))
    model = Scalar(channels, rectified, tuple(bool(rng.random() < 0.3) for _ in range(depth)))
    spread = rng.choice([0.0, decades])
    with torch.no_grad():
        for layer in (model.first, *model.convs, model.head):
            by_layer = 10.0 ** rng.uniform(-spread, spread)
            for parameter in (layer.weight, layer.bias):
                by_channel = 10.0 ** rng.uniform(-spread / 4, spread / 4, (len(parameter), *[1] * (parameter.ndim - 1)))
                values = rng.normal(size=parameter.shape) * by_layer * by_channel
                parameter.copy_(torch.from_numpy(values * (rng.random(parameter.shape) < 0.9)))
        for conv, before in zip(model.convs, (model.first, *model.convs), strict=False):
            if rng.random() < 0.5:
                assert isinstance(conv, nn.Conv2d) and isinstance(before, nn.Conv2d)
                _cancel(conv, before)
    return model.eval().requires_grad_(False)


def _cancel(conv: nn.Conv2d, before: nn.Conv2d) -> None:
    """Makes the first unit of ``conv`` insensitive, but for rounding, to what the layer before it passes on."""
    made = before.weight[:, 0, 0, -1]
    if len(made) < 2 or float(made[0]) == 0:
        return
    conv.weight[0, 0, 0, 0] = -(conv.weight[0, 1:, 0, 0] @ made[1:]) / made[0]
