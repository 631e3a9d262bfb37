"""Each figure from a table made by hand: its lines hold the table's numbers, and what is not there is not drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from corgi_opt.study.figures import FIGURES, all_figures

LOWER = {"corgi": 0.4, "crown": 0.8, "bab": 1.0}
TRUTH = {(image, k): 0.01 * (1 + image) / k for image in range(5) for k in (1, 2)}


def table(**changes: object) -> pd.DataFrame:
    """Radii of five images, two k and three methods: each certifies its share of the truth."""
    rows = [
        {
            "kind": "radius",
            "state": "done",
            "status": "closed" if method == "bab" else "open",
            "method": method,
            "model": "net",
            "model_sha256": "m",
            "image_sha256": f"i{image}",
            "class_idx": 3,
            "keep_class": False,
            "norm": "inf",
            "clip": None,
            "clip_low": 0.0,
            "clip_high": 1.0,
            "k": k,
            "within": k,
            "property": None,
            "eps": math.nan,
            "gap": 2 * truth,
            "lower": share * truth,
            "upper": 1.25 * truth if method == "corgi" else truth,
            "seconds": share * (1 + image),
        }
        for (image, k), truth in TRUTH.items()
        for method, share in LOWER.items()
    ]
    return pd.DataFrame(rows).assign(**changes)


Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def of(ax) -> Lines:
    return {
        line.get_label(): (np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float))
        for line in ax.lines
    }


def drawn(name: str, frame: pd.DataFrame) -> Lines:
    """The lines of the only panel."""
    (ax,) = panels_of(name, frame).values()
    return of(ax)


def panels_of(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Axes by title."""
    figure = FIGURES[name][0](frame)
    assert figure is not None and figure.get_suptitle()
    return {ax.get_title(): ax for ax in figure.axes}


def test_certified_and_broken_eps_by_k_are_medians():
    lines = drawn("radius_by_k", table())
    for method, share in LOWER.items():
        x, y = lines[method]
        assert x.tolist() == [1, 2]
        assert y == pytest.approx([share * np.median([TRUTH[i, k] for i in range(5)]) for k in (1, 2)])
    # the nearest that any method broke, not each its own
    assert lines["falsified"][1] == pytest.approx([np.median([TRUTH[i, k] for i in range(5)]) for k in (1, 2)])
    assert FIGURES["radius_by_k"][0](table()[table()["k"] == 1]) is None


def test_the_gap_is_drawn_against_the_weakest_and_the_strongest():
    lines = drawn("radius_by_gap", table())
    assert set(lines) == {"corgi", "bab", "falsified"}
    for method in ("corgi", "bab"):
        x, y = lines[method]
        assert y == pytest.approx(LOWER[method] * x / 2)
    assert FIGURES["radius_by_gap"][0](table(gap=0.0)) is None


def test_a_share_is_of_all_questions_of_one_k_and_never_rises():
    found = panels_of("certified_fraction", table())
    assert list(found) == ["k=1, L-inf, clip [0, 1]", "k=2, L-inf, clip [0, 1]"]
    for k, ax in zip((1, 2), found.values(), strict=True):
        truths = np.array([truth for (_, other), truth in TRUTH.items() if other == k])
        for label, bounds in {**{m: s * truths for m, s in LOWER.items()}, "not broken": truths}.items():
            x, y = of(ax)[label]
            assert y[0] == 1.0 and (np.diff(y) <= 0).all()
            for eps in np.linspace(0, 0.9 * truths.max(), 23) + 1e-9:
                assert y[np.searchsorted(x, eps, side="right") - 1] == pytest.approx((bounds > eps).mean())


def test_ratios_are_to_the_nearest_that_is_broken():
    figure = FIGURES["ratio_histogram"][0](table())
    labels = [p.get_label() for p in figure.axes[0].patches]
    assert labels == ["corgi, median 2.5", "crown, median 1.25", "bab, median 1"]
    assert [p.get_data().values.sum() for p in figure.axes[0].patches] == [10, 10, 10]


def test_settled_questions_by_time():
    lines = drawn("cactus", table())
    assert set(lines) == {"bab"}  # the others leave theirs open
    x, y = lines["bab"]
    assert x.tolist() == list(range(1, 11)) and y.tolist() == sorted([1.0, 2, 3, 4, 5] * 2)


def test_margins_are_shares_of_the_margin_at_the_image():
    margins = table(kind="margin", eps=0.01, gap=2.0)
    margins = margins[margins["k"] == 1]
    lines = drawn("tightness", margins.assign(lower=margins["method"].map(LOWER), upper=1.5))
    for method, share in LOWER.items():
        assert lines[method][0].tolist() == [0.01] and lines[method][1] == pytest.approx([share / 2])
    assert lines["an image has"][1] == pytest.approx([0.75])
    assert FIGURES["tightness"][0](table()) is None


