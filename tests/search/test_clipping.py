"""Clipped intervals hold all counterexamples: against enumeration of phases, and images that the network is run on."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from corgi_solvers import Highs
from drawn_programs import at, drawn, exact_intervals, least, outputs_at, points
from encoding import PATIENT
from encoding import exact_setting as setting
from patience import mostly_slow

from corgi_opt.encode.hull import hull_planes
from corgi_opt.encode.phases import PhaseBounds
from corgi_opt.encode.program import Program
from corgi_opt.search import branch as branch_module
from corgi_opt.search import clipping as module
from corgi_opt.search.branch import Branching, _Tree
from corgi_opt.search.clipping import BEYOND, Clipped, best_shares, clip, clipped_below, narrowed

CPU = torch.device("cpu")
TOUCHING = 1e-7
"""What scipy's linear programs may be off by."""

some_or_many = pytest.mark.parametrize(
    "seeds", [range(6), pytest.param(range(6, 1012), marks=pytest.mark.slow)], ids=["some", "many"]
)


def found(program: Program, threshold: float) -> Clipped:
    return clip(program, hull_planes(program), threshold, CPU, PATIENT)


def just_above_root(program: Program, share: float) -> float:
    """A threshold between the bound at the root, where clipping begins, and the minimum."""
    bounds = PhaseBounds(program, hull_planes(program), torch.float64, CPU)
    lowest, bound = least(program), float(bounds.ascend(bounds.root(), 30)[1].value)
    return lowest + share * (lowest - bound) + 0.02


def require_holds(program: Program, clipped: Clipped, goal: float) -> None:
    low, high = exact_intervals(program, goal)
    if not (low <= high).any():
        return
    assert not clipped.empty
    width = clipped.program.widths / program.widths
    assert (clipped.program.lower * width <= low + TOUCHING).all()
    assert (clipped.program.upper * width >= high - TOUCHING).all()
    assert (low[clipped.phases > 0] >= -TOUCHING).all()
    assert (high[clipped.phases < 0] <= TOUCHING).all()


@some_or_many
def test_no_counterexample_is_outside(seeds):
    narrower = settled = empty = 0
    for seed in seeds:
        program = drawn(seed, inputs=3, units=4)
        threshold = just_above_root(program, share=(0.0, 0.1, -0.1)[seed % 3])
        clipped = found(program, threshold)
        assert clipped.goal == threshold + BEYOND
        require_holds(program, clipped, clipped.goal)
        narrower += int((clipped.program.widths < 0.99 * program.widths).sum())
        settled += int((clipped.phases != 0).sum())
        empty += clipped.empty
    assert narrower >= len(seeds) and settled >= len(seeds) / 2, (narrower, settled, empty)


@pytest.mark.parametrize("seed", mostly_slow(range(12), range(3)))
def test_images_have_the_same_values_in_the_narrower_program(seed):
    program = drawn(seed, inputs=3, units=5)
    clipped = found(program, just_above_root(program, 0.1))
    narrower = clipped.program
    for t in points(program, 400, seed):
        v, w = at(program, t), at(narrower, t)
        np.testing.assert_allclose(outputs_at(program, v), outputs_at(narrower, w), atol=1e-12)
        np.testing.assert_allclose(v[3:] * program.widths, w[3:] * narrower.widths, atol=1e-12)
    assert (narrower.slack >= program.slack).all() and (narrower.residue >= program.residue).all()
    np.testing.assert_allclose(narrower.upper - narrower.lower, 1.0)
    assert (narrower.lower < 0).all() and (narrower.upper > 0).all()


BALLS = [*product(("plain", "residual", "pooled"), ("inf", "2", "1"))]


@pytest.mark.parametrize(("case", "norm"), mostly_slow(BALLS, BALLS[::4]))
def test_images_of_a_ball_that_fall_below_the_goal_are_inside(case, norm):
    """At many goals: whatever is below one is within what is clipped for it."""
    _, program = setting(case, norm)
    planes, bounds = hull_planes(program), PhaseBounds(program, None, torch.float64, CPU)
    t = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (program.inputs, 20_000)))
    t[:, ::2] = t[:, ::2].sign()
    t = bounds.inside(t)
    goal = torch.zeros(t.shape[1], dtype=torch.long)
    # and towards where the output is least, where counterexamples are
    lowest = bounds.lowest(bounds.below_outputs(bounds.root()).coefs)
    t = bounds.inside(t * torch.linspace(0, 1, t.shape[1]) + lowest * torch.linspace(1, 0, t.shape[1]))
    values = bounds.values(t, goal)
    held = 0
    for share in (0.001, 0.05, 0.5):
        clipped = clip(program, planes, float(values.quantile(share)), CPU, PATIENT)
        below = values <= clipped.goal
        assert not clipped.empty
        inner = PhaseBounds(clipped.program, None, torch.float64, CPU)
        variables = torch.cat([t[:, below], t.new_zeros(program.units, int(below.sum()))])
        z = inner.before(run_through(inner, clipped.program, variables))
        lower, upper = (torch.from_numpy(side)[:, None] for side in (clipped.program.lower, clipped.program.upper))
        assert bool((z >= lower - 1e-9).all() and (z <= upper + 1e-9).all())
        phases = torch.from_numpy(clipped.phases)
        assert bool((z[phases > 0] >= -1e-9).all() and (z[phases < 0] <= 1e-9).all())
        held += int(below.sum())
    assert held > 5_000


