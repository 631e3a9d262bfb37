"""More than a million images of regions of every norm: no node and no CAM pixel leaves its bounds.

A bound that is wrong is wrong at the border of its region, so most images are there: vertices, images to which a
random functional of the input points, and above all images to which the gradients of the network's own nodes point.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from patience import mostly_slow
from relaxing import pixels, relaxed
from sampling import CLASS, extremes, images, require_bounds_hold
from torch import nn

import corgi_opt as co

NORMS = ("inf", "2", "1")
CLIPS = ((0.0, 1.0), None)
SIZES = ({"inf": 0.01, "2": 0.06, "1": 0.2}, {"inf": 0.15, "2": 0.9, "1": 3.0})
"""A small and a large eps in each norm."""


def pruned(model: nn.Module) -> nn.Module:
    """Most weights are zero, as after magnitude pruning: many functionals of the image have a single coefficient."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight.abs()
                module.weight.mul_(size >= size.flatten(1).quantile(0.85, dim=1)[:, None, None, None])
    return model


def plain_pruned(seed: int) -> nn.Module:
    return pruned(seeded(Plain, seed, channels=4))


CASES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...], int]] = {
    "plain": (functools.partial(seeded, Plain, channels=4), (1, 6, 6), 25_000),
    "pruned": (plain_pruned, (1, 6, 6), 25_000),
    "residual": (functools.partial(seeded, Residual), (1, 7, 5), 25_000),
    "deep": (functools.partial(seeded, Deep), (1, 8, 6), 25_000),
    "pooled": (functools.partial(seeded, Pooled), (1, 8, 8), 25_000),
    "overlapping pool": (functools.partial(seeded, Pooled, kernel=3, stride=2, padding=1), (1, 9, 9), 20_000),
    "dilated pool": (functools.partial(seeded, Pooled, kernel=3, stride=2, padding=1, dilation=2), (1, 9, 8), 20_000),
    "everything": (functools.partial(seeded, Everything), (3, 10, 9), 6_000),
}
"""How to build a network of a seed, its image shape, and how many images to sample per norm and clip box."""


@functools.cache
def network(case: str, seed: int) -> co.CamNetwork:
    build, shape, _ = CASES[case]
    return co.from_torch(build(seed), image(*shape))


def test_a_million_images_are_checked():
    """Every case below counts its own images and must come up to its share of these."""
    assert len(NORMS) * len(CLIPS) * sum(share for _, _, share in CASES.values()) >= 10**6


ASKED = [*itertools.product(CASES, NORMS)]
ALWAYS = [("pruned", "1"), ("deep", "inf"), ("dilated pool", "2"), ("everything", "inf")]
CLOSE = [*itertools.product(["plain", "deep", "overlapping pool"], NORMS)]


@pytest.mark.parametrize(("case", "norm"), mostly_slow(ASKED, ALWAYS))
def test_no_image_leaves_any_bound(case, norm):
    _, shape, share = CASES[case]
    counted = 0
    for seed, (clip, sizes) in enumerate([(c, s) for c in CLIPS for s in SIZES]):
        net = network(case, seed)
        ball = co.Ball(image(*shape, seed=seed + 40), sizes[norm], norm, clip)
        points = images(net, ball, share // len(SIZES) + 4, seed)
        require_bounds_hold(net, ball, points)
        counted += len(points)
    assert counted >= len(CLIPS) * share


@pytest.mark.parametrize(("case", "norm"), mostly_slow(CLOSE, CLOSE[::4]))
def test_the_images_come_close_to_the_bounds(case, norm):
    """Where a network is almost linear CROWN is almost exact: images that miss the border would prove nothing."""
    _, shape, _ = CASES[case]
    net = network(case, 0)
    ball = co.Ball(image(*shape, seed=40), {"inf": 1e-5, "2": 1e-4, "1": 4e-4}[norm], norm, None)
    lowest, highest = extremes(net, images(net, ball, 2000, 0))
    bound = pixels(net, relaxed(net, ball), CLASS)
    width = bound.upper - bound.lower
    reached = (highest["cam"] - lowest["cam"])[width > 0] / width[width > 0]
    assert len(reached) > 0
    assert float(reached.median()) > 0.95
