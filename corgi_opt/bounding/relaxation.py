"""Relaxations by lines and planes: what CROWN and the paper's bound do at a ReLU and at a pooling window.

ReLU with l < 0 < u (Zhang et al. 2018): below, the line through 0 with slope 1 if u > -l else 0; above, the chord with
slope u / (u - l). A stable ReLU is linear and exact.

A pooling window has two relaxations, planes over its candidates. The *tree* of differences ``a + relu(b - a)`` that the
network is lowered to: its lines compose to one plane below and one above, as their slopes lie in [0, 1]. And CNN-Cert's
*direct* plane for the whole window, from bounds of the candidates. The tree knows how candidates move together, the
direct plane that many of them compete: whichever is tighter at the middle of the candidates' bounds is taken, window
by window, below and above apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.bounding.dual import Interval, Rows, Step
from corgi_opt.network.graph import LayerGraph, Pooled
from corgi_opt.network.ops import Combine, MaxPool2d, ReLU, Tap


class ReluLines:
    """``below * z <= relu(z) <= above * z + shift``; maps (B, C, H, W)."""

    def __init__(self, source: str, below: Tensor, above: Tensor, shift: Tensor) -> None:
        self.source = source
        self._lines = torch.cat([below, above, shift], dim=1)  # one gather for all three

    @classmethod
    def crown(cls, source: str, z: Interval) -> ReluLines:
        l, u = z
        chord = u / torch.where(z.unstable, u - l, torch.ones_like(u))
        on = (l >= 0).to(l.dtype)
        above = torch.where(z.unstable, chord, on)
        below = torch.where(z.unstable, (u > -l).to(l.dtype), on)
        return cls(source, below, above, torch.where(z.unstable, -chord * l, torch.zeros_like(l)))

    def to(self, dtype: torch.dtype) -> ReluLines:
        return ReluLines(self.source, *(m.to(dtype) for m in self.maps))

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        below, above, shift = self._lines.chunk(3, dim=1)
        return below, above, shift

    def at(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """The three on the windows of these rows."""
        below, above, shift = rows.gather(self._lines).chunk(3, dim=1)
        return below, above, shift

    def step(self, rows: Rows) -> Step:
        below, above, shift = self.at(rows)
        return lines_step(self.source, rows, below, above, shift)


def lines_step(source: str, rows: Rows, below: Tensor, above: Tensor, shift: Tensor) -> Step:
    """mu = s lambda with the line that the sign of lambda asks for; all on the rows' windows."""
    positive = rows.coefs.clamp(min=0)
    negative = rows.coefs - positive
    mu = replace(rows, coefs=positive * below + negative * above)
    return Step(((source, mu),), (negative * shift).flatten(1).sum(dim=1))


@dataclass(frozen=True, eq=False)
class Plane:
    """``sum_t slopes[t] * x_t + shift`` over the candidates of each window: (taps, B, C, H, W) and (B, C, H, W)."""

    slopes: Tensor
    shift: Tensor

    def at(self, taps: Tensor) -> Tensor:
        return (self.slopes * taps).sum(dim=0) + self.shift

    def where(self, mask: Tensor, other: Plane) -> Plane:
        return Plane(torch.where(mask, other.slopes, self.slopes), torch.where(mask, other.shift, self.shift))


@dataclass(frozen=True, eq=False)
class Planes:
    """A plane below and one above the maximum of every window."""

    lower: Plane
    upper: Plane

    @property
    def open(self) -> Tensor:
        """Windows (B, C, H, W) where the two differ."""
        return (self.lower.slopes != self.upper.slopes).any(dim=0) | (self.lower.shift != self.upper.shift)

    def each(self, change: Callable[[Tensor], Tensor]) -> Planes:
        return Planes(*(Plane(change(p.slopes), change(p.shift)) for p in (self.lower, self.upper)))


