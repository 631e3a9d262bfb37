"""A cone with bounds as linear expressions: inputs and unstable ReLUs are variables, the rest is eliminated.

Variables, all of order one so that a solver's absolute tolerances mean the same everywhere:

* ``t`` in [-1, 1] per input that matters: ``x = middle + radius * t``;
* ``s`` in [0, u / (u - l)] per unstable ReLU that matters: ``relu(z) = (u - l) * s``.

A ReLU proven active passes its expression on, one proven inactive is zero, so a pre-activation is a dense row over
the variables before it: ``z = (u - l) * (row @ [t, s] + constant)``. (Dense eliminated rows beat sparse equality
rows several times in the MILP.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from corgi_opt.bounds.crown import Bounded
from corgi_opt.bounds.dual import Interval
from corgi_opt.bounds.relaxation import PoolPlanes, tap_places
from corgi_opt.network.cone import Cone, place
from corgi_opt.network.ops import Input, ReLU, crop
from corgi_opt.spec import Ball

Vector = NDArray[np.float64]

TINY = 1e-9
"""Row coefficients below this are cleared, because solvers drop them silently."""

NARROW = 1e-7
"""Narrowest pre-activation interval kept, relative to the largest of its layer; a narrower one is widened (sound)."""


@dataclass(frozen=True, eq=False)
class Program:
    """``min objective @ [t, s] + offset`` over the graph of the cone's ReLUs, before they are relaxed or encoded.

    rows (U, n+U) csr and constants (U,): pre-activations in units of ``u - l``; lower, upper (U,): their proven
    bounds in the same units (upper - lower = 1); slack (U,): what clearing tiny coefficients may have moved a row.
    cuts (M, n+U) csr, cut_upper (M,): rows ``cuts @ [t, s] <= cut_upper`` that hold besides (direct pooling planes).
    ``places`` (n, 3): channel, row, column of each input in the image.
    """

    places: NDArray[np.int64]
    middle: Vector
    radius: Vector
    rows: sparse.csr_array
    constants: Vector
    slack: Vector
    lower: Vector
    upper: Vector
    cuts: sparse.csr_array
    cut_upper: Vector
    objective: Vector
    offset: float

    @property
    def inputs(self) -> int:
        return len(self.middle)

    @property
    def units(self) -> int:
        """Number of unstable ReLUs."""
        return len(self.lower)

    def image(self, variables: Vector, background: Tensor) -> Tensor:
        """The image (1, C, H, W) of a solution: its inputs, on ``background`` everywhere else."""
        image = background.clone()
        values = self.middle + self.radius * np.clip(variables[: self.inputs], -1.0, 1.0)
        channel, row, column = self.places.T
        image[0, channel, row, column] = torch.from_numpy(values)
        return image


def cleared(rows: sparse.csr_array, upper: Vector) -> tuple[sparse.csr_array, Vector]:
    """``rows @ v <= upper`` without tiny coefficients, relaxed by what they could add (every |v| is at most 1)."""
    kept = rows.copy()  # not a view: eliminate_zeros works in place
    tiny = np.abs(kept.data) < TINY
    dropped = np.where(tiny, np.abs(kept.data), 0.0)
    slack = sparse.csr_array((dropped, kept.indices, kept.indptr), kept.shape).sum(axis=1)
    kept.data[tiny] = 0.0
    kept.eliminate_zeros()
    return kept, upper + slack


def expression_bytes(cone: Cone, intervals: Mapping[str, Interval]) -> int:
    """Memory that compiling a cone takes for its widest node and that node's operand (an estimate from above)."""
    variables = 1 + int(cone.reach[cone.graph.input].sum())
    for name in cone.order:
        if isinstance(cone.graph[name].op, ReLU):
            unstable = intervals[cone.graph[name].inputs[0]].unstable
            variables += int((crop(unstable, cone.windows[name]) & cone.reach[name]).sum())
    widest = max(cone.graph[n].shape[0] * cone.windows[n].h * cone.windows[n].w for n in cone.order)
    return 2 * 8 * variables * widest


