"""Pictures of one image, drawn from arrays: a counterexample beside its image, a map over it, a certified heat map.

Whoever passes no figure gets one of pyplot's; a figure that is passed is drawn into, and pyplot is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corgi_opt.drawing.panels import (
    Scale,
    bare,
    mark,
    outline,
    outline_handle,
    share_of_pixel,
    show_cam,
    show_change,
    show_image,
    show_overlay,
)
from corgi_opt.drawing.words import wrapped
from corgi_opt.errors import InputError

KINDS = ("#f7f7f7", "#ddaa33", "#004488")
"""Out, undecided, in: from light to dark, so that they stay apart in grey and for the colour-blind."""

PANEL = 2.5
"""Side of one panel, in inches, where nobody says how large the figure is."""

SMALL_SIDE = 1.5
"""Side of a panel, in inches, below which its words are smaller."""

SMALLEST_SIGN = 3.0
"""Points below which a sign would only darken its pixel."""

NARROWEST = 1.45
"""Inches that a panel needs beside others; a narrower figure has more rows."""


@dataclass(frozen=True, eq=False)
class Shown:
    """An image (C, H, W), its CAM (H, W), and the flat indices of the CAM's pixels that are outlined, if any."""

    image: Any
    cam: Any
    top: list[int]


MapPanel = Callable[[Any, Shown, Scale, tuple[float, float], str], Any]
"""Draws a map: into axes, of an image, in a scale, between limits, with a title."""


def as_it_is(ax: Any, shown: Shown, scale: Scale, limits: tuple[float, float], title: str) -> Any:
    """A map pixel by pixel."""
    return show_cam(ax, shown.cam, limits, title)


def over_the_image(ax: Any, shown: Shown, scale: Scale, limits: tuple[float, float], title: str) -> Any:
    """A map stretched over its image."""
    return show_overlay(ax, shown.image, shown.cam, scale, limits, title)


def draw_counterexample(
    before: Shown, after: Shown, *, title: str, cam: str, scale: Scale, map_panel: MapPanel, figure: Any = None
) -> Any:
    """Image + change = counterexample, then both maps with their outlined sets. Returns the Figure.

    ``title`` of the whole; ``cam``: whose map it is. In the last panel a plus marks the pixels that came in, a cross
    those that were pushed out. The panels stand in one row where the figure is wide, else in two or three.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _new((5.6 * PANEL, PANEL + 1.2)) if figure is None else figure
    axes, side = _grid(figure, 5)
    figure.suptitle(wrapped(title, _width(figure)), fontsize=10)
    show_image(axes[0], before.image, scale, "image")
    show_change(axes[1], before.image, after.image, scale)
    show_image(axes[2], after.image, scale, "counterexample")
    axes[2].set_xlabel("image + difference", fontsize=9)
    limits = float(min(before.cam.min(), after.cam.min())), float(max(before.cam.max(), after.cam.max()))
    map_panel(axes[3], before, scale, limits, cam)
    drawn = map_panel(axes[4], after, scale, limits, "CAM of the counterexample")
    bars = [(axes[4], "right")] if len(axes) == 5 else [(axes[3], "bottom"), (axes[4], "bottom")]
    for ax, place in bars:  # below both where they stand in several rows: that leaves all panels the same size
        bar = figure.colorbar(drawn, ax=ax, location=place, shrink=0.9, label="CAM")
        if side < SMALL_SIDE:
            bar.set_ticks(MaxNLocator(nbins=3))
            _shrink(bar, 8)
    _fit(axes, side)
    handles = _sets(axes[3], axes[4], before, after, side)
    if handles:
        _legend(figure, axes[5:], handles)
    return figure


def _sets(first: Any, second: Any, before: Shown, after: Shown, side: float) -> list[Any]:
    """Outlines both sets and marks what changed; returns what a legend needs."""
    if not before.top:
        return []
    shape, old, new = before.cam.shape, set(before.top), set(after.top)
    outline(first, old, shape, side)
    outline(second, new, shape, side)
    same = len(old) == len(new)
    name = f"top-{len(old)} set" if same else f"top {len(old)}, then top {len(new)}"
    handles = [outline_handle(name)]
    if same:  # of a larger set, all that is new in it says nothing
        handles.append(mark(second, new - old, shape, side, "+", "came in"))
    return [*handles, mark(second, old - new, shape, side, "x", "pushed out")]


def draw_small(figure: Any, before: Shown, after: Shown | None, scale: Scale) -> None:
    """The picture beside a table: an image, its map with the outlined set; of a counterexample, what changed and its
    map."""
    axes = figure.subplots(1, 2 if after is None else 4)
    side = _width(figure) / len(axes)
    cams = [before.cam] if after is None else [before.cam, after.cam]
    limits = float(min(cam.min() for cam in cams)), float(max(cam.max() for cam in cams))
    show_image(axes[0], before.image, scale, "image")
    show_cam(axes[1], before.cam, limits, "its CAM")
    if after is None:
        outline(axes[1], before.top, before.cam.shape, side)
    else:
        show_change(axes[2], before.image, after.image, scale)
        axes[2].set_xlabel("")
        show_cam(axes[3], after.cam, limits, "CAM then")
        _sets(axes[1], axes[3], before, after, side)
    for ax in axes:
        ax.title.set_fontsize(8)


def draw_small_kinds(figure: Any, shown: Shown, inside: Any, outside: Any, scale: Scale) -> None:
    """The picture beside a heat map's table: the image, its map, and which pixels are in, out and undecided."""
    axes = figure.subplots(1, 3)
    side = _width(figure) / 3
    show_image(axes[0], shown.image, scale, "image")
    show_cam(axes[1], shown.cam, (float(shown.cam.min()), float(shown.cam.max())), "its CAM")
    outline(axes[1], shown.top, shown.cam.shape, side)
    _show_kinds(axes[2], inside, outside, side, "certain?")
    for ax in axes:
        ax.title.set_fontsize(8)


