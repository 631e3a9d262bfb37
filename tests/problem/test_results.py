"""What an answer says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import matplotlib as mpl
import pytest
import torch
from asking import about

import corgi_opt as co
from corgi_opt.drawing.charts import CERTIFIED, OPEN
from corgi_opt.problem.original import Original
from corgi_opt.problem.results import CORGI_CUT_OFF, Radius, Verdict
from corgi_opt.problem.witness import Witness

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import colors
from matplotlib import pyplot as plt

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


# --- neither true nor false ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["certified", "falsified", "unknown"])
def test_a_verdict_is_one_of_three_and_has_no_truth_value(status):
    verdict = replace(VERDICT, status=status)
    assert [verdict.certified, verdict.falsified, verdict.unknown] == [
        status == one for one in ("certified", "falsified", "unknown")
    ]
    with pytest.raises(TypeError, match=r"use verdict\.certified, verdict\.falsified or verdict\.status"):
        bool(verdict)


def test_a_radius_has_no_truth_value_either():
    with pytest.raises(TypeError, match=r"radius\.lower > 0") as told:
        _ = "stable" if RADIUS else "broken"
    assert "radius.counterexample is not None" in str(told.value)
    assert RADIUS.lower > 0 and RADIUS.counterexample is None  # as the message says


# --- what a notebook shows -----------------------------------------------------------------------------------

ORIGINAL = Original(
    image=torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    cam=torch.rand(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    class_idx=1,
    class_name=None,
    outlined=(1, 1),
    norm="inf",
    clip=(0.0, 1.0),
)
BROKEN = replace(WITNESS, image=ORIGINAL.image + 0.01, original=ORIGINAL)
both = pytest.mark.parametrize("answer", [VERDICT, RADIUS], ids=["verdict", "radius"])


@both
def test_a_table_says_where_how_and_how_long(answer):
    timed = replace(answer, stats={"seconds_crown": 1.25, "seconds_attack": 0.5, "nodes": 7.0}, reason="a <reason>")
    assert timed.seconds == 1.75
    page = timed._repr_html_()
    for words in ("L-inf", ">[0, 1]<", ">1.75<", ">crown<", "a &lt;reason&gt;"):
        assert words in page
    for row in ("norm", "clip", "proof", "method", "seconds", "reason"):
        assert f">{row}</th>" in page
    assert ">seconds</th>" not in answer._repr_html_()  # nobody took the time


@both
def test_the_picture_is_small_and_left_out_where_the_image_is_not_known(answer):
    assert "<img" not in answer._repr_html_()
    page = replace(answer, original=ORIGINAL)._repr_html_()
    assert page.count('<img src="data:image/png;base64,') == 1 and len(page) < 60_000
    broken = replace(answer, original=ORIGINAL, counterexample=BROKEN)._repr_html_()
    assert "the difference to the counterexample" in broken and len(broken) < 60_000
    no_map = replace(ORIGINAL, cam=torch.zeros(0, 0))
    assert "<img" not in replace(answer, original=no_map)._repr_html_()  # and no error


@both
def test_the_original_stands_in_json_once_and_older_json_is_read(answer):
    whole = replace(answer, original=ORIGINAL, counterexample=BROKEN)
    said = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert said["counterexample"]["original"] is None
    back = type(answer).from_dict(said)
    assert back.counterexample is not None and back.counterexample.original is back.original is not None
    assert torch.equal(back.counterexample.center, ORIGINAL.image) and back.to_dict() == whole.to_dict()
    del said["original"], said["counterexample"]["original"], said["asked"]["class_name"], said["asked"]["kept_name"]
    old = type(answer).from_dict(said)
    assert old.original is None and old.counterexample is not None and old.counterexample.center is None
    assert repr(old) == repr(answer)


# --- what a plot of a verdict says ---------------------------------------------------------------------------


def rows(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def test_an_attack_has_no_bound_of_its_own():
    """What is proven when PGD has broken the property is CORGI's bound, and its bar says so."""
    broken = replace(VERDICT, status="falsified", margin_upper=-0.25, counterexample=WITNESS, method="attack")
    assert rows(replace(broken, margin_lower=-0.75).plot()) == ["corgi: ≥ -0.75"]
    assert rows(broken.plot()) == ["corgi: ≥ -0.75", "all bounds: ≥ -0.5"]
    plt.close("all")


def test_a_tiny_certified_margin_looks_certified():
    verdict = replace(VERDICT, status="certified", margin_lower=1e-6, method="bab", reason="every pair keeps its order")
    ax = verdict.plot()
    assert ax.get_xlabel().replace("\n", " ").endswith("in units of the CAM")
    assert rows(ax) == ["corgi: ≥ -0.75", "bab: ≥ 1e-06"] and ax.get_title().startswith("certified: ")
    assert [colors.to_hex(bar.get_facecolor()) for bar in ax.patches] == [OPEN, CERTIFIED]
    plt.close("all")
