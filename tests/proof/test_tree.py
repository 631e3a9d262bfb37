"""Trees: which leaves cover, and what a row may take over from another."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from corgi_opt.errors import ProofError
from corgi_opt.proof.tree import Clips, Descent, Tree, covers


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


def split_once(parents: list[int], phases: list[list[int]]) -> Tree:
    """Rows of a tree over two units, which clip nothing."""
    rows, none = np.array(phases, dtype=np.int8), np.zeros((len(phases), 2), dtype=np.float32)
    counts = np.zeros(len(rows), dtype=np.int32)
    descent = Descent(np.array(parents, dtype=np.int32), counts, counts[:0], none[0, :0])
    clips = Clips(0.0, none[:1], none[:1], np.full((1, 2, 2), -1.0))
    return Tree(
        np.array([2, 2]),
        np.arange(2),
        rows,
        none,
        none,
        none.astype(np.float64),
        np.zeros(1, int),
        None,
        clips,
        descent,
    )


def test_rows_that_others_take_over_from_are_no_leaves():
    tree = split_once([-1, 0, 0, 2], [[0, 0], [1, 0], [-1, 0], [-1, 0]])
    tree.require_whole()
    assert tree.descent is not None
    assert tree.descent.leaves.tolist() == [False, True, False, True]
    assert tree.descent.depths().tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("parents", "phases", "why"),
    [
        ([-1, 0], [[0, 0], [1, 0]], "leave some sign pattern out"),  # the first is no leaf
        ([-1, 0, 0, 2], [[0, 0], [1, 0], [-1, 0], [-1, 1]], "leave some sign pattern out"),
        ([-1, 0, 1], [[0, 0], [1, 0], [-1, 0]], "other signs"),
        ([-1, 0, 1], [[0, 0], [1, 0], [0, 0]], "other signs"),
        ([0, 0, 0], [[0, 0], [1, 0], [-1, 0]], "or from a later one"),
        ([2, 0, 0], [[0, 0], [1, 0], [-1, 0]], "or from a later one"),
        ([-2, 0, 0], [[0, 0], [1, 0], [-1, 0]], "takes over from none"),
    ],
)
def test_rows_that_take_over_what_does_not_hold_for_them_are_refused(parents, phases, why):
    with pytest.raises(ProofError, match=why):
        split_once(parents, phases).require_whole()


def test_a_chain_of_rows_that_split_nothing_is_refused():
    for depth, refused in ((4, False), (5, True)):
        tree = split_once(list(range(-1, depth - 1)), [[0, 0]] * depth)
        if refused:
            with pytest.raises(ProofError, match="deeper than it has units"):
                tree.require_whole()
        else:
            tree.require_whole()


def test_nothing_is_narrowed_without_a_goal():
    tree = split_once([-1], [[0, 0]])
    tree.require_whole()
    with pytest.raises(ProofError, match="for no goal"):
        replace(tree, clips=None).require_whole()
