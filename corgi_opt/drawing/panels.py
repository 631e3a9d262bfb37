"""Panels of one image or one map each: an image, a map, the map over its image, outlined sets and marked pixels.

All draw into axes that they are given, and touch nothing of pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARE = 0.55
"""How opaque a map over its image is."""


GREY = np.array([0.299, 0.587, 0.114])
"""How bright red, green and blue look."""


@dataclass(frozen=True, eq=False)
class Scale:
    """The darkest and the brightest value of an image: numbers, or one a channel."""

    low: Any
    high: Any

    @classmethod
    def of(cls, images: Iterable[Any]) -> Scale:
        """What images (C, H, W) hold."""
        ends = [(float(i.min()), float(i.max())) for i in images]
        return cls(min(low for low, _ in ends), max(high for _, high in ends))

    @property
    def span(self) -> Any:
        """From one end to the other; 1 where they are the same."""
        span = np.asarray(self.high, dtype=float) - np.asarray(self.low, dtype=float)
        return np.where(span > 0, span, 1.0)

    def seen(self, image: Any) -> Any:
        """An image (C, H, W) as matplotlib takes it: (H, W, 3), or (H, W) of its first channel."""
        return _pixels((image.transpose(1, 2, 0) - self.low) / self.span)

    def magnified(self, change: Any) -> tuple[float, Any]:
        """How many times a change (C, H, W) can be drawn larger and still fit, rounded down to 1, 2 or 5 times a power
        of ten; and the change as matplotlib takes it: grey is none."""
        share = change.transpose(1, 2, 0) / self.span
        most = float(np.abs(share).max(initial=0.0))
        times = 1.0 if most == 0 else _round_down(0.5 / most)
        return times, _pixels(0.5 + times * share)


def _pixels(share: Any) -> Any:
    """Shares (H, W, C) of the way from dark to bright, cut off to [0, 1]: in colour, or of the first channel."""
    shown = np.clip(share, 0, 1)
    return shown if shown.shape[2] == 3 else shown[..., 0]


def _round_down(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no larger; one ten-millionth as much more counts as equal,
    so that a rounding error of the distance does not halve the picture's contrast."""
    power = 10.0 ** math.floor(math.log10(value * (1 + 1e-7)))
    return max(step for step in (1.0, 2.0, 5.0) if step * power <= value * (1 + 1e-7)) * power


def times_in_words(times: float) -> str:
    """``200x``; without an exponent where there is room."""
    return f"{times:,.0f}x" if 1 <= times < 1e6 else f"{times:g}x"


def upsampled(cam: Any, shape: tuple[int, int]) -> Any:
    """A map (h, w) stretched over an image of ``shape`` (H, W), bilinearly, as torch's ``align_corners=False``."""
    for axis, size in enumerate(shape):
        small = cam.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, small - 1)
        share = np.expand_dims(at - low, 1 - axis)
        cam = (1 - share) * np.take(cam, low, axis) + share * np.take(cam, high, axis)
    return cam


