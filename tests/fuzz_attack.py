"""An attack that shares no code with the package: corners, jumps and Frank-Wolfe steps, in float64 by autograd.

Every step asks for the point of the region that a linear function is least at, exactly for each norm and box (the
linear oracle of Frank and Wolfe 1956), so that no iterate leaves the region by more than rounding.
"""

from __future__ import annotations

import torch
from fuzz_oracle import Asked, Oracle, Region
from torch import Tensor

ROWS, STEPS = 6, 8
"""Objectives that are attacked, those first that the linearised network breaks first; steps from each start."""

Row = tuple[int, int | None]
"""An objective of :class:`Asked`."""


def least(slopes: Tensor, region: Region) -> Tensor:
    """For slopes (N, C, H, W): the points (N, C, H, W) of the region at which ``slopes . x`` is least."""
    low = (region.low - region.center).clamp(min=-region.eps).flatten(1)
    high = (region.high - region.center).clamp(max=region.eps).flatten(1)
    flat = slopes.flatten(1)
    # a direction does not change when its slopes are of order one
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    ends = torch.where(flat > 0, low, high)
    ends = torch.where(flat == 0, 0.0, ends)
    moved = {"inf": lambda *_: ends, "1": _knapsack, "2": _ball}[region.norm](flat, ends, region.eps)
    return _placed(region, moved.reshape(slopes.shape))


def _knapsack(slopes: Tensor, ends: Tensor, eps: float) -> Tensor:
    """Spends eps on the steepest inputs first, each up to its end."""
    order = slopes.abs().argsort(dim=1, descending=True)
    sizes = ends.abs().gather(1, order)
    spent = sizes.cumsum(1) - sizes
    share = torch.minimum(sizes, (eps - spent).clamp(min=0.0))
    return torch.zeros_like(ends).scatter(1, order, share) * ends.sign()


def _ball(slopes: Tensor, ends: Tensor, eps: float) -> Tensor:
    """``-t * slopes`` cut off at the ends, with the t at which its length is eps (or all the way to the ends)."""
    few = torch.full((len(slopes), 1), slopes.shape[1] ** -0.5, dtype=torch.float64)  # no slope is over 1: inside
    many = torch.full_like(few, 1e30)
    for _ in range(64):
        t = (few * many).sqrt()
        moved = torch.minimum(slopes.abs() * t * eps, ends.abs())
        inside = (moved / eps).square().sum(1, keepdim=True) <= 1
        few, many = torch.where(inside, t, few), torch.where(inside, many, t)
    return torch.minimum(slopes.abs() * few * eps, ends.abs()) * ends.sign()


def _placed(region: Region, moved: Tensor) -> Tensor:
    """``center + moved`` as float64 numbers of the region, as far as its sums let us."""
    x = torch.minimum(torch.maximum(region.center + moved * (1 - 1e-13), region.low), region.high)
    over = (x - region.center).abs() > region.eps
    return torch.where(over, torch.nextafter(x, region.center), x)


def random_points(region: Region, count: int, generator: torch.Generator) -> Tensor:
    """Corners and faces (half of them), and points in between."""
    slopes = torch.randn(count, *region.center.shape[1:], generator=generator, dtype=torch.float64)
    points = least(slopes, region)
    share = torch.rand(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    share[: count // 2] = 1.0
    return region.center + share * (points - region.center)


class Attack:
    """``margin``: the least met at an image inside the region that counts, ``image``: that image; ``tried``: images."""

    def __init__(self, oracle: Oracle, asked: Asked, region: Region, seed: int, known: list[Tensor]) -> None:
        self.oracle, self.asked, self.region = oracle, asked, region
        self.margin, self.image, self.tried = float("inf"), region.center, 0
        if region.eps == 0.0:
            self._look(region.center)
            return
        generator = torch.Generator().manual_seed(seed)
        self._look(torch.cat([region.center, random_points(region, 24, generator), *known]))
        chosen = self._likely()
        starts = torch.cat([region.center, random_points(region, 2, generator)])
        x = starts.repeat(len(chosen), 1, 1, 1)
        rows = [objective for objective in chosen for _ in starts]
        jump = torch.arange(len(x)) % 2 == 0
        for step in range(STEPS):
            corner = least(slopes_and_values(oracle, asked, x, rows)[0], region)
            pace = torch.where(jump, 1.0, 2.0 / (step + 2.0))[:, None, None, None]
            x = x + pace * (corner - x)
            jump = jump if step != STEPS // 2 else ~jump
            self._look(x)

    def _look(self, images: Tensor) -> None:
        with torch.no_grad():
            features, logits = self.oracle.run(images)
            cams = torch.einsum("c,nchw->nhw", self.oracle.weight[self.asked.class_idx], features).flatten(1)
            margins = self.asked.margins(cams)
        self.tried += len(images)
        if self.asked.keeps is not None:
            lead = logits[:, self.asked.keeps] - logits.amax(1)
            margins = margins.masked_fill(lead < 0, float("inf"))
        for at in margins.argsort()[:3].tolist():
            if float(margins[at]) >= self.margin:
                break
            image = images[at : at + 1].clone()
            if self.region.holds(image):
                alone = margin_at(self.oracle, self.asked, image)  # one image, as the user would run it
                if alone is not None and alone < self.margin:
                    self.margin, self.image = alone, image

    def _likely(self) -> list[Row]:
        """The objectives that are least, over the region, in the network linearised at its centre."""
        pixels = len(self.oracle.cam(self.region.center, self.asked.class_idx))
        objectives = self.asked.objectives(pixels)
        x = self.region.center.repeat(len(objectives), 1, 1, 1)
        slopes, values = slopes_and_values(self.oracle, self.asked, x, objectives)
        there = values + (slopes * (least(slopes, self.region) - self.region.center)).flatten(1).sum(1)
        return [objectives[at] for at in there.argsort()[:ROWS].tolist()]


def slopes_and_values(oracle: Oracle, asked: Asked, x: Tensor, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Of the objective of each row at its own image: gradients (N, C, H, W) and values (N,)."""
    with torch.enable_grad():
        given = x.detach().requires_grad_(True)
        cams = oracle.cams(given, asked.class_idx)
        values = torch.cat([asked.value(cams[at : at + 1], row) for at, row in enumerate(rows)])
        (slopes,) = torch.autograd.grad(values.sum(), given)
    return slopes, values.detach()


def margin_at(oracle: Oracle, asked: Asked, image: Tensor) -> float | None:
    """The margin at one image; None where the image does not count, as the model gives it another class."""
    if asked.keeps is not None:
        logits = oracle.logits(image)
        if bool(logits[asked.keeps] < logits.max()):
            return None
    return float(asked.margins(oracle.cam(image, asked.class_idx)[None])[0])


def linear_radius(oracle: Oracle, asked: Asked, norm: str) -> float:
    """The eps at which the network, linearised at its image, breaks (without a box)."""
    objectives = asked.objectives(len(oracle.cam(oracle.x, asked.class_idx)))
    x = oracle.x.repeat(len(objectives), 1, 1, 1)
    slopes, values = slopes_and_values(oracle, asked, x, objectives)
    flat = slopes.flatten(1)
    steep = {"inf": flat.abs().sum(1), "1": flat.abs().amax(1), "2": flat.norm(dim=1)}[norm]
    return float((values / steep.clamp(min=1e-300)).min())
