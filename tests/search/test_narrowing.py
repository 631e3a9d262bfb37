"""Intervals that nodes narrow hold the counterexamples of their phases: against enumeration, and images of balls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corgi_solvers import Highs
from drawn_programs import drawn, exact_intervals, least
from encoding import PATIENT
from encoding import exact_setting as setting
from torch import Tensor

from corgi_opt.encode.hull import hull_planes
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.phases import Below, Bound, PhaseBounds
from corgi_opt.encode.program import NARROW, Program
from corgi_opt.search import narrowing as module
from corgi_opt.search.branch import _Tree
from corgi_opt.search.clipping import BEYOND, Clipped, Step, clip, clipped_below
from corgi_opt.search.leaves import Ledger
from corgi_opt.search.narrowing import SHARES, Narrowing

CPU = torch.device("cpu")
TOUCHING = 1e-6
"""What scipy's linear programs, and float32, may be off by."""

ONCE = Step(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32), np.zeros(0))
"""That intervals were clipped once; how does not matter."""

some_or_many = pytest.mark.parametrize(
    "seeds", [range(16), pytest.param(range(16, 1016), marks=pytest.mark.slow)], ids=["some", "many"]
)


def unclipped(program: Program, goal: float) -> Clipped:
    """So that all that is narrower was made so in a node."""
    return Clipped(program, hull_planes(program), goal, np.zeros(program.units, dtype=np.int8))


def nodes_of(program: Program, clipped: Clipped, seed: int, splits: int) -> tuple[Narrowing, Nodes, Bound]:
    """``2 ** splits`` nodes of a tree at multipliers that a few steps found."""
    narrowing, bounds = Narrowing(clipped, CPU), PhaseBounds(program, clipped.planes, torch.float32, CPU)
    nodes = narrowing.root(bounds.root())
    for unit in np.random.default_rng(seed).permutation(program.units)[:splits].tolist():
        bound, _ = bounds.relaxed(nodes)
        units = torch.full((len(nodes),), unit)
        nodes = nodes.split(units, bound.lam[program.inputs + unit])
        nodes, _, _ = bounds.ascend(nodes, 8, clipped.goal)
    bound, _ = bounds.relaxed(nodes)
    return narrowing, nodes, bound


def everywhere(program: Program, nodes: Nodes) -> Tensor:
    return torch.ones(program.units, len(nodes))


def sides(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    assert nodes.ends is not None
    low, high = nodes.ends.double().numpy()
    return low, high


@some_or_many
def test_no_counterexample_of_a_node_is_outside(seeds):
    narrower = fixed = impossible = 0
    for seed in seeds:
        program = drawn(seed, inputs=3, units=4)
        goal = least(program) + (0.02, 0.1, -0.05)[seed % 3]
        narrowing, nodes, bound = nodes_of(program, unclipped(program, goal), seed, splits=2)
        narrowed = narrowing.narrowed(nodes, bound.lam[3:], everywhere(program, nodes))
        after, possible = narrowed.nodes, narrowed.possible
        low, high = sides(after)
        for k in range(len(nodes)):
            inner, outer = exact_intervals(program, goal, nodes.phases[:, k].numpy())
            if not (inner <= outer).any():
                continue
            assert possible[k]
            assert (low[:, k] <= inner + TOUCHING).all() and (high[:, k] >= outer - TOUCHING).all(), (seed, k)
            phases = after.phases[:, k].numpy()
            assert (inner[phases > 0] >= -TOUCHING).all() and (outer[phases < 0] <= TOUCHING).all()
        before = sides(nodes)
        assert (low >= before[0]).all() and (high <= before[1]).all()
        narrower += int((high - low < 0.99 * (before[1] - before[0])).sum())
        fixed += int((after.phases != nodes.phases).sum())
        impossible += int((~possible).sum())
    assert narrower > 2 * len(seeds) and fixed > len(seeds) / 4 and impossible, (narrower, fixed, impossible)


@pytest.mark.parametrize("case", ["plain", "residual", "pooled"])
def test_images_of_a_box_that_fall_below_the_goal_are_inside(case):
    _, program = setting(case, "inf")
    exact = PhaseBounds(program, None, torch.float64, CPU)
    t = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (program.inputs, 4_000)))
    # towards where the output is least, where counterexamples are
    lowest = exact.lowest(exact.below_outputs(exact.root()).coefs)
    t = exact.inside(t * torch.linspace(0, 1, t.shape[1]) + lowest * torch.linspace(1, 0, t.shape[1]))
    values = exact.values(t, torch.zeros(t.shape[1], dtype=torch.long))
    variables = torch.cat([t, t.new_zeros(program.units, t.shape[1])])
    for _ in range(program.units):
        variables = torch.cat([t, exact.before(variables).relu()])
    z, held, gained = exact.before(variables), 0, 0.0
    for share in (0.01, 0.1, 0.5):
        goal = float(values.quantile(share))
        narrowing, nodes, bound = nodes_of(program, unclipped(program, goal), 0, splits=2)
        narrowed = narrowing.narrowed(nodes, bound.lam[program.inputs :], everywhere(program, nodes))
        after, possible = narrowed.nodes, narrowed.possible
        low, high = (torch.from_numpy(side) for side in sides(after))
        gained += float((torch.from_numpy(np.subtract(*sides(nodes)[::-1])) - (high - low)).sum())
        for k in range(len(nodes)):
            below = z[:, (values <= goal) & ~(nodes.phases[:, k, None] * z < 0).any(dim=0)]
            assert possible[k] or not below.shape[1]
            assert bool((below >= low[:, k, None] - 1e-12).all() and (below <= high[:, k, None] + 1e-12).all())
            assert not bool((after.phases[:, k, None] * below < -1e-12).any())
            held += below.shape[1]
    assert held > 500 and (gained > 0.1 or case == "pooled"), (held, gained)  # pooled: what is left open is tight


