"""A ladder proves only more, rung by rung: each bound below the minimum by enumeration, in order, and checked."""

from __future__ import annotations

import pytest
import torch
from asking import ask
from corgi_solvers import Highs
from nets import Tiny, image, seeded
from oracles import brute_force_margin

import corgi_opt as co
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.answering.ladder import Ladder
from corgi_opt.errors import BoundOrderError
from corgi_opt.search.attack import PgdOptions, rank_targets

CPU = torch.device("cpu")
K, CLASS, SEED = 1, 1, 5

BETWEEN = 0.04
"""Here the property holds, and no relaxation proves it."""


@pytest.fixture(scope="module")
def question():
    x = image(1, 3, 4, seed=SEED)
    return ask(co.from_torch(seeded(Tiny, SEED), x), x, k=K, class_idx=CLASS)


def exact(eps: float) -> float:
    model = seeded(Tiny, SEED)
    x = image(1, 3, 4, seed=SEED)
    return brute_force_margin(model.first, model.second, model.head.weight[CLASS], x, eps, K, (0.0, 1.0))


@pytest.mark.parametrize("eps", [0.03, BETWEEN, 0.3])
def test_rungs_only_raise_what_is_proven_and_never_above_the_minimum(eps, question):
    ladder, least, before = Ladder(question, eps, CPU), exact(eps), -float("inf")
    for rung in ("ibp", "corgi", "crown", "dual"):
        ladder.bound(rung)
        assert before <= ladder.margin <= least + 1e-12
        before = ladder.margin
    ladder.lp(Highs(), NEVER)
    assert before <= ladder.margin <= least + 1e-9
    ladder.milp(Highs(), NEVER)
    assert before <= ladder.margin <= least + 1e-7
    assert ladder.settled and ladder.certified == (least > 0)
    assert bool(ladder.undecided) == (least <= 0)


def test_what_holds_in_a_larger_region_holds_in_a_smaller(question):
    large = Ladder(question, 0.1, CPU)
    large.bound("dual")
    small = Ladder(question, 0.05, CPU, large)
    assert torch.equal(small.lower, large.lower)
    alone = Ladder(question, 0.05, CPU)
    small.bound("ibp")
    alone.bound("ibp")
    assert bool((small.lower >= alone.lower).all()) and small.margin <= exact(0.05) + 1e-12


def test_only_what_a_solver_said_rests_on_it(question):
    relaxed, milp, tree = (Ladder(question, BETWEEN, CPU) for _ in range(3))
    relaxed.bound("dual")
    assert relaxed.proof == "float64" and not relaxed.certified
    milp.milp(Highs(), NEVER)
    assert milp.proof == "solver" and milp.certified
    tree.bab(Highs(), Highs(), NEVER)
    assert tree.proof == "float64" and tree.certified


def test_the_nearest_witness_is_kept(question):
    ladder = Ladder(question, 0.3, CPU)
    assert exact(0.3) < 0
    found = ladder.attack(rank_targets(question, CPU), PgdOptions())
    assert found is not None
    assert found is ladder.witness and found.margin <= 0 and ladder.settled
    nearer = question.x + 0.999 * (found.image - question.x)
    assert not ladder.meet(question.x) and ladder.witness is found
    ladder.meet(nearer)
    assert ladder.witness is not None and ladder.met == ladder.witness.margin <= found.margin


def test_no_time_proves_nothing_and_says_so(question):
    ladder = Ladder(question, 0.3, CPU)
    ladder.bound("crown")
    open_before, margin = ladder.undecided, ladder.margin
    assert open_before
    assert ladder.milp(Highs(), Deadline(0.0)).startswith("time limit")
    assert ladder.margin == margin and not ladder.settled


def test_a_bound_above_an_image_is_raised(question):
    ladder = Ladder(question, 0.3, CPU)
    ladder.bound("crown")
    ladder.lower.add_(10.0)
    with pytest.raises(BoundOrderError, match="exceeds its value at a replayed image"):
        ladder.attack(rank_targets(question, CPU), PgdOptions())
