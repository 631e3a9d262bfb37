"""Panels from arrays: values where they belong, maps stretched as torch does it, changes as large as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from corgi_opt.drawing.panels import (
    GREY,
    SHARE,
    Scale,
    mark,
    outline,
    share_of_pixel,
    show_change,
    show_image,
    show_overlay,
    times_in_words,
    upsampled,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("small", "large"), [((4, 4), (9, 12)), ((3, 5), (3, 5)), ((1, 1), (4, 6)), ((6, 6), (4, 3))])
def test_maps_are_stretched_as_torch_does_it(small, large):
    cam = RNG.normal(size=small)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(cam)[None, None], size=large, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(upsampled(cam, large), expected[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("most", "times"), [(0.5, 1), (0.25, 2), (0.0396, 10), (0.0025, 200), (0.9, 0.5), (0.1 + 1e-10, 5), (1e-9, 5e8)]
)
def test_changes_are_magnified_by_a_round_number_that_fits(most, times):
    change = np.array([[[most, -most / 2, 0.0]]])
    found, shown = Scale(0.0, 1.0).magnified(change)
    assert found == pytest.approx(times) and found * most <= 0.5 * (1 + 1e-6) and shown[0, 2] == 0.5
    np.testing.assert_allclose(shown[0], np.clip(0.5 + found * change[0, 0], 0, 1))


def test_no_change_is_grey_and_the_scale_of_a_channel_counts():
    times, shown = Scale(0.0, 1.0).magnified(np.zeros((3, 2, 2)))
    assert times == 1 and (shown == 0.5).all()
    low, high = np.array([0.0, 0.0, 0.0]), np.array([1.0, 10.0, 1.0])
    change = np.zeros((3, 1, 1))
    change[1] = 1.0  # a tenth of its channel
    times, shown = Scale(low, high).magnified(change)
    assert times == 5 and shown[0, 0].tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("times", "said"), [(1.0, "1x"), (200.0, "200x"), (5000.0, "5,000x"), (0.5, "0.5x"), (5e7, "5e+07x")]
)
def test_times_are_said_in_words(times, said):
    assert times_in_words(times) == said


def pixels(ax: Any) -> Any:
    """What is drawn in axes that hold an image."""
    return np.asarray(ax.images[0].get_array())


def test_a_difference_says_how_many_times_and_how_much():
    ax = Figure().subplots()
    before = np.full((1, 3, 3), 0.5)
    show_change(ax, before, before + 0.01, Scale(0.0, 1.0))
    assert ax.get_title() == "difference, 50x" and "0.01" in ax.get_xlabel()
    np.testing.assert_allclose(pixels(ax), 1.0)


def test_an_image_of_many_channels_says_which_is_seen():
    ax, image = Figure().subplots(), RNG.random((5, 4, 4))
    show_image(ax, image, Scale(0.0, 1.0), "image")
    assert "channel 1 of 5" in ax.get_title()
    np.testing.assert_allclose(pixels(ax), image[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_is_the_map_over_the_grey_image(channels):
    image, cam = RNG.random((channels, 8, 12)), RNG.normal(size=(4, 3))
    ax = Figure().subplots()
    limits = float(cam.min()), float(cam.max())
    show_overlay(ax, image, cam, Scale(0.0, 1.0), limits, "t")
    share = (upsampled(cam, (8, 12)) - limits[0]) / (limits[1] - limits[0])
    grey = image[0] if channels == 1 else np.tensordot(GREY, image, 1)
    expected = (1 - SHARE) * grey[..., None] + SHARE * colormaps["viridis"](share)[..., :3]
    np.testing.assert_allclose(pixels(ax), expected, atol=1 / 200)
    assert list(ax.images[0].get_extent()) == [-0.5, 2.5, 3.5, -0.5]  # in pixels of the map, as outlines are
    ax.apply_aspect()
    box = ax.get_window_extent()
    assert box.width / box.height == pytest.approx(12 / 8, rel=0.01)  # as the image is


def test_outlines_and_signs_stand_in_their_pixels():
    ax = Figure().subplots()
    outline(ax, [5], (3, 4), side=2.0)
    drawn: list[Any] = list(ax.collections)
    lines = [{tuple(point) for segment in c.get_segments() for point in segment.tolist()} for c in drawn]
    corners = {(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)}
    assert lines == [corners, corners]
    handle = mark(ax, [5, 11], (3, 4), 2.0, "+", "came in")
    (line,) = ax.lines
    x, y = map(np.asarray, line.get_data())
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(1, 1), (3, 2)] and handle.get_label() == "came in"


def test_sizes_are_shares_of_a_pixel_within_limits():
    assert share_of_pixel((8, 8), 2.0, 0.5, 1.0, 99.0) == 9.0
    assert share_of_pixel((1000, 8), 2.0, 0.5, 1.0, 99.0) == 1.0
    assert share_of_pixel((1, 1), 2.0, 0.5, 1.0, 10.0) == 10.0
