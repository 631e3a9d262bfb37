"""Robust classification as a property: the same answers as enumeration's, by every method, proven by the checker."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
import torch
from enumeration import Answer, exact_class_margin
from nets import Plain, Pooled, Small, image, seeded
from patience import mostly_slow
from small_questions import known_questions
from torch import nn

import corgi_opt as co
from corgi_opt.answering.plain import plain_network
from corgi_opt.data import digits
from corgi_opt.errors import ProofError
from corgi_opt.problem.asked import Asked
from corgi_opt.proof.certificate import Certificate
from corgi_opt.proof.checker import check
from corgi_opt.proof.statement import Statement

EACH = 10
"""Networks of one seed."""

KEPT = co.KeepsClass()


@dataclass(frozen=True, eq=False)
class Case:
    model: Small
    x: torch.Tensor
    about: dict[str, Any]
    eps: float
    label: str

    @cached_property
    def net(self) -> co.CamNetwork:
        return co.from_torch(self.model, self.x)

    def answer(self) -> Answer:
        return exact_class_margin(self.model, self.x, eps=self.eps, **self.about)


@cache
def cases(seed: int, norms: tuple[str, ...] = ("inf", "1", "2")) -> tuple[Case, ...]:
    return tuple(_cases(seed, norms))


def _cases(seed: int, norms: tuple[str, ...]) -> Iterator[Case]:
    """Tiny networks whose image is near to another class, which some regions hold and some do not."""
    rng = np.random.default_rng(seed)
    near = (question for question in known_questions(1000, 500 + seed, norms) if question.keep_class)
    for question in itertools.islice(near, EACH):
        about = {"norm": question.norm, "clip": question.clip}
        eps = question.eps * float(rng.choice([0.1, 0.3, 0.6, 1.0]))
        yield Case(question.model, question.x, about, eps, question.label)


def verdict_of(case: Case, method: str, **more: Any) -> co.Verdict:
    return co.verify(case.net, case.x, eps=case.eps, property=KEPT, method=method, **case.about, **more)


def check_against(answer: Answer, verdict: co.Verdict, label: str, *, exact: bool) -> None:
    assert verdict.status != "certified" or answer.lower > 0, label
    assert verdict.status != "falsified" or answer.upper <= 1e-9, label
    assert verdict.margin_lower <= answer.upper + 1e-9 and verdict.margin_upper >= answer.lower - 1e-9, label
    if exact and abs(answer.upper) > 1e-5:
        assert verdict.status == ("certified" if answer.stable else "falsified"), (label, verdict)


@pytest.mark.parametrize("seed", mostly_slow(range(22), [1]))
def test_exact_answers_are_those_of_enumeration(seed):
    """22 x EACH networks, each by branch and bound, and by a MILP where its region is a polytope."""
    for case in cases(seed):
        answer = case.answer()
        for method in ("bab", "milp") if case.about["norm"] != "2" else ("bab",):
            check_against(answer, verdict_of(case, method), case.label, exact=True)


def test_some_classes_are_kept_and_some_are_not():
    stable = [case.answer().stable for seed in (0, 1) for case in cases(seed)]
    assert min(stable.count(True), stable.count(False)) >= 5


@pytest.mark.parametrize(
    "method", mostly_slow(["ibp", "corgi", "crown", "dual", "lp", "auto"], ["corgi", "dual", "auto"])
)
def test_no_method_says_more_than_is_true(method):
    for case in cases(0):
        check_against(case.answer(), verdict_of(case, method), case.label, exact=method == "auto")


def test_what_is_decided_is_proven():
    """Every certificate passes the checker, in floats and in fractions, and says what it is about."""
    kinds = []
    for case in cases(1):
        verdict = verdict_of(case, "bab", proof="checked")
        if verdict.status == "unknown":
            continue
        assert verdict.proof == "checked", (case.label, verdict)
        network, kept = plain_network(case.net), Certificate.from_bytes(verdict.certificate.to_bytes())
        found, exact = check(kept, network), check(kept, network, exact=True)
        assert found.said == {"name": "KeepsClass", "class_idx": verdict.asked.class_idx}
        assert found.kind == exact.kind == verdict.status
        assert exact.margin == pytest.approx(found.margin, rel=1e-9, abs=1e-9)
        assert found.margin <= case.answer().upper + 1e-12 or found.kind == "falsified"
        kinds.append(found.kind)
    assert set(kinds) == {"certified", "falsified"}


def certified() -> tuple[Case, Certificate]:
    for case in cases(1):
        verdict = verdict_of(case, "bab", proof="checked")
        if verdict.status == "certified":
            return case, verdict.certificate
    raise AssertionError("no class is kept")


def test_a_certificate_of_another_bias_class_or_region_is_refused():
    case, certificate = certified()
    network, claim = plain_network(case.net), certificate.claim
    bias = network.bias.copy()
    bias[0] = np.nextafter(bias[0], np.inf)
    statement = claim.says
    assert isinstance(statement, Statement)
    for wrong, there in (
        (certificate, replace(network, bias=bias)),
        (replace(certificate, claim=replace(claim, sha256=network.sha256)), network),
        (replace(certificate, claim=replace(claim, says=replace(statement, heads=-statement.heads))), network),
        (replace(certificate, claim=replace(claim, region=replace(claim.region, eps=10 * claim.region.eps))), network),
    ):
        with pytest.raises(ProofError):
            check(wrong, there)
    assert check(certificate, network).kind == "certified"


def test_radius_compare_attack_and_margins_speak_of_classes():
    case = next(case for case in cases(1, ("inf",)) if case.answer().stable is False)
    net, x = case.net, case.x
    about = {"clip": case.about["clip"]}
    r = co.radius(net, x, property="KeepsClass", rtol=0.005, **about)
    assert r.asked.property == KEPT and r.ratio <= 1.005 and r.upper <= case.eps
    assert "class kept" in repr(r) and "class kept" in r._repr_html_()
    assert r.counterexample is not None and "class" in r.counterexample.what_changed
    logits = net.model_logits(r.counterexample.image)
    assert int(net.model_logits(x).argmax()) == r.asked.class_idx and r.counterexample.pair[0] == r.asked.class_idx
    assert float(logits[r.asked.class_idx]) <= float(logits.max())
    found = co.compare(net, x, property=KEPT, methods=["corgi", "crown", "bab"], rtol=0.005, **about)
    radii = found.radii
    assert radii["corgi"].lower <= radii["crown"].lower <= radii["bab"].lower <= found.only.attack
    assert radii["bab"].lower == pytest.approx(r.lower, rel=0.01)
    margins = co.compare(net, x, property=KEPT, eps=0.5 * r.lower, methods=["crown", "bab"], **about)
    assert 0 < margins.only.lower("crown") <= margins.only.lower("bab") <= margins.only.attack
    assert co.attack(net, x, eps=1.5 * r.upper, property=KEPT, **about) is not None
    assert co.attack(net, x, eps=0.9 * r.lower, property=KEPT, **about) is None
    assert "KeepsClass" in json.dumps(r.asked.to_dict()) and Asked.from_dict(r.asked.to_dict()) == r.asked
    r.plot()


def test_an_answer_knows_the_bias_of_its_network():
    (case, *_) = cases(0)
    before = verdict_of(case, "crown").asked
    biased = copy.deepcopy(case.model)
    with torch.no_grad():
        biased.head.bias.add_(1e-3)
    after = verdict_of(replace(case, model=biased), "crown").asked
    assert before.network != after.network and before.property == after.property
    assert before.network == plain_network(case.net).sha256_of_logits


def test_one_score_keeps_its_sign():
    class One(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(self.head.in_features, 1)

    x = image(1, 6, 6, seed=3)
    model = seeded(One, 4)
    net = co.from_torch(model, x)
    positive = float(net.model_logits(x)) > 0
    r = co.radius(net, x, property=KEPT, clip=None)
    assert r.counterexample is not None and r.ratio <= 1.01
    assert (float(net.model_logits(r.counterexample.image)) > 0) != positive or r.counterexample.margin == 0


def test_a_class_that_is_not_ahead_has_nothing_to_keep():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    other = int(net.model_logits(x).argmin())
    with pytest.raises(co.TieError, match=r"class_idx=None"):
        co.verify(net, x, eps=0.01, property=KEPT, class_idx=other)
    nothing = co.radius(net, x, property=KEPT, class_idx=other)
    assert (nothing.lower, nothing.upper) == (0.0, 0.0) and "no class to keep" in nothing.reason
    assert co.verify(net, x, eps=1e-6, property=KEPT).status == "certified"  # as the message says


@pytest.mark.slow
def test_radii_of_robust_classification_on_digits():
    """The first 20 test images: brackets close to 1 %, or say that time was over."""
    data, _ = digits.load_digits()
    net = co.from_torch(digits.digits_model(), data[:1])
    closed = 0
    for index in digits.digits_split()[1][:20]:
        r = co.radius(net, data[index][None], property=KEPT, time_limit=300)
        assert r.corgi <= r.lower <= r.upper <= r.attack
        closed += r.ratio <= 1.01
    assert closed >= 15
