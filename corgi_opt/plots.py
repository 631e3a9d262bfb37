"""Pictures: a ladder of certified radii, and a counterexample beside the image it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from corgi_opt.network.cam import CamNetwork
from corgi_opt.question import Question
from corgi_opt.results import Witness
from corgi_opt.spec import Clip

if TYPE_CHECKING:
    from corgi_opt.compare import Comparison

CERTIFIED, BROKEN, NEW, LOST = "#4477aa", "#cc6677", "#ee7733", "#222222"
"""Colours that stay apart for the colour-blind and in grey print."""


def plot_comparison(comparison: Comparison, ax: Any = None) -> Any:
    """One bar per method up to its certified eps, a line at the smallest falsified eps. Returns the Axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 0.9 + 0.45 * len(comparison.radii)), layout="constrained")
    names = list(comparison.radii)
    lower = [comparison.radii[n].lower for n in names]
    upper = min(r.upper for r in comparison.radii.values())
    ax.barh(names, lower, color=CERTIFIED, height=0.6, label="certified")
    if np.isfinite(upper):
        ax.axvline(upper, color=BROKEN, linewidth=2, linestyle="--", label="counterexample")
    for row, value in enumerate(lower):
        ax.text(value, row, f" {value:.4g}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * max([*lower, *([upper] if np.isfinite(upper) else [])], default=1.0))
    clip = "none" if comparison.clip is None else f"[{comparison.clip[0]:g}, {comparison.clip[1]:g}]"
    ax.set_xlabel(f"eps (L-inf, input units; clip {clip})")
    ax.set_title(f"top-{comparison.k} of the CAM, class {comparison.class_idx}", fontsize=10)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
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
    """Image and CAM with its top-k set outlined, then the counterexample and its CAM. Returns the Figure.

    In the last panel the pixel that came in is orange and the one that it pushed out is hatched.
    """
    import matplotlib.pyplot as plt

    question = Question.ask(net, x, k=k, class_idx=class_idx, norm="inf", clip=clip, tie_tol=None)
    before, after = question.cam.numpy(), witness.cam.numpy()
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    _show_image(axes[0], question.x, f"image (class {question.class_idx})")
    _show_cam(axes[1], before, low, high, f"its CAM, top {k} outlined")
    _outline(axes[1], question.topk.top, before.shape, BROKEN)
    _show_image(axes[2], witness.image, f"counterexample\nwithin {witness.distance:.4g} of every pixel")
    drawn = _show_cam(axes[3], after, low, high, f"its CAM, the new top {k}")
    order = np.argsort(-after.flatten(), kind="stable")[:k]
    _outline(axes[3], order, after.shape, BROKEN)
    _outline(axes[3], [witness.pair[0]], after.shape, LOST, hatch="////")
    _outline(axes[3], [witness.pair[1]], after.shape, NEW, linewidth=3)
    figure.colorbar(drawn, ax=axes[3], shrink=0.85)
    return figure


def _show_image(ax: Any, image: Tensor, title: str) -> None:
    pixels = image[0].permute(1, 2, 0).numpy()
    low, high = pixels.min(), pixels.max()
    span = (pixels - low) / (high - low) if high > low else pixels * 0
    shown = span if pixels.shape[2] == 3 else span[..., 0]
    ax.imshow(shown, cmap="gray", interpolation="nearest")
    _bare(ax, title)


def _show_cam(ax: Any, cam: Any, low: float, high: float, title: str) -> Any:
    drawn = ax.imshow(cam, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    _bare(ax, title)
    return drawn


def _bare(ax: Any, title: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])


def _outline(
    ax: Any, pixels: Any, shape: tuple[int, ...], colour: str, *, linewidth: float = 1.5, hatch: str | None = None
) -> None:
    from matplotlib.patches import Rectangle

    for p in pixels:
        y, x = divmod(int(p), shape[1])
        box = Rectangle(
            (x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=linewidth, hatch=hatch
        )
        ax.add_patch(box)
