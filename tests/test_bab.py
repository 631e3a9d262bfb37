"""Branch and bound asked for by its public name: right in every norm, closed brackets, beside the other methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from asking import ask
from nets import Pooled, image, seeded
from patience import mostly_slow
from small_questions import SmallQuestion, known_questions
from test_exact import check

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.verdict import climb
from corgi_opt.methods import TABLE

EACH = 8
"""Questions of one seed, norm and kind: about 25 by default, 500 more with -m slow."""

NORMS = ("inf", "1", "2")

FEW = [(norm, 1000, EACH // 2) for norm in NORMS]


def every_pair_holds(seed: int, norm: str, count: int = EACH) -> Iterator[SmallQuestion]:
    """Questions whose answer is a minimum over pairs."""
    for question in known_questions(count, seed, (norm,)):
        yield replace(question, within=None, keep_class=False)


def counted_or_kept(seed: int, norm: str) -> list[SmallQuestion]:
    """Questions whose answer is not a minimum over pairs."""
    return [q for q in known_questions(4 * EACH, seed, (norm,)) if q.keep_class or q.within not in (None, q.k)][:6]


def verdict_of(net: co.CamNetwork, question: SmallQuestion, method: str) -> co.Verdict:
    return co.verify(net, question.x, method=method, time_limit=600, device="cpu", **question.arguments)


def unattacked(net: co.CamNetwork, question: SmallQuestion) -> co.Verdict:
    """As by ``radius``, which knows what PGD finds: counterexamples are those of branch and bound."""
    asked = {n: v for n, v in question.arguments.items() if n != "eps"}
    ladder = Ladder(ask(net, question.x, tie_tol=None, **asked), question.eps, torch.device("cpu"))
    return climb(ladder, TABLE["bab"], None, check_solver(None, "bab", ladder.question.norm), Deadline(600))


@pytest.mark.parametrize(
    ("norm", "seed", "count"), mostly_slow([*FEW, *product(NORMS, range(1000, 1022), (EACH,))], FEW)
)
def test_pairs_are_decided_as_by_enumeration(norm, seed, count):
    by_tree = set()
    for question in every_pair_holds(seed, norm, count):
        net = question.network
        for verdict in (verdict_of(net, question, "bab"), verdict_of(net, question, "auto"), unattacked(net, question)):
            check(question, verdict, exact=True)
            assert verdict.proof == ("float64" if verdict.status == "certified" else None), question.label
            by_tree |= {verdict.status} if "solved_pairs" in verdict.stats else set()
    assert "falsified" in by_tree  # else nothing was left for a tree to decide


@pytest.mark.parametrize("norm", mostly_slow(NORMS, ("inf", "2")))
def test_rivals_and_classes_are_left_to_others_but_never_wrong(norm):
    left = 0
    for question in counted_or_kept(1001, norm):
        net = question.network
        verdict = verdict_of(net, question, "bab")
        check(question, verdict, exact=False)
        assert verdict.proof == ("float64" if verdict.status == "certified" else None), question.label
        assert verdict.status != "unknown" or "MILP" in verdict.reason
        left += verdict.status == "unknown"
        check(question, verdict_of(net, question, "auto"), exact=norm != "2")  # as MILPs answer it, where they can
    assert left > 0


@pytest.mark.parametrize(("norm", "seed", "label"), [("1", 2038, 1460594351), ("2", 2077, 434509360)])
def test_images_are_in_the_ball(norm, seed, label):
    """A pair may break where rivals are counted; an image outside the ball would be below what CROWN proves exactly."""
    (question,) = (q for q in known_questions(10, seed, (norm,)) if q.label.endswith(f"seed {label}"))
    question = replace(question, keep_class=False)
    check(question, verdict_of(question.network, question, "auto"), exact=norm == "1")


def test_radii_in_l2_close_around_that_of_enumeration():
    closed = 0
    for question in list(every_pair_holds(1000, "2"))[:6]:
        net = question.network
        asked = {n: v for n, v in question.arguments.items() if n != "eps"}
        r = co.radius(net, question.x, method="bab", rtol=0.01, time_limit=600, device="cpu", **asked)
        assert replace(question, eps=r.lower).answer().upper > -1e-9, question.label
        if r.counterexample is None:
            continue
        assert replace(question, eps=r.upper).answer().lower <= 1e-9, question.label
        assert r.ratio <= 1.01 + 1e-9, question.label
        assert r.proof == "float64"
        closed += 1
    assert closed >= 3


@pytest.mark.parametrize("norm", mostly_slow(["inf", "2"], ["2"]))
def test_beside_the_others_it_certifies_most(norm):
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    compared = co.compare(net, x, k=2, norm=norm, rtol=0.03, device="cpu", progress=False)
    assert list(compared.radii) == ["corgi", "crown", "dual", "lp", "bab"]
    assert all(a.lower <= b.lower for a, b in pairwise(compared.radii.values()))
    bab = compared.radii["bab"]
    assert bab.ratio <= 1.03 + 1e-9
    assert bab.lower > 1.05 * compared.radii["lp"].lower
    assert bab.proof == "float64"
    assert all(bab.lower < r.upper for r in compared.radii.values())


def test_where_rivals_are_counted_auto_stands_for_it():
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    compared = co.compare(net, x, k=1, within=2, rtol=0.1, device="cpu", progress=False)
    assert list(compared.radii) == ["corgi", "crown", "dual", "lp", "auto"]
    assert all(a.lower <= b.lower for a, b in pairwise(compared.radii.values()))
