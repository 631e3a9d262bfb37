"""The textbook MILP of one CAM pixel, as a baseline: every value a variable, ReLU before the pool, HiGHS's defaults.

For a network of convolutions, ReLUs and max pools as the user wrote it, with proven bounds l <= z <= u of every value:

    convolution:  an equality row a value
    ReLU:         a >= 0, a >= z, a <= z - l (1 - d), a <= u d,  d binary where l < 0 < u
    max pool:     m >= a_t,  m <= a_t + (u_max - l_t) (1 - d_t),  sum d_t = 1,  d_t binary for all that can win
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from corgi_solvers import Problem
from scipy import sparse
from torch import Tensor

import corgi_opt as co
from corgi_opt.bounding.crown import crown_pass, refine
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.interval import propagate
from corgi_opt.bounding.regions import Regions
from corgi_opt.network.cone import reach_of
from corgi_opt.network.ops import Conv2d, Input, MaxPool2d, ReLU

Place = tuple[int, int, int]


class PlainMilp:
    """Collects rows and columns of one cone of ``net.pooled``; ``bounds`` of its nodes, (C, H, W), by name."""

    def __init__(
        self, net: co.CamNetwork, class_idx: int, pixel: int, sign: float, bounds: dict[str, Interval]
    ) -> None:
        self.graph, self.bounds = net.pooled, bounds
        y, x = divmod(pixel, net.map_shape[1])
        self.columns: dict[tuple[str, Place], int] = {}
        self.limits: list[tuple[float, float]] = []
        self.binary: list[bool] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []
        mask = torch.zeros(1, *net.map_shape, dtype=torch.bool)
        mask[0, y, x] = True
        reach = reach_of(self.graph, net.features, mask)
        for name in self.graph.ancestors(net.features):
            self._node(name, reach[name][0, 0])
        self.c = {
            self.columns[net.features, (channel, y, x)]: sign * float(weight)
            for channel, weight in enumerate(net.weight[class_idx])
        }

    @property
    def binaries(self) -> int:
        return sum(self.binary)

    def problem(self) -> Problem:
        n = len(self.limits)
        entries = [(r, j, v) for r, (row, _, _) in enumerate(self.rows) for j, v in row.items() if v != 0]
        r, j, v = zip(*entries, strict=True)
        c = np.zeros(n)
        c[list(self.c)] = list(self.c.values())
        low, high = np.array(self.limits).T
        return Problem(
            c=c,
            offset=0.0,
            A=sparse.csr_array((v, (r, j)), shape=(len(self.rows), n)),
            row_lower=np.array([row[1] for row in self.rows]),
            row_upper=np.array([row[2] for row in self.rows]),
            col_lower=low,
            col_upper=high,
            integrality=np.array(self.binary),
        )

    def _column(self, low: float, high: float, binary: bool = False) -> int:
        self.limits.append((low, max(low, high)))
        self.binary.append(binary)
        return len(self.limits) - 1

    def _node(self, name: str, read: Tensor) -> None:
        """Columns and rows of the positions of a node that are marked in ``read`` (H, W)."""
        node, (lower, upper) = self.graph[name], self.bounds[name]
        for y, x in torch.nonzero(read).tolist():
            for c in range(node.shape[0]):
                at = (c, y, x)
                self.columns[name, at] = self._column(float(lower[at]), float(upper[at]))
                if isinstance(node.op, Conv2d):
                    self._convolution(name, node.op, at)
                elif isinstance(node.op, ReLU):
                    self._relu(name, at)
                elif isinstance(node.op, MaxPool2d):
                    self._pool(name, node.op, at)
                elif not isinstance(node.op, Input):
                    raise TypeError(f"{name}: the plain MILP knows convolutions, ReLUs and max pools")

    def _convolution(self, name: str, op: Conv2d, at: Place) -> None:
        c, y, x = at
        row = {self.columns[name, at]: -1.0}
        (source,) = self.graph[name].inputs
        for i in range(op.weight.shape[1]):
            for dy in range(op.weight.shape[2]):
                for dx in range(op.weight.shape[3]):
                    place = (i, y * op.stride[0] + dy - op.padding[0], x * op.stride[1] + dx - op.padding[1])
                    if (source, place) in self.columns:
                        row[self.columns[source, place]] = float(op.weight[c, i, dy, dx])
        bias = 0.0 if op.bias is None else float(op.bias[c])
        self.rows.append((row, -bias, -bias))

    def _relu(self, name: str, at: Place) -> None:
        (source,) = self.graph[name].inputs
        a, z = self.columns[name, at], self.columns[source, at]
        l, u = self.limits[z]
        if l >= 0:
            self.rows.append(({a: 1.0, z: -1.0}, 0.0, 0.0))
        elif u > 0:
            d = self._column(0.0, 1.0, binary=True)
            self.rows.append(({a: 1.0, z: -1.0}, 0.0, math.inf))
            self.rows.append(({a: 1.0, z: -1.0, d: -l}, -math.inf, -l))
            self.rows.append(({a: 1.0, d: -u}, -math.inf, 0.0))
        else:
            self.limits[a] = (0.0, 0.0)

    def _pool(self, name: str, op: MaxPool2d, at: Place) -> None:
        c, y, x = at
        (source,) = self.graph[name].inputs
        places = [
            (c, y * op.stride[0] + dy - op.padding[0], x * op.stride[1] + dx - op.padding[1])
            for dy in range(op.kernel[0])
            for dx in range(op.kernel[1])
        ]
        candidates = [self.columns[source, p] for p in places if (source, p) in self.columns]
        best = max(candidates, key=lambda t: self.limits[t][0])
        live = [t for t in candidates if t == best or self.limits[t][1] > self.limits[best][0]]
        m, most = self.columns[name, at], max(self.limits[t][1] for t in live)
        if len(live) == 1:
            self.rows.append(({m: 1.0, live[0]: -1.0}, 0.0, 0.0))
            return
        chosen = [self._column(0.0, 1.0, binary=True) for _ in live]
        self.rows.append((dict.fromkeys(chosen, 1.0), 1.0, 1.0))
        for t, d in zip(live, chosen, strict=True):
            room = most - self.limits[t][0]
            self.rows.append(({m: 1.0, t: -1.0}, 0.0, math.inf))
            self.rows.append(({m: 1.0, t: -1.0, d: room}, -math.inf, room))


def bounds_of_values(net: co.CamNetwork, ball: co.Ball) -> dict[str, Interval]:
    """Proven bounds of every node of ``net.pooled``: CROWN's for convolutions, intervals for the rest."""
    regions = Regions.of([ball], torch.float64, torch.device("cpu"))
    relaxed = crown_pass(net.graph, regions)
    known: dict[str, Interval] = {}
    for name in net.pooled.order:
        known[name] = propagate(net.pooled, name, known, regions)
        if isinstance(net.pooled[name].op, Conv2d) and name in net.graph:
            met = known[name].meet(relaxed.intervals[name])
            known[name] = refine(net.graph, name, met, torch.ones_like(met.unstable), partial(relaxed.bound, name))
    return {name: Interval(interval.lower[0], interval.upper[0]) for name, interval in known.items()}
