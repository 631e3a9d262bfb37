"""A violated order of methods never goes unsaid: how many answers, below which, by how much, and the tolerance."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from corgi_opt.study.order import SAME, order_in_words, with_weaker

QUESTION = {**dict.fromkeys(SAME, "same"), "question": "q", "rtol": 0.01, "seed": 0}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{**QUESTION, **row} for row in rows])


def said(made: pd.DataFrame, method: str) -> str:
    judged = with_weaker(made)
    return order_in_words(judged[judged["method"] == method])


def test_an_order_that_is_kept_has_no_word():
    kept = frame({"method": "bab", "lower": 0.3}, {"method": "crown", "lower": 0.3}, {"method": "corgi", "lower": 0.1})
    assert [said(kept, m) for m in ("corgi", "crown", "bab")] == ["", "", ""]


def test_what_is_below_a_weaker_method_says_by_how_much_and_the_tolerance():
    made = frame({"method": "bab", "lower": 0.0995}, {"method": "crown", "lower": 0.1}, {"method": "lp", "lower": 0.2})
    assert said(made, "bab") == "1 of 1 below lp by up to 0.5 of it (both ±rtol=0.01; more than rtol: its search " + (
        "ended early, or was another one's)"
    )
    close = frame({"method": "bab", "lower": 0.0995}, {"method": "crown", "lower": 0.1})
    assert said(close, "bab") == "1 of 1 below crown by up to 0.005 of it (both ±rtol=0.01)"
    assert said(close, "crown") == ""


def test_only_answers_to_the_same_question_are_compared():
    apart = frame({"method": "bab", "lower": 0.1, "question": "r"}, {"method": "crown", "lower": 0.2})
    assert said(apart, "bab") == ""
    # stores of before have no question: all that was asked has to be the same
    old = apart.assign(question=None)
    assert said(old, "bab").startswith("1 of 1 below crown")
    assert said(old.assign(k=[1, 2]), "bab") == ""


def test_cells_of_one_method_are_in_no_order_and_nothing_proven_is_below_nothing():
    same = frame({"method": "bab", "lower": 0.1, "rtol": 0.1}, {"method": "bab", "lower": 0.2})
    assert said(same, "bab") == ""
    nothing = frame({"method": "crown", "lower": math.nan}, {"method": "bab", "lower": 0.1})
    assert said(nothing, "bab") == "" and with_weaker(frame().reindex(columns=[*QUESTION, "method", "lower"])).empty
