"""Channels and values that are moved: by torch's autograd, on windows that lie anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corgi_opt.network.movement import NOTHING, Channels, Move
from corgi_opt.network.ops import Affine, Places

G = torch.Generator().manual_seed(0)


def drawn(count: int, size: tuple[int, ...], twice: bool) -> Tensor:
    """Indices below count or NOTHING; each once, unless it may be twice."""
    total = int(torch.Size(size).numel())
    if twice:
        return torch.randint(-1, count, size, generator=G)
    index = torch.full((total,), NOTHING)
    some = min(count, total) // 2
    index[torch.randperm(total, generator=G)[:some]] = torch.randperm(count, generator=G)[:some]
    return index.view(size)


def apart(index: list[Tensor]) -> tuple[Tensor, ...]:
    """Of two operands never both."""
    first, second = index
    return first, torch.where(first != NOTHING, NOTHING, second)


SHAPE = (5, 4, 6)
CHANNELS = Channels(apart([drawn(c, (5,), False) for c in (3, 4)]), (3, 4))
MOVE = Move(apart([drawn(c * h * w, SHAPE, True) for c, h, w in ((3, 2, 7), (2, 5, 3))]), ((3, 2, 7), (2, 5, 3)))
CASES: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "channels": (CHANNELS, [(3, 4, 6), (4, 4, 6)]),
    "move": (MOVE, [(3, 2, 7), (2, 5, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_adjoint_is_the_transpose_on_windows_that_overhang(name):
    op, shapes = CASES[name]
    assert isinstance(op, Affine)
    corners = torch.tensor([[-1, 2], [0, 0], [2, 4]])
    h, w = 3, 4
    places, lam = Places.of(corners), torch.randn(3, 5, h, w, generator=G, dtype=torch.float64)
    rows = torch.arange(h)[None, :, None] + corners[:, :1, None]
    columns = torch.arange(w)[None, None, :] + corners[:, 1:, None]
    on = ((rows >= 0) & (rows < 4) & (columns >= 0) & (columns < 6))[:, None]
    below = op.adjoint(lam * on, places, SHAPE)
    there = op.geometry.below(places)
    for row in range(3):
        inputs = [torch.randn(1, *s, generator=G, dtype=torch.float64, requires_grad=True) for s in shapes]
        out = op.apply(inputs)
        full = torch.zeros(1, *SHAPE, dtype=torch.float64)
        for i in range(h):
            for j in range(w):
                y, x = int(corners[row, 0]) + i, int(corners[row, 1]) + j
                if 0 <= y < 4 and 0 <= x < 6:
                    full[0, :, y, x] = lam[row, :, i, j]
        slopes = torch.autograd.grad((out * full).sum(), inputs)
        for slope, coefs in zip(slopes, below, strict=True):
            placed = torch.zeros_like(slope)
            y, x = there.corners[row].tolist()
            for i in range(coefs.shape[2]):
                for j in range(coefs.shape[3]):
                    if 0 <= y + i < slope.shape[2] and 0 <= x + j < slope.shape[3]:
                        placed[0, :, y + i, x + j] = coefs[row, :, i, j]
                    else:
                        assert bool((coefs[row, :, i, j] == 0).all())
            torch.testing.assert_close(placed, slope, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_values_are_where_they_are_said_to_be_and_intervals_move_with_them(name):
    op, shapes = CASES[name]
    index_of: Any = op.index
    inputs = [torch.randn(2, *s, generator=G, dtype=torch.float64) for s in shapes]
    out = op.apply(inputs)
    for c in range(SHAPE[0]):
        for y in range(SHAPE[1]):
            for x in range(SHAPE[2]):
                expected = torch.zeros(2, dtype=torch.float64)
                for value, index in zip(inputs, index_of, strict=True):
                    if name == "channels" and index[c] != NOTHING:
                        expected = value[:, index[c], y, x]
                    if name == "move" and index[c, y, x] != NOTHING:
                        expected = value.flatten(1)[:, index[c, y, x]]
                assert torch.equal(out[:, c, y, x], expected)
    low, high = op.interval(inputs, [v + 1 for v in inputs])
    assert torch.equal(low, out) and bool(
        ((high - low == 1) | (high - low == 0) | ((high - low - 1).abs() < 1e-12)).all()
    )