@pytest.mark.parametrize("seed", range(6))
def test_what_is_found_is_the_formula_less_what_rounds(seed):
    """Beside clipping.py's in float64, at the same g, over more inputs than are added up at once."""
    program = drawn(seed, inputs=700, units=3)
    goal = least_bound(program) + 0.05
    narrowing = Narrowing(unclipped(program, goal), CPU)
    bounds = PhaseBounds(program, None, torch.float64, CPU)
    units, output = bounds.below_units(bounds.root()), bounds.below_outputs(bounds.root())
    found = narrowing._found(torch.arange(program.units), output)[0][:, :, 0].flatten().double()
    lacks = goal - float(output.constants[0]) - float(bounds.least(output.coefs)[0])
    shares = [(share * 2 * units.coefs.abs().sum(dim=0) / lacks).float().double() for share in SHARES]
    wanted = torch.stack([clipped_below(bounds, units, output, goal, g) for g in shares]).amax(dim=0)
    terms = units.coefs.abs().sum(dim=0) + shares[-1] * output.coefs.abs().sum()
    assert bool((found <= wanted).all()) and bool((found >= wanted - 256 * 2.0**-23 * terms).all())


def least_bound(program: Program) -> float:
    bounds = PhaseBounds(program, None, torch.float64, CPU)
    return float(bounds.descend(bounds.root())[0])