class PoolPlanes:
    """Relaxes the maximum of pooling windows by planes over the candidates, maps of ``source``.

    ``used``: where the lower and where the upper plane are used (B, C, H, W); coefficients elsewhere are left to the
    network's own tree. None: everywhere.
    """

    def __init__(self, source: str, pool: MaxPool2d, planes: Planes, used: tuple[Tensor, Tensor] | None = None) -> None:
        self.source, self.pool, self.planes, self.used = source, pool, planes, used
        lower, upper = planes.lower, planes.upper
        maps = [*lower.slopes, *upper.slopes, lower.shift, upper.shift]
        maps += [] if used is None else [m.to(lower.shift.dtype) for m in used]
        self._maps = torch.stack(maps, dim=1).flatten(1, 2)
        self._count = len(maps)

    def to(self, dtype: torch.dtype) -> PoolPlanes:
        return PoolPlanes(self.source, self.pool, self.planes.each(lambda m: m.to(dtype)), self.used)

    def only(self, case: int) -> PoolPlanes:
        """Those of one region, on the CPU in float64."""

        def one(maps: Tensor) -> Tensor:
            return maps[..., case : case + 1, :, :, :].cpu().double()

        used = None if self.used is None else (one(self.used[0]) > 0, one(self.used[1]) > 0)
        return PoolPlanes(self.source, self.pool, self.planes.each(one), used)

    def step(self, rows: Rows) -> Step:
        h, w = rows.coefs.shape[2:]
        maps = rows.gather(self._maps).chunk(self._count, dim=1)
        positive = rows.coefs.clamp(min=0)
        negative = rows.coefs - positive
        rest = None
        taps = len(self.planes.lower.slopes)
        if self.used is not None:
            positive, negative = positive * maps[2 * taps + 2], negative * maps[2 * taps + 3]
            rest = replace(rows, coefs=rows.coefs - positive - negative)
        constant = (positive * maps[2 * taps] + negative * maps[2 * taps + 1]).flatten(1).sum(dim=1)
        geometry = self.pool.geometry
        mu = rows.coefs.new_zeros(*rows.coefs.shape[:2], *geometry.size(h, w))
        for tap, (y, x) in enumerate(_tap_slices(self.pool, h, w)):
            mu[..., y, x] += positive * maps[tap] + negative * maps[taps + tap]
        below = Rows(mu, geometry.below(rows.places))
        return Step(((self.source, below),), constant, rest)


def tap_places(pool: MaxPool2d) -> list[tuple[int, int]]:
    """Row and column of each candidate from the corner of its window."""
    (ky, kx), (dy, dx) = pool.kernel, pool.dilation
    return [(y * dy, x * dx) for y in range(ky) for x in range(kx)]


