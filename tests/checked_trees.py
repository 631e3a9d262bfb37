"""Trees over networks that the checker has bounded, with hints that may be anything."""

from __future__ import annotations

import numpy as np
import torch
from checked_networks import built, region
from oracles import points_in

from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import Norm
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.tree import Descent, Tree

CASES = ("plain", "residual", "pooled", "overlapping pool", "deep")


def pair_rows(bounds: Bounds) -> tuple[Rows, np.ndarray]:
    """The middle pixel less its neighbour, of a random class; and as a full map."""
    rng = np.random.default_rng(1)
    channels, height, width = bounds.network.nodes[bounds.network.features].shape
    weight = rng.normal(0, 1, channels)
    whole = np.zeros((channels, height, width))
    y, x = height // 2, min(width // 2, width - 2)
    whole[:, y, x], whole[:, y, x + 1] = weight, -weight
    coefs = np.stack([weight, -weight], axis=1)[None, :, None, :]
    return Rows(bounds.arithmetic.of(coefs), np.array([[y, x]])), whole


def open_units(bounds: Bounds) -> list[tuple[int, int]]:
    found = []
    for at, node in enumerate(bounds.network.nodes):
        if isinstance(node.op, Relu):
            low, high = bounds.lower[node.inputs[0]].flatten(), bounds.upper[node.inputs[0]].flatten()
            found += [(at, int(f)) for f in np.flatnonzero((low < 0) & (high > 0))]
    return found


def tree_of(
    units: list[tuple[int, int]], phases: np.ndarray, rng: np.random.Generator, inputs: int, planes: bool
) -> Tree:
    return Tree(
        node=np.array([at for at, _ in units], dtype=np.int64),
        flat=np.array([f for _, f in units], dtype=np.int64),
        phases=phases,
        slopes=rng.random(phases.shape).astype(np.float32),
        mixes=rng.random(phases.shape).astype(np.float32),
        pushes=rng.exponential(0.1, phases.shape) * phases * (rng.random(phases.shape) < 0.5),
        inputs=np.arange(inputs),
        shares=rng.random((len(units), inputs + len(units))).astype(np.float32) if planes else None,
    )


def descent(rng: np.random.Generator, like: np.ndarray, splits: int) -> tuple[np.ndarray, Descent]:
    """Phases (L, U) of a tree's rows along signs ``like`` (M, U) that occur, so that many hold somewhere; how rows take
    over and clip, with shares of all sizes. Not every row takes over from the one that it was split from."""
    units = like.shape[1]
    rows, parents, open_ = [np.zeros(units, dtype=np.int8)], [-1], [0]
    for _ in range(splits if units else 0):
        row = open_.pop(int(rng.integers(len(open_))))
        free = np.flatnonzero(rows[row] == 0)
        if not len(free):
            open_.append(row)
            break
        unit = int(free[np.abs(like[:, free].mean(axis=0)).argmin()] if rng.random() < 0.5 else rng.choice(free))
        for sign in (1, -1):
            open_.append(len(rows))
            rows.append(rows[row].copy())
            rows[-1][unit] = sign
            parents.append(row)
    # a row that comes from its grandparent: what its parent clips is not taken over
    for row in range(1, len(rows)):
        if parents[row] > 0 and rng.random() < 0.2:
            parents[row] = parents[parents[row]]
    counts = rng.integers(0, 2 * units + 1, len(rows)) * (rng.random(len(rows)) < 0.8)
    sides = [rng.permutation(2 * units)[:count] for count in counts.tolist()]
    shares = 10.0 ** rng.uniform(-4, 3, int(counts.sum()))
    every = np.concatenate([*sides, np.zeros(0, dtype=np.int64)])
    above, many, which = (a.astype(np.int32) for a in (np.array(parents), counts, every))
    return np.stack(rows), Descent(above, many, which, shares.astype(np.float32))


def images(case: str, norm: Norm, count: int) -> torch.Tensor:
    ball = region(case, norm)[0]
    return torch.cat([ball.project(p[None]) for p in points_in(ball.lower, ball.upper, count, seed=5)])


def at_images(case: str, norm: Norm, count: int, units: list[tuple[int, int]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Of images of a region: the value of every node (M, ...), flat, and the units' pre-activations (M, U)."""
    net, network, _ = built(case)
    points = images(case, norm, count)
    values = [v.numpy().reshape(len(points), -1) for v in net.graph.values(points).values()][: network.features + 1]
    return values, np.stack([values[network.nodes[at].inputs[0]][:, flat] for at, flat in units], axis=1)
