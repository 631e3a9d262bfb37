"""Planes above ReLUs over their inputs' box: valid whatever a search finds, and worth more than chords."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoding import CASES, Setting, scipy_lp

from corgi_opt.encode import hull as hull_module
from corgi_opt.encode.hull import HullPlanes, hull_planes, layers
from corgi_opt.encode.phases import PhaseBounds
from corgi_opt.encode.program import Program
from corgi_opt.encode.triangle import triangle

CPU = torch.device("cpu")


@functools.cache
def setting(case: str) -> tuple[Setting, Program]:
    at = Setting.case(case)
    return at, at.program()


@functools.cache
def found(case: str) -> HullPlanes:
    return hull_planes(setting(case)[1])


def box_points(program: Program, planes: HullPlanes) -> np.ndarray:
    """Points (n+U, N) of the variables' box: inside, at vertices, and at the vertices where planes are lowest."""
    generator = np.random.default_rng(0)
    n = program.inputs + program.units
    low = np.concatenate([-np.ones(program.inputs), np.zeros(program.units)])[:, None]
    high = np.concatenate([np.ones(program.inputs), program.upper])[:, None]
    share = generator.random((n, 600))
    rows, slopes = program.rows.toarray().T, planes.slopes.toarray().T
    corners = [share[:, :300].round(), slopes < 0, slopes > 0, rows - slopes > 0, rows > 0]
    return low + np.hstack([share, *corners]) * (high - low)


def require_valid(program: Program, planes: HullPlanes) -> None:
    points = box_points(program, planes)
    relu = np.maximum(program.rows @ points + (program.constants + program.slack)[:, None], 0)
    above = planes.slopes @ points + planes.shifts[:, None]
    assert (above - relu).min() >= -1e-12
    # and no higher than they must be: each touches its unit at a vertex
    np.testing.assert_allclose((above - relu).min(axis=1), 0, atol=1e-12 + 3 * program.slack.max(initial=0.0))


def root_bound(program: Program, planes: HullPlanes) -> float:
    bounds = PhaseBounds(program, planes, torch.float64, CPU)
    return float(bounds.ascend(bounds.root(), 100)[1].value)


@pytest.mark.parametrize("case", CASES)
def test_planes_are_above_their_unit_everywhere_in_the_box(case):
    program, planes = setting(case)[1], found(case)
    require_valid(program, planes)
    assert all(((m >= 0) & (m <= 1)).all() and m.shape == (program.units,) for m in (planes.mixes, planes.below))


@pytest.mark.parametrize("case", ["residual", "pooled", "deep"])
def test_planes_are_valid_whatever_the_search_finds(case, monkeypatch):
    at, program = setting(case)
    generator = np.random.default_rng(0)

    def garbage(program: Program, *_: object) -> tuple[np.ndarray, ...]:
        share = 3 * generator.random(program.rows.nnz) - 1
        return share, generator.random(program.units), generator.random(program.units)

    monkeypatch.setattr(hull_module, "_ascended", garbage)
    least = at.pair_at(at.points(200)).min() / program.scales[0]
    planes = hull_planes(program)
    require_valid(program, planes)
    assert root_bound(program, planes) <= least + 1e-9
    moved = replace(program, slack=np.full(program.units, 0.01))
    require_valid(moved, hull_planes(moved))


def test_bounds_with_planes_are_true_and_beat_the_lp():
    """One hull of all inputs of a unit says more than the triangle of each, at nearly every case."""
    gains = []
    for case in CASES:
        at, program = setting(case)
        bound = root_bound(program, found(case))
        assert bound <= at.pair_at(at.points(500)).min() / program.scales[0]
        gains.append(bound - scipy_lp(triangle(program)))
    assert sum(gain > 1e-2 for gain in gains) >= 5
    assert min(gains) > -1e-3


@pytest.mark.parametrize("case", ["pooled", "deep"])
def test_planes_are_the_same_every_time(case):
    program = setting(case)[1]
    with torch.no_grad():
        again = hull_planes(program)
    for name in ("shifts", "mixes", "below"):
        assert np.array_equal(getattr(again, name), getattr(found(case), name))
    assert np.array_equal(again.slopes.toarray(), found(case).slopes.toarray())


def test_a_search_ends_where_its_bound_is_enough(monkeypatch):
    program = setting("residual")[1]
    early = hull_planes(program, enough=-1e9)
    require_valid(program, early)
    assert set(early.mixes) == {0.5}
    assert root_bound(program, early) < root_bound(program, found("residual"))


def test_a_program_without_units_has_no_planes():
    at = setting("pooled")[0]
    program = Setting.of(at.net, replace(at.ball, eps=1e-5)).program()
    assert program.units == 0
    assert layers(program) == []
    planes = hull_planes(program)
    assert planes.slopes.shape == (0, program.inputs)
    assert len(planes.shifts) == len(planes.mixes) == len(planes.below) == 0


@pytest.mark.parametrize("case", CASES)
def test_layers_are_runs_that_do_not_read_themselves(case):
    program = setting(case)[1]
    runs = layers(program)
    assert [unit for first, last in runs for unit in range(first, last)] == list(range(program.units))
    rows = program.rows.toarray()[:, program.inputs :]
    for first, last in runs:
        assert not rows[first:last, first:].any()
        if last < program.units:
            assert rows[last, first:last].any()  # as long as they can be
