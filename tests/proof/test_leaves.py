"""Bounds of leaves are below the functional wherever their signs hold, with hints that may be anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checked_networks import built, crowned
from checked_trees import CASES, at_images, descent, images, open_units, pair_rows, tree_of

from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.clips import Ends
from corgi_opt.proof.leaves import Leaves
from corgi_opt.proof.tree import Clips


@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("case", CASES)
def test_leaves_are_below_wherever_their_signs_hold(case, norm, share):
    """Also where some open units are not in the tree."""
    _, network, x = built(case)
    bounds, rng = crowned(case, norm), np.random.default_rng(2)
    every = open_units(bounds)
    units = [u for u in every if rng.random() < share][:150]
    values, z = at_images(case, norm, 60, units)
    phases = np.zeros((40, len(units)), dtype=np.int8)
    for leaf in range(40):  # signs that some image has, of some units
        chosen = rng.random(len(units)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        phases[leaf, chosen] = np.where(z[leaf, chosen] > 0, 1, -1)
    rows, whole = pair_rows(bounds)
    tree = tree_of(units, phases, rng, x[0].numel(), planes=True)
    objective = values[network.features] @ whole.flatten()
    for plain in (False, True):
        there = replace(tree, shares=None) if plain else tree
        found = Leaves(bounds, there, network.features, rows).lower()
        holds = ((phases[:, None] == 0) | (phases[:, None] == np.where(z > 0, 1, -1)[None])).all(axis=2)
        assert holds.any(axis=1).sum() >= 20
        for leaf in range(40):
            assert (found[leaf] <= objective[holds[leaf]] + 1e-12 * np.abs(objective).max()).all()
    one = replace(tree, phases=phases[:1] * 0, slopes=tree.slopes[:1], mixes=tree.mixes[:1], pushes=tree.pushes[:1] * 0)
    assert Leaves(bounds, one, network.features, rows).lower()[0] > -np.inf


def test_shares_of_planes_beyond_one_are_cut():
    """A share of more than everything, or less than nothing, would turn a plane around."""
    net, network, x = built("plain")
    bounds, rng = crowned("plain"), np.random.default_rng(4)
    units = open_units(bounds)
    rows, whole = pair_rows(bounds)
    phases = np.zeros((1, len(units)), dtype=np.int8)
    tree = tree_of(units, phases, rng, x[0].numel(), planes=True)
    values = net.graph.values(images("plain", "inf", 200))[net.features].numpy().reshape(200, -1)
    objective = (values @ whole.flatten()).min()
    flat = replace(tree, shares=np.zeros_like(tree.shares))  # relu(z) <= u: no image has all units there at once
    for planes in (tree, flat):
        for mixes in (-50.0, 50.0):
            wild = replace(planes, mixes=np.full_like(tree.mixes, mixes))
            assert Leaves(bounds, wild, network.features, rows).lower()[0] <= objective


def bounds_of(bounds: Bounds, units: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    sources = [(bounds.network.nodes[at].inputs[0], flat) for at, flat in units]
    low, high = (np.array([side[at].flat[flat] for at, flat in sources]) for side in (bounds.lower, bounds.upper))
    return low, high


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("case", CASES)
def test_images_at_or_below_the_goal_are_within_what_rows_narrow(case, norm):
    _, network, x = built(case)
    bounds, rng = crowned(case, norm), np.random.default_rng(6)
    units = open_units(bounds)[:80]
    values, z = at_images(case, norm, 300, units)
    rows, whole = pair_rows(bounds)
    objective = values[network.features] @ whole.flatten()
    tolerance, narrower, looked_at = 1e-12 * (1 + np.abs(z).max()), 0, 0
    for share in (0.0, 0.05, 0.3, 1.0):
        goal = float(np.quantile(objective, share))
        phases, narrowed = descent(rng, np.where(z[objective <= goal] > 0, 1, -1), 12)
        nothing = np.zeros((1, len(units)), dtype=np.float32)
        clips = Clips(goal, nothing, nothing, np.full((1, 2, len(units)), -1.0))
        tree = tree_of(units, phases, rng, x[0].numel(), planes=share < 1.0)
        good = rng.random(len(phases)) < 0.6  # as a search has them, so that something is narrowed
        tree.slopes[good] = np.where(bounds_of(bounds, units)[1] > -bounds_of(bounds, units)[0], 1, 0)
        tree.mixes[good], tree.pushes[good] = 0, 0
        tree = replace(tree, clips=clips, descent=narrowed)
        tree.require_whole()
        leaves = Leaves(bounds, tree, network.features, rows)
        found = leaves.lower()
        assert (found[narrowed.leaves] <= goal).all() and (found[~narrowed.leaves] == goal).all()
        for row, pattern in enumerate(phases):
            there = ((pattern == 0) | (pattern == np.where(z > 0, 1, -1))).all(axis=1) & (objective <= goal)
            if narrowed.leaves[row] and there.any():
                assert found[row] <= objective[there].min() + 1e-12 * np.abs(objective).max()
        for some, ends in leaves._levels():
            _, after = leaves._bounded((some, ends))
            ends.low[:], ends.high[:] = after.low, after.high  # as who bounds leaves does
            for row, low, high in zip(some, after.low, after.high, strict=True):
                there = ((phases[row] == 0) | (phases[row] == np.where(z > 0, 1, -1))).all(axis=1) & (objective <= goal)
                assert (z[there] >= low - tolerance).all() and (z[there] <= high + tolerance).all()
                looked_at += there.any()
                before = Ends(leaves.program.low, leaves.program.high).under(phases[row])
                narrower += int((low > before.low).sum() + (high < before.high).sum())
    assert looked_at >= 15
    assert narrower > 20 or "pool" in case, narrower  # what is left open there is tight
