"""What an answer says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from asking import about

import corgi_opt as co
from corgi_opt.problem.results import CORGI_CUT_OFF, Radius, Verdict, Witness

VERDICT = Verdict(
    asked=about(k=3),
    status="unknown",
    eps=0.01,
    margin_lower=-0.5,
    margin_upper=0.25,
    corgi_margin=-0.75,
    proof=None,
    counterexample=None,
    method="crown",
    reason="time limit",
)
RADIUS = Radius(
    asked=about(k=3, within=5),
    lower=0.01,
    upper=0.02,
    method="crown",
    corgi=0.005,
    attack=0.02,
    proof="float64",
    counterexample=None,
    reason="too weak",
)


def test_a_bound_of_corgi_that_was_finished_is_a_number():
    assert VERDICT.corgi_in_words == "-0.75" and "corgi -0.75, by crown" in repr(VERDICT)
    assert RADIUS.corgi_in_words == "0.005" and "corgi 0.005, attack 0.02" in repr(RADIUS)


def test_one_that_was_not_says_so_everywhere():
    verdict = replace(VERDICT, corgi_margin=float("nan"), stats={CORGI_CUT_OFF: 1.0})
    radius = replace(RADIUS, stats={CORGI_CUT_OFF: 1.0})
    assert radius.corgi_cut_off and not RADIUS.corgi_cut_off
    assert "corgi not finished" in repr(verdict) and "not finished" in verdict._repr_html_()
    assert "corgi >= 0.005" in repr(radius) and "&gt;= 0.005" in radius._repr_html_()


WITNESS = Witness(
    image=torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    cam=torch.rand(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    pair=(3, 1),
    margin=-1 / 3,
    distance=0.1,
    what_changed="pixel 1 passes pixel 3",
)


@pytest.mark.parametrize(
    "answer",
    [
        VERDICT,
        replace(VERDICT, status="falsified", counterexample=WITNESS, stats={"nodes": 3.0}),
        replace(VERDICT, margin_lower=-math.inf, asked=about(k=2, within=4, clip=((0.0, -1.5), (1.0, 2.5)))),
        RADIUS,
        replace(RADIUS, counterexample=WITNESS, asked=about(k=1, clip=None)),
        replace(RADIUS, upper=math.inf, attack=math.inf),
    ],
)
def test_answers_go_through_json_and_back(answer):
    said = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    back = type(answer).from_dict(said)
    assert back.asked == answer.asked and back.to_dict() == answer.to_dict() and repr(back) == repr(answer)
    if answer.counterexample is not None:
        for name in ("image", "cam"):
            assert torch.equal(getattr(back.counterexample, name), getattr(WITNESS, name))


def test_an_answer_that_was_read_says_that_it_can_prove_nothing():
    certified = replace(VERDICT, status="certified", margin_lower=0.5, proof="float64")
    for answer in (certified, RADIUS):
        with pytest.raises(co.CertificateError, match=r"read from JSON.*ask again"):
            type(answer).from_dict(answer.to_dict()).prove()
    with pytest.raises(co.CertificateError, match="the verdict is unknown"):
        VERDICT.prove()


def test_what_is_unknown_comes_back_as_unknown():
    verdict = Verdict.from_dict(replace(VERDICT, corgi_margin=math.nan, margin_lower=-math.inf).to_dict())
    assert math.isnan(verdict.corgi_margin) and verdict.margin_lower == -math.inf
    radius = Radius.from_dict(replace(RADIUS, corgi=math.nan, upper=math.inf).to_dict())
    assert math.isnan(radius.corgi) and radius.upper == math.inf


@pytest.mark.parametrize("answer", [VERDICT, RADIUS], ids=["verdict", "radius"])
def test_an_answer_names_its_question(answer):
    for text in (repr(answer), answer._repr_html_()):
        assert "k=3" in text and "class 1" in text
