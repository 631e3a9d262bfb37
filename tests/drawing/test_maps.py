"""Maps from plain arrays: what is outlined, marked and counted is what the arrays say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from corgi_opt.drawing.maps import (
    KINDS,
    Shown,
    as_it_is,
    check_picture,
    draw_counterexample,
    draw_overlay,
    over_the_image,
    plot_heat_map,
)
from corgi_opt.drawing.panels import Scale
from corgi_opt.errors import InputError

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def sides(pixels: list[int], width: int) -> set[frozenset[tuple[float, float]]]:
    """The unit edges between a set of pixels and the others."""
    found: dict[frozenset[tuple[float, float]], int] = {}
    for p in pixels:
        y, x = divmod(p, width)
        corners = [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            found[frozenset((a, b))] = found.get(frozenset((a, b)), 0) + 1
    return {edge for edge, times in found.items() if times == 1}


def is_white(lines: LineCollection) -> bool:
    color: Any = lines.get_color()
    return bool((color[0][:3] == 1).all())


def outlined(ax) -> set[frozenset[tuple[float, float]]]:
    (white,) = (c for c in ax.collections if isinstance(c, LineCollection) and is_white(c))
    return {frozenset(map(tuple, np.asarray(s).tolist())) for s in white.get_segments()}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_counterexample_shows_images_change_and_both_sets(channels):
    images = RNG.random((2, channels, 8, 8))
    cams, tops = RNG.normal(size=(2, 4, 3)), ([0, 1, 5], [5, 11, 2])
    before, after = (Shown(i, c, t) for i, c, t in zip(images, cams, tops, strict=True))
    figure = draw_counterexample(
        before, after, title="b passes a", cam="CAM of class 7", scale=Scale(0.0, 1.0), map_panel=as_it_is
    )
    axes = figure.axes[:5]
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes]
    picture = images.transpose(0, 2, 3, 1) if channels == 3 else images[:, 0]
    np.testing.assert_allclose(shown[0], picture[0])
    np.testing.assert_allclose(shown[2], picture[1])
    most = np.abs(picture[1] - picture[0]).max()
    times = max(t for t in (0.5, 1.0) if t * most <= 0.5)  # differences are between 0.5 and 1 here
    np.testing.assert_allclose(shown[1], times * (picture[1] - picture[0]) + 0.5)
    assert axes[1].get_title() == f"difference, {times:g}x" and f"most {most:.3g}" in axes[1].get_xlabel()
    np.testing.assert_array_equal(shown[3:], cams)
    assert [ax.images[0].get_clim() for ax in axes[3:]] == [(cams.min(), cams.max())] * 2  # one scale for both
    for ax, top in zip(axes[3:], tops, strict=True):
        assert outlined(ax) == sides(top, 3)
    marks = {
        line.get_label(): {int(y) * 3 + int(x) for x, y in zip(*line.get_data(), strict=True)} for line in axes[4].lines
    }
    assert marks == {"came in": {2, 11}, "pushed out": {0, 1}}
    assert axes[3].get_title() == "CAM of class 7" and figure.get_suptitle() == "b passes a"
    assert "top-3 set" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_a_scale_of_every_channel_is_its_own():
    image = np.stack([np.full((2, 2), v) for v in (0.0, 10.0, 5.0)])
    low, high = (np.array(v) for v in ([-1.0, 0.0, 5.0], [1.0, 40.0, 5.0]))
    one = Shown(image, RNG.random((2, 2)), [0])
    figure = draw_counterexample(one, one, title="t", cam="CAM", scale=Scale(low, high), map_panel=as_it_is)
    np.testing.assert_allclose(np.asarray(figure.axes[0].images[0].get_array())[0, 0], [0.5, 0.25, 0.0])


def test_a_heat_map_shows_each_pixels_kind_and_how_many_there_are():
    cam, interval, ranks = RNG.normal(size=(3, 3, 4))
    inside, outside = np.zeros((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)
    inside[0, :2], outside[2] = True, True
    figure = plot_heat_map(cam, np.abs(interval), np.abs(ranks), inside, outside, title="a title")
    axes = figure.axes[:4]
    for ax, expected in zip(axes[:3], (cam, np.abs(interval), np.abs(ranks)), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    painted = axes[3].images[0]
    rgb = painted.cmap(painted.norm(painted.get_array()))[..., :3]
    kind = np.where(inside, 2, np.where(outside, 0, 1))
    np.testing.assert_allclose(rgb, np.array([colors.to_rgb(c) for c in KINDS])[kind], atol=1 / 255)
    (asked,) = axes[3].lines
    assert {(int(y), int(x)) for x, y in zip(*asked.get_data(), strict=True)} == set(
        map(tuple, np.argwhere(kind == 1).tolist())
    )
    words = [t.get_text() for t in axes[3].get_legend().get_texts()]
    assert words == ["certainly out (4)", "undecided (6)", "certainly in (2)"]


def heat_map_at(width: float, height: float, pixels: int) -> Any:
    """A heat map of ``pixels`` squared on which nothing moves, half of it undecided."""
    still, none = np.zeros((pixels, pixels)), np.zeros((pixels, pixels), dtype=bool)
    outside = none.copy()
    outside[::2] = True
    figure = plt.figure(figsize=(width, height), layout="constrained")
    return plot_heat_map(RNG.normal(size=still.shape), still, still, none, outside, title="a title", figure=figure)


def test_what_cannot_move_is_dark_and_its_scale_begins_at_zero():
    figure = heat_map_at(13.0, 4.0, 3)
    figure.canvas.draw()
    for ax in figure.axes[1:3]:
        painted = ax.images[0]
        assert painted.get_clim() == (0.0, 1.0)
        assert painted.norm(painted.get_array()).max() == 0.0


@pytest.mark.parametrize(("width", "pixels", "marked"), [(13.0, 24, True), (3.3, 8, True), (3.3, 24, False)])
def test_question_marks_are_left_out_where_they_would_hide_their_pixels(width, pixels, marked):
    lines = heat_map_at(width, 5.2, pixels).axes[3].lines
    assert bool(lines) == marked
    for line in lines:
        assert 3.0 <= line.get_markersize() <= 0.5 * 72 * width / pixels


def test_a_power_of_ten_does_not_meet_the_label_of_its_scale():
    pixels = RNG.random((3, 3))
    figure = plt.figure(figsize=(3.3, 5.2), layout="constrained")
    plot_heat_map(pixels, 1e-11 * pixels, pixels, pixels > 0.5, pixels <= 0.5, title="a title", figure=figure)
    figure.canvas.draw()
    bars = [ax for ax in figure.axes[4:] if ax.xaxis.get_offset_text().get_text()]
    assert bars
    for ax in bars:
        label, power = (t.get_window_extent() for t in (ax.xaxis.label, ax.xaxis.get_offset_text()))
        assert not label.overlaps(power)


def drawn_at(width: float, height: float, pixels: int, top: list[int]) -> Any:
    """A counterexample on a map of ``pixels`` squared, in a figure of this size."""
    images, cams = RNG.random((2, 3, 24, 24)), RNG.normal(size=(2, pixels, pixels))
    before, after = Shown(images[0], cams[0], top), Shown(images[1], cams[1], [p + 1 for p in top])
    figure = plt.figure(figsize=(width, height), layout="constrained")
    draw_counterexample(
        before,
        after,
        title="pixel 552 passes pixel 117, at distance 0.001446 (L-inf)",
        cam="CAM of class 11 (sign number 11)",
        scale=Scale(0.0, 1.0),
        map_panel=over_the_image,
        figure=figure,
    )
    return figure


@pytest.mark.parametrize(("width", "height"), [(14.0, 3.7), (6.0, 4.4), (3.0, 5.6)])
@pytest.mark.parametrize("pixels", [8, 24])
def test_panels_and_words_fit_figures_of_every_width(width, height, pixels):
    figure = drawn_at(width, height, pixels, [0, 5, 37])
    figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 5
    sides = [ax.get_window_extent().width for ax in panels]
    assert min(sides) > 0.2 * figure.bbox.width / (5 if width > 9 else 2.5)
    assert max(sides) < 1.3 * min(sides)  # a colour bar takes nothing from the others' columns
    texts = [t for ax in panels for t in (ax.title, ax.xaxis.label)] + [figure._suptitle]
    for text in texts:
        box = text.get_window_extent()
        if text.get_text():
            assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
    handles = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    assert [t.get_text() for t in handles[0].get_texts()] == ["top-3 set", "came in", "pushed out"]


@pytest.mark.parametrize("height", [5.6, 6.5])
def test_numbers_of_a_narrow_scale_do_not_meet(height):
    figure = drawn_at(3.3, height, 8, [0, 5])
    figure.canvas.draw()
    for ax in figure.axes[6:]:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        assert len(boxes) <= 5 and ax.xaxis.label.get_fontsize() == 8
        assert all(not a.overlaps(b) for a, b in pairwise(boxes))


def test_signs_stay_legible_where_pixels_are_small():
    for width, height in ((14.0, 3.7), (6.0, 4.4), (3.0, 5.6)):
        panels = [ax for ax in drawn_at(width, height, 24, [30, 50]).axes if ax.images]
        sizes = [line.get_markersize() for line in panels[4].lines]
        assert len(sizes) == 2 and all(4.5 <= size <= 10 for size in sizes)
        widths = [float(np.ravel(c.get_linewidth())[0]) for c in panels[4].collections if isinstance(c, LineCollection)]
        assert min(widths) >= 0.8


def test_of_a_larger_set_only_who_fell_out_is_marked():
    """k=2 within 3: all that is new in a larger set says nothing."""
    cams = RNG.normal(size=(2, 3, 3))
    before, after = Shown(RNG.random((1, 6, 6)), cams[0], [0, 1]), Shown(RNG.random((1, 6, 6)), cams[1], [0, 4, 5])
    figure = draw_counterexample(before, after, title="t", cam="CAM", scale=Scale(0, 1), map_panel=as_it_is)
    assert [line.get_label() for line in figure.axes[4].lines] == ["pushed out"]
    assert "top 2, then top 3" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_without_sets_nothing_is_outlined():
    one = Shown(RNG.random((1, 6, 6)), RNG.normal(size=(3, 3)), [])
    figure = draw_counterexample(one, one, title="t", cam="CAM", scale=Scale(0, 1), map_panel=as_it_is)
    assert not figure.legends and not figure.axes[3].collections


def test_an_overlay_has_a_title_and_a_colour_bar():
    shown = Shown(RNG.random((3, 12, 12)), RNG.normal(size=(4, 4)), [])
    ax = draw_overlay(shown, title="CAM of class 3", label="CAM", scale=Scale(0.0, 1.0))
    assert ax.get_title() == "CAM of class 3" and ax.figure.axes[1].get_ylabel() == "CAM"
    assert ax.images[0].get_array().shape == (12, 12, 3)


def test_a_name_says_the_kind_of_picture(tmp_path):
    path = tmp_path / "new" / "deep" / "a.PNG"
    assert check_picture(path) is path
    for name in ("a.xyz", "a", "a.toml"):
        with pytest.raises(InputError, match=r"must end in one of \."):
            check_picture(tmp_path / name)