def draw_overlay(shown: Shown, *, title: str, label: str, scale: Scale, ax: Any = None) -> Any:
    """A map stretched over its image, with a colour bar that is called ``label``. Returns the Axes."""
    if ax is None:
        ax = _new((1.9 * PANEL, 1.6 * PANEL)).subplots()
    box = ax.get_window_extent()
    side = float(min(box.width, box.height) / ax.figure.dpi)
    limits = float(shown.cam.min()), float(shown.cam.max())
    drawn = show_overlay(ax, shown.image, shown.cam, scale, limits, title)
    _fit([ax], side)
    ax.figure.colorbar(drawn, ax=ax, label=label, shrink=0.9)
    return ax


def plot_heat_map(
    cam: Any, interval: Any, ranks: Any, inside: Any, outside: Any, *, title: str, figure: Any = None
) -> Any:
    """A certified heat map: the CAM, how far each pixel and its rank can move, and which are in, out and undecided.

    Arrays (H, W): the CAM, the widths of the proven intervals and rank ranges, two masks; ``figure``: an empty
    matplotlib Figure or SubFigure to draw into. Returns it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _new((5.4 * PANEL, 1.3 * PANEL + 0.9)) if figure is None else figure
    axes, side = _grid(figure, 4)
    figure.suptitle(wrapped(title, _width(figure)), fontsize=11)
    drawn = show_cam(axes[0], cam, (float(cam.min()), float(cam.max())), "CAM of the image")
    bars = [_beside(figure, axes[0], drawn, "units of the CAM", MaxNLocator(nbins=4), side)]
    for ax, width, name, unit in (
        (axes[1], interval, "proven interval, width", "units of the CAM"),
        (axes[2], ranks, "proven ranks, worst - best", "ranks"),
    ):
        most = float(width.max()) or 1.0  # of what cannot move, all are dark
        drawn = ax.imshow(width, cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
        bare(ax, name)
        bars.append(_beside(figure, ax, drawn, unit, MaxNLocator(nbins=4, integer=ax is axes[2]), side))
    handles = _show_kinds(axes[3], inside, outside, side, "in the top-k set?")
    size = 9 if side >= SMALL_SIDE else 7
    axes[3].legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.03), frameon=False, fontsize=size)
    _fit(axes, side)
    for bar in bars:
        bar.formatter.set_powerlimits((-2, 4))
        _shrink(bar, size)
    if side < SMALL_SIDE:
        for ax in axes:
            ax.set_anchor("N")  # those with a colour bar below and the one without stand side by side
    return figure


def _beside(figure: Any, ax: Any, drawn: Any, label: str, ticks: Any, side: float) -> Any:
    """The colour bar of a panel: to its right, or below it where panels are small."""
    if side >= SMALL_SIDE:
        return figure.colorbar(drawn, ax=ax, label=label, ticks=ticks, location="right", shrink=0.8)
    bar = figure.colorbar(drawn, ax=ax, ticks=ticks, location="bottom", shrink=0.8)
    bar.set_label(label, loc="left")  # a power of ten stands on the right
    return bar


def _shrink(bar: Any, size: float) -> None:
    """The words of a colour bar, in letters of that size."""
    bar.ax.tick_params(labelsize=size)
    for axis in (bar.ax.xaxis, bar.ax.yaxis):
        axis.label.set_fontsize(size)
        axis.get_offset_text().set_fontsize(size)


def _show_kinds(ax: Any, inside: Any, outside: Any, side: float, title: str) -> list[Any]:
    """Which pixels are in, out and undecided, with a sign where that leaves their colour to be seen; returns what a
    legend needs."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    undecided = ~inside & ~outside
    kinds = np.where(inside, 2, np.where(undecided, 1, 0))
    ax.imshow(kinds, cmap=ListedColormap(KINDS), vmin=0, vmax=2, interpolation="nearest")
    bare(ax, title)
    y, x = np.nonzero(undecided)
    size = share_of_pixel(kinds.shape, side, 0.5, 0.0, 9.0)
    if size >= SMALLEST_SIGN:
        ax.plot(x, y, linestyle="", marker="$?$", color="black", markersize=size)
    names = ("certainly out", "undecided", "certainly in")
    counts = (int(outside.sum()), int(undecided.sum()), int(inside.sum()))
    return [
        Patch(facecolor=colour, edgecolor="black", linewidth=0.6, label=f"{name} ({count})")
        for colour, name, count in zip(KINDS, names, counts, strict=True)
    ]