def test_relaxed_sets_are_a_curve_over_k2():
    frame = pd.concat([table(k=1, within=w, lower=0.01 * w, upper=0.02 * w) for w in (1, 3, 6)])
    lines = drawn("relaxed_curve", frame)
    assert lines["bab"][0].tolist() == [1, 3, 6] and lines["bab"][1] == pytest.approx([0.01, 0.03, 0.06])
    assert lines["falsified"][1] == pytest.approx([0.02, 0.06, 0.12])
    assert FIGURES["relaxed_curve"][0](table()) is None


def two_networks() -> pd.DataFrame:
    """The second certifies, and breaks at, a tenth of what the first does."""
    first = table()
    second = first.assign(model="other", model_sha256="n", lower=first["lower"] / 10, upper=first["upper"] / 10)
    return pd.concat([first, second], ignore_index=True)


@pytest.mark.parametrize("name", ["certified_fraction", "radius_by_k", "cactus", "radius_by_gap"])
def test_two_networks_are_two_curves_that_the_legend_tells_apart(name):
    both = FIGURES[name][0](two_networks())
    (entries,) = ([text.get_text() for text in legend.get_texts()] for legend in both.legends)
    assert {"bab, net", "bab, other"} <= set(entries) and len(set(entries)) == len(entries)
    mine, theirs = (next(i for i in both.axes[0].lines if i.get_label() == f"bab, {n}") for n in ("net", "other"))
    assert mine.get_color() == theirs.get_color()  # the same method
    assert (mine.get_linestyle(), mine.get_fillstyle()) != (theirs.get_linestyle(), theirs.get_fillstyle())


def test_each_of_two_networks_has_the_numbers_that_it_has_alone():
    alone, both = drawn("radius_by_k", table()), drawn("radius_by_k", two_networks())
    for method in LOWER:
        assert both[f"{method}, net"][1] == pytest.approx(alone[method][1])
        assert both[f"{method}, other"][1] == pytest.approx(alone[method][1] / 10)
    assert both["falsified, net"][1] == pytest.approx(alone["falsified"][1])
    assert both["falsified, other"][1] == pytest.approx(alone["falsified"][1] / 10)


def test_networks_of_one_name_are_still_two():
    frame = two_networks().assign(model="net")
    assert {"bab, net m", "bab, net n"} <= set(drawn("radius_by_k", frame))


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({"norm": "2"}, {"L-inf, clip [0, 1]", "L2, clip [0, 1]"}),
        ({"clip_low": math.nan, "clip_high": math.nan}, {"L-inf, clip [0, 1]", "L-inf, no clip box"}),
        ({"keep_class": True}, {"L-inf, clip [0, 1]", "L-inf, clip [0, 1], class kept"}),
    ],
)
@pytest.mark.parametrize("name", ["radius_by_k", "ratio_histogram", "cactus", "radius_by_gap"])
def test_what_differs_in_its_region_is_in_no_common_curve(name, change, titles):
    frame = pd.concat([table(), table(**{**change, "lower": 1e-5, "upper": 2e-5})], ignore_index=True)
    found = panels_of(name, frame)
    assert set(found) == titles
    if name == "radius_by_k":
        first = of(found["L-inf, clip [0, 1]"])
        assert first["bab"][1] == pytest.approx(drawn("radius_by_k", table())["bab"][1])
        assert first["falsified"][1] == pytest.approx(drawn("radius_by_k", table())["falsified"][1])


def test_another_class_is_another_question():
    """What breaks the CAM of one class says nothing of another's."""
    frame = pd.concat([table(), table(class_idx=4, upper=1e-6)], ignore_index=True)
    figure = FIGURES["ratio_histogram"][0](frame.assign(lower=frame["lower"].where(frame["class_idx"] == 3, 1e-6)))
    bab = next(p.get_data() for p in figure.axes[0].patches if p.get_label().startswith("bab"))
    assert bab.values.sum() == bab.values[0] == 20  # all exact


def test_one_answer_is_a_figure_too():
    one = table()[lambda t: (t["k"] == 1) & (t["method"] == "bab")].head(1)
    for name in ("certified_fraction", "ratio_histogram", "cactus"):
        FIGURES[name][0](one).canvas.draw()
    margin = one.assign(kind="margin", eps=0.01, gap=1.0, upper=0.5)
    figure = FIGURES["tightness"][0](margin)
    figure.canvas.draw()
    assert [line.get_marker() != "None" for line in figure.axes[0].lines[:2]] == [True, True]  # a point can be seen


