"""Planes to choose from: whatever is chosen holds, and the middle is CROWN's."""

from __future__ import annotations

import pytest
import torch
from curves import FUNCTIONS, intervals, within
from torch import Tensor

from corgi_opt.bounding.curves import MIDDLE, CurvePlanes, function_lines, product_planes
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.turning import AT, TurningPlanes

ROWS, POINTS = 40, 30


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(signs: Tensor) -> Rows:
    """One row for each entry of ``signs`` (R, C), on a map of one pixel."""
    return Rows.at(
        signs[:, :, None, None], torch.zeros(len(signs), 2, dtype=torch.long), torch.zeros(len(signs)).long()
    )


def planes_of(sources: tuple[str, ...], made) -> TurningPlanes:
    return TurningPlanes(sources, torch.cat([CurvePlanes(sources, made(at)).maps for at in AT], dim=1))


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_any_choice_of_lines_bounds_a_function(function):
    """Sum of signs * f(z) is at least the step's coefficients times z, plus its constant."""
    draw = generator(1)
    l, u = (side.view(1, -1, 1, 1) for side in intervals(function, 60, draw))
    planes = planes_of(("z",), lambda at: function_lines(function, Interval(l, u), at))
    for _ in range(ROWS):
        choice = torch.rand(1, 60, 1, 1, generator=draw, dtype=torch.float64).mul(1.4).sub(0.2)  # beyond both ends too
        signs = torch.randn(1, 60, generator=draw, dtype=torch.float64)
        for unit in range(0, 60, 7):  # one at a time: a sum would hide the smaller ones
            one = torch.zeros_like(signs)
            one[0, unit] = signs[0, unit]
            step = planes.step(rows_of(one), choice)
            ((source, below),) = step.passed
            assert source == "z" and step.constant is not None
            x = within(l[0, unit, 0, 0][None], u[0, unit, 0, 0][None], POINTS, draw)[:, 0]
            bound = below.coefs[0, unit, 0, 0] * x + step.constant
            size = signs[0, unit].abs() * function.magnitude(x.abs()) + bound.abs()
            assert bool((bound <= signs[0, unit] * function.spoken(x) + 1e-14 * size).all())


def test_any_choice_of_planes_bounds_a_product():
    draw = generator(2)
    ends = torch.randn(2, 2, 50, generator=draw, dtype=torch.float64).sort(dim=0).values
    x, y = (Interval(*(side.view(1, -1, 1, 1) for side in ends[:, n])) for n in (0, 1))
    planes = planes_of(("x", "y"), lambda at: product_planes(x, y, at))
    for _ in range(ROWS):
        choice = torch.rand(1, 50, 1, 1, generator=draw, dtype=torch.float64)
        signs = torch.randn(1, 50, generator=draw, dtype=torch.float64)
        for unit in range(0, 50, 7):
            one = torch.zeros_like(signs)
            one[0, unit] = signs[0, unit]
            step = planes.step(rows_of(one), choice)
            (_, by_x), (_, by_y) = step.passed
            assert step.constant is not None
            share = torch.rand(2, POINTS, generator=draw, dtype=torch.float64)
            share[:, :4] = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
            at = [
                side.lower[0, unit, 0, 0] + s * (side.upper - side.lower)[0, unit, 0, 0]
                for side, s in zip((x, y), share, strict=True)
            ]
            bound = by_x.coefs[0, unit, 0, 0] * at[0] + by_y.coefs[0, unit, 0, 0] * at[1] + step.constant
            assert bool((bound <= signs[0, unit] * at[0] * at[1] + 1e-13).all())


def test_the_middle_is_crowns_and_the_ends_are_others():
    function = FUNCTIONS[0]
    z = Interval(torch.full((1, 3, 1, 1), -2.0).double(), torch.full((1, 3, 1, 1), 3.0).double())
    planes = planes_of(("z",), lambda at: function_lines(function, z, at))
    rows = rows_of(torch.ones(1, 3).double())
    middle = CurvePlanes(("z",), function_lines(function, z)).step(rows)
    chosen = [planes.step(rows, torch.full((1, 3, 1, 1), at).double()) for at in (0.0, MIDDLE, 1.0)]
    assert torch.equal(chosen[1].passed[0][1].coefs, middle.passed[0][1].coefs)
    assert chosen[1].constant is not None and middle.constant is not None
    assert torch.equal(chosen[1].constant, middle.constant)
    assert all(bool((one.passed[0][1].coefs != middle.passed[0][1].coefs).all()) for one in (chosen[0], chosen[2]))
