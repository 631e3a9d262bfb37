"""Panels: which answers share one, how curves differ, and that ticks and legends can be read."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from corgi_opt.study.panels import (
    FILLS,
    LINES,
    box,
    curves,
    drawn,
    log_where_positive,
    networks,
    prepared,
    settings,
    tick_where_one,
)


def table(**changes: object) -> pd.DataFrame:
    row = {
        "model": "net",
        "model_sha256": "abcdefgh",
        "image_sha256": "i",
        "class_idx": 1,
        "kind": "radius",
        "k": 3.0,
        "within": 3.0,
        "property": None,
        "eps": math.nan,
        "norm": "inf",
        "clip": None,
        "clip_low": 0.0,
        "clip_high": 1.0,
        "keep_class": False,
        "method": "bab",
    }
    return pd.DataFrame([{**row, **changes}])


def test_a_panel_holds_one_norm_box_and_property_and_its_title_says_which():
    frame = prepared(pd.concat([table(), table(k=15.0, within=15.0), table(norm="2"), table(clip_low=math.nan)]))
    assert [title for title, _ in settings(frame, "asked")] == [
        "k=3, L-inf, clip [0, 1] (one question)",
        "k=15, L-inf, clip [0, 1] (one question)",
        "k=3, L-inf, no clip box (one question)",
        "k=3, L2, clip [0, 1] (one question)",
    ]
    assert next(title for title, _ in settings(frame)) == "L-inf, clip [0, 1]"  # k=3 and k=15
    assert [len(part) for _, part in settings(frame)] == [2, 1, 1]
    assert "[0.5, 2]" in box("[[0.0, 0.5], [1.0, 2.0]]", 0.0, 2.0) and box(None, 0.0, 1.0) == "[0, 1]"


def test_a_network_is_told_from_others_of_its_name():
    both = pd.concat([table(), table(model_sha256="zyxwvuts"), table(model="other")])
    assert networks(both) == ["net abcdef", "net zyxwvu", "other"]
    assert networks(table()) == ["net"]


def test_curves_of_networks_differ_in_line_or_fill_and_those_of_one_are_as_the_table_of_methods_says():
    (alone,) = curves(prepared(table()), prepared(table()))
    assert alone.label == "bab" and alone.style["linestyle"] == "-" and alone.style["fillstyle"] == "full"
    frame = prepared(pd.concat([table(model=f"{i:02}", model_sha256=f"{i}") for i in range(20)]))
    found = list(curves(frame, frame))
    assert [c.label for c in found[:2]] == ["bab, 00", "bab, 01"]
    styles = {(str(c.style["linestyle"]), c.style["fillstyle"]) for c in found}
    assert len(styles) == len(LINES) * len(FILLS) == 20


@pytest.mark.parametrize("count", [1, 3, 7])
def test_there_is_a_panel_for_each_setting_and_no_empty_one(count):
    figure = drawn("title", [(f"panel {i}", None) for i in range(count)], lambda ax, _: ax.plot([0, 1], label="line"))
    assert [ax.get_title() for ax in figure.axes] == [f"panel {i}" for i in range(count)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["line"]  # once


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_long_title_meets_no_legend_and_is_whole(count):
    title = "Proven margin at eps, as a share of the margin at the image"
    figure = drawn(title, [("panel", None)] * count, lambda ax, _: ax.plot([0, 1], label="a method, a network"))
    figure.canvas.draw()
    seen = figure._suptitle.get_window_extent()
    assert not seen.overlaps(figure.legends[0].get_window_extent())
    assert seen.x0 >= 0 and seen.y1 <= figure.bbox.y1
    assert figure.get_suptitle().split() == title.split()


def test_a_logarithmic_axis_of_little_range_has_plain_ticks_and_nothing_that_is_zero():
    def draw(ax, values):
        ax.plot(range(len(values)), values)
        log_where_positive(ax)

    values = [("near", [0.02, 0.03]), ("zero", [0.0, 1.0]), ("far", [1e-6, 1.0]), ("between", [0.002, 0.055])]
    figure = drawn("title", [*values, ("one", [1e-6, 1e-6])], draw)
    figure.canvas.draw()
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "log", "log", "log"]
    said = [[text.get_text() for text in ax.get_yticklabels(which="both")] for ax in figure.axes]
    assert {"0.02", "0.03"} <= set(said[0]) and {"0.005", "0.01", "0.05"} <= set(said[3])
    assert not any("times" in text for text in said[0] + said[3])  # 6 x 10^-3
    assert len([text for text in said[4] if text]) < 16  # of a single value, whose axis is wide


def test_panels_of_several_rows_meet_no_words_of_each_other():
    figure = drawn("title", [("a", None)] * 5, lambda ax, _: ax.set(xlabel="x") and ax.plot([1], label="m"))
    figure.canvas.draw()
    assert len({round(ax.get_position().x0, 2) for ax in figure.axes}) == 2
    upper, lower = figure.axes[0], figure.axes[2]
    assert upper.xaxis.label.get_window_extent().y0 > lower.title.get_window_extent().y1 + 5


def test_one_x_has_one_tick():
    figure = drawn("title", [("a", [0.01, 0.01]), ("b", [0.01, 0.02])], lambda ax, x: tick_where_one(ax, x))
    assert list(figure.axes[0].get_xticks()) == [0.01] and len(figure.axes[1].get_xticks()) > 1
