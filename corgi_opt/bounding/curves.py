"""Relaxations of smooth activations and of products by planes, one below and one above.

Slopes may be any: whatever s is, ``max of f(z) - s z over l <= z <= u`` is the least shift that makes a line above f,
and that is what is calculated, from above. Piece by piece, a convex one (or a line) is largest at its ends, and a
concave one lies below its tangent at any point. So how slopes are chosen decides how tight a line is, never whether it
holds.

They are chosen to be best at the middle of the interval, which makes the area between line and function least: the
line that carries the concave hull of f there. Of a few points on both sides it is the highest chord over the middle: in
a convex function the chord of the ends, in a concave one the tangent in the middle, in an S-shaped one the tangent
through an end.

A product on a box ``[l, u] x [l', u']`` is bilinear, so that ``x y - a x - b y`` is extreme at corners, whatever a and
b are. With a and b from the middle of the box the two planes below (McCormick 1976) are taken half and half, and the
two above.

Shifts are moved outwards by what rounding may hide, in the precision of the bounds: ``HIDDEN`` roundings of the value's
magnitude and of the slope times the operand's. That holds a value that is off by ROUNDINGS (network/curves.py), a slope
that is, over twice the operand's size, and a dozen roundings of the products here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from corgi_opt.bounding.dual import Interval, Rows, Step
from corgi_opt.bounding.relaxation import Plane, Planes
from corgi_opt.network.curves import ROUNDINGS, Function
from corgi_opt.network.graph import Node
from corgi_opt.network.smooth import Product, Smooth

HIDDEN = 4 * ROUNDINGS
"""Roundings that a shift is moved by."""

SIDE = 6
"""Points on either side of the middle that chords are taken between, at first."""

FINER = (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)
"""Then one end after the other is moved, by these shares of the distance between two such points, then by a quarter."""

MIDDLE = 0.5
"""Where CROWN's lines and planes are the best: the middle of an interval."""

HALVINGS = 30
"""Of an interval, until the point where a slope is met is known well enough."""


class CurvePlanes:
    """Planes over the operands, maps of ``sources``, of a node that is no piecewise linear function of them."""

    def __init__(self, sources: tuple[str, ...], planes: Planes) -> None:
        self.sources, self.planes = sources, planes
        lower, upper = planes.lower, planes.upper
        # one gather for all: slopes and shift of the lower plane, then of the upper
        self.maps = torch.cat([*lower.slopes, lower.shift, *upper.slopes, upper.shift], dim=1)

    def to(self, dtype: torch.dtype) -> CurvePlanes:
        return CurvePlanes(self.sources, self.planes.each(lambda m: m.to(dtype)))

    def step(self, rows: Rows) -> Step:
        return planes_step(self.sources, rows, rows.gather(self.maps))


def planes_step(sources: tuple[str, ...], rows: Rows, maps: Tensor) -> Step:
    """mu = slope * lambda, of the plane that the sign of lambda asks for; ``maps`` on the rows' windows."""
    count = len(sources) + 1
    *below, floor = (parts := maps.chunk(2 * count, dim=1))[:count]
    *above, ceiling = parts[count:]
    positive = rows.coefs.clamp(min=0)
    negative = rows.coefs - positive
    passed = tuple(
        (source, replace(rows, coefs=positive * low + negative * high))
        for source, low, high in zip(sources, below, above, strict=True)
    )
    return Step(passed, (positive * floor + negative * ceiling).flatten(1).sum(dim=1))


def curve_planes(node: Node, known: Mapping[str, Interval], at: float = MIDDLE) -> CurvePlanes:
    """The planes of a curved node from proven bounds (B, C, H, W) of its operands, best at the share ``at`` of them."""
    first, last = known[node.inputs[0]], known[node.inputs[-1]]
    if isinstance(node.op, Product):
        return CurvePlanes(node.inputs, product_planes(first, last, at))
    assert isinstance(node.op, Smooth)  # there are these two kinds
    return CurvePlanes(node.inputs, function_lines(node.op.function, first, at))


# --- functions of one number -----------------------------------------------------------------------------------------


def function_lines(function: Function, z: Interval, at: float = MIDDLE) -> Planes:
    """A line below and one above a function over intervals (B, C, H, W), best at the share ``at`` of each."""
    low, high = _slopes(function, z, at)
    size = torch.maximum(z.lower.abs(), z.upper.abs())
    hidden = _hidden(function.magnitude(size) + function.steepest(size) * size)
    floor = -_most(function, low, z, -1.0) - hidden
    drop = function.drop(z.upper)
    floor = floor if drop is None else floor - drop
    return Planes(Plane(low[None], floor), Plane(high[None], _most(function, high, z, 1.0) + hidden))


def _hidden(size: Tensor) -> Tensor:
    info = torch.finfo(size.dtype)
    return HIDDEN * (info.eps / 2 * size + info.tiny)


def _slopes(function: Function, z: Interval, at: float) -> tuple[Tensor, Tensor]:
    """Slopes of the lines that carry the convex and the concave hull at the share ``at`` of each interval."""
    steepest = function.steepest(torch.maximum(z.lower.abs(), z.upper.abs()))
    found = []
    for sign in (-1.0, 1.0):
        chord = _Chord(function, z, sign, at)
        slope = (chord.rise / 2 / (z.upper / 2 - z.lower / 2)).nan_to_num(0.0)  # a point has no slope
        found.append(torch.minimum(torch.maximum(slope, -steepest), steepest))
    return found[0], found[1]


