"""What an answer says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corgi_opt.problem.results import CORGI_CUT_OFF, Radius, Verdict

VERDICT = Verdict(
    status="unknown",
    eps=0.01,
    k=3,
    within=3,
    class_idx=1,
    margin_lower=-0.5,
    margin_upper=0.25,
    corgi_margin=-0.75,
    proof=None,
    counterexample=None,
    method="crown",
    reason="time limit",
)
RADIUS = Radius(
    lower=0.01,
    upper=0.02,
    k=3,
    within=5,
    class_idx=1,
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


@pytest.mark.parametrize("answer", [VERDICT, RADIUS], ids=["verdict", "radius"])
def test_an_answer_names_its_question(answer):
    for text in (repr(answer), answer._repr_html_()):
        assert "k=3" in text and "class 1" in text
