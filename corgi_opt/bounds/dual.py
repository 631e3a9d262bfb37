"""The heart: every relaxed bound is one function of multipliers.

For a network of affine nodes and activations ``a = relu(z)`` with proven bounds ``l <= z <= u``, an objective
``q' value(node)`` and ANY multipliers mu on the activations' inputs, walking backwards

    lambda(operand) += M' lambda(node)                     at an affine node, whose bias adds b' lambda
    lambda(z)       += mu,  and D += sum phi(lambda, mu)    at an activation
    D               += min over x in X of lambda(input)' x  at the image

gives a lower bound D(mu) on the objective (Wong & Kolter 2018; Zhang et al. 2018 (CROWN); Salman et al. 2019),
where ``phi(lambda, mu) = min of lambda relu(z) - mu z over z in {l, u, and 0 if l < 0 < u}``, exact because the
expression is piecewise linear in z. Producers of bounds differ only in where mu comes from: a *rule*.

All coefficients live on windows (R rows, C, h, w) with a corner per row, so one pass bounds R objectives at R
places of a layer at once. A row of coefficients is zero outside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ops import Affine, Input, Op, Shape, gather, inside
from corgi_opt.spec import Ball

CHUNK_ELEMENTS = 2_000_000
"""Most coefficients of one node held at once in a backward pass (16 MB in float64)."""


class Interval(NamedTuple):
    """Elementwise bounds, both (C, H, W)."""

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
    """R linear functionals of one node: coefficients (R, C, h, w) on windows with corners ``origins`` (R, 2)."""

    coefs: Tensor
    origins: Tensor

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.coefs[part], self.origins[part])

    def negated(self) -> Rows:
        return Rows(-self.coefs, self.origins)

    def on(self, shape: Shape) -> Rows:
        """The same functionals where neurons exist: zero off the map, no axis longer than the map's."""
        coefs, origins = self.coefs, self.origins
        for axis in (0, 1):
            if coefs.shape[2 + axis] > shape[1 + axis]:
                coefs, origins = _cropped(coefs, origins, axis, shape[1 + axis])
        mask = inside(shape, origins, coefs.shape[2], coefs.shape[3])
        return Rows(coefs if mask is None else coefs * mask, origins)

    def merged(self, other: Rows, shape: Shape) -> Rows:
        """The sum of two functionals of one node of this shape."""
        shift = other.origins - self.origins
        if not bool((shift == shift[0]).all()):
            # one of them was cropped to the map on its way down: lay both out on the whole map
            mine, theirs = (_whole(r, shape) for r in (self, other))
            return Rows(mine.coefs + theirs.coefs, mine.origins)
        dy, dx = shift[0].tolist()
        mine, theirs = self._grown(min(dy, 0), min(dx, 0)), other._grown(min(-dy, 0), min(-dx, 0))
        h = max(mine.coefs.shape[2], theirs.coefs.shape[2])
        w = max(mine.coefs.shape[3], theirs.coefs.shape[3])
        return Rows(_to_size(mine.coefs, h, w) + _to_size(theirs.coefs, h, w), mine.origins)

    def _grown(self, dy: int, dx: int) -> Rows:
        if dy == 0 and dx == 0:
            return self
        moved = self.origins + torch.tensor([dy, dx], device=self.origins.device)
        return Rows(F.pad(self.coefs, (-dx, 0, -dy, 0)), moved)


def _to_size(coefs: Tensor, h: int, w: int) -> Tensor:
    extra = (0, w - coefs.shape[3], 0, h - coefs.shape[2])
    return F.pad(coefs, extra) if any(extra) else coefs


def _whole(rows: Rows, shape: Shape) -> Rows:
    coefs, origins = rows.coefs, rows.origins
    for axis in (0, 1):
        coefs, origins = _cropped(coefs, origins, axis, shape[1 + axis])
    return Rows(coefs, origins)