def test_ticks_of_k_are_whole_numbers():
    for name, frame in (
        ("radius_by_k", table()),
        ("relaxed_curve", pd.concat([table(k=1, within=w) for w in (1, 2)])),
        ("cactus", table()[lambda t: t["image_sha256"] == "i0"]),
    ):
        figure = FIGURES[name][0](frame)
        figure.canvas.draw()
        for ax in figure.axes:
            assert all(tick == round(tick) for tick in ax.get_xticks())


@pytest.mark.parametrize("count", [1, 2, 43])
def test_a_legend_covers_no_panel_and_is_whole(count):
    parts = [table(model=f"network {i}", model_sha256=f"{i}") for i in range(count)]
    for name in ("radius_by_k", "certified_fraction"):
        figure = FIGURES[name][0](pd.concat(parts, ignore_index=True))
        figure.canvas.draw()
        (legend,) = figure.legends
        seen = legend.get_window_extent()
        assert seen.x0 >= 0 and seen.y0 >= 0 and seen.x1 <= figure.bbox.x1 and seen.y1 <= figure.bbox.y1
        assert len(legend.get_texts()) == count * (len(LOWER) + 1)
        for ax in figure.axes:
            assert not seen.overlaps(ax.get_tightbbox()) and ax.bbox.width > 250


def test_ties_and_cells_without_an_answer_are_in_no_figure():
    tied = table(status="tied", lower=0.0, upper=0.0)
    for name in ("certified_fraction", "ratio_histogram", "radius_by_k", "radius_by_gap", "relaxed_curve", "cactus"):
        assert FIGURES[name][0](tied) is None
    assert list(all_figures(table(state="failed"))) == []
    names = [name for name, caption, _ in all_figures(table()) if caption]
    assert names == ["certified_fraction", "ratio_histogram", "radius_by_k", "radius_by_gap", "cactus"]


def test_a_figure_of_one_question_says_so():
    one = table()[lambda t: (t["k"] == 1) & (t["image_sha256"] == "i0")]
    for name in ("certified_fraction", "ratio_histogram"):
        assert list(panels_of(name, one)) == [f"{'k=1, ' * (name[0] == 'c')}L-inf, clip [0, 1] (one question)"]
    (ax,) = FIGURES["certified_fraction"][0](one).axes
    assert ax.get_ylabel() == "share of questions (1 image)"
    (ax,) = FIGURES["tightness"][0](one.assign(kind="margin", eps=0.01, gap=1.0, upper=0.5)).axes
    assert list(ax.get_xticks()) == [0.01]


@pytest.mark.parametrize("name", ["radius_by_k", "radius_by_gap"])
def test_what_nobody_broke_is_not_in_the_legend(name):
    assert "falsified" in drawn(name, table())
    assert "falsified" not in drawn(name, table(upper=math.nan, status="open"))


def test_gaps_within_a_power_of_ten_have_plain_numbers():
    (ax,) = FIGURES["radius_by_gap"][0](table()).axes
    ax.figure.canvas.draw()
    said = [text.get_text() for axis in (ax.xaxis, ax.yaxis) for text in axis.get_ticklabels(which="both")]
    assert {"0.02", "0.05"} <= set(said) and not any("10^" in text for text in said)


def test_ratios_have_numbers_between_one_and_two():
    (ax,) = FIGURES["ratio_histogram"][0](table(upper=0.03, lower=0.02)).axes
    ax.figure.canvas.draw()
    assert {"1", "1.2", "1.6", "2"} <= {text.get_text() for text in ax.get_xticklabels()}


@pytest.mark.parametrize("name", ["radius_by_k", "cactus"])
def test_what_is_counted_has_whole_ticks(name):
    """k = 1.25 is nothing."""
    figure = FIGURES[name][0](table())
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks)


def test_every_figure_says_what_it_shows():
    one, two = table(), pd.concat([table(), table(model_sha256="other")])
    for frame in (one, two):
        for name, _, figure in all_figures(frame):
            ax = figure.axes[0]
            assert ax.get_xlabel() and ax.get_ylabel() and (ax.get_title() or figure.get_suptitle()), name
            assert figure.legends or ax.get_legend(), name


def test_a_single_falsified_point_is_seen():
    """A dashed line through one point is none."""
    frame = table().assign(within=lambda f: f["k"] + 1)
    figure = FIGURES["relaxed_curve"][0](frame[frame["k"] == 1])
    (line,) = [one for one in figure.axes[0].lines if one.get_label() == "falsified"]
    assert len(line.get_xdata()) == 1 and line.get_marker() == "_"
