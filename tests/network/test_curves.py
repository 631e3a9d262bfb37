"""What is said of each smooth function, against its definition in fifty digits."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from curves import EXACT, FUNCTIONS, intervals, special, within
from mpmath import mpf

from corgi_opt.network.curves import ROUNDINGS
from corgi_opt.network.smooth import Product, Smooth

UNIT = mpf(2) ** -53


def points(function, count: int, seed: int = 0) -> torch.Tensor:
    """About special points and zero, near and far, and beside where the slope is taken for constant."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.tensor([*special(function), 0.0, -20.0, 20.0, -50.0, 50.0], dtype=torch.float64)
    size = 10 ** (14 * torch.rand(count, generator=draw, dtype=torch.float64) - 12)
    sign = torch.where(torch.rand(count, generator=draw) < 0.5, -1.0, 1.0)
    return centers[torch.randint(len(centers), (count,), generator=draw)] + sign * size


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_values_and_slopes_are_off_by_as_little_as_is_said(function):
    x = points(function, 300)
    values, slopes = function.value(x), function.slope(x)
    magnitude, steepest = function.magnitude(x.abs()), function.steepest(x.abs())
    drop = function.drop(x)
    with mpmath.workdps(50):
        for at, one in enumerate(x.tolist()):
            exact, off = EXACT[function](mpf(one)), UNIT * ROUNDINGS * mpf(magnitude[at].item())
            below = exact - (0 if drop is None else mpf(drop[at].item()))
            assert below - off - mpf(10) ** -290 <= exact <= mpf(values[at].item()) + off + mpf(10) ** -290
            assert mpf(values[at].item()) <= exact + off + (0 if drop is None else mpf(drop[at].item()))
            assert abs(exact) <= mpf(magnitude[at].item()) * (1 + 8 * UNIT)
            inside = [p for p in function.pieces if p.bend and p.start < one < p.end]
            if inside and drop is None:
                slope = mpmath.diff(EXACT[function], mpf(one), h=mpf(10) ** -25)
                assert abs(slope - mpf(slopes[at].item())) <= UNIT * ROUNDINGS * mpf(steepest[at].item()), one
                assert abs(slope) <= mpf(steepest[at].item())


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_pieces_bend_as_is_said_and_leave_nothing_out(function):
    pieces = function.pieces
    assert pieces[0].start == -float("inf") and pieces[-1].end == float("inf")
    assert all(one.end == next_.start for one, next_ in itertools.pairwise(pieces))
    step = mpf(10) ** -8
    if function.drop(torch.ones(1)) is not None:
        return  # its value is the function without the step, which the last of the list is
    with mpmath.workdps(50):
        for x in map(mpf, sorted(points(function, 300, seed=1).tolist())):
            (piece,) = [p for p in pieces if p.start < x < p.end] or [None]
            if piece is None or not piece.start < x - step < x + step < piece.end or abs(x) > 40:
                continue
            second = EXACT[function](x - step) - 2 * EXACT[function](x) + EXACT[function](x + step)
            assert second * piece.bend >= 0 if piece.bend else abs(second) < mpf(10) ** -40, (x, piece)


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_ranges_hold_and_are_reached(function):
    draw = torch.Generator().manual_seed(2)
    l, u = intervals(function, 8_000, draw)
    low, high = Smooth(function).interval([l], [u])
    error = Smooth(function).error([torch.maximum(l.abs(), u.abs())])
    x = within(l, u, 130, draw)
    turns = torch.tensor([*(function.turns or (0.0,))], dtype=torch.float64)[:, None]
    x = torch.cat([x, torch.minimum(torch.maximum(turns.expand(-1, len(l)), l), u)])
    assert x.numel() > 10**6
    values = function.spoken(x)
    assert bool((values >= low - error).all()) and bool((values <= high + error).all())
    drop = function.drop(u)
    room = error if drop is None else error + drop
    assert bool((values.amin(dim=0) <= low + room).all()) and bool((values.amax(dim=0) >= high - room).all())


def test_the_range_of_a_product_is_exact():
    draw = torch.Generator().manual_seed(3)
    ends = torch.sort(torch.randn(2, 2, 500, generator=draw, dtype=torch.float64), dim=1).values
    (x, y), op = ends, Product()
    low, high = op.interval([x[0], y[0]], [x[1], y[1]])
    at_x, at_y = (within(side[0], side[1], 400, draw) for side in (x, y))
    corners = torch.stack([a * b for a in x for b in y])
    values = torch.cat([at_x * at_y, corners])
    assert torch.equal(values.amin(dim=0), low) and torch.equal(values.amax(dim=0), high)
