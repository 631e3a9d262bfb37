"""Programs of small networks, and the point of an encoding that an image is, as the tests of encodings ask for them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from asking import pixel_rows
from corgi_solvers import Problem
from nets import Deep, Everything, Plain, Pooled, Residual, Tiny, image, network, seeded
from oracles import brute_force_pair_minimum, conv_matrix, points_in
from relaxing import relaxed
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Bounded, Relaxed
from corgi_opt.encode import program as program_module
from corgi_opt.encode.expressions import Expression, Expressions
from corgi_opt.encode.program import Program, compile_program
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.region import Norm

Shape = tuple[int, int, int]

CASES: dict[str, tuple[type[nn.Module], dict[str, int], Shape, float, int]] = {
    "plain": (Plain, {}, (1, 6, 6), 0.15, 1),
    "residual": (Residual, {}, (1, 7, 5), 0.1, 0),
    "pooled": (Pooled, {}, (1, 8, 8), 0.07, 0),
    "overlapping pool": (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9), 0.03, 1),
    "everything": (Everything, {}, (3, 12, 11), 0.002, 0),
    "deep": (Deep, {}, (1, 8, 6), 0.06, 0),
}
"""Model, its arguments, image, an eps at which many units are unstable and a MILP takes a second, and a seed."""

CUT_CASES: list[tuple[dict[str, int], Shape, float, int]] = [
    ({"kernel": 2}, (1, 8, 8), 0.04, 2),
    ({"kernel": 3, "stride": 2}, (1, 7, 7), 0.02, 3),
    ({"kernel": 3, "stride": 2, "padding": 1}, (1, 7, 7), 0.01, 3),
    ({"kernel": 3, "stride": 1}, (1, 6, 6), 0.02, 2),
    ({"kernel": 3, "stride": 3}, (1, 9, 9), 0.01, 3),
]
"""Smooth images and eps at which many candidates of a pooling window compete, so that direct planes are used, and
which a MILP still decides within a second."""

FAR: dict[Norm, float] = {"inf": 1.0, "2": 2.5, "1": 6.0}
"""How much larger a ball is for its norm to leave about as many units unstable."""

PATIENT = Deadline(math.inf)


@dataclass(frozen=True, eq=False)
class Setting:
    """A network over a region, and a pair of CAM pixels of class 0 (flat indices) whose receptive fields meet."""

    net: co.CamNetwork
    ball: co.Ball
    whole: Relaxed
    known: Bounded
    expressions: Expressions
    pair: tuple[int, int]

    @classmethod
    def of(cls, net: co.CamNetwork, ball: co.Ball, *, planes: bool = True) -> Setting:
        whole = relaxed(net, ball)
        known = whole.only(0) if planes else replace(whole.only(0), planes={})
        height, width = net.map_shape
        pair = (height // 2) * width + width // 2, max(height // 2 - 1, 0) * width
        return cls(net, ball, whole, known, Expressions(net.graph, known), pair)

    @classmethod
    def case(cls, name: str, norm: Norm = "inf", eps: float | None = None) -> Setting:
        model, kwargs, shape, default, seed = CASES[name]
        net = network(model, shape, seed, **kwargs)
        return cls.of(net, co.Ball(image(*shape, seed=seed + 7), default if eps is None else eps, norm))

    @classmethod
    def with_cuts(cls, kwargs: dict[str, int], shape: Shape, eps: float, seed: int, *, planes: bool = True) -> Setting:
        net = network(Pooled, shape, seed, channels=2, **kwargs)
        coarse = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
        smooth = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True).clamp(0, 1)
        return cls.of(net, co.Ball(smooth, eps), planes=planes)

    @classmethod
    def tiny(cls, seed: int, eps: float, norm: Norm = "inf", clip: Clip = (0.0, 1.0)) -> tuple[Setting, float]:
        """A network with few enough ReLUs to enumerate, and the exact minimum of the pair's difference."""
        model, x = seeded(Tiny, seed), image(1, 3, 4, seed=seed).double()
        at = cls.of(co.from_torch(model, x), co.Ball(x, eps, norm, clip))
        objective = np.zeros((2, 3))
        objective[:, at.pair[0]] += at.net.weight[0].numpy()
        objective[:, at.pair[1]] -= at.net.weight[0].numpy()
        layers = [conv_matrix(model.first.double(), (1, 3, 4)), conv_matrix(model.second.double(), (1, 2, 3))]
        low, high = at.ball.lower.flatten().numpy(), at.ball.upper.flatten().numpy()
        l1 = (x.flatten().numpy(), eps) if norm == "1" else None
        return at, brute_force_pair_minimum(layers, objective.flatten(), low, high, l1)

    def pixels(self, *pixels: int, expressions: Expressions | None = None) -> list[Expression]:
        flat = torch.tensor(pixels)
        rows = pixel_rows(self.net, 0, flat, torch.zeros_like(flat))
        return (expressions or self.expressions).of(self.net.features, rows, PATIENT)

    @property
    def difference(self) -> Expression:
        first, second = self.pixels(*self.pair)
        return first - second

    def program(self, *outputs: Expression) -> Program:
        """Of the pair's difference, unless told otherwise."""
        return compile_program(self.expressions, self.ball, outputs or [self.difference], PATIENT)

    def points(self, count: int, seed: int = 3) -> Tensor:
        """Images (count, C, H, W) of the region's box: half uniform, half at corners."""
        return points_in(self.ball.lower, self.ball.upper, count, seed)

    def pair_at(self, images: Tensor) -> np.ndarray:
        """The pair's difference (N,) by the network's own forward."""
        cams = self.net.cams(images, 0).flatten(1)
        return (cams[:, self.pair[0]] - cams[:, self.pair[1]]).numpy()

    def preactivations(self, x: Tensor) -> np.ndarray:
        """The network's own pre-activations of one image (C, H, W), by column (zero for inputs)."""
        values, graph = self.net.graph.values(x[None]), self.net.graph
        parts = [torch.zeros(x.numel(), dtype=torch.float64)]
        return torch.cat(parts + [values[graph[n].inputs[0]].flatten() for n in graph.relus]).numpy()

    def variables(self, x: Tensor) -> np.ndarray:
        """Inputs and ReLU outputs of one image (C, H, W), by column; NaN where an expression may read nothing."""
        z = self.preactivations(x)
        z[: x.numel()] = x.flatten().numpy()
        z[x.numel() :] = np.maximum(z[x.numel() :], 0.0)
        graph = self.net.graph
        sign = torch.cat([self.known.intervals[graph[n].inputs[0]].unstable.flatten() for n in graph.relus]).numpy()
        z[x.numel() :][~sign] = np.nan
        return np.concatenate([z, np.full(self.expressions.columns - len(z), np.nan)])

    def bounds(self, program: Program) -> np.ndarray:
        """Proven bounds (2, U) of the program's units, narrow ones widened as the module says."""
        found = [np.zeros((2, 0))]
        for name, columns in self.expressions.by_node(program.units_at).items():
            at = columns - self.first_column(name)
            sides = self.known.intervals[self.net.graph[name].inputs[0]]
            low, high = (side.flatten().numpy()[at] for side in sides)
            narrow = program_module.NARROW * max(high.max(), -low.min())
            found.append(np.stack([np.minimum(low, -narrow), np.maximum(high, narrow)]))
        return np.concatenate(found, axis=1)

    def first_column(self, name: str) -> int:
        graph, start = self.net.graph, 0
        for other in (graph.input, *graph.relus):
            if other == name:
                return start
            start += math.prod(graph[other].shape)
        raise AssertionError(name)

    def scaled(self, program: Program, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(t, z in units of its width) of one image (C, H, W) by running the whole network."""
        channel, row, column = program.places.T
        t = (x[channel, row, column].numpy() - program.middle) / program.radius
        lower, upper = self.bounds(program)
        return t, self.preactivations(x)[program.units_at] / (upper - lower)

    def point(self, program: Program, x: Tensor) -> np.ndarray:
        """[t, s]: the point of the triangle that an image (C, H, W) is."""
        t, z = self.scaled(program, x)
        return np.concatenate([t, np.maximum(z, 0)])

    def binary_point(self, program: Program, x: Tensor) -> np.ndarray:
        """[t, s, d]: the point of the MILP that an image (C, H, W) is."""
        _, z = self.scaled(program, x)
        return np.concatenate([self.point(program, x), z > 0])


traced = functools.cache(Setting.case)


@functools.cache
def exact_setting(case: str, norm: Norm = "inf") -> tuple[Setting, Program]:
    """A case in another norm and without planes of pooling windows, as exact methods see it; and its program."""
    first = traced(case)
    at = Setting.of(first.net, co.Ball(first.ball.center, first.ball.eps * FAR[norm], norm), planes=False)
    return at, at.program()


def value(expression: Expression, variables: np.ndarray) -> float:
    return expression.constant + float(expression.values @ variables[expression.columns])


def close(first: Expression, second: Expression) -> bool:
    """The same, but for rounding in passes over batches of other sizes."""
    left = first - second
    return (
        np.array_equal(first.windows, second.windows)
        and abs(left.constant) < 1e-12
        and bool((np.abs(left.values) < 1e-12).all())
    )


def scipy_lp(problem: Problem) -> float:
    bounds = np.column_stack([problem.col_lower, problem.col_upper])
    answer = linprog(problem.c, problem.A, problem.row_upper, bounds=bounds, method="highs-ds")
    assert answer.status == 0, answer.message
    return float(answer.fun) + problem.offset


def scipy_milp(problem: Problem) -> float:
    answer = milp(
        problem.c,
        integrality=problem.integrality.astype(int),
        bounds=Bounds(problem.col_lower, problem.col_upper),
        constraints=LinearConstraint(problem.A, problem.row_lower, problem.row_upper),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status == 0, answer.message
    return float(answer.fun) + problem.offset