def _tap_slices(pool: MaxPool2d, height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns that each candidate of height x width windows takes, from the corner of the first window on."""
    sy, sx = pool.stride
    return [
        (slice(dy, dy + (height - 1) * sy + 1, sy), slice(dx, dx + (width - 1) * sx + 1, sx))
        for dy, dx in tap_places(pool)
    ]


def window_taps(pool: MaxPool2d, values: Tensor, outside: float) -> Tensor:
    """Candidates of every pooling window (taps, B, C, H, W); ``outside`` where a tap is off the image."""
    height, width = pool.apply([values]).shape[2:]
    need_y, need_x = pool.geometry.size(height, width)
    py, px = pool.padding
    pads = (px, max(0, need_x - px - values.shape[3]), py, max(0, need_y - py - values.shape[2]))
    padded = F.pad(values, pads, value=outside)
    return torch.stack([padded[:, :, y, x] for y, x in _tap_slices(pool, height, width)])


def from_windows(pool: MaxPool2d, marks: Tensor, height: int, width: int) -> Tensor:
    """The positions (B, C, H, W) of a map that are marked as a candidate (taps, B, C, h, w) of any window."""
    (h, w), (py, px) = marks.shape[3:], pool.padding
    need_y, need_x = pool.geometry.size(h, w)
    padded = marks.new_zeros(*marks.shape[1:3], max(need_y, py + height), max(need_x, px + width))
    for tap, (y, x) in enumerate(_tap_slices(pool, h, w)):
        padded[:, :, y, x] |= marks[tap]
    return padded[:, :, py : py + height, px : px + width]


def direct_planes(pool: MaxPool2d, x: Interval) -> Planes:
    """CNN-Cert (Boopathy et al. 2019), table of pooling bounds: a plane below and one above, with the same slopes.

    Among candidates t with u_t >= max l: gamma solves sum (u_t - gamma)/(u_t - l_t) = 1, clamped to
    [max l, min u]; slope_t = (u_t - gamma)/(u_t - l_t). Above: gamma - sum slope_t l_t. Below, with G = sum slope_t:
    (1 - G) min l where G <= 1, else (1 - G) max u.
    """
    l, u = window_taps(pool, x.lower, float("-inf")), window_taps(pool, x.upper, float("-inf"))
    best = torch.minimum(l.amax(dim=0), u.amax(dim=0))  # rounding may leave a known candidate with l > u
    live = u >= best
    exact = live & (u <= l)  # a candidate known exactly and never below the others: gamma is its value
    open_ = live & ~exact
    inverse = torch.where(open_, 1 / torch.where(open_, u - l, torch.ones_like(u)), torch.zeros_like(u))
    weight_u = torch.where(open_, u * inverse, torch.zeros_like(u))
    gamma = (weight_u.sum(dim=0) - 1) / inverse.sum(dim=0)
    least_u = torch.where(live, u, torch.inf).min(dim=0).values
    gamma = torch.where(exact.any(dim=0), best, torch.minimum(torch.maximum(gamma, best), least_u))
    slopes = torch.where(open_, (u - gamma) * inverse, torch.zeros_like(u))
    left = (1 - slopes.sum(dim=0)).clamp(0, 1) / exact.sum(dim=0).clamp(min=1)
    slopes = torch.where(exact, left, slopes)
    growth = slopes.sum(dim=0)
    least_l = torch.where(live, l, torch.inf).min(dim=0).values
    most_u = torch.where(live, u, -torch.inf).max(dim=0).values
    below = (1 - growth) * torch.where(growth <= 1, least_l, most_u)
    above = gamma - torch.where(live, slopes * l, torch.zeros_like(l)).sum(dim=0)
    return Planes(Plane(slopes, below), Plane(slopes, above))


def tree_planes(graph: LayerGraph, name: str, lines: Mapping[str, ReluLines], like: Tensor) -> Planes:
    """The planes that the lines of a pooling tree's ReLUs compose to, below and above its last node ``name``.

    ``like`` (B, ...): for dtype, device and number of regions.
    """
    pooled = graph[name].pooled
    assert pooled is not None
    built = []
    for side in (0, 1):
        taps, shift = _composed(graph, name, pooled.source, lines, side, like)
        zero = torch.zeros_like(shift)
        built.append(Plane(torch.stack([taps.get(place, zero) for place in tap_places(pooled.pool)]), shift))
    return Planes(*built)


def _composed(
    graph: LayerGraph, name: str, source: str, lines: Mapping[str, ReluLines], side: int, like: Tensor
) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
    """One side's slopes by place in the window, and its shift, at a node of the tree."""
    node = graph[name]
    if name == source:
        ones = like.new_ones(len(like), *node.shape)
        return {(0, 0): ones}, torch.zeros_like(ones)
    if isinstance(node.op, Tap):
        slopes, shift = _composed(graph, node.inputs[0], source, lines, side, like)
        dy, dx = node.op.place
        return {(y + dy, x + dx): node.op.apply([s]) for (y, x), s in slopes.items()}, node.op.apply([shift])
    assert isinstance(node.op, Combine)
    weights: dict[str, Tensor | float] = {}
    shift = like.new_zeros(len(like), *node.shape)
    for operand, coef in zip(node.inputs, node.op.coefs, strict=True):
        if not isinstance(graph[operand].op, ReLU):
            weights[operand] = weights.get(operand, 0.0) + coef
            continue
        gap = graph[graph[operand].inputs[0]]
        assert isinstance(gap.op, Combine)
        below, above, up = lines[operand].maps
        slope = (below, above)[side]
        shift = shift + (coef * up if side else 0.0)
        for part, sign in zip(gap.inputs, gap.op.coefs, strict=True):
            weights[part] = weights.get(part, 0.0) + coef * slope * sign
    total: dict[tuple[int, int], Tensor] = {}
    for operand, weight in weights.items():
        slopes, moved = _composed(graph, operand, source, lines, side, like)
        shift = shift + weight * moved
        for place, slope in slopes.items():
            total[place] = total.get(place, 0.0) + weight * slope
    return total, shift


@dataclass(frozen=True, eq=False)
class PoolChoice:
    """The planes of one pooling node: ``every`` window's, for CROWN, and ``direct``, only where the direct plane is
    the tighter one, for methods that choose the tree's multipliers themselves (None where it never is)."""

    every: PoolPlanes
    direct: PoolPlanes | None

    def to(self, dtype: torch.dtype) -> PoolChoice:
        return PoolChoice(self.every.to(dtype), None if self.direct is None else self.direct.to(dtype))


def choose_planes(pooled: Pooled, tree: Planes, candidates: Interval) -> PoolChoice:
    """Per window the tighter of tree and direct plane at the middle of the candidates' proven bounds."""
    direct = direct_planes(pooled.pool, candidates)
    middle = window_taps(pooled.pool, (candidates.lower + candidates.upper) / 2, 0.0)
    lowest, highest = tree.lower.at(middle), tree.upper.at(middle)
    worth_it = 1e-5 * (highest - lowest) + 1e-6 * highest.abs()  # a settled window stays with the tree
    lower_on = direct.lower.at(middle) > lowest + worth_it
    upper_on = direct.upper.at(middle) < highest - worth_it
    best = Planes(tree.lower.where(lower_on, direct.lower), tree.upper.where(upper_on, direct.upper))
    every = PoolPlanes(pooled.source, pooled.pool, best)
    if not bool(lower_on.any()) and not bool(upper_on.any()):
        return PoolChoice(every, None)
    return PoolChoice(every, PoolPlanes(pooled.source, pooled.pool, direct, (lower_on, upper_on)))
