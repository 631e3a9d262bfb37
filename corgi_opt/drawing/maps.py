"""Maps of one image, drawn from arrays: a counterexample beside its image, a certified heat map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corgi_opt.errors import InputError

KINDS = ("#f7f7f7", "#ddaa33", "#004488")
"""Out, undecided, in: from light to dark, so that they stay apart in grey and for the colour-blind."""

PANEL = 2.5
"""Side of one panel of a counterexample's picture, in inches."""


@dataclass(frozen=True, eq=False)
class Shown:
    """An image (C, H, W), its CAM (H, W), and the flat indices of the CAM's k brightest pixels."""

    image: Any
    cam: Any
    top: list[int]


def draw_counterexample(before: Shown, after: Shown, *, class_idx: int, distance: float, scale: tuple[Any, Any]) -> Any:
    """Image + change = counterexample, then both CAMs with their top-k sets outlined. Returns the Figure.

    ``distance``: the largest change, by which its panel is scaled; ``scale``: the darkest and the brightest value of an
    image, numbers or one a channel. In the last panel a plus marks the pixels that came in, a cross those that were
    pushed out.
    """
    import matplotlib.pyplot as plt

    old, new, k = before.top, after.top, len(before.top)
    figure, axes = plt.subplots(1, 5, figsize=(5.6 * PANEL, PANEL + 0.9))
    figure.set_layout_engine("constrained", h_pad=0.08)
    low, high = scale
    _show_image(axes[0], before.image, low, high, f"image (class {class_idx})")
    change, most = after.image - before.image, distance or 1.0
    _show_image(axes[1], change, -most, most, "change")
    colour = len(change) == 3
    axes[1].set_xlabel(f"grey 0, full colour ±{most:.3g}" if colour else f"black {-most:.3g}, grey 0, white {most:.3g}")
    _show_image(axes[2], after.image, low, high, "counterexample")
    axes[2].set_xlabel("image + change")
    faint, bright = min(before.cam.min(), after.cam.min()), max(before.cam.max(), after.cam.max())
    _show_cam(axes[3], before.cam, faint, bright, "CAM of the image")
    _outline(axes[3], old, before.cam.shape)
    drawn = _show_cam(axes[4], after.cam, faint, bright, "CAM of the counterexample")
    _outline(axes[4], new, after.cam.shape)
    handles = [
        _mark(axes[4], set(new) - set(old), after.cam.shape, "P", "came in"),
        _mark(axes[4], set(old) - set(new), after.cam.shape, "X", "pushed out"),
    ]
    figure.colorbar(drawn, ax=axes[4], shrink=0.9, label="CAM")
    if k:  # else what is asked is about no set
        figure.legend(handles=[_outline_handle(k), *handles], loc="outside lower right", ncols=3, frameon=False)
    return figure


def plot_heat_map(
    cam: Any, interval: Any, ranks: Any, inside: Any, outside: Any, *, title: str, figure: Any = None
) -> Any:
    """A certified heat map: the CAM, how far each pixel and its rank can move, and which are in, out and undecided.

    Arrays (H, W): the CAM, the widths of the proven intervals and rank ranges, two masks; ``figure``: an empty
    matplotlib Figure or SubFigure to draw into. Returns it.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    if figure is None:
        figure = plt.figure(figsize=(5.4 * PANEL, 1.3 * PANEL + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 4)
    drawn = _show_cam(axes[0], cam, cam.min(), cam.max(), "CAM of the image")
    figure.colorbar(drawn, ax=axes[0], shrink=0.8)
    for ax, width, name in (
        (axes[1], interval, "proven interval, width"),
        (axes[2], ranks, "proven ranks, worst - best"),
    ):
        most = max(float(width.max()), 1e-300)
        drawn = ax.imshow(width, cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
        _bare(ax, name)
        figure.colorbar(drawn, ax=ax, shrink=0.8)
    undecided = ~inside & ~outside
    kinds = np.where(inside, 2, np.where(undecided, 1, 0))
    axes[3].imshow(kinds, cmap=ListedColormap(KINDS), vmin=0, vmax=2, interpolation="nearest")
    _bare(axes[3], "in the top-k set?")
    y, x = np.nonzero(undecided)
    axes[3].plot(x, y, linestyle="", marker="$?$", color="black", markersize=_scale(cam.shape, 0.5, 3.0, 9.0))
    names = ("certainly out", "undecided", "certainly in")
    counts = (int(outside.sum()), int(undecided.sum()), int(inside.sum()))
    handles = [
        Patch(facecolor=colour, edgecolor="black", linewidth=0.6, label=f"{name} ({count})")
        for colour, name, count in zip(KINDS, names, counts, strict=True)
    ]
    axes[3].legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.03), frameon=False, fontsize=9)
    return figure


def check_picture(path: Path) -> Path:
    """The path, once its folder exists: refuses one that no picture can be saved at before any work is done.

    Raises InputError.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        raise InputError(f"a picture's name must end in one of .{', .'.join(known)}; got {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder of {str(path)!r}: {error}") from error
    return path


def _show_image(ax: Any, image: Any, low: Any, high: Any, title: str) -> None:
    pixels = image.transpose(1, 2, 0)
    span = np.asarray(high - low)
    shown = np.clip((pixels - low) / np.where(span > 0, span, 1.0), 0, 1)
    ax.imshow(shown if pixels.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(ax, title)


def _show_cam(ax: Any, cam: Any, low: float, high: float, title: str) -> Any:
    drawn = ax.imshow(cam, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    _bare(ax, title)
    return drawn


def _bare(ax: Any, title: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])


def _scale(shape: tuple[int, ...], share: float, least: float, most: float) -> float:
    """A share of one map pixel's side, in points."""
    return float(np.clip(share * PANEL * 72 / max(shape), least, most))


def _outline(ax: Any, pixels: Iterable[int], shape: tuple[int, ...]) -> None:
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
    width = _scale(shape, 0.12, 1.0, 2.5)
    for colour, wide in (("black", 2.2 * width), ("white", width)):
        lines = LineCollection(edges, colors=colour, linewidths=wide, capstyle="projecting", clip_on=False)
        lines.set_zorder(3 if colour == "black" else 4)
        ax.add_collection(lines)


def _mark(ax: Any, pixels: Iterable[int], shape: tuple[int, ...], marker: str, label: str) -> Any:
    """A sign in each of the pixels; returns its handle for the legend."""
    from matplotlib.lines import Line2D

    y, x = np.divmod(np.array(sorted(pixels), dtype=int), shape[1])
    size = _scale(shape, 0.5, 4.0, 10.0)
    ax.plot(x, y, zorder=5, **_sign(marker, size, label))
    return Line2D([], [], **_sign(marker, 10.0, label))


def _sign(marker: str, size: float, label: str) -> dict[str, Any]:
    """White with a black edge, like the outlines."""
    return {
        "linestyle": "",
        "marker": marker,
        "markersize": size,
        "color": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 0.12 * size,
        "label": label,
    }


def _outline_handle(k: int) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=5, foreground="black")]
    return Line2D([], [], color="white", linewidth=2.2, path_effects=around, label=f"top-{k} set")
