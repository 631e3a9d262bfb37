"""The heart: every relaxed bound is one function of multipliers.

For a network of affine nodes and activations ``a = relu(z)`` with proven bounds ``l <= z <= u``, an objective
``q' value(node)`` and ANY multipliers mu on the activations' inputs, walking backwards

    lambda(operand) += M' lambda(node)                     at an affine node, whose bias adds b' lambda
    lambda(z)       += mu,  and D += sum phi(lambda, mu)    at an activation
    D               += min over x in X of lambda(input)' x  at the image

gives a lower bound D(mu) on the objective (Wong & Kolter 2018; Zhang et al. 2018 (CROWN); Salman et al. 2019),
where ``phi(lambda, mu) = min of lambda relu(z) - mu z over z in {l, u, and 0 if l < 0 < u}``, exact because the
expression is piecewise linear in z. Producers of bounds differ only in where mu comes from: a *relaxation* per
activation. One that relaxes by lines ``s z + t`` (relaxation.py) takes mu = s lambda and adds t lambda, which is phi.

All coefficients live on windows (R rows, C, h, w), each at a place of its own, so one pass bounds R objectives at R
places of a layer at once, over B regions: a place says which region it is in, and bounds are maps (B, C, H, W). A row
of coefficients is zero outside the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.budget import chunk_bytes, in_parts
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.tolerance import FLOOR, Rounding, gamma
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Affine, Places, Shape, gather, inside, laid_out


class Interval(NamedTuple):
    """Elementwise bounds, both (B, C, H, W) for B regions, or (C, H, W) for one."""

    lower: Tensor
    upper: Tensor

    def meet(self, other: Interval) -> Interval:
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    @property
    def unstable(self) -> Tensor:
        """Where a ReLU reading this may be on or off."""
        return (self.lower < 0) & (self.upper > 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """R linear functionals of one node: coefficients (R, C, h, w) on windows at ``places`` (a case is a region)."""

    coefs: Tensor
    places: Places

    @classmethod
    def at(cls, coefs: Tensor, corners: Tensor, case: Tensor) -> Rows:
        """On windows with these corners (R, 2), about these regions (R,)."""
        return cls(coefs, Places.of(corners, case))

    def __len__(self) -> int:
        return len(self.coefs)

    def __getitem__(self, part: slice | Tensor) -> Rows:
        return Rows(self.coefs[part], self.places[part])

    def part(self, start: int, count: int) -> Rows:
        """``count`` rows from ``start`` on, for a pass of their own: the extent of their places is computed anew."""
        one = slice(start, start + count)
        return Rows.at(self.coefs[one], self.places.corners[one], self.places.case[one])

    def gather(self, values: Tensor) -> Tensor:
        """Maps (B, C, H, W) on the windows of these rows (R or 1, C, h, w)."""
        return gather(values, self.places, self.coefs.shape[2], self.coefs.shape[3])

    def to(self, dtype: torch.dtype) -> Rows:
        return replace(self, coefs=self.coefs.to(dtype))

    def on(self, shape: Shape) -> Rows:
        """The same functionals where neurons exist: zero off the map, no axis longer than the map's."""
        rows = self
        for axis in (0, 1):
            if rows.coefs.shape[2 + axis] > shape[1 + axis]:
                rows = rows._laid_out(axis, shape[1 + axis])
        mask = inside(shape, rows.places, rows.coefs.shape[2], rows.coefs.shape[3])
        return rows if mask is None else replace(rows, coefs=rows.coefs * mask)

    def merged(self, other: Rows, shape: Shape) -> Rows:
        """The sum of two functionals of one node of this shape."""
        span = [(p.high[0] - p.low[0], p.high[1] - p.low[1]) for p in (self.places, other.places)]
        if span[0] != span[1]:
            # one was laid out on the map on its way down (corners of both move alike otherwise): lay out both
            mine, theirs = (r._laid_out(0, shape[1])._laid_out(1, shape[2]) for r in (self, other))
            return replace(mine, coefs=mine.coefs + theirs.coefs)
        dy, dx = other.places.low[0] - self.places.low[0], other.places.low[1] - self.places.low[1]
        mine, theirs = self._grown(min(dy, 0), min(dx, 0)), other._grown(min(-dy, 0), min(-dx, 0))
        h = max(mine.coefs.shape[2], theirs.coefs.shape[2])
        w = max(mine.coefs.shape[3], theirs.coefs.shape[3])
        return replace(mine, coefs=_to_size(mine.coefs, h, w) + _to_size(theirs.coefs, h, w))

    def _grown(self, dy: int, dx: int) -> Rows:
        if dy == 0 and dx == 0:
            return self
        return Rows(F.pad(self.coefs, (-dx, 0, -dy, 0)), self.places.moved((1, 1), (dy, dx)))

    def _laid_out(self, axis: int, length: int) -> Rows:
        """On windows that hold positions 0 .. length-1 of one axis (0 rows, 1 columns) of the map."""
        return Rows(laid_out(self.coefs, self.places, axis, length), self.places.on_border(axis))


def _to_size(coefs: Tensor, h: int, w: int) -> Tensor:
    extra = (0, w - coefs.shape[3], 0, h - coefs.shape[2])
    return F.pad(coefs, extra) if any(extra) else coefs


class Step(NamedTuple):
    """The result of a relaxation: mu as functionals of earlier nodes, and the term (R,) that it adds to D.

    ``rest``: coefficients that it leaves to the node's own operation (None: it took all of them).
    """

    passed: tuple[tuple[str, Rows], ...]
    constant: Tensor | None
    rest: Rows | None = None


