"""Independent references: nothing here uses the bounds, encodings or solvers under test.

``brute_force_margin`` enumerates every ReLU and pooling pattern of a tiny network; on one pattern the network is
affine, so the smallest margin there is a linear program (scipy's linprog).
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch
from nets import Pooled
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor, nn


def conv_matrix(conv: nn.Conv2d, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A convolution on (C, H, W) as matrix and vector, by pushing the unit images through torch."""
    n = int(np.prod(shape))
    with torch.no_grad():
        zero = conv(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = conv(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1) - zero
    return columns.T.numpy(), zero.numpy()


def brute_force_pair_minimum(
    layers: list[tuple[np.ndarray, np.ndarray]],
    objective: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    l1: tuple[np.ndarray, float] | None = None,
) -> float:
    """``min objective' relu(W2 relu(W1 x + b1) + b2)`` over the box, over all sign patterns of both layers.

    ``l1``: centre and radius of an L1 ball that x has to be in as well.
    """
    (w1, b1), (w2, b2) = layers
    read = objective != 0  # units the objective does not read cannot matter
    w2, b2, objective = w2[read], b2[read], objective[read]
    best = np.inf
    for first in itertools.product((0, 1), repeat=len(b1)):
        on1 = np.array(first)
        rows1, rhs1 = (1 - 2 * on1)[:, None] * w1, -(1 - 2 * on1) * b1
        w, b = w2 @ (on1[:, None] * w1), w2 @ (on1 * b1) + b2
        if _least(np.zeros(len(low)), rows1, rhs1, low, high, l1) == np.inf:
            continue
        for second in itertools.product((0, 1), repeat=len(b2)):
            on2 = np.array(second)
            rows = np.vstack([rows1, (1 - 2 * on2)[:, None] * w])
            rhs = np.concatenate([rhs1, -(1 - 2 * on2) * b])
            found = _least((objective * on2) @ w, rows, rhs, low, high, l1)
            best = min(best, found + float((objective * on2) @ b))
    return best


def _least(
    c: np.ndarray,
    rows: np.ndarray,
    rhs: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    l1: tuple[np.ndarray, float] | None,
) -> float:
    """``min c'x`` over the rows, the box and the ball, with x = centre + p - q in the ball; inf where there is none."""
    if l1 is None:
        answer = linprog(c, rows, rhs, bounds=list(zip(low, high, strict=True)))
    else:
        center, radius = l1
        eye, ones = np.eye(len(c)), np.ones((1, 2 * len(c)))
        table = np.vstack([rows, eye, -eye])
        table = np.vstack([np.hstack([table, -table]), ones])
        right = np.concatenate([rhs - rows @ center, high - center, center - low, [radius]])
        answer = linprog(np.concatenate([c, -c]), table, right)
    assert answer.status in (0, 2), answer.message
    if answer.status == 2:
        return np.inf
    return float(answer.fun) + (0.0 if l1 is None else float(c @ l1[0]))


def brute_force_margin(
    first: nn.Conv2d, second: nn.Conv2d, weight: Tensor, x: Tensor, eps: float, k: int, clip: tuple[float, float] | None
) -> float:
    """The exact margin of conv-relu-conv-relu with class weights (C,), at radius eps around x (1, 1, H, W)."""
    first, second, weight = _double(first), _double(second), weight.detach().double()
    with torch.no_grad():
        hidden = torch.relu(first(x.double()))
        features = torch.relu(second(hidden))
    cam = torch.einsum("c,nchw->hw", weight, features).flatten().numpy()
    order = np.argsort(-cam, kind="stable")
    layers = [conv_matrix(first, tuple(x.shape[1:])), conv_matrix(second, tuple(hidden.shape[1:]))]
    center = x.double().flatten().numpy()
    low, high = center - eps, center + eps
    if clip is not None:
        low, high = np.clip(low, *clip), np.clip(high, *clip)
    channels, pixels = features.shape[1], cam.size
    best = np.inf
    for i in order[:k]:
        for j in order[k:]:
            objective = np.zeros((channels, pixels))
            objective[:, i] += weight.numpy()
            objective[:, j] -= weight.numpy()
            best = min(best, brute_force_pair_minimum(layers, objective.flatten(), low, high))
    return best


def _double(conv: nn.Conv2d) -> nn.Conv2d:
    return copy.deepcopy(conv).double()


def points_in(low: Tensor, high: Tensor, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W) in a box (C, H, W): half uniform, half at random corners."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *low.shape, generator=generator, dtype=torch.float64)
    share[count // 2 :] = share[count // 2 :].round()
    return low + share * (high - low)


class PlainMilp:
    """conv-relu-maxpool-conv-relu as the textbook MILP, for scipy: every value a variable, one binary per ReLU and
    per pooling candidate, big-M from interval arithmetic. No cones, no lowering, no elimination.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = list(low), list(high)
        self.integer = [0] * len(low)
        self.rows: list[tuple[dict[int, float], float, float]] = []  # sum coef * var in [from, to]

    def variable(self, low: float, high: float, integer: int = 0) -> int:
        self.low.append(low)
        self.high.append(high)
        self.integer.append(integer)
        return len(self.low) - 1

    def affine(self, matrix: np.ndarray, bias: np.ndarray, inputs: list[int]) -> list[int]:
        low, high = np.array(self.low)[inputs], np.array(self.high)[inputs]
        plus, minus = np.maximum(matrix, 0), np.minimum(matrix, 0)
        out = []
        for row, l, u in zip(
            range(len(bias)), plus @ low + minus @ high + bias, plus @ high + minus @ low + bias, strict=True
        ):
            z = self.variable(l, u)
            terms = {i: c for i, c in zip(inputs, matrix[row], strict=True) if c}
            self.rows.append(({**terms, z: -1.0}, -bias[row], -bias[row]))
            out.append(z)
        return out

    def relu(self, z: int) -> int:
        l, u = self.low[z], self.high[z]
        a, on = self.variable(0.0, max(u, 0.0)), self.variable(0, 1, 1)
        self.rows += [({a: 1.0, z: -1.0}, 0.0, np.inf)]
        self.rows += [({a: 1.0, z: -1.0, on: -min(l, 0.0)}, -np.inf, -min(l, 0.0))]
        self.rows += [({a: 1.0, on: -max(u, 0.0)}, -np.inf, 0.0)]
        return a

    def maximum(self, candidates: list[int]) -> int:
        top = max(self.high[c] for c in candidates)
        m = self.variable(max(self.low[c] for c in candidates), top)
        picks = [self.variable(0, 1, 1) for _ in candidates]
        self.rows.append((dict.fromkeys(picks, 1.0), 1.0, 1.0))
        for c, pick in zip(candidates, picks, strict=True):
            slack = top - self.low[c]
            self.rows += [({m: 1.0, c: -1.0}, 0.0, np.inf), ({m: 1.0, c: -1.0, pick: slack}, -np.inf, slack)]
        return m

    def minimum(self, objective: dict[int, float]) -> float:
        n = len(self.low)
        matrix = np.zeros((len(self.rows), n))
        for r, (terms, _, _) in enumerate(self.rows):
            for column, value in terms.items():
                matrix[r, column] += value
        c = np.zeros(n)
        for column, value in objective.items():
            c[column] += value
        answer = milp(
            c,
            integrality=np.array(self.integer),
            bounds=Bounds(np.array(self.low), np.array(self.high)),
            constraints=LinearConstraint(matrix, [r[1] for r in self.rows], [r[2] for r in self.rows]),
            options={"mip_rel_gap": 0.0},
        )
        assert answer.status == 0, answer.message
        return float(answer.fun)


def plain_milp_margin(model: Pooled, x: Tensor, eps: float, k: int, class_idx: int) -> float:
    """The exact margin of a ``Pooled`` model (c1, pool without padding, c2, fc) within eps of x, no clipping."""
    first, second = _double(model.c1), _double(model.c2)
    weight = model.fc.weight[class_idx].detach().double()
    with torch.no_grad():
        hidden = torch.relu(first(x.double()))
        pooled = model.pool(hidden)
        features = torch.relu(second(pooled))
        indices = torch.arange(hidden.numel(), dtype=torch.float64).reshape(hidden.shape)
        size, step = model.pool.kernel_size, model.pool.stride
        assert isinstance(size, int) and isinstance(step, int)
        windows = indices.unfold(2, size, step).unfold(3, size, step).reshape(pooled.numel(), -1).long().tolist()
    cam = torch.einsum("c,nchw->hw", weight, features).flatten().numpy()
    order, pixels = np.argsort(-cam, kind="stable"), cam.size
    center = x.double().flatten().numpy()
    layers = [conv_matrix(first, tuple(x.shape[1:])), conv_matrix(second, tuple(pooled.shape[1:]))]
    problem = PlainMilp(center - eps, center + eps)
    a1 = [problem.relu(z) for z in problem.affine(*layers[0], list(range(len(center))))]
    m = [problem.maximum([a1[i] for i in window]) for window in windows]
    a2 = np.array([problem.relu(z) for z in problem.affine(*layers[1], m)]).reshape(-1, pixels)
    best = np.inf
    for i in order[:k]:
        for j in order[k:]:
            terms = dict(zip(a2[:, i].tolist(), weight.tolist(), strict=True))
            terms.update(dict(zip(a2[:, j].tolist(), (-weight).tolist(), strict=True)))
            best = min(best, problem.minimum(terms))
    return best