def check_picture(path: Path) -> Path:
    """The path, whose name must say a kind of picture. Raises InputError."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        raise InputError(f"a picture's name must end in one of .{', .'.join(known)}; got {str(path)!r}")
    return path


def _new(size: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=size)
    figure.set_layout_engine("constrained", h_pad=0.08)
    return figure


def _width(figure: Any) -> float:
    """The width of a Figure or SubFigure, in inches."""
    return float(figure.bbox.width / figure.dpi)


def _grid(figure: Any, panels: int) -> tuple[Any, float]:
    """Axes for so many panels, in as few rows as the figure's width allows, those that are left over empty; and a
    panel's side in inches."""
    width = _width(figure)
    rows = next((r for r in (1, 2) if width / math.ceil(panels / r) >= NARROWEST), 3 if panels > 4 else 2)
    columns = math.ceil(panels / rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[panels:]:
        ax.set_axis_off()
    return axes, 0.8 * width / columns


def _fit(axes: Any, side: float) -> None:
    """Words above and below panels, in lines and letters that fit a side of so many inches."""
    size, letters = (10, 11) if side >= SMALL_SIDE else (8, 14)
    for ax in axes:
        for text, points in ((ax.title, size), (ax.xaxis.label, size - 1)):
            text.set_text(wrapped(text.get_text(), side, letters=letters))
            text.set_fontsize(points)


def _legend(figure: Any, spare: Any, handles: list[Any]) -> None:
    """In a cell of the grid that is left over, or else below all."""
    if len(spare):
        spare[0].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    else:
        figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False)