def show_image(ax: Any, image: Any, scale: Scale, title: str) -> None:
    """An image (C, H, W), grey or in colour; of any other number of channels the first, which the title says."""
    ax.imshow(scale.seen(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(ax, f"{title}{_channels(image)}")


def show_change(ax: Any, before: Any, after: Any, scale: Scale) -> None:
    """The difference of two images (C, H, W), magnified, with how many times and what its shades mean."""
    change = after - before
    times, shown = scale.magnified(change)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(ax, f"difference, {times_in_words(times)}{_channels(before)}")
    ax.set_xlabel(f"grey 0, most {np.abs(change).max():.3g}", fontsize=9)


def show_cam(ax: Any, cam: Any, limits: tuple[float, float], title: str) -> Any:
    """A map (H, W) as it is, pixel by pixel; returns what a colour bar needs."""
    drawn = ax.imshow(cam, cmap="viridis", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    bare(ax, title)
    return drawn


def show_overlay(ax: Any, image: Any, cam: Any, scale: Scale, limits: tuple[float, float], title: str) -> Any:
    """A map (h, w) stretched over its image (C, H, W), which is drawn in grey: colours are the map's; returns what a
    colour bar needs.

    The axes count in pixels of the map, so that :func:`outline` and :func:`mark` fit.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    height, width = image.shape[1:]
    colours = ScalarMappable(Normalize(*limits), "viridis")
    shown = scale.seen(image)
    below = (shown @ GREY if shown.ndim == 3 else shown)[..., None]
    over = colours.to_rgba(upsampled(cam, (height, width)))[..., :3]
    h, w = cam.shape
    extent, aspect = (-0.5, w - 0.5, h - 0.5, -0.5), (height / h) / (width / w)
    ax.imshow((1 - SHARE) * below + SHARE * over, extent=extent, aspect=aspect, interpolation="nearest")
    bare(ax, f"{title}{_channels(image)}")
    return colours


def _channels(image: Any) -> str:
    return "" if len(image) in (1, 3) else f"\n(channel 1 of {len(image)})"


def bare(ax: Any, title: str) -> None:
    """A title, and no ticks."""
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])


def share_of_pixel(shape: tuple[int, ...], side: float, share: float, least: float, most: float) -> float:
    """A share of one map pixel's side, in points, in a panel of ``side`` inches."""
    return float(np.clip(share * side * 72 / max(shape), least, most))


def outline(ax: Any, pixels: Iterable[int], shape: tuple[int, ...], side: float) -> None:
    """The border of a set of pixels: white on black, so that it shows on every colour and in grey."""
    from matplotlib.collections import LineCollection

    member = np.zeros((shape[0] + 2, shape[1] + 2), dtype=bool)
    for p in pixels:
        y, x = divmod(int(p), shape[1])
        member[y + 1, x + 1] = True
    edges = []
    for y, x in np.argwhere(member[1:] != member[:-1]):
        edges.append([(x - 1.5, y - 0.5), (x - 0.5, y - 0.5)])
    for y, x in np.argwhere(member[:, 1:] != member[:, :-1]):
        edges.append([(x - 0.5, y - 1.5), (x - 0.5, y - 0.5)])
    width = share_of_pixel(shape, side, 0.12, 0.8, 2.5)
    for colour, wide in (("black", 2.2 * width), ("white", width)):
        lines = LineCollection(edges, colors=colour, linewidths=wide, capstyle="projecting", clip_on=False)
        lines.set_zorder(3 if colour == "black" else 4)
        ax.add_collection(lines)


def mark(ax: Any, pixels: Iterable[int], shape: tuple[int, ...], side: float, marker: str, label: str) -> Any:
    """A sign, ``+`` or ``x``, in each of the pixels; returns its handle for the legend."""
    from matplotlib.lines import Line2D

    y, x = np.divmod(np.array(sorted(pixels), dtype=int), shape[1])
    size = share_of_pixel(shape, side, 0.6, 4.5, 10.0)
    ax.plot(x, y, zorder=5, clip_on=False, **_sign(marker, size, label))
    return Line2D([], [], **_sign(marker, 9.0, label))


def _sign(marker: str, size: float, label: str) -> dict[str, Any]:
    """White with a black edge, like the outlines; of thin strokes, so that it stays a sign where it is small."""
    from matplotlib.patheffects import withStroke

    width = 0.2 * size
    return {
        "linestyle": "",
        "marker": marker,
        "markersize": size,
        "color": "white",
        "markeredgewidth": width,
        "path_effects": [withStroke(linewidth=width + 1.6, foreground="black")],
        "label": label,
    }


def outline_handle(label: str) -> Any:
    """What stands for an outline in a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=4, foreground="black")]
    return Line2D([], [], color="white", linewidth=1.8, path_effects=around, label=label)
