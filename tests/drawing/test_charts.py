"""Charts from plain numbers: lengths, places and words are those of the numbers, and nothing is written over."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from corgi_opt.drawing.charts import BROKEN, CERTIFIED, OPEN, SHORT, draw_intervals, draw_ladder, draw_shares

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import colors
from matplotlib import pyplot as plt

LADDER: dict[str, Any] = {"title": "a title", "xlabel": "eps (unit)", "what": "certified", "at": "broken at"}
INTERVALS: dict[str, Any] = {"title": "a title", "xlabel": "margin (unit)"}
SHARES: dict[str, Any] = {"title": "a title", "xlabel": "share (no unit)", "limit": "the exact value"}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def labels(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def legend(ax) -> list[str]:
    return [t.get_text() for t in ax.get_legend().get_texts()]


def dashed(ax) -> list[float]:
    """Where the lines stand that say what is broken."""
    return [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--" and line.get_color() == BROKEN]


def test_bars_reach_from_zero_to_their_bounds_in_order():
    ax = draw_ladder({"weak": 0.25, "none": -math.inf, "strong": 2.0}, 3.0, **LADDER)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0.0, 0.25), (0.0, 0.0), (0.0, 2.0)]
    assert labels(ax) == ["weak", "none", "strong"] and ax.yaxis_inverted()
    assert [t.get_text().strip() for t in ax.texts] == ["0.25", "nothing proven", "2"]
    assert dashed(ax) == [3.0] and legend(ax) == ["certified", "broken at 3"]
    low, high = ax.get_xlim()
    assert low == 0 and high > 3.0


def test_without_a_counterexample_there_is_no_line():
    ax = draw_ladder({"m": 0.0}, math.inf, **LADDER)
    assert dashed(ax) == [] and legend(ax) == ["certified"] and ax.get_xlim()[1] > 0


@pytest.mark.parametrize("value", [0.001, 0.2, 0.9, 1.0])
def test_a_number_is_inside_a_bar_that_holds_it(value):
    ax = draw_ladder({"m": value}, 1.0, **LADDER)
    text = ax.texts[0]
    assert (text.get_ha() == "right") == (value > 0.3)
    assert text.get_position() == (value, 0)


@pytest.mark.parametrize(
    ("bound", "met", "colour"),
    [(0.002, 6.0, CERTIFIED), (-2.0, 6.0, OPEN), (-2.0, -1.0, BROKEN), (-2.0, 0.0, BROKEN), (-1.0, math.inf, OPEN)],
)
def test_an_interval_reaches_from_the_bound_to_what_an_image_has(bound, met, colour):
    """What is certified looks certified, however small the margin is."""
    ax = draw_intervals({"m": bound}, met, **INTERVALS)
    (bar,) = ax.patches
    assert bar.get_x() == bound and colors.to_hex(bar.get_facecolor()) == colour
    low, high = ax.get_xlim()
    assert low < bound and low < 0 < high
    if math.isfinite(met):
        assert bar.get_x() + bar.get_width() == pytest.approx(met)
        assert dashed(ax) == [met] and f"an image has {met:.4g}" in legend(ax)
    else:
        assert dashed(ax) == [] and bar.get_width() > 0
    assert labels(ax) == [f"m: ≥ {bound:.4g}"]
    (tick,) = [line for line in ax.lines if list(line.get_xdata()) == [bound, bound] and line.get_linewidth() > 2]
    assert tick.get_color() == "black"  # seen where the bar itself is too short to be
    assert "0: the order changes" in legend(ax)


@pytest.mark.parametrize(
    ("bound", "met", "colour"), [(0.5, 0.5, CERTIFIED), (-3.01, -3.0, BROKEN), (-0.01, 0.01, OPEN)]
)
def test_a_bar_too_short_to_be_seen_is_a_broad_stroke(bound, met, colour):
    """Of a margin that is known exactly, where both ends of the bar are at one place."""
    ax = draw_intervals({"wide": bound - 5.0, "exact": bound}, met, **INTERVALS)
    (stroke,) = (line for line in ax.lines if line.get_linewidth() == SHORT)
    assert stroke.get_color() == colour and bound <= stroke.get_xdata()[0] <= met
    assert list(stroke.get_ydata()) == [0.75, 1.25] and len(ax.patches) == 2


def test_the_scale_of_nothing_is_zero():
    """Radii that are all zero: no numbers of a scale that nothing stands on, and the line at zero is not the axis."""
    for broken in (0.0, math.inf):
        ax = draw_ladder({"corgi": 0.0, "bab": 0.0}, broken, **LADDER)
        assert list(ax.get_xticks()) == [0.0] and ax.get_xlim()[0] < 0
    ax = draw_ladder({"corgi": 0.0}, 2.0, **LADDER)
    assert len(ax.get_xticks()) > 1 and ax.get_xlim()[0] == 0


def test_where_nothing_is_proven_the_legend_names_no_bar():
    ax = draw_intervals({"corgi": math.nan, "all bounds": -math.inf}, -29.8, **INTERVALS)
    assert legend(ax) == ["0: the order changes", "an image has -29.8"]


def test_a_bound_that_is_none_says_so():
    ax = draw_intervals({"corgi": math.nan, "bab": 1.0}, 2.0, **INTERVALS)
    assert [t.get_text() for t in ax.texts] == ["nothing proven"] and labels(ax)[0] == "corgi: -"
    assert len(ax.patches) == 1


def test_dots_are_the_shares_and_bars_their_medians():
    given = {"a": [0.5, math.nan, 0.7, 0.6], "b": [], "c": [0.9]}
    ax = draw_shares(given, **SHARES)
    strips = [line for line in ax.lines if line.get_linestyle() == "None"]
    bars = [line for line in ax.lines if line.get_linewidth() == 2 and line.get_color() == "black"]
    assert [sorted(line.get_xdata()) for line in strips] == [[0.5, 0.6, 0.7], [0.9]]
    assert [list(line.get_xdata()) for line in bars] == [[0.6, 0.6], [0.9, 0.9]]
    for strip, row in zip(strips, (0, 2), strict=True):
        assert np.all(np.abs(np.asarray(strip.get_ydata()) - row) < 0.3)
    assert labels(ax) == ["a", "b", "c"]
    assert [t.get_text() for t in ax.texts] == ["0.600", "none", "0.900", "median"]
    assert legend(ax) == ["one question", "median", "the exact value"]
    assert legend(draw_shares({"a": []}, **SHARES)) == ["the exact value"]


CHARTS = {
    "ladder": lambda ax, **w: draw_ladder({"corgi": 1.0, "a long name": 1.9}, 2.0, **{**LADDER, **w}, ax=ax),
    "intervals": lambda ax, **w: draw_intervals({"corgi": -1.0, "crown": 1e-5}, 2.0, **{**INTERVALS, **w}, ax=ax),
    "shares": lambda ax, **w: draw_shares({"corgi": [1.0], "crown": [0.5, 0.7]}, **{**SHARES, **w}, ax=ax),
}
every_chart = pytest.mark.parametrize("draw", CHARTS.values(), ids=list(CHARTS))


@every_chart
def test_given_axes_are_drawn_on_and_say_what_they_show(draw):
    _, ax = plt.subplots()
    assert draw(ax) is ax
    assert not ax.spines["top"].get_visible() and ax.spines["left"].get_visible()
    assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel() and ax.get_legend().get_texts()


@every_chart
@pytest.mark.parametrize("width", [3.0, 6.0])
def test_all_words_are_inside_the_figure(draw, width):
    figure = plt.figure(figsize=(width, 3), layout="constrained")
    ax: Any = figure.subplots()
    long = "top-3 set of the CAM of class 7 (the digit seven) at eps=0.0143606 (L-inf, input units, clip box [0, 1])"
    draw(ax, title=long, xlabel=long)
    figure.canvas.draw()
    titles = [t for t in (ax.title, ax._left_title, ax._right_title) if t.get_text()]
    for text in [*titles, ax.xaxis.label, ax.yaxis.label, *ax.get_yticklabels(), *ax.get_legend().get_texts()]:
        box = text.get_window_extent()
        assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
        assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
    (title,) = titles
    assert not title.get_window_extent().overlaps(ax.get_legend().get_window_extent())