def test_sums_that_float32_gets_wrong_are_not_believed():
    """Wherever a float32 sum adds the small terms to a large one, it loses them."""
    program = drawn(0, inputs=128, units=1)
    narrowing = Narrowing(unclipped(program, 0.0), CPU)
    a = torch.full((128, 2), 0.99 * 2.0**-24, dtype=torch.float64)
    a[:32] = 1.0
    narrowing._rows = module._in_runs(a.t()).unflatten(0, (2, -1))
    narrowing._sizes, narrowing._constants = a.abs().sum(dim=0).view(2, 1), torch.zeros(2, 1, dtype=torch.float64)
    narrowing._rounding = 0.0  # that of single terms
    nothing = Below(torch.zeros(128, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    exact = -math.fsum(a[:, 0].tolist())
    assert bool((narrowing._found(torch.tensor([0]), nothing)[0].double() <= exact).all())


def test_signs_and_crossings_are_read_off_what_is_found(monkeypatch):
    program = drawn(0, inputs=3, units=4)
    narrowing, nodes, bound = nodes_of(program, unclipped(program, 0.0), 0, splits=0)
    low, high = sides(nodes)
    found = torch.tensor([[-0.001, 0.0, -1.0, 0.05], [-1.0, -1.0, 0.001, -0.05]])[:, :, None]

    def told(units: Tensor, _: Below) -> tuple[Tensor, Tensor]:
        return found[:, units], torch.ones_like(found)

    monkeypatch.setattr(narrowing, "_found", told)
    narrowed = narrowing.narrowed(nodes, bound.lam[3:], everywhere(program, nodes))
    after = narrowed.nodes
    assert after.phases[:, 0].tolist() == [0, 1, -1, 1] and bool(narrowed.possible)  # the last: a point is no crossing
    ends, tiny = sides(after), np.float32(NARROW)
    np.testing.assert_allclose(ends[0][:, 0], [-0.001, -tiny, low[2, 0], -tiny])
    np.testing.assert_allclose(ends[1][:, 0], [high[0, 0], high[1, 0], tiny, 0.05])
    found[1, 3] = -0.049
    assert not bool(narrowing.narrowed(nodes, bound.lam[3:], everywhere(program, nodes)).possible)


def test_a_side_that_hardly_moves_stays_and_is_not_said_to_move(monkeypatch):
    program = drawn(0, inputs=3, units=2)
    narrowing, nodes, bound = nodes_of(program, unclipped(program, 0.0), 0, splits=0)
    low, high = sides(nodes)
    moves = torch.tensor([[0.5, 1.5], [1.5, 0.5]]) * module.GAIN
    found = (torch.tensor(np.stack([low, -high])) + moves[:, :, None]).float()
    monkeypatch.setattr(narrowing, "_found", lambda units, _: (found[:, units], torch.full((2, len(units), 1), 0.25)))
    narrowed = narrowing.narrowed(nodes, bound.lam[3:], everywhere(program, nodes))
    after = sides(narrowed.nodes)
    moved = torch.tensor([[False, True], [True, False]])
    assert [(after[0] != low)[:, 0].tolist(), (after[1] != high)[:, 0].tolist()] == moved.tolist()
    assert narrowed.shares[:, :, 0].equal(torch.where(moved[:, narrowed.units], 0.25, -1.0))


def test_what_is_not_a_number_narrows_nothing():
    program = drawn(0, inputs=3, units=4)
    narrowing = Narrowing(unclipped(program, 0.0), CPU)
    output = Below(torch.full((3, 2), math.inf, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert bool((narrowing._found(torch.arange(4), output)[0] == -math.inf).all())


def test_trees_that_narrow_are_smaller():
    nodes = {True: 0, False: 0}
    for seed in range(4):
        program = drawn(seed, inputs=6, units=9)
        threshold = least(program) - 1e-3
        clipped = unclipped(program, threshold + BEYOND)
        for narrows in nodes:
            tree = _Tree(program, None, threshold, Highs(), CPU, clipped=replace(clipped, steps=()))
            if narrows:
                tree.narrowing = Narrowing(clipped, CPU)
                tree.root = tree.narrowing.root(tree.root)
            searched = tree.search(PATIENT, math.inf)
            assert searched.lower > threshold and searched.reason == ""
            nodes[narrows] += searched.nodes
    assert 0 < nodes[True] < 0.8 * nodes[False], nodes


@pytest.mark.parametrize(("seed", "units"), [(4, 9), pytest.param(7, 12, marks=pytest.mark.slow)])
def test_a_tree_whose_leaves_are_kept_is_the_same_tree(seed, units):
    program = drawn(seed, inputs=6, units=units)
    threshold = least(program) - 1e-3
    clipped = clip(program, hull_planes(program, steps=1), threshold, CPU, PATIENT)
    about = clipped.program, clipped.planes, threshold, Highs(), CPU
    assert clipped.steps and clipped.goal == threshold + BEYOND
    ledger = Ledger(*about[:2], clipped)
    trees = [_Tree(*about, clipped=clipped), _Tree(*about, ledger, clipped)]
    found = [tree.search(PATIENT, math.inf) for tree in trees]
    assert all(tree.narrowing is not None for tree in trees)
    assert found[0].nodes == found[1].nodes > 1 and found[0].lower == found[1].lower
    assert found[1].tree is not None and len(found[1].tree.rows.phases) >= found[1].nodes


def test_trees_in_balls_of_other_norms_do_not_narrow():
    for norm in ("inf", "2", "1"):
        _, program = setting("residual", norm)
        clipped = replace(unclipped(program, 0.0), steps=(ONCE,))
        tree = _Tree(program, clipped.planes, 0.0, Highs(), CPU, clipped=clipped)
        assert (tree.narrowing is None) == (norm != "inf") == (tree.root.ends is None)


def test_only_so_many_units_are_tried(monkeypatch):
    monkeypatch.setattr(module, "TRIED", 1)
    program = drawn(2, inputs=3, units=4)
    narrowing, nodes, bound = nodes_of(program, unclipped(program, least(program) + 0.02), 0, splits=1)
    doubt = torch.zeros(4, len(nodes))
    doubt[2] = 1.0
    after = narrowing.narrowed(nodes, bound.lam[3:], doubt).nodes
    assert after.ends is not None and nodes.ends is not None
    moved = (after.ends != nodes.ends).any(dim=0).any(dim=1)
    assert moved.tolist() == [False, False, True, False]
