"""Trees: which leaves cover, rows and planes of their programs, bounds of leaves with hints that may be anything."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from checked_networks import built, crowned
from checked_trees import CASES, images, open_units, pair_rows, tree_of

from corgi_opt.proof.tree import Program, covers


def missed(phases: np.ndarray) -> bool:
    """Whether any sign pattern is in no leaf, by looking at all of them."""
    for pattern in itertools.product((1, -1), repeat=phases.shape[1]):
        if not ((phases == 0) | (phases == pattern)).all(axis=1).any():
            return True
    return False


def grown(rng: np.random.Generator, units: int, splits: int) -> np.ndarray:
    leaves = [np.zeros(units, dtype=np.int8)]
    for _ in range(splits):
        leaf = leaves.pop(int(rng.integers(len(leaves))))
        free = np.flatnonzero(leaf == 0)
        if not len(free):
            leaves.append(leaf)
            continue
        unit = rng.choice(free)
        for sign in (1, -1):
            leaves.append(leaf.copy())
            leaves[-1][unit] = sign
    return np.array([leaves[i] for i in rng.permutation(len(leaves))], dtype=np.int8).reshape(len(leaves), units)


def test_the_leaves_of_a_tree_cover_and_no_others_are_said_to():
    rng = np.random.default_rng(0)
    gaps = 0
    for _ in range(400):
        phases = grown(rng, int(rng.integers(0, 6)), int(rng.integers(0, 12)))
        assert covers(phases) and not missed(phases)
        for _ in range(3):
            changed = phases.copy()
            if rng.random() < 0.5 and len(changed) > 1:
                changed = np.delete(changed, rng.integers(len(changed)), axis=0)
            elif changed.size:
                changed.flat[rng.integers(changed.size)] = rng.integers(-1, 2)
            gaps += missed(changed)
            if covers(changed):
                assert not missed(changed)
    assert gaps > 300
    assert not covers(np.zeros((0, 3), dtype=np.int8)) and covers(np.zeros((1, 0), dtype=np.int8))


def test_a_deep_tree_of_many_leaves_is_looked_through_in_time():
    chain = np.zeros((301, 300), dtype=np.int8)
    for depth in range(300):
        chain[depth:, depth] = 1
        chain[depth, depth] = -1
    assert covers(chain) and not covers(chain[:-1]) and not covers(np.delete(chain, 150, axis=0))


@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("case", CASES)
def test_programs_say_what_the_network_does(case, norm, share):
    """Rows give pre-activations within their slack, planes are above, and leaves below wherever their signs hold; also
    where some open units are not in the tree."""
    net, network, x = built(case)
    bounds, rng = crowned(case, norm), np.random.default_rng(2)
    every = open_units(bounds)
    units = [u for u in every if rng.random() < share][:150]
    points = images(case, norm, 60)
    values = [v.numpy().reshape(len(points), -1) for v in net.graph.values(points).values()][: network.features + 1]
    z = np.stack([values[network.nodes[at].inputs[0]][:, flat] for at, flat in units], axis=1)
    phases = np.zeros((40, len(units)), dtype=np.int8)
    for leaf in range(40):  # signs that some image has, of some units
        chosen = rng.random(len(units)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        phases[leaf, chosen] = np.where(z[leaf, chosen] > 0, 1, -1)
    rows, whole = pair_rows(bounds)
    tree = tree_of(units, phases, rng, x[0].numel(), planes=True)
    program = Program(bounds, tree, network.features, rows)
    v = np.concatenate([values[0][:, program.image], np.maximum(z, 0)], axis=1)
    said = v @ program.rows.T + program.constants
    tolerance = 1e-12 * (1 + np.abs(z).max())
    assert (np.abs(said - z) <= program.slack + tolerance).all()
    if share == 1.0 and len(units) == len(every):
        assert program.slack.max(initial=0.0) < 1e-10
    assert program.planes is not None
    assert (np.maximum(z, 0) <= v @ program.planes.T + program.shifts + tolerance).all()
    objective = values[network.features] @ whole.flatten()
    assert (np.abs(v @ program.objective[0] + program.offset[0] - objective) <= program.off_by[0] + tolerance).all()
    for plain in (False, True):
        there = replace(tree, shares=None) if plain else tree
        found = Program(bounds, there, network.features, rows).lower()
        holds = ((phases[:, None] == 0) | (phases[:, None] == np.where(z > 0, 1, -1)[None])).all(axis=2)
        assert holds.any(axis=1).sum() >= 20
        for leaf in range(40):
            assert (found[leaf] <= objective[holds[leaf]] + 1e-12 * np.abs(objective).max()).all()
    one = replace(tree, phases=phases[:1] * 0, slopes=tree.slopes[:1], mixes=tree.mixes[:1], pushes=tree.pushes[:1] * 0)
    assert Program(bounds, one, network.features, rows).lower()[0] > -np.inf


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
            assert Program(bounds, wild, network.features, rows).lower()[0] <= objective
