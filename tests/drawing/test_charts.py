"""Charts from plain numbers: lengths, places and words are those of the numbers, and nothing is written over."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest

from corgi_opt.drawing.charts import BROKEN, draw_ladder, draw_shares, html_table

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def labels(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def test_bars_reach_from_zero_to_their_bounds_in_order():
    ax = draw_ladder({"weak": 0.25, "none": -math.inf, "strong": 2.0}, 3.0, "broken at")
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0.0, 0.25), (0.0, 0.0), (0.0, 2.0)]
    assert labels(ax) == ["weak", "none", "strong"] and ax.yaxis_inverted()
    assert [t.get_text().strip() for t in ax.texts] == ["0.25", "nothing proven", "2", "broken at 3"]
    (line,) = ax.lines
    assert list(line.get_xdata()) == [3.0, 3.0] and line.get_color() == BROKEN and line.get_linestyle() == "--"
    low, high = ax.get_xlim()
    assert low == 0 and high > 3.0


def test_below_zero_numbers_stand_beside_the_names():
    ax = draw_ladder({"weak": -1.0, "strong": 0.5}, math.inf, "broken at")
    assert labels(ax) == ["weak  -1", "strong  0.5"]
    assert [bar.get_width() for bar in ax.patches] == [-1.0, 0.5]
    assert not ax.texts
    assert ax.get_xlim()[0] < -1.0 and [list(line.get_xdata()) for line in ax.lines] == [[0, 0]]


@pytest.mark.parametrize("value", [0.001, 0.2, 0.9, 1.0])
def test_a_number_is_inside_a_bar_that_holds_it(value):
    ax = draw_ladder({"m": value}, 1.0, "broken at")
    text = ax.texts[0]
    assert (text.get_ha() == "right") == (value > 0.3)
    assert text.get_position() == (value, 0)


def test_dots_are_the_shares_and_bars_their_medians():
    given = {"a": [0.5, math.nan, 0.7, 0.6], "b": [], "c": [0.9]}
    ax = draw_shares(given)
    strips = [line for line in ax.lines if line.get_linestyle() == "None"]
    bars = [line for line in ax.lines if line.get_linewidth() == 2 and line.get_color() == "black"]
    assert [sorted(line.get_xdata()) for line in strips] == [[0.5, 0.6, 0.7], [0.9]]
    assert [list(line.get_xdata()) for line in bars] == [[0.6, 0.6], [0.9, 0.9]]
    for strip, row in zip(strips, (0, 2), strict=True):
        assert np.all(np.abs(np.asarray(strip.get_ydata()) - row) < 0.3)
    assert labels(ax) == ["a", "b", "c"]
    assert [t.get_text() for t in ax.texts] == ["0.600", "0.900", "median"]


@pytest.mark.parametrize(
    "draw", [lambda ax: draw_ladder({"m": 1.0}, 2.0, "b", ax), lambda ax: draw_shares({"m": [1.0]}, ax)]
)
def test_given_axes_are_drawn_on(draw):
    _, ax = plt.subplots()
    assert draw(ax) is ax
    assert not ax.spines["top"].get_visible() and ax.spines["left"].get_visible()


def test_a_table_says_its_values_and_escapes_what_is_html():
    found = html_table("a <b>", {"x & y": 1 / 3, "n": 7, "s": "<script>"})
    for words in ("a &lt;b&gt;", "x &amp; y", ">0.333333<", ">7<", "&lt;script&gt;"):
        assert words in found
    assert "<script>" not in found
