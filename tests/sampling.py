"""Images of regions where bounds are nearest to being broken, and what neurons are there."""

from __future__ import annotations

import numpy as np
import torch
from relaxing import corgi_pixels, ibp_pixels, pixels, regions, relaxed
from torch import Tensor

import corgi_opt as co
from corgi_opt.bounding.interval import interval_bounds

TOLERANCE = 1e-9
CLASS = 1
CHUNK = 250


def fall_fastest(ball: co.Ball, directions: Tensor) -> Tensor:
    """The images (N, C, H, W) of a region at which linear functionals (N, C, H, W) are smallest."""
    low, high = (ball.lower - ball.center[0]).flatten(), (ball.upper - ball.center[0]).flatten()
    flat = directions.flatten(1)
    if ball.norm == "inf":
        step = torch.where(flat > 0, low, high)
    elif ball.norm == "1":  # the steepest inputs go to the box, one after the other, while eps lasts
        step, left = torch.zeros_like(flat), torch.full((len(flat),), ball.eps, dtype=flat.dtype)
        rows = torch.arange(len(flat))
        for steepest in flat.abs().argsort(dim=1, descending=True).T[:50]:
            slope = flat[rows, steepest]
            size = torch.minimum(left, torch.where(slope > 0, -low[steepest], high[steepest]))
            step[rows, steepest] = -slope.sign() * size
            left = (left - size).clamp(min=0)
    else:  # as far along each direction, clipped to the box, as eps lasts
        short, long = torch.zeros(len(flat), 1).double(), torch.full((len(flat), 1), 1e6).double()
        flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
        for _ in range(70):
            middle = (short + long) / 2
            fits = (-middle * flat).clamp(low, high).norm(dim=1, keepdim=True) <= ball.eps
            short, long = torch.where(fits, middle, short), torch.where(fits, long, middle)
        step = (-short * flat).clamp(low, high)
    return ball.center + step.view_as(directions)


def slopes_of_neurons(net: co.CamNetwork, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Gradients (count, C, H, W), at random images near x, of a few random neurons of random nodes."""
    found: list[Tensor] = []
    names = [n for n in net.graph.ancestors(net.features) if n != net.graph.input]
    while len(found) < count:
        name = names[int(torch.randint(len(names), (1,), generator=generator))]
        points = x + 0.02 * torch.randn(64, *x.shape[1:], generator=generator, dtype=torch.float64)
        points.requires_grad_(True)
        values = net.graph.forward(points, name).flatten(1)
        weights = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        few = torch.rand(values.shape, generator=generator) < 2 / values.shape[1]
        (gradient,) = torch.autograd.grad((values * weights * few).sum(), points)
        found += list(gradient)
    return torch.stack(found[:count])


def slopes_of_pixels(net: co.CamNetwork, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Gradients (count, C, H, W) of all CAM pixels in turn, up and down, first at x and then near it."""
    pixel = torch.arange(count) // 2 % (net.map_shape[0] * net.map_shape[1])
    noise = torch.randn(count, *x.shape[1:], generator=generator, dtype=torch.float64)
    points = (x + 0.02 * noise * (torch.arange(count) > count // 2)[:, None, None, None]).requires_grad_(True)
    cams = net.cams(points, CLASS).flatten(1)
    sign = 1.0 - 2.0 * (torch.arange(count) % 2)
    (gradient,) = torch.autograd.grad((sign * cams[torch.arange(count), pixel]).sum(), points)
    return gradient


def images(net: co.CamNetwork, ball: co.Ball, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W) of a region: a fifth inside, the others where they matter."""
    generator = torch.Generator().manual_seed(seed)
    shape, part = ball.center.shape[1:], count // 5
    order = {"inf": torch.inf, "2": 2.0, "1": 1.0}[ball.norm]

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    def within(moved: Tensor) -> Tensor:
        found = ball.center + moved
        # the centre lies in the box: clipping only shortens a step
        return found if ball.clip is None else found.clamp(*ball.clip)

    directions = normal(2 * part)
    directions[::2] *= torch.rand(directions[::2].shape, generator=generator) < 0.1
    length = directions.flatten(1).norm(p=order, dim=1)[:, None, None, None].clamp(min=1e-300)
    border = ball.eps * directions / length
    # uniform in the ball, or nearly so
    share = torch.rand(part, 1, 1, 1, generator=generator, dtype=torch.float64) ** (1 / ball.center.numel())
    uniform = ball.eps * (2 * torch.rand(part, *shape, generator=generator, dtype=torch.float64) - 1)
    inner = uniform if ball.norm == "inf" else border[part:] * share
    slopes = [
        normal(part),
        slopes_of_neurons(net, ball.center, part, generator),
        slopes_of_pixels(net, ball.center, count - 4 * part, generator),
    ]
    return torch.cat([within(border[:part]), within(inner), fall_fastest(ball, torch.cat(slopes))])


def check_inside(points: Tensor, ball: co.Ball) -> None:
    """By numpy, so that a wrong idea of the region cannot hide on both sides."""
    moved = (points - ball.center).numpy().reshape(len(points), -1)
    sizes = np.linalg.norm(moved, {"inf": np.inf, "2": 2, "1": 1}[ball.norm], axis=1)
    assert sizes.max() <= ball.eps * (1 + 1e-12)
    assert (sizes >= 0.99 * ball.eps).mean() > 0.2  # many lie on the border of the ball, in spite of the box
    if ball.box is not None:
        low, high = ball.box
        assert isinstance(low, float) and isinstance(high, float)  # one interval for all channels
        assert low <= float(points.min()) <= float(points.max()) <= high


def require_bounds_hold(net: co.CamNetwork, ball: co.Ball, points: Tensor) -> None:
    """That no image leaves the bounds of any node, or of any CAM pixel, by interval arithmetic, CORGI and CROWN."""
    known = relaxed(net, ball)
    per_node = {"ibp": interval_bounds(net.graph, regions(ball)), "crown": known.intervals}
    per_pixel = {
        "ibp": ibp_pixels(net, ball, CLASS),
        "corgi": corgi_pixels(net, ball, CLASS),
        "crown": pixels(net, known, CLASS),
    }
    check_inside(points, ball)
    lowest, highest = extremes(net, points)
    for method, bounds in per_node.items():
        assert set(bounds) == set(net.graph.order)
        for name, bound in bounds.items():
            assert bool((lowest[name] >= bound.lower[0] - TOLERANCE).all()), (method, name)
            assert bool((highest[name] <= bound.upper[0] + TOLERANCE).all()), (method, name)
    for method, bound in per_pixel.items():
        assert bool((lowest["cam"] >= bound.lower - TOLERANCE).all()), method
        assert bool((highest["cam"] <= bound.upper + TOLERANCE).all()), method


@torch.no_grad()
def extremes(net: co.CamNetwork, points: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The smallest and largest value of every neuron, and of the CAM pixels (P,) of class 1, over images."""
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    for part in points.split(CHUNK):
        values = dict(net.graph.values(part))
        # head and weights as the torch model has them: no fusing
        values["cam"] = torch.einsum("c,nchw->nhw", net.weight[CLASS], values[net.features]).flatten(1)
        for name, value in values.items():
            low, high = value.aminmax(dim=0)
            lowest[name] = torch.minimum(lowest[name], low) if name in lowest else low
            highest[name] = torch.maximum(highest[name], high) if name in highest else high
    return lowest, highest
