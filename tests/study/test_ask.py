"""Questions of a plan: every list spreads, defaults are filled in, and what no question could mean is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import corgi_opt as co
from corgi_opt.study.ask import Ask, Grid


def test_lists_spread_to_all_combinations():
    grid = Grid.of({"k": [1, 2], "method": ["crown", "bab"], "eps": [0.1, 0.2], "norm": "2"}, "q")
    assert len(grid.asks) == 8 == len(set(grid.asks))
    assert {(a.k, a.method, a.eps) for a in grid.asks} == {
        (k, m, e) for k in (1, 2) for m in ("crown", "bab") for e in (0.1, 0.2)
    }
    assert {a.kind for a in grid.asks} == {"verify"} and {a.norm for a in grid.asks} == {"2"}
    (radius,) = Grid.of({"k": 3, "method": "lp"}, "q").asks
    assert radius == Ask("radius", 3, "lp") and radius.clip == (0.0, 1.0)


def test_eps_may_be_fractions_and_norms_spelt_as_people_do():
    """The questions, and so the keys of their cells, are those of the numbers."""
    said = Grid.of({"k": 3, "method": "bab", "eps": ["1/255", "2/255", 0.5], "norm": ["Linf", "l2"]}, "q")
    meant = Grid.of({"k": 3, "method": "bab", "eps": [1 / 255, 2 / 255, 0.5], "norm": ["inf", "2"]}, "q")
    assert said == meant and len(said.asks) == 6


def test_a_k2_below_its_k1_is_no_question():
    grid = Grid.of({"k": [2, 4], "within": [2, 3, 5], "method": "bab"}, "q")
    assert {(a.k, a.within) for a in grid.asks} == {(2, None), (2, 3), (2, 5), (4, 5)}


def test_a_question_survives_json_and_says_only_what_matters():
    ask = Ask("margin", 3, "bab", eps=0.1, clip=None, seed=4, rtol=0.1)
    assert Ask.from_plain(json.loads(json.dumps(ask.plain()))) == ask
    assert Ask("verify", 3, "bab", eps=0.1, rtol=0.1).plain() == Ask("verify", 3, "bab", eps=0.1).plain()
    assert Ask("radius", 3, "bab", rtol=0.1).plain() != Ask("radius", 3, "bab").plain()
    assert Ask("radius", 3, "bab", within=3) == Ask("radius", 3, "bab")
    for field in dataclasses.fields(Ask):
        assert field.name in ask.plain() or field.name == "property"  # a top-k set is said by k and within
    for same in (co.TopK(3), {"name": "TopK", "k": 3}):
        assert Ask("margin", None, "bab", eps=0.1, clip=None, seed=4, rtol=0.1, property=same) == ask
    kept = Ask("radius", None, "bab", property="KeepsClass")
    assert (
        Ask.from_plain(json.loads(json.dumps(kept.plain()))) == kept
        and kept.plain()["property"]["name"] == "KeepsClass"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "bab"}, "no 'k'"),
        ({"k": 1}, "no 'method'"),
        ({"k": 1, "method": "bab", "radius": 2}, "unknown key 'radius'"),
        ({"k": 1, "method": "simplex"}, "unknown method"),
        ({"k": [], "method": "bab"}, "empty list"),
        ({"k": 0, "method": "bab"}, "k must be"),
        ({"k": 1, "method": "milp", "norm": "2"}, "'milp' answers norm"),
        ({"k": 1, "method": "bab", "kind": "radius", "eps": 0.1}, "no eps"),
        ({"k": 1, "method": "bab", "kind": "margin"}, "takes an eps"),
        ({"k": 1, "method": "bab", "kind": "guess"}, "kind must be"),
        ({"k": 1, "method": "bab", "clip": [1, 0]}, "low < high"),
        ({"k": 1, "method": "bab", "clip": "some"}, "clip"),
        ({"k": 1, "method": "bab", "eps": -0.1}, ">= 0"),
        ({"k": 1, "method": "bab", "eps": "1/0"}, "eps must be a number or a fraction such as '1/255', got '1/0'"),
        ({"k": 1, "method": "bab", "eps": ["small"]}, "got 'small'"),
        ({"k": 1, "method": "bab", "time_limit": 0}, "time_limit"),
        ({"k": 1, "method": "lp", "solver": "abacus"}, "abacus"),
        ({"k": 1, "method": "bab", "models": 3}, "models must be"),
        ({"k": 1, "method": "bab", "rtol": 2}, "rtol"),
    ],
)
def test_what_no_question_could_mean_is_refused_with_its_place(entry, message):
    with pytest.raises(co.InputError, match=message) as refused:
        Grid.of(entry, "questions 7")
    assert str(refused.value).startswith("questions 7")


CHANNELS = ((-2.0, 0.1, 0.25), (2.0, 1.0, 0.75))


@pytest.mark.parametrize(
    "said",
    [
        [list(CHANNELS[0]), list(CHANNELS[1])],
        [[-2, 2], [0.1, 1], [0.25, 0.75]],
        "-2,2;0.1,1;0.25,0.75",
        (torch.tensor(CHANNELS[0], dtype=torch.float64).view(1, 3, 1, 1), np.array(CHANNELS[1])),
    ],
)
def test_a_box_of_its_own_for_every_channel_is_one_question_however_it_is_said(said):
    (ask,) = Grid.of({"k": 1, "method": "bab", "clip": said}, "q").asks
    assert ask == Ask("radius", 1, "bab", clip=CHANNELS) and hash(ask) == hash(Ask("radius", 1, "bab", clip=CHANNELS))
    assert ask.plain()["clip"] == [list(end) for end in CHANNELS]
    assert Ask.from_plain(json.loads(json.dumps(ask.plain()))) == ask


def test_a_box_of_numbers_has_the_key_it_always_had():
    assert Ask("radius", 1, "bab", clip=(0, 1)).plain()["clip"] == [0.0, 1.0]
    written: Any = [np.float32(0), 1]
    assert Ask("radius", 1, "bab", clip=written).plain() == Ask("radius", 1, "bab").plain()


@pytest.mark.parametrize("clip", [[[0, 0], [1, 0]], [[0, 0, 0], [1, 1]], "0,1;2", [0, 1, 2], {"low": 0}])
def test_no_box_is_refused_with_its_place(clip):
    with pytest.raises(co.InputError, match=r"^questions 2: .*clip must be"):
        Grid.of({"k": 1, "method": "bab", "clip": clip}, "questions 2")


def test_a_heat_map_is_about_a_plain_top_k_set_by_a_method_that_draws_one():
    ask = Ask(kind="heat_map", k=3, method="dual", eps=0.01)
    assert Ask.from_plain(ask.plain()) == ask
    for wrong, message in (
        ({"method": "bab"}, "drawn by ibp, corgi, crown, dual"),
        ({"within": 5}, "neither within nor property"),
        ({"k": None, "property": "KeepsClass"}, "neither within nor property"),
        ({"keep_class": True}, "no keep_class"),
        ({"eps": None}, "takes an eps"),
    ):
        with pytest.raises(co.InputError, match=message):
            replace(ask, **wrong)


def test_what_is_asked_is_the_same_however_it_is_answered():
    ask = Ask(kind="radius", k=3, method="crown")
    assert ask.asked() == replace(ask, method="bab", rtol=0.1, time_limit=1.0, solver="highs").asked()
    for other in ({"k": 4}, {"norm": "2"}, {"clip": None}, {"class_idx": 1}, {"seed": 1}, {"keep_class": True}):
        assert replace(ask, **other).asked() != ask.asked()