def run_through(bounds: PhaseBounds, program: Program, variables: torch.Tensor) -> torch.Tensor:
    """Variables (n+U, N) with every unit at relu of its row."""
    for _ in range(program.units):
        variables = torch.cat([variables[: program.inputs], bounds.before(variables).relu()])
    return variables


@pytest.mark.parametrize("seed", mostly_slow(range(8), range(2)))
def test_the_best_share_is_found(seed):
    program = drawn(seed, inputs=4, units=4)
    bounds = PhaseBounds(program, None, torch.float64, CPU)
    goal = just_above_root(program, 0.0)
    units, output = bounds.below_units(bounds.root()), bounds.below_outputs(bounds.root())
    shares = best_shares(bounds, units, output, goal)
    ours = clipped_below(bounds, units, output, goal, shares)
    every = [
        clipped_below(bounds, units, output, goal, torch.full_like(shares, g)) for g in np.geomspace(1e-4, 1e4, 4000)
    ]
    best = torch.stack([torch.zeros_like(shares).add(ours.min() - 1), *every]).amax(0)
    none = clipped_below(bounds, units, output, goal, torch.zeros_like(shares))
    assert bool((torch.maximum(ours, none) >= torch.maximum(best, none) - 1e-2).all())
    assert float((ours - none).max()) > 0.01


def test_intervals_that_cross_prove_that_no_image_is_there():
    program = drawn(0)
    whole = Clipped(program, hull_planes(program), 0.25, np.zeros(program.units, dtype=np.int8))
    crossed = narrowed(whole, program.upper + 0.1, program.upper)
    assert crossed.empty and not narrowed(whole, program.lower, program.upper).empty
    tree = _Tree(program, crossed.planes, 0.25 - BEYOND, Highs(), CPU, clipped=crossed)
    for searched in (tree.search(PATIENT, 10), tree.search(PATIENT, 10)):
        assert searched.lower == 0.25 and searched.reason == "" and searched.nodes == 0
    assert whole.capped(math.inf) == 0.25 and whole.capped(-1.0) == -1.0


@some_or_many
def test_a_search_with_clipping_agrees_with_enumeration(seeds, monkeypatch):
    """Clipping is forced on: the tree without it has one node."""
    monkeypatch.setattr(branch_module, "FIRST_NODES", 1)
    clipped: list[Clipped] = []

    def told(*args: Any) -> Clipped:
        clipped.append(clip(*args))
        return clipped[-1]

    monkeypatch.setattr(branch_module, "clip", told)
    for seed in seeds:
        program = drawn(seed, inputs=2 + seed % 2, units=3 + seed % 3)
        lowest = least(program)
        for away in (-0.3, -1e-3, 1e-4, 0.1):
            searched = Branching(program, lowest + away, Highs(), CPU).run(PATIENT)
            assert searched.reason == ""
            assert (searched.lower > lowest + away) == (away < 0), (seed, away)
            assert searched.lower <= lowest + TOUCHING
            assert (searched.upper <= lowest + away) == (away > 0), (seed, away)
    assert len(clipped) > len(seeds) / 2


def test_what_is_too_large_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    program = drawn(0)
    planes = hull_planes(program)
    clipped = clip(program, planes, 0.0, CPU, PATIENT)
    assert clipped.program is program and clipped.planes is planes and not clipped.phases.any() and not clipped.empty


def test_it_is_the_same_every_time():
    program = drawn(3, inputs=3, units=5)
    goal = just_above_root(program, 0.0)
    first, second = found(program, goal), found(program, goal)
    np.testing.assert_array_equal(first.program.widths, second.program.widths)
    np.testing.assert_array_equal(first.phases, second.phases)
