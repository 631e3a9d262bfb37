"""Pictures: a ladder of certified radii, and a counterexample beside the image it came from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork
from corgi_opt.question import Question
from corgi_opt.results import Witness, asked_in_words
from corgi_opt.spec import Clip

if TYPE_CHECKING:
    from corgi_opt.compare import Comparison

CERTIFIED, BROKEN = "#4477aa", "#aa3377"
"""Colours that stay apart for the colour-blind; in grey print the line's dashes tell it from the bars."""

PANEL = 2.5
"""Side of one panel of a counterexample's picture, in inches."""


def plot_comparison(comparison: Comparison, ax: Any = None) -> Any:
    """One bar per method up to its certified eps, a line at the smallest falsified eps. Returns the Axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 1.3 + 0.4 * len(comparison.radii)), layout="constrained")
    names = list(comparison.radii)
    lower = [comparison.radii[n].lower for n in names]
    upper = min(r.upper for r in comparison.radii.values())
    right = max([*lower, *([upper] if np.isfinite(upper) else [])]) or 1.0
    ax.barh(names, lower, color=CERTIFIED, height=0.7)
    for row, value in enumerate(lower):
        # inside the bar where it is long enough, so that no number meets the line at its end
        inside = value > 0.3 * right
        ax.text(
            value,
            row,
            f" {value:.4g} ",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=9,
        )
    if np.isfinite(upper):
        ax.axvline(upper, color=BROKEN, linewidth=2, linestyle="--")
        above = ax.get_xaxis_transform()  # x in eps, y as a share of the axes' height
        ax.text(upper, 1.02, f"counterexample at {upper:.4g}", transform=above, ha="right", fontsize=9, color=BROKEN)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlim(0, 1.05 * right)
    clip = "no clip box" if comparison.clip is None else f"clip box [{comparison.clip[0]:g}, {comparison.clip[1]:g}]"
    ax.set_xlabel(f"certified eps (L-inf, input units, {clip})")
    about = asked_in_words(comparison.k, comparison.within)
    ax.set_title(f"{about} of the CAM of class {comparison.class_idx}", fontsize=10, pad=20)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def plot_counterexample(
    net: CamNetwork,
    x: Tensor,
    k: int,
    witness: Witness,
    *,
    class_idx: int | None = None,
    clip: Clip = (0.0, 1.0),
) -> Any:
    """Image + change = counterexample, then both CAMs with their top-k sets outlined. Returns the Figure.

    In the last panel a plus marks the pixels that came in, a cross those that were pushed out.
    """
    import matplotlib.pyplot as plt

    # a witness was found, so the set was defined; whoever lowered tie_tol for it need not do so again here
    question = Question.ask(net, x, k=k, class_idx=class_idx, norm="inf", clip=clip, tie_tol=0.0)
    before, after = question.cam.numpy(), witness.cam.numpy()
    new = np.argsort(-after.flatten(), kind="stable")[:k].tolist()
    old = question.topk.top.tolist()
    figure, axes = plt.subplots(1, 5, figsize=(5.6 * PANEL, PANEL + 0.9))
    figure.set_layout_engine("constrained", h_pad=0.08)
    low, high = _range((question.x, witness.image), clip)
    _show_image(axes[0], question.x, low, high, f"image (class {question.class_idx})")
    change, most = witness.image - question.x, witness.distance or 1.0
    _show_image(axes[1], change, -most, most, "change")
    colour = change.shape[1] == 3
    axes[1].set_xlabel(f"grey 0, full colour ±{most:.3g}" if colour else f"black {-most:.3g}, grey 0, white {most:.3g}")
    _show_image(axes[2], witness.image, low, high, "counterexample")
    axes[2].set_xlabel("image + change")
    faint, bright = min(before.min(), after.min()), max(before.max(), after.max())
    _show_cam(axes[3], before, faint, bright, "CAM of the image")
    _outline(axes[3], old, before.shape)
    drawn = _show_cam(axes[4], after, faint, bright, "CAM of the counterexample")
    _outline(axes[4], new, after.shape)
    handles = [
        _mark(axes[4], set(new) - set(old), after.shape, "P", "came in"),
        _mark(axes[4], set(old) - set(new), after.shape, "X", "pushed out"),
    ]
    figure.colorbar(drawn, ax=axes[4], shrink=0.9, label="CAM")
    figure.legend(handles=[_outline_handle(k), *handles], loc="outside lower right", ncols=3, frameon=False)
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


def _range(images: Iterable[Tensor], clip: Clip) -> tuple[float, float]:
    """One grey scale for all images: the clip box, or what they hold where there is none."""
    if clip is not None and bool(np.isfinite(clip).all()):
        return clip
    both = [(float(i.min()), float(i.max())) for i in images]
    return min(low for low, _ in both), max(high for _, high in both)


def _show_image(ax: Any, image: Tensor, low: float, high: float, title: str) -> None:
    pixels = image[0].permute(1, 2, 0).numpy()
    shown = np.clip((pixels - low) / ((high - low) or 1.0), 0, 1)
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
