"""What a tree leaves behind: its leaves part all patterns among themselves, and too many are no certificate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from corgi_solvers import Highs
from drawn_programs import drawn, least

from corgi_opt._deadline import Deadline
from corgi_opt.encode.phases import PhaseBounds
from corgi_opt.encode.triangle import triangle
from corgi_opt.search import leaves as module
from corgi_opt.search.decide import Branched
from corgi_opt.search.leaves import Ledger

PATIENT = Deadline(math.inf)
TREE = Branched(Highs(), torch.device("cpu"), keep_leaves=True)


def tree_of(seed: int, short: float = 1e-4):
    """Of a threshold just below the minimum, so that there is something to split."""
    program = drawn(seed, inputs=3, units=6)
    return program, TREE(program, (least(program) - short) * float(program.scales[0]), PATIENT).tree


@pytest.mark.parametrize("seed", range(4))
def test_every_pattern_is_in_exactly_one_leaf(seed):
    program, tree = tree_of(seed)
    rows = tree.rows
    assert rows.phases.shape == rows.pushes.shape == (len(rows.phases), program.units)
    leaves = rows.phases[~np.isin(np.arange(len(rows.phases)), rows.parents)]
    for pattern in itertools.product((-1, 1), repeat=program.units):
        holds = ((leaves == 0) | (leaves == np.array(pattern))).all(axis=1)
        assert holds.sum() == 1


def test_some_tree_has_several_leaves():
    assert max(len(tree_of(seed)[1].rows.phases) for seed in range(4)) > 1


def test_a_tree_that_grows_too_large_is_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MOST_LEAVES_BYTES", 10)
    assert tree_of(0)[1] is None
    assert Ledger(drawn(0)).leaves() is None  # as is one without a leaf


@pytest.mark.parametrize("seed", range(4))
def test_what_a_linear_program_closed_is_worth_its_optimum(seed):
    """D at the multipliers that the ledger keeps, calculated by hand."""
    program = drawn(seed)
    solved = Highs().solve(triangle(program))
    # rows of a unit: z - s <= .., then s - u z <= ..; what they say of mu, the multiplier of z
    assert solved.row_dual is not None
    first, second = np.split(solved.row_dual, 2)
    mu = -(first - program.upper * second)
    ledger = Ledger(program)
    ledger.closed_by(PhaseBounds(program, None, torch.float32, torch.device("cpu")).root(), mu)
    leaves = ledger.leaves()
    assert leaves is not None
    kept = leaves.rows
    assert kept.phases.tolist() == [[0] * program.units] and not kept.mixes.any() and not kept.slopes.any()
    lam = program.outputs.toarray()[0] + program.rows.toarray().T @ mu
    here = lam[program.inputs :]
    line = np.where(here > 0, 0.0, program.upper / (program.upper - program.lower))
    used = line * here - kept.pushes[0]
    value = program.output_constants[0] - np.abs(lam[: program.inputs]).sum() + mu @ program.constants
    ends = np.stack([here * np.maximum(z, 0) - used * z for z in (program.lower, 0 * mu, program.upper)])
    assert value + ends.min(axis=0).sum() == pytest.approx(solved.bound, abs=1e-6)
