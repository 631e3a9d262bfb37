"""Margins at fixed eps: an exact method's meet the enumerated minimum, a relaxation's never pass it, in their order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from nets import Pooled, image, seeded
from oracles import plain_milp_margin
from patience import mostly_slow
from small_questions import SmallQuestion, known_questions

import corgi_opt as co
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.bounding.margins import Margins

RTOL = 1e-3
METHODS = ("corgi", "crown", "dual", "lp")


def asked(seed: int, norms: tuple[str, ...], count: int = 12) -> list[SmallQuestion]:
    """Questions about top-k sets of any class."""
    return [q for q in known_questions(count, seed, norms) if q.within == q.k and not q.keep_class]


def margin(question: SmallQuestion, method: str, **options: Any) -> co.Verdict:
    net = question.network
    return tight_margin(net, question.x, method=method, rtol=RTOL, device="cpu", **question.arguments, **options)


EXACT = [("inf", "milp"), ("inf", "bab"), ("1", "milp"), ("1", "bab"), ("2", "bab")]


@pytest.mark.parametrize(("norm", "method"), mostly_slow(EXACT, [("inf", "milp"), ("1", "bab")]))
def test_exact_margins_are_those_of_enumeration(norm, method):
    seen = 0
    for question in asked(11, (norm,)):
        answer, found = question.answer(), margin(question, method)
        assert found.margin_lower <= answer.upper + 1e-9, question.label
        if answer.lower > 0:  # below zero, enumeration's is how far a pixel falls behind the last place in the set
            assert found.margin_upper >= answer.lower - 1e-9, question.label
        net = question.network
        top = net.cam(question.x, found.asked.class_idx).flatten().sort(descending=True).values
        gap = float(top[question.k - 1] - top[question.k])
        assert found.margin_upper - found.margin_lower <= RTOL * gap + 1e-5, (question.label, found)
        seen += 1
    assert seen >= 2


COUNTED = [("inf", "milp", 24), ("inf", "auto", 24), ("1", "milp", 24), ("1", "auto", 24)]
FEWER = [("inf", "auto", 12), ("1", "milp", 14)]
OFTEN = [("inf", "auto", 8)]


@pytest.mark.parametrize(("norm", "method", "count"), mostly_slow([*OFTEN, *FEWER, *COUNTED], OFTEN))
def test_margins_of_rivals_that_are_counted_and_classes_that_are_kept_are_those_of_enumeration(norm, method, count):
    counted = kept = 0
    for question in (q for q in known_questions(count, 13, (norm,)) if q.keep_class or (q.within or 0) > q.k):
        answer, verdict = question.answer(), margin(question, method)
        assert verdict.margin_lower <= answer.upper + 1e-6, question.label
        if answer.lower > 0:
            assert verdict.margin_upper >= answer.lower - 1e-6, question.label
        gap = verdict.asked.gap
        assert verdict.margin_upper - verdict.margin_lower <= RTOL * gap + 1e-4 * gap, (question.label, verdict)
        counted, kept = counted + ((question.within or 0) > question.k), kept + question.keep_class
    assert counted >= count // 6 and kept >= count // 6


@pytest.mark.parametrize("method", mostly_slow(["milp", "bab"], ["bab"]))
def test_exact_margins_are_those_of_the_textbook_milp_below_zero_too(method):
    x, model = image(1, 8, 8), seeded(Pooled)
    net = co.from_torch(model, x)
    radius = co.radius(net, x, k=1, clip=None, class_idx=0).upper
    for eps in (0.5 * radius, 2.0 * radius):
        expected = plain_milp_margin(model, x, eps, 1, 0)
        found = tight_margin(net, x, eps=eps, k=1, method=method, class_idx=0, clip=None, rtol=RTOL)
        assert found.margin_lower - 1e-5 <= expected <= found.margin_upper + 1e-5
        assert found.margin_upper - found.margin_lower < 1e-2 * abs(expected)


def test_relaxed_margins_are_below_the_minimum_and_in_order():
    for question in asked(12, ("inf", "1", "2")):
        answer = question.answer()
        found = [margin(question, m) for m in METHODS]
        assert all(v.margin_lower <= answer.upper + 1e-9 for v in found), question.label
        assert answer.lower <= 0 or all(v.margin_upper >= answer.lower - 1e-9 for v in found), question.label
        lower = [v.margin_lower for v in found]
        slack = 1e-6 * (1 + abs(answer.upper))
        assert all(b >= a - slack for a, b in pairwise(lower)), (question.label, lower)


def test_the_verdict_is_that_of_verify_and_has_a_certificate(tmp_path):
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    r = co.radius(net, x, k=2)
    for eps, status in ((0.9 * r.lower, "certified"), (1.1 * r.upper, "falsified")):
        found = tight_margin(net, x, eps=eps, k=2)
        assert found.status == status == co.verify(net, x, eps=eps, k=2).status
        found.prove().save(tmp_path / "a.cert")
        assert co.check_certificate(tmp_path / "a.cert", seeded(Pooled)).kind == status


def test_it_stops_at_its_time_limit_with_what_it_has():
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    found = tight_margin(net, x, eps=0.05, k=2, time_limit=1e-6)
    assert found.status in ("unknown", "falsified") and "time limit" in found.reason
    assert found.margin_lower <= found.margin_upper


def test_a_bound_above_a_replayed_image_is_raised(monkeypatch):
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    honest = Margins.crown

    def lying(self, *args):
        found = honest(self, *args)
        self.lower = self.lower + 1e3
        return found

    monkeypatch.setattr(Margins, "crown", lying)
    with pytest.raises(co.BoundOrderError, match="replayed image"):
        tight_margin(net, x, eps=0.05, k=2, method="crown")


def test_at_eps_zero_it_is_the_margin_of_the_image():
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    top = net.cam(x).flatten().sort(descending=True).values
    found = tight_margin(net, x, eps=0.0, k=2)
    assert found.margin_upper == pytest.approx(float(top[1] - top[2]), rel=1e-5)
    assert found.margin_upper - found.margin_lower <= 0.01 * float(top[1] - top[2])
