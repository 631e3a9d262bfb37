"""Moved values as convolutions: by torch's own, against picking the values one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.encode.onnx_moves import anything, one_axis_at_a_time, pieces_of
from corgi_opt.network.graph import GraphBuilder
from corgi_opt.network.movement import NOTHING, Move
from corgi_opt.network.ops import Input, Window

F64 = torch.float64
SHAPE = (3, 6, 7)
PLACES = torch.arange(3 * 6 * 7).view(1, *SHAPE).double() + 1

FEW: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "as it is": (lambda p: p, 1),
    "rolled": (lambda p: torch.roll(p, (2, 3), (2, 3)), 4),
    "mirrored": (lambda p: F.pad(p, (1, 1, 2, 2), mode="reflect"), 15),
    "among zeros": (lambda p: F.pad(p, (1, 2, 3, 1)), 1),
    "every third column of every other row": (lambda p: p[:, :, 1::2, ::3], 1),
    "a row alone": (lambda p: p[:, :, 4:5], 1),
    "by channel": (lambda p: torch.stack([p[:, 0, 1:5, 2:6], p[:, 2, 2:6, :4]], 1), 1),
    "pixels as channels": (lambda p: F.pixel_unshuffle(p[:, :, :, :6], 2), 1),
    "upside down": (lambda p: p.flip(2), 6),
}


def index_of(move: Callable[[Tensor], Tensor]) -> Tensor:
    """The places that a move reads, from what it makes of the places' own numbers; what it fills in is NOTHING."""
    return move(PLACES)[0].long() - 1


def picked(x: Tensor, index: Tensor) -> Tensor:
    return torch.where(index != NOTHING, x.flatten()[index.clamp(min=0)], 0.0)


def by_pieces(x: Tensor, index: Tensor, out: Window) -> tuple[Tensor, int]:
    """The pieces put together: each reads the operand (C, H, W) among zeros enough."""
    pieces = pieces_of(index, SHAPE, out)
    assert pieces is not None
    total, room = torch.zeros(index.shape, dtype=F64), 40
    wide = F.pad(x[None], (room,) * 4)
    for (y, left, h, w), weight, stride, offset in pieces:
        corner = (stride[0] * y + offset[0] + room, stride[1] * left + offset[1] + room)
        read = F.conv2d(wide[:, :, corner[0] :, corner[1] :], weight, stride=stride)[0, :, :h, :w]
        total[:, y - out.y : y - out.y + h, left - out.x : left - out.x + w] += read
    return total, len(pieces)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("corner", [(0, 0), (3, 1)])
def test_pieces_are_the_move(name, corner):
    move, count = FEW[name]
    index = index_of(move)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)
    found, pieces = by_pieces(x, index, Window(*corner, *index.shape[1:]))
    assert torch.equal(found, picked(x, index)) and pieces == count


def test_nothing_at_all_is_no_piece():
    assert pieces_of(torch.full((2, 3, 3), NOTHING), SHAPE, Window(0, 0, 3, 3)) == []


def test_random_places_are_two_convolutions():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(NOTHING, PLACES.numel(), (2, 9, 8), generator=generator)
    assert pieces_of(index, SHAPE, Window(0, 0, 9, 8)) is None
    found = anything(index, SHAPE)
    assert found is not None
    x = torch.randn(SHAPE, generator=generator, dtype=F64)
    row = F.conv2d(x[None], found.values)
    assert row.shape[2:] == (1, 1)
    made = F.conv2d(F.pad(row, (7, 7, 8, 8)), found.placed)[0]
    assert torch.equal(made, picked(x, index))


def test_too_many_values_are_none():
    big = torch.randperm(4 * 64 * 64, generator=torch.Generator().manual_seed(0)).view(4, 64, 64)
    assert anything(big, (4, 64, 64)) is None


@pytest.mark.parametrize(
    ("move", "steps"),
    [
        (lambda p: F.interpolate(p, size=(18, 20)), 2),
        (lambda p: F.pad(F.interpolate(p, size=(12, 14)), (1, 0, 0, 2)), 2),
        (lambda p: p[:, [2, 2, 0]].repeat(1, 1, 3, 3).flip((2, 3)), 2),
        (lambda p: F.pad(p, (1, 1, 2, 2), mode="reflect"), 1),  # few pieces as it is
        (lambda p: p.transpose(2, 3).repeat(1, 1, 2, 2), 1),  # rows that become columns
    ],
)
def test_rows_and_then_columns(move, steps):
    index = index_of(move)
    builder = GraphBuilder()
    image = builder.add("x", Input(), (), SHAPE)
    moved = builder.add("moved", Move((index,), (SHAPE,)), (image,), tuple(index.shape))  # type: ignore[arg-type]
    graph = one_axis_at_a_time(builder.build(moved))
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.equal(graph.forward(x)[0], picked(x, index)) and graph.output == "moved"
    moves = [graph[n].op for n in graph.order if isinstance(graph[n].op, Move)]
    assert len(moves) == steps
    if steps == 2:
        for name in graph.order:
            op = graph[name].op
            if isinstance(op, Move):
                assert pieces_of(op.index[0], op.shapes[0], Window(0, 0, *graph[name].shape[1:])) is not None
