"""Independent references: nothing here uses the bounds, encodings or solvers under test.

``brute_force_margin`` enumerates every ReLU and pooling pattern of a tiny network; on one pattern the network is
affine, so the smallest margin there is a linear program (scipy's linprog).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn


def conv_matrix(conv: nn.Conv2d, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A convolution on (C, H, W) as matrix and vector, by pushing the unit images through torch."""
    n = int(np.prod(shape))
    with torch.no_grad():
        zero = conv(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = conv(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1) - zero
    return columns.T.numpy(), zero.numpy()


def brute_force_pair_minimum(
    layers: list[tuple[np.ndarray, np.ndarray]], objective: np.ndarray, low: np.ndarray, high: np.ndarray
) -> float:
    """``min objective' relu(W2 relu(W1 x + b1) + b2)`` over the box, over all sign patterns of both layers."""
    (w1, b1), (w2, b2) = layers
    read = objective != 0  # units the objective does not read cannot matter
    w2, b2, objective = w2[read], b2[read], objective[read]
    best = np.inf
    for first in itertools.product((0, 1), repeat=len(b1)):
        on1 = np.array(first)
        rows1, rhs1 = (1 - 2 * on1)[:, None] * w1, -(1 - 2 * on1) * b1
        w, b = w2 @ (on1[:, None] * w1), w2 @ (on1 * b1) + b2
        if linprog(np.zeros(len(low)), rows1, rhs1, bounds=list(zip(low, high, strict=True))).status == 2:
            continue
        for second in itertools.product((0, 1), repeat=len(b2)):
            on2 = np.array(second)
            rows = np.vstack([rows1, (1 - 2 * on2)[:, None] * w])
            rhs = np.concatenate([rhs1, -(1 - 2 * on2) * b])
            c = (objective * on2) @ w
            answer = linprog(c, rows, rhs, bounds=list(zip(low, high, strict=True)))
            if answer.status == 0:
                best = min(best, answer.fun + float((objective * on2) @ b))
    return best


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
    copy = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, dtype=torch.float64
    )
    copy.load_state_dict({n: p.double() for n, p in conv.state_dict().items()})
    return copy


def points_in(low: Tensor, high: Tensor, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W) in a box (C, H, W): half uniform, half at random corners."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *low.shape, generator=generator, dtype=torch.float64)
    share[count // 2 :] = share[count // 2 :].round()
    return low + share * (high - low)