class _Chord:
    """The chord that is highest at the share ``at`` of each interval (sign -1: lowest), among those of a few points on
    either side; then each end is moved. ``ends``: how far to either side, as shares of the interval, and values there.
    """

    def __init__(self, function: Function, z: Interval, sign: float, at: float) -> None:
        self._function, self._z, self._sign, self._at = function, z, sign, at
        self._room = (at, 1 - at)
        whole = [(torch.full_like(z.lower, room), function.value(end)) for room, end in zip(self._room, z, strict=True)]
        self.ends, self._height = whole, sign * (whole[0][1] * (1 - at) + whole[1][1] * at)
        coarse = [[torch.full_like(z.lower, room * part / SIDE) for part in range(1, SIDE + 1)] for room in self._room]
        points = [[(share, self._value(share, side)) for share in coarse[side]] + self._kinks(side) for side in (0, 1)]
        for left in points[0]:
            for right in points[1]:
                self._take([left, right])
        for distance in (1.0, 0.25):
            for side in (0, 1):
                room = self._room[side]
                moves = [distance * part * room / SIDE for part in FINER]
                nearby = [(self.ends[side][0] + move).clamp(0.02 * room / SIDE, room) for move in moves]
                for moved in (*points[side], *((share, self._value(share, side)) for share in nearby)):
                    self._take([moved, self.ends[1]] if side == 0 else [self.ends[0], moved])

    @property
    def rise(self) -> Tensor:
        """By how much it would rise over the whole interval."""
        (before, low), (after, high) = self.ends
        return (high - low) / (before + after)

    def _take(self, ends: list[tuple[Tensor, Tensor]]) -> None:
        (before, low), (after, high) = ends
        height = self._sign * (low + (high - low) * (before / (before + after)))
        better = height > self._height
        self._height = torch.where(better, height, self._height)
        self.ends = [
            (torch.where(better, share, old_share), torch.where(better, value, old_value))
            for (share, value), (old_share, old_value) in zip(ends, self.ends, strict=True)
        ]

    def _value(self, share: Tensor | float, side: int) -> Tensor:
        (l, u), away = self._z, share if side else -share
        return self._function.value(l * (1 - self._at - away) + u * (self._at + away))

    def _kinks(self, side: int) -> list[tuple[Tensor, Tensor]]:
        """A line may turn about one; the end of the interval stands for one that is not on this side."""
        (l, u), found = self._z, []
        for kink in self._function.kinks:
            room = self._room[side]
            share = ((kink / 2 - l / 2) / (u / 2 - l / 2) - self._at) * (1.0 if side else -1.0)
            here, end = (share > 0) & (share < room), self._value(room, side)
            value = torch.where(here, self._function.value(torch.full_like(l, kink)), end)
            found.append((torch.where(here, share, torch.full_like(l, room)), value))
        return found


def _most(function: Function, slope: Tensor, z: Interval, sign: float) -> Tensor:
    """At least ``sign * (f(x) - slope x)`` for every x of the interval."""
    l, u = z

    def gap(x: Tensor) -> Tensor:
        return sign * (function.value(x) - slope * x)

    most = torch.maximum(gap(l), gap(u))
    for piece in function.pieces:
        # the piece's part of the interval; where they do not meet, an end of the interval
        start, end = (torch.minimum(torch.maximum(l, torch.full_like(l, at)), u) for at in (piece.start, piece.end))
        most = torch.maximum(most, torch.maximum(gap(start), gap(end)))
        if sign * piece.bend < 0:
            meets = (l < piece.end) & (u > piece.start)
            above = _above_concave(function, slope, start, end, sign)
            most = torch.where(meets, torch.maximum(most, above), most)
    return most


def _above_concave(function: Function, slope: Tensor, start: Tensor, end: Tensor, sign: float) -> Tensor:
    """At least ``sign * (f(x) - slope x)`` on parts of one piece where that is concave: by its tangents at two points
    between which it is largest."""

    def steep(x: Tensor) -> Tensor:
        return sign * (function.slope(x) - slope)

    before, after = (x.clamp(-function.reach, function.reach) for x in (start, end))
    for _ in range(HALVINGS):
        middle = before / 2 + after / 2
        rises = steep(middle) > 0
        before, after = torch.where(rises, middle, before), torch.where(rises, after, middle)
    tangents = []
    for x in (before, after):
        here = sign * (function.value(x) - slope * x)
        tangents.append(here + torch.maximum(steep(x) * (end - x), steep(x) * (start - x)))
    return torch.minimum(*tangents)


# --- products --------------------------------------------------------------------------------------------------------


def product_planes(x: Interval, y: Interval, at: float = MIDDLE) -> Planes:
    """A plane below and one above ``x y`` over boxes (B, C, H, W): the share ``at`` of one of McCormick's two planes on
    that side, and the rest of the other."""
    size = torch.maximum(x.lower.abs(), x.upper.abs()) * torch.maximum(y.lower.abs(), y.upper.abs())
    by_y, hidden = x.lower * (1 - at) + x.upper * at, _hidden(size)
    planes = []
    for (first, last), sign in (((y.lower, y.upper), -1.0), ((y.upper, y.lower), 1.0)):
        by_x = first * (1 - at) + last * at
        corners = torch.stack([sign * (a * b - by_x * a - by_y * b) for a in x for b in y])
        planes.append(Plane(torch.stack([by_x, by_y]), sign * (corners.amax(dim=0) + hidden)))
    return Planes(*planes)