def compile_cone(cone: Cone, ball: Ball, bounded: Bounded) -> Program:
    """Eliminates everything but the inputs and the unstable ReLUs of a cone, in float64.

    ``bounded`` holds proven bounds of every ReLU input, over the region of ``ball``.
    """
    return _Compiler(cone, ball, bounded).run()


class _Compiler:
    """Carries expressions (1 + variables so far, C, h, w) of every node up the cone; entry 0 is the constant."""

    def __init__(self, cone: Cone, ball: Ball, bounded: Bounded) -> None:
        self.cone, self.intervals = cone, bounded.intervals
        self.planes = {n: p for n, p in bounded.planes.items() if n in cone.windows}
        self.low, self.high = ball.lower, ball.upper
        self.values: dict[str, Tensor] = {}
        self.variables = 0
        self.rows: list[Tensor] = []
        self.bounds: list[Tensor] = []
        self.cuts: list[Tensor] = []

    def run(self) -> Program:
        remaining = {
            n: len([c for c in self.cone.graph.consumers(n) if c in self.cone.windows]) for n in self.cone.order
        }
        for planes in self.planes.values():
            remaining[planes.source] += 1
        for name in self.cone.order:
            node = self.cone.graph[name]
            if isinstance(node.op, Input):
                self.values[name] = self._input(name)
            elif isinstance(node.op, ReLU):
                self.values[name] = self._relu(name, node.inputs[0])
            else:
                self.values[name] = self._affine(name, node.inputs)
            read = {*node.inputs}
            if name in self.planes:
                self._cut(name, self.planes[name])
                read.add(self.planes[name].source)
            for operand in read:
                remaining[operand] -= 1
                if remaining[operand] == 0 and operand != self.cone.node:
                    del self.values[operand]  # expressions are large; keep only what is still read
        return self._program()

    def _input(self, name: str) -> Tensor:
        window, reach = self.cone.windows[name], self.cone.reach[name]
        low, high = crop(self.low, window), crop(self.high, window)
        middle, radius = (low + high) / 2, (high - low) / 2
        places = torch.nonzero(reach)
        self.places = (places + torch.tensor([0, window.y, window.x])).numpy()
        c, y, x = places.T
        self.middle, self.radius = middle[c, y, x].numpy(), radius[c, y, x].numpy()
        self.variables = len(places)
        out = middle.new_zeros(1 + len(places), *middle.shape)
        out[0] = middle * reach
        out[torch.arange(1, 1 + len(places)), c, y, x] = radius[c, y, x]
        return out

    def _affine(self, name: str, operands: tuple[str, ...]) -> Tensor:
        values = {i: _widened(self.values[i], 1 + self.variables) for i in operands}
        out = self.cone.apply(name, values, bias=False)
        constant = self.cone.apply(name, {i: v[:1] for i, v in values.items()}, bias=True)
        out[0] = constant[0]
        return out

    def _relu(self, name: str, operand: str) -> Tensor:
        window, reach = self.cone.windows[name], self.cone.reach[name]
        before = _widened(self.values[operand], 1 + self.variables)
        lower, upper = (crop(b.cpu().double(), window) for b in self.intervals[operand])
        unstable = (lower < 0) & (upper > 0) & reach
        c, y, x = torch.nonzero(unstable, as_tuple=True)
        bounds = torch.stack([lower[c, y, x], upper[c, y, x]])
        narrow = NARROW * float(torch.maximum(upper, -lower).max())
        bounds = torch.stack([bounds[0].clamp(max=-narrow), bounds[1].clamp(min=narrow)])
        width = bounds[1] - bounds[0]
        self.rows.append(before[:, c, y, x].T / width[:, None])
        self.bounds.append(bounds / width)
        out = _widened(before * ((lower >= 0) & reach), 1 + self.variables + len(c))
        out[torch.arange(1 + self.variables, len(out)), c, y, x] = width
        self.variables += len(c)
        return out

    def _cut(self, name: str, planes: PoolPlanes) -> None:
        """Rows ``maximum - plane above <= 0`` and ``plane below - maximum <= 0``, where those planes are used."""
        window, reach = self.cone.windows[name], self.cone.reach[name]
        assert planes.used is not None
        maximum = _widened(self.values[name], 1 + self.variables)
        source = _widened(self.values[planes.source], 1 + self.variables)
        source = place(source, self.cone.windows[planes.source], planes.pool.geometry.window(window))
        for plane, used, sign in zip((planes.planes.lower, planes.planes.upper), planes.used, (-1, 1), strict=True):
            gap = maximum.clone()
            gap[0] -= crop(plane.shift[0], window)
            for slopes, (dy, dx) in zip(plane.slopes, tap_places(planes.pool), strict=True):
                stride = planes.pool.stride
                tap = source[..., dy :: stride[0], dx :: stride[1]][..., : window.h, : window.w]
                gap -= crop(slopes[0], window) * tap
            c, y, x = torch.nonzero(crop(used[0], window) & reach, as_tuple=True)
            self.cuts.append(sign * gap[:, c, y, x].T)

    def _program(self) -> Program:
        final = _widened(self.values[self.cone.node], 1 + self.variables)
        objective = (final * self.cone.objective).sum(dim=(1, 2, 3)).numpy()
        rows = torch.cat([_padded(r, 1 + self.variables) for r in self.rows]).numpy() if self.rows else None
        table = np.zeros((0, 1 + self.variables)) if rows is None else rows
        bounds = torch.cat(self.bounds, dim=1).numpy() if self.bounds else np.zeros((2, 0))
        constants, coefs = table[:, 0], table[:, 1:]
        tiny = np.abs(coefs) < TINY
        slack = np.where(tiny, np.abs(coefs), 0.0).sum(axis=1)  # every variable is at most 1 in size
        coefs[tiny] = 0.0
        inputs, (offset, costs) = len(self.middle), (float(objective[0]), objective[1:])
        residue = np.abs(costs) < 1e-12 * np.abs(costs).max(initial=0.0)
        offset -= float(np.abs(costs[residue]).sum())
        costs[residue] = 0.0
        cuts = torch.cat([_padded(r, 1 + self.variables) for r in self.cuts]).numpy() if self.cuts else table[:0]
        used = _used(coefs, costs[None], inputs)
        cuts = cuts[(cuts[:, 1 + inputs :][:, used] != 0).any(axis=1)]  # the others say nothing of the objective
        used = _used(coefs, np.concatenate([costs[None], cuts[:, 1:]]), inputs)
        columns = np.concatenate([np.ones(inputs, dtype=bool), used])
        size = np.abs(cuts).max(axis=1, initial=np.finfo(float).tiny, keepdims=True)
        kept, cut_upper = cleared(sparse.csr_array((cuts / size)[:, 1:][:, columns]), (-cuts / size)[:, 0])
        return Program(
            places=self.places,
            middle=self.middle,
            radius=self.radius,
            rows=sparse.csr_array(coefs[np.ix_(used, columns)]),
            constants=constants[used],
            slack=slack[used],
            lower=bounds[0][used],
            upper=bounds[1][used],
            cuts=kept,
            cut_upper=cut_upper,
            objective=costs[columns],
            offset=offset,
        )


def _used(coefs: Vector, functionals: Vector, inputs: int) -> NDArray[np.bool_]:
    """Which unstable ReLUs (U,) any of some functionals (F, n+U) depend on at all.

    A candidate of a pool may feed only units proven inactive, or cancel out of a maximum that is proven to be its
    rival: in ``a + relu(b - a)`` with b >= a nothing of a is left.
    """
    used: NDArray[np.bool_] = (functionals[:, inputs:] != 0).any(axis=0)
    for unit in reversed(range(len(used))):
        if used[unit]:
            used |= coefs[unit, inputs:] != 0
    return used


def _widened(values: Tensor, count: int) -> Tensor:
    """Expressions over more variables than they were built with."""
    if len(values) == count:
        return values.clone()
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, count - rows.shape[1]))