class Relaxation(Protocol):
    """Multipliers for one node: of an activation always, of the maximum of a pooling window optionally."""

    def step(self, rows: Rows) -> Step: ...


Relaxations = Mapping[str, Relaxation]
"""By node name; every ReLU below the objective's node has one."""


def phi(lam: Tensor, mu: Tensor, l: Tensor, u: Tensor) -> Tensor:
    """``min of lam*relu(z) - mu*z over z in [l, u]``, elementwise."""
    at_lower = lam * l.clamp(min=0) - mu * l
    at_upper = lam * u.clamp(min=0) - mu * u
    ends = torch.minimum(at_lower, at_upper)
    return torch.where((l < 0) & (u > 0), ends.clamp(max=0), ends)


def lower_bounds(
    graph: LayerGraph,
    node: str,
    rows: Rows,
    regions: Regions,
    relaxations: Relaxations,
    deadline: Deadline = NEVER,
    rounding: Rounding | None = None,
) -> Tensor:
    """D for each row (R,): proven lower bounds of R functionals of ``node``, each over its region.

    ``rounding``: of the operands' bounds; what float64 may hide is taken off. None (float32): nothing is claimed.
    Raises TimeoutError.
    """

    def part(start: int, count: int) -> Tensor:
        deadline.check()
        return descend(graph, node, rows.part(start, count), regions, relaxations, rounding)

    parts = in_parts(len(rows), rows_at_once(graph, node, rows), part)
    return torch.cat(parts) if parts else rows.coefs.new_zeros(0)


def descend(
    graph: LayerGraph,
    node: str,
    rows: Rows,
    regions: Regions,
    relaxations: Relaxations,
    rounding: Rounding | None = None,
) -> Tensor:
    """One pass over all rows at once; differentiable where the relaxations are."""
    ended = backward(graph, node, rows, relaxations, rounding)
    total, at_image = ended.constant, ended.at_image
    total = total if at_image is None else total + regions.minimum(at_image.coefs, at_image.places)
    return total if ended.doubt is None else total - ended.doubt


class Ended(NamedTuple):
    """Where a pass ends: the sum of the constants (R,) met on the way, the rows at the image (None if they read no
    input), and how far rounding may move D (R,), its minimum at the image included (None without an account)."""

    constant: Tensor
    at_image: Rows | None
    doubt: Tensor | None


def backward(
    graph: LayerGraph, node: str, rows: Rows, relaxations: Relaxations, rounding: Rounding | None = None
) -> Ended:
    """Takes rows of a node down to the image."""
    total = rows.coefs.new_zeros(len(rows))
    doubt = None if rounding is None else rounding.at_start(node, rows.coefs, rows.places.case)
    pending, longest, steps = {node: rows}, 1, 0
    at_image: Rows | None = None

    def add(operand: str, below: Rows) -> None:
        merge = operand in pending
        pending[operand] = pending[operand].merged(below, graph[operand].shape) if merge else below

    for name in reversed(graph.ancestors(node)):
        if name not in pending:
            continue
        here: Rows | None = pending.pop(name).on(graph[name].shape)
        assert here is not None
        longest, steps = max(longest, math.prod(here.coefs.shape[1:])), steps + 1
        if name == graph.input:
            at_image = here
            break
        if name in relaxations:
            step = relaxations[name].step(here)
            total = total if step.constant is None else total + step.constant
            for operand, below in step.passed:
                add(operand, below)
            here = step.rest
        if here is not None:
            if doubt is not None and rounding is not None:
                doubt = doubt + rounding.through(name, here.coefs, here.places.case)
            total = total + _through(graph, name, here, add)
    return Ended(total, at_image, None if doubt is None else gamma(longest + steps) * doubt + FLOOR)


def _through(graph: LayerGraph, name: str, rows: Rows, add: Callable[[str, Rows], None]) -> Tensor:
    """Passes rows through an affine node; returns the bias' share of D (R,)."""
    node, op = graph[name], graph[name].op
    assert isinstance(op, Affine), f"{name} has no relaxation"
    places = op.geometry.below(rows.places)
    for operand, coefs in zip(node.inputs, op.adjoint(rows.coefs, rows.places, node.shape), strict=True):
        add(operand, Rows(coefs, places))
    constant = op.constant(rows.coefs, rows.places, node.shape)
    return rows.coefs.new_zeros(len(rows)) if constant is None else constant


def rows_at_once(graph: LayerGraph, node: str, rows: Rows) -> int:
    """How many of these rows keep within their device's budget at every node on the way down."""
    return max(1, chunk_bytes(rows.coefs.device) // (_largest_window(graph, node, rows) * rows.coefs.element_size()))


def _largest_window(graph: LayerGraph, node: str, rows: Rows) -> int:
    """Most coefficients that one row holds at any node on the way down."""
    sizes = {node: (int(rows.coefs.shape[2]), int(rows.coefs.shape[3]))}
    largest = 1
    for name in reversed(graph.ancestors(node)):
        if name not in sizes:
            continue
        h, w = (min(size, most) for size, most in zip(sizes[name], graph[name].shape[1:], strict=True))
        largest = max(largest, graph[name].shape[0] * h * w)
        needed = graph[name].op.geometry.size(h, w)
        for operand in graph[name].inputs:
            before = sizes.get(operand, (0, 0))
            sizes[operand] = (max(before[0], needed[0]), max(before[1], needed[1]))
    return largest