def _cropped(coefs: Tensor, origins: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
    """Windows laid out on positions 0 .. length-1 of one axis (0 rows, 1 columns) of the map, and their corners."""
    source = torch.arange(length, device=coefs.device) - origins[:, axis, None]
    found = (source >= 0) & (source < coefs.shape[2 + axis])
    along = (slice(None), None, slice(None), None) if axis == 0 else (slice(None), None, None, slice(None))
    size = [*coefs.shape]
    size[2 + axis] = length
    index = source.clamp(0, coefs.shape[2 + axis] - 1)[along].expand(size)
    moved = origins.clone()
    moved[:, axis] = 0
    return coefs.gather(2 + axis, index) * found[along], moved


class Step(NamedTuple):
    """What a rule gives back for an activation node: multipliers on its input, and its share of D (R,)."""

    mu: Tensor
    constant: Tensor | None


Rule = Callable[[Node, Rows, Mapping[str, Interval]], Step]
Rules = Mapping[type[Op], Rule]
Multipliers = Callable[[Tensor, Tensor, Tensor], Tensor]


def relu_rule(multipliers: Multipliers) -> Rule:
    """A rule for ReLU from a choice of multipliers ``mu(lambda, l, u)``; sound whatever that choice is."""

    def rule(node: Node, rows: Rows, intervals: Mapping[str, Interval]) -> Step:
        h, w = rows.coefs.shape[2:]
        bounds = intervals[node.inputs[0]]
        l, u = gather(bounds.lower, rows.origins, h, w), gather(bounds.upper, rows.origins, h, w)
        mu = multipliers(rows.coefs, l, u)
        return Step(mu, phi(rows.coefs, mu, l, u).sum(dim=(1, 2, 3)))

    return rule


def phi(lam: Tensor, mu: Tensor, l: Tensor, u: Tensor) -> Tensor:
    """``min of lam*relu(z) - mu*z over z in [l, u]``, elementwise."""
    at_lower = lam * l.clamp(min=0) - mu * l
    at_upper = lam * u.clamp(min=0) - mu * u
    ends = torch.minimum(at_lower, at_upper)
    return torch.where((l < 0) & (u > 0), ends.clamp(max=0), ends)


def lower_bounds(
    graph: LayerGraph, node: str, rows: Rows, ball: Ball, intervals: Mapping[str, Interval], rules: Rules
) -> Tensor:
    """D for each row (R,): proven lower bounds of R functionals of ``node``, over the region of ``ball``.

    ``intervals`` holds proven bounds for the inputs of all activations below ``node``.
    """
    box = Interval(ball.lower.to(rows.coefs), ball.upper.to(rows.coefs))
    size = max(1, CHUNK_ELEMENTS // _largest_window(graph, node, rows))
    parts = [
        _descend(graph, node, rows[start : start + size], box, intervals, rules)
        for start in range(0, len(rows.origins), size)
    ]
    return torch.cat(parts) if parts else rows.coefs.new_zeros(0)


def _descend(
    graph: LayerGraph,
    node: str,
    rows: Rows,
    box: Interval,
    intervals: Mapping[str, Interval],
    rules: Rules,
) -> Tensor:
    total = rows.coefs.new_zeros(len(rows.origins))
    pending = {node: rows}
    for name in reversed(graph.ancestors(node)):
        if name not in pending:
            continue
        current = graph[name]
        here = pending.pop(name).on(current.shape)
        h, w = here.coefs.shape[2:]
        op = current.op
        if isinstance(op, Input):
            low, high = gather(box.lower, here.origins, h, w), gather(box.upper, here.origins, h, w)
            total += (here.coefs.clamp(min=0) * low + here.coefs.clamp(max=0) * high).sum(dim=(1, 2, 3))
            continue
        if isinstance(op, Affine):
            constant = op.constant(here.coefs, here.origins, current.shape)
            operands = op.adjoint(here.coefs, here.origins, current.shape)
        else:
            step = rules[type(op)](current, here, intervals)
            constant, operands = step.constant, [step.mu]
        if constant is not None:
            total += constant
        origins = op.geometry.origins(here.origins)
        for operand, coefs in zip(current.inputs, operands, strict=True):
            below = Rows(coefs, origins)
            shape = graph[operand].shape
            pending[operand] = pending[operand].merged(below, shape) if operand in pending else below
    return total


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
