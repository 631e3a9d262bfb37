"""Maps from plain arrays: what is outlined, marked and counted is what the arrays say."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from corgi_opt.drawing.maps import KINDS, Shown, check_picture, draw_counterexample, plot_heat_map
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
    figure = draw_counterexample(before, after, class_idx=7, distance=0.5, scale=(0.0, 1.0))
    axes = figure.axes[:5]
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes]
    picture = images.transpose(0, 2, 3, 1) if channels == 3 else images[:, 0]
    np.testing.assert_allclose(shown[0], picture[0])
    np.testing.assert_allclose(shown[2], picture[1])
    np.testing.assert_allclose(shown[1], np.clip((picture[1] - picture[0]) + 0.5, 0, 1))  # -0.5 is black, 0.5 white
    np.testing.assert_array_equal(shown[3:], cams)
    assert [ax.images[0].get_clim() for ax in axes[3:]] == [(cams.min(), cams.max())] * 2  # one scale for both
    for ax, top in zip(axes[3:], tops, strict=True):
        assert outlined(ax) == sides(top, 3)
    marks = {
        line.get_label(): {int(y) * 3 + int(x) for x, y in zip(*line.get_data(), strict=True)} for line in axes[4].lines
    }
    assert marks == {"came in": {2, 11}, "pushed out": {0, 1}}
    assert "class 7" in axes[0].get_title()
    assert "top-3 set" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_a_scale_of_every_channel_is_its_own():
    image = np.stack([np.full((2, 2), v) for v in (0.0, 10.0, 5.0)])
    low, high = (np.array(v) for v in ([-1.0, 0.0, 5.0], [1.0, 40.0, 5.0]))
    one = Shown(image, RNG.random((2, 2)), [0])
    figure = draw_counterexample(one, one, class_idx=0, distance=0.0, scale=(low, high))
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


def test_a_name_says_the_kind_of_picture(tmp_path):
    path = tmp_path / "new" / "deep" / "a.PNG"
    assert check_picture(path) is path
    for name in ("a.xyz", "a", "a.toml"):
        with pytest.raises(InputError, match=r"must end in one of \."):
            check_picture(tmp_path / name)
