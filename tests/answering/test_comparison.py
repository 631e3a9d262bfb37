"""Comparisons: several images, k and eps; margins whose bounds are as sharp as their methods; tables and pictures."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from asking import about
from nets import Pooled, image, seeded

import corgi_opt as co
from corgi_opt.answering.comparison import added_briefly, added_in_words

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

K = 4


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def network():
    return co.from_torch(seeded(Pooled), image(1, 8, 8))


def radius(method: str, lower: float, upper: float) -> co.Radius:
    return co.Radius(about(K), lower, upper, method, lower, upper, None, None, "")


def comparison(upper: float, clip: tuple[float, float] | None = (0.0, 1.0), **lower: float) -> co.Comparison:
    question = co.Compared(0, about(K, clip=clip), None, {m: radius(m, r, upper) for m, r in lower.items()}, {})
    return co.Comparison((question,), 0.01)


def texts(ax) -> list[str]:
    return [t.get_text().strip() for t in ax.texts]


def test_bars_are_as_long_as_the_certified_eps_and_the_line_is_where_it_breaks():
    ax = comparison(0.04, corgi=0.008, milp=0.039).plot()
    assert [bar.get_width() for bar in ax.patches] == [0.008, 0.039]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["corgi", "milp"]
    assert ax.yaxis_inverted()  # the weakest on top
    (line,) = ax.lines
    assert line.get_xdata() == [0.04, 0.04]
    assert texts(ax) == ["0.008", "0.039"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["certified eps", "counterexample at 0.04"]
    assert "clip box [0, 1]" in ax.get_xlabel()
    assert "top-4" in ax.get_title() and "class 1" in ax.get_title()


def test_no_counterexample_means_no_line():
    ax = comparison(float("inf"), clip=None, corgi=0.1).plot()
    assert len(ax.lines) == 0
    assert texts(ax) == ["0.1"]
    assert "no clip box" in ax.get_xlabel()


def test_radii_of_zero_can_be_drawn():
    ax = comparison(float("inf"), corgi=0.0, milp=0.0).plot()
    assert ax.get_xlim()[1] > 0


def test_a_given_axes_is_drawn_on():
    _, (left, right) = plt.subplots(1, 2)
    assert comparison(0.04, corgi=0.01).plot(right) is right
    assert comparison(0.04, corgi=0.01).plot(left) is left


def test_the_numbers_are_inside_the_figure():
    figure = comparison(0.04, ibp=0.0001, corgi=0.008, milp=0.03999).plot().figure
    figure.canvas.draw()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_several_questions_are_one_table_indexed_by_what_varies(network):
    x = torch.cat([image(1, 8, 8, seed=s) for s in range(2)])
    c = co.compare(network, x, k=[1, 2], methods=["corgi", "crown"], rtol=0.1)
    frame = c.to_frame()
    assert frame.index.names == ["image", "k", "method"]
    assert len(c.questions) == 4 and len(frame) == 8
    for q in c.questions:
        k = q.asked.property.to_dict()["k"]
        alone = co.compare(network, x[q.image : q.image + 1], k=k, methods=["corgi", "crown"], rtol=0.1)
        assert {n: r.lower for n, r in alone.radii.items()} == {n: q.lower(n) for n in q.answers}
        assert frame.loc[(q.image, k, "crown"), "certified_eps"] == q.lower("crown")
    assert co.compare(network, x[:1], k=1, methods=["crown"], rtol=0.1).to_frame().index.names == ["method"]
    with pytest.raises(co.InputError, match="4 questions"):
        _ = c.only
    assert repr(c).count("\n") == 4 and "image 1, k=2" in repr(c)
    assert c._repr_html_().count("<tr>") == 8 + 1


def test_margins_at_fixed_eps_are_as_sharp_as_their_method(network):
    x = image(1, 8, 8)
    eps = co.radius(network, x, k=2).lower
    c = co.compare(network, x, k=2, eps=[0.5 * eps, 1.5 * eps], methods=["bab", "corgi", "crown"], rtol=0.001)
    assert all(set(q.seconds) == {"attack", "corgi", "crown", "bab"} for q in c.questions)
    assert (c.to_frame()["seconds"] >= 0).all()  # nan is not
    assert [q.eps for q in c.questions] == [0.5 * eps, 1.5 * eps]
    for q, status in zip(c.questions, ("certified", "falsified"), strict=True):
        assert list(q.answers) == ["corgi", "crown", "bab"]
        assert q.lower("corgi") <= q.lower("crown") <= q.lower("bab") <= q.attack
        answer = q.answers["bab"]
        assert isinstance(answer, co.Verdict) and answer.status == status
        assert answer.margin_upper == q.attack
    frame = c.to_frame()
    assert frame.index.names == ["eps", "method"] and list(frame.columns)[:3] == [
        "status",
        "margin_lower",
        "margin_upper",
    ]
    with pytest.raises(co.InputError, match="margins"):
        _ = co.compare(network, x, k=2, eps=eps, methods=["crown"]).radii


def test_comparisons_go_through_json_and_back(network):
    x = image(1, 8, 8)
    radii = co.compare(network, x, k=[1, 2], methods=["corgi", "crown"], rtol=0.1)
    margins = co.compare(network, x, k=2, eps=[0.001, 0.5], methods=["corgi", "crown"])
    for found in (radii, margins):
        back = co.Comparison.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
        assert back.to_dict() == found.to_dict() and repr(back) == repr(found)
        assert [q.asked for q in back.questions] == [q.asked for q in found.questions]
    assert {q.asked.property for q in radii.questions} == {co.TopK(1), co.TopK(2)}


def test_json_holds_the_image_of_a_question_once(network):
    found = co.compare(network, image(1, 8, 8), k=2, methods=["corgi", "crown"], rtol=0.1)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert text.count(json.dumps(image(1, 8, 8).double().tolist())) == 1
    (back,) = co.Comparison.from_dict(json.loads(text)).questions
    for answer in back.answers.values():
        assert answer.original is not None and answer.original.image.equal(image(1, 8, 8).double())
        assert answer.counterexample is not None and answer.counterexample.original is answer.original


def test_a_comparison_that_was_written_with_an_image_in_every_answer_is_read(network):
    found = co.compare(network, image(1, 8, 8), k=2, methods=["corgi", "crown"], rtol=0.1).only
    old = {**found.to_dict(), "answers": {name: answer.to_dict() for name, answer in found.answers.items()}}
    del old["original"]
    back = co.Compared.from_dict(json.loads(json.dumps(old, allow_nan=False)))
    kept = back.answers["corgi"].original
    assert kept is not None and kept.image.equal(image(1, 8, 8).double())


def test_ctrl_c_between_two_questions_keeps_those_that_are_done(network, monkeypatch):
    x = image(1, 8, 8)
    module = sys.modules["corgi_opt.answering.comparison"]
    search, made = module.RadiusSearch, []

    def second_stops(*given):
        made.append(1)
        if len(made) > done:
            raise KeyboardInterrupt
        return search(*given)

    monkeypatch.setattr(module, "RadiusSearch", second_stops)
    done = 1
    with pytest.raises(co.Interrupted) as stop:
        co.compare(network, x, k=[1, 2, 3], methods=["corgi", "crown"], rtol=0.1)
    assert isinstance(stop.value.partial, co.Comparison)
    (kept,) = stop.value.partial.questions
    assert kept.asked.property == co.TopK(1) and list(kept.answers) == ["corgi", "crown"]
    done = 0
    with pytest.raises(KeyboardInterrupt) as nothing:
        co.compare(network, x, k=[1, 2], methods=["corgi"], rtol=0.1)
    assert not isinstance(nothing.value, co.Interrupted)


def test_one_tied_image_of_several_is_answered(network):
    tied = torch.zeros(1, 1, 8, 8)
    x = torch.cat([image(1, 8, 8), tied])
    with pytest.raises(co.TieError):
        co.compare(network, tied, k=2, methods=["corgi"])
    c = co.compare(network, x, k=2, methods=["corgi"], rtol=0.1)
    assert c.questions[0].lower("corgi") > 0
    radius = c.questions[1].answers["corgi"]
    assert isinstance(radius, co.Radius) and radius.upper == 0 and "differ by" in radius.reason
    margins = co.compare(network, x, k=2, eps=0.001, methods=["corgi"])
    verdict = margins.questions[1].answers["corgi"]
    assert isinstance(verdict, co.Verdict) and verdict.status == "unknown"
    assert margins.questions[1].lower("corgi") == -math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": []}, "got none"),
        ({"k": []}, "got none"),
        ({"eps": -1.0}, ">= 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(network, options, message):
    with pytest.raises(co.InputError, match=message):
        co.compare(network, image(1, 8, 8), **{"k": 2, **options})


def test_a_ladder_of_margins_says_its_numbers_beside_the_names(network):
    x = image(1, 8, 8)
    eps = co.radius(network, x, k=2).lower
    c = co.compare(network, x, k=2, eps=3 * eps, methods=["corgi", "bab"])
    ax = c.plot()
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == [f"{m}: ≥ {c.only.lower(m):.4g}" for m in ("corgi", "bab")]
    assert [bar.get_x() for bar in ax.patches] == [c.only.lower(m) for m in ("corgi", "bab")]
    assert [c.only.attack] * 2 in [list(line.get_xdata()) for line in ax.lines]
    assert "margin at eps" in ax.get_xlabel() and ax.get_xlabel().endswith("in units of the CAM")


def test_what_has_no_share_is_no_share_of_zero(network):
    """A question without a counterexample is certified as far as anybody looked, and not loose."""
    c = co.compare(network, image(1, 8, 8), k=2, methods=["corgi"], rtol=0.1)
    radius = c.only.answers["corgi"]
    assert isinstance(radius, co.Radius)
    unbroken = replace(radius, upper=math.inf, counterexample=None)
    other = replace(c.only, image=1, answers={"corgi": unbroken})
    ax = co.Comparison((c.only, other), c.rtol).plot()
    (dots,) = (line for line in ax.lines if line.get_marker() == ".")
    assert list(dots.get_xdata()) == [pytest.approx(c.only.lower("corgi") / c.only.attack)]
    assert "2 questions, 1 of them shown" in ax.get_title().replace("\n", " ")
    plt.close("all")


def test_broken_questions_have_no_share_of_their_margin_and_the_title_says_so(network):
    c = co.compare(network, image(1, 8, 8), k=2, eps=[0.5, 0.6], methods=["corgi"])
    assert all(q.attack < 0 for q in c.questions)
    title = c.plot().get_title().replace("\n", " ")
    assert "2 questions, 0 of them shown (the others are broken or were not answered)" in title
    plt.close("all")


def test_several_questions_are_drawn_as_shares_of_the_attack(network):
    x = torch.cat([image(1, 8, 8, seed=s) for s in range(3)])
    c = co.compare(network, x, k=2, methods=["corgi", "crown"], rtol=0.1)
    ax = c.plot()
    dots = [line for line in ax.lines if line.get_marker() == "."]
    for line, method in zip(dots, ("corgi", "crown"), strict=True):
        assert sorted(line.get_xdata()) == pytest.approx(sorted(q.lower(method) / q.attack for q in c.questions))
    assert "3 questions" in ax.get_title()
    medians = [t.get_text() for t in ax.texts if t.get_text() != "median"]
    assert medians == [f"{np.median([q.lower(m) / q.attack for q in c.questions]):.3f}" for m in ("corgi", "crown")]


def test_verdicts_and_radii_show_themselves(network):
    x = image(1, 8, 8)
    r = co.radius(network, x, k=2)
    v = co.verify(network, x, eps=0.5 * r.lower, k=2)
    assert f"{r.lower:.6g}" in r._repr_html_() and "broken at" in r._repr_html_()
    assert "certified" in v._repr_html_() and "every pair keeps its order" in v._repr_html_()
    ax = r.plot()
    assert [bar.get_width() for bar in ax.patches] == [r.corgi, r.lower]
    assert ax.lines[0].get_xdata() == [r.upper] * 2
    ax = v.plot()
    drawn = [list(line.get_xdata()) for line in ax.lines]
    assert [v.margin_upper] * 2 in drawn and [v.margin_lower] * 2 in drawn and "certified" in ax.get_title()


def test_times_below_a_hundredth_are_said_to_be_shared(network):
    c = co.compare(network, image(1, 8, 8), k=2, methods=["corgi", "crown"], rtol=0.1)
    q = co.Compared(0, c.only.asked, None, c.only.answers, {"corgi": 0.123456, "crown": 2e-5})
    short = co.Comparison((q,), 0.1)
    assert short.to_frame()["seconds"].tolist() == [0.12, 0.0]
    page = short._repr_html_()
    assert ">0.12<" in page and "shared with the method before" in page and "2e-05" not in page
    assert (added_in_words(None), added_briefly(2e-5), added_briefly(1.5)) == ("-", "shared", "1.50")


def test_of_several_questions_each_has_a_cell_and_each_method_another(network):
    c = co.compare(network, image(1, 8, 8), k=[1, 2], methods=["corgi", "crown"], rtol=0.1)
    page = c._repr_html_()
    for words in ("methods compared: 2 questions, norm L-inf, clip [0, 1]", "<th>image 0, k=1, class ", ">crown<"):
        assert words in page
    assert page.count("clip") == 1


def test_a_comparison_shows_question_proof_time_and_reason(network):
    c = co.compare(network, image(1, 8, 8), k=2, methods=["corgi", "crown"], rtol=0.1)
    page = c._repr_html_()
    for words in ("k=2, class", "norm L-inf, clip [0, 1]", ">proof<", ">float64<", ">seconds<", ">reason<"):
        assert words in page
    assert all(f"<th>{method}</th>" in page for method in ("corgi", "crown"))
    margins = co.compare(network, image(1, 8, 8), k=2, eps=0.001, methods=["corgi"])
    assert "eps=0.001" in margins._repr_html_() and ">status<" in margins._repr_html_()
