"""Planes of smooth functions and of products hold everywhere, and are close to the best ones."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from curves import EXACT, FUNCTIONS, intervals, special, within
from mpmath import mpf

from corgi_opt.bounding.curves import function_lines, product_planes
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.relaxation import Planes

INTERVALS, POINTS = 8_000, 130


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lines(function, l, u) -> Planes:
    return function_lines(function, Interval(l, u))


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_lines_hold_at_a_million_points(function):
    draw = generator(1)
    l, u = intervals(function, INTERVALS, draw)
    planes, x = lines(function, l, u), within(l, u, POINTS, draw)
    assert x.numel() > 10**6
    assert all(bool(side.isfinite().all()) for p in (planes.lower, planes.upper) for side in (p.slopes, p.shift))
    values = function.spoken(x)
    assert bool((planes.lower.slopes[0] * x + planes.lower.shift <= values).all())
    assert bool((planes.upper.slopes[0] * x + planes.upper.shift >= values).all())


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_lines_in_single_precision_hold_too(function):
    """The lines that float32 gives, as exact numbers, on the intervals whose ends float32 has."""
    draw = generator(2)
    ends = [side.float() for side in intervals(function, INTERVALS, draw)]
    planes = lines(function, *ends).each(lambda m: m.double())
    l, u = (side.double() for side in ends)
    x = within(l, u, POINTS, draw)
    values, known = function.spoken(x), planes.upper.shift.isfinite() & planes.lower.shift.isfinite()
    assert known.double().mean() > 0.999
    assert bool((planes.lower.slopes[0] * x + planes.lower.shift <= values)[:, known].all())
    assert bool((planes.upper.slopes[0] * x + planes.upper.shift >= values)[:, known].all())


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_lines_hold_exactly(function):
    """In sixty digits: at ends, special points, where a line is nearest (a fine grid says where) and at random."""
    draw, exact = generator(3), EXACT[function]
    l, u = intervals(function, 60, draw)
    planes, points = lines(function, l, u), within(l, u, 4, draw)
    grid = within(l, u, 2000, draw)
    values, nearest = function.spoken(grid), []
    for plane in (planes.lower, planes.upper):
        nearest.append(grid.gather(0, (plane.slopes[0] * grid + plane.shift - values).abs().argmin(dim=0)[None]))
    with mpmath.workdps(60):
        for at in range(len(l)):
            inside = [s for s in special(function) if l[at] <= s <= u[at]]
            for x in [*points[:, at].tolist(), *(n[0, at].item() for n in nearest), *inside]:
                value = exact(mpf(x))
                low, high = (
                    mpf(p.slopes[0, at].item()) * mpf(x) + mpf(p.shift[at].item()) for p in (planes.lower, planes.upper)
                )
                assert low <= value <= high, (x, l[at].item(), u[at].item())


def hull_at_middle(function, l: float, u: float, sign: float) -> float:
    """The concave (sign -1: convex) hull of a function in the middle of an interval, by all chords of a fine grid."""
    x = np.linspace(l, u, 801)
    y = sign * function.spoken(torch.from_numpy(x)).numpy()
    left, right = np.arange(400)[:, None], np.arange(401, 801)[None, :]
    chords = (y[left] * (right - 400) + y[right] * (400 - left)) / (right - left)
    return sign * max(float(chords.max()), float(y[400]))


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_lines_are_nearly_the_best_in_the_middle(function):
    draw = generator(4)
    middle = 8 * torch.rand(60, generator=draw, dtype=torch.float64) - 4
    half = 10 ** (3 * torch.rand(60, generator=draw, dtype=torch.float64) - 2)
    l, u = middle - half, middle + half
    planes = lines(function, l, u)
    for at in range(len(l)):
        low, high = (hull_at_middle(function, float(l[at]), float(u[at]), sign) for sign in (-1.0, 1.0))
        found = [float(p.slopes[0, at] * (l[at] / 2 + u[at] / 2) + p.shift[at]) for p in (planes.lower, planes.upper)]
        drop = 0.0 if function.drop(u) is None else float(function.drop(u)[at])
        room = 0.03 * (high - low) + 1e-6 * float(half[at]) + drop
        assert low - room <= found[0] <= low + room
        assert high - room <= found[1] <= high + room


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_huge_intervals_have_planes_or_none(dtype):
    """Nothing wrong is said where numbers overflow: a shift is right, infinite or none."""
    most = torch.finfo(dtype).max
    ends = torch.tensor([[-most, most], [-most, -most / 2], [most / 3, most], [-1e30, 1e35], [0.0, most]], dtype=dtype)
    for function in FUNCTIONS:
        planes = lines(function, ends[:, 0], ends[:, 1])
        x = within(ends[:, 0].double(), ends[:, 1].double(), 50, generator(5))
        x = torch.cat([x, torch.zeros_like(x[:1]).clamp(ends[:, 0].double(), ends[:, 1].double())])
        with mpmath.workdps(60):
            for at, column in enumerate(x.T.tolist()):
                low, high = (
                    [mpf(v) for v in (p.slopes[0, at].item(), p.shift[at].item())] for p in (planes.lower, planes.upper)
                )
                for one in map(mpf, column):
                    value = (
                        EXACT[function](one) if abs(one) < 1e3 or function.title in ("square", "hardswish") else None
                    )
                    if value is None:
                        continue
                    assert not low[0] * one + low[1] > value and not high[0] * one + high[1] < value


def test_planes_of_products_hold_and_meet_at_corners():
    draw = generator(6)
    boxes = [
        torch.sort(torch.randn(2, 20_000, generator=draw, dtype=torch.float64) * 10**scale, dim=0).values
        for scale in (0, 1)
    ]
    boxes[0][1, ::7] = boxes[0][0, ::7]
    boxes[1] *= 10.0 ** torch.randint(-9, 9, (20_000,), generator=draw)
    x, y = (Interval(*box) for box in boxes)
    planes = product_planes(x, y)
    at_x, at_y = (within(*side, 60, draw) for side in (x, y))
    at_x[:4], at_y[:4] = torch.stack([x[0], x[0], x[1], x[1]]), torch.stack([y[0], y[1], y[0], y[1]])
    low, high = (p.slopes[0] * at_x + p.slopes[1] * at_y + p.shift for p in (planes.lower, planes.upper))
    assert at_x.numel() > 10**6
    assert bool((low <= at_x * at_y).all()) and bool((high >= at_x * at_y).all())
    # McCormick: each plane touches at two corners, and is half a box away in the middle
    size = torch.maximum(x[0].abs(), x[1].abs()) * torch.maximum(y[0].abs(), y[1].abs())
    for plane in (low, high):
        gap = ((plane - at_x * at_y)[:4].abs() / size).sort(dim=0).values
        assert float(gap[:2].max()) < 1e-13


def test_planes_of_products_hold_exactly():
    draw = generator(7)
    for dtype in (torch.float64, torch.float32):
        ends = torch.sort(torch.randn(2, 2, 300, generator=draw, dtype=torch.float64).to(dtype), dim=1).values
        planes = product_planes(Interval(*ends[0]), Interval(*ends[1]))
        for at in range(ends.shape[2]):
            for x in ends[0, :, at].tolist():
                for y in ends[1, :, at].tolist():
                    low, high = (
                        mpf(p.slopes[0, at].item()) * x + mpf(p.slopes[1, at].item()) * y + mpf(p.shift[at].item())
                        for p in (planes.lower, planes.upper)
                    )
                    assert low <= mpf(x) * mpf(y) <= high
