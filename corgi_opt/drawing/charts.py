"""Charts of bounds: certified radii as bars, proven intervals of a margin, and shares of many questions.

What is proven is blue, what is broken a dashed purple line; every chart says in a legend what its signs are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corgi_opt.drawing.words import wrapped

CERTIFIED, BROKEN, OPEN = "#4477aa", "#aa3377", "#999999"
"""Colours that stay apart for the colour-blind; in grey print the line's dashes tell it from the bars."""

NARROW = 4.5
"""Inches below which a chart's words are smaller."""

SHORT = 8.0
"""Points that a bar is broad which is too short to be seen beside the lines at its ends."""

WIDTH = 6.4
"""Of a chart, in inches, where nobody says how large it is."""


def draw_ladder(
    bounds: Mapping[str, float], broken: float, *, title: str, xlabel: str, what: str, at: str, ax: Any = None
) -> Any:
    """One bar per method from zero to what it certifies, the first on top, and a dashed line at what is broken.

    Bounds that are not finite have no bar; ``broken`` likewise no line. ``what`` names the bars in the legend, ``at``
    the line. Where all of them are zero, zero is all that the scale says. Returns the Axes.
    """
    ax = _axes(len(bounds)) if ax is None else ax
    drawn = [value if np.isfinite(value) else 0.0 for value in bounds.values()]
    high = max([0.0, *drawn, *([broken] if np.isfinite(broken) else [])]) or 1.0
    bars = ax.barh(list(bounds), drawn, color=CERTIFIED, height=0.7)
    for row, value in enumerate(bounds.values()):
        _write(ax, row, value, high)
    handles, names = [bars], [what]
    if np.isfinite(broken):
        handles.append(ax.axvline(broken, color=BROKEN, linewidth=2, linestyle="--"))
        names.append(f"{at} {broken:.4g}")
    ax.invert_yaxis()
    nothing = not any(drawn) and not 0 < broken < math.inf
    ax.set_xlim(-0.02 * high if nothing else 0, 1.05 * high)  # room for a line at zero
    _finish(ax, title, xlabel, handles, names)
    if nothing:
        ax.set_xticks([0.0])
    return ax


def _write(ax: Any, row: int, value: float, high: float) -> None:
    """A bar's number: inside the bar where it is long enough, so that no number meets the line at its end."""
    inside = value > 0.3 * high
    ax.text(
        value if np.isfinite(value) else 0.0,
        row,
        f" {value:.4g} " if np.isfinite(value) else " nothing proven ",
        va="center",
        ha="right" if inside else "left",
        color="white" if inside else "black",
        fontsize=9,
    )


def draw_intervals(bounds: Mapping[str, float], met: float, *, title: str, xlabel: str, ax: Any = None) -> Any:
    """One bar per method from the margin that it proves to the smallest that an image has, and a line at zero.

    A bar that is all to the right of zero is a certificate (blue), one that ends at or before zero is broken (purple),
    one across zero is open (grey). A bar too short to be seen is a broad stroke. A bound that is not finite has
    no bar, and its row says so; a margin that no image has been met with (``met`` infinite) leaves bars that run out of
    the picture. Returns the Axes.
    """
    ax = _axes(len(bounds)) if ax is None else ax
    ends = [0.0, *(v for v in (*bounds.values(), met) if np.isfinite(v))]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    right = met if np.isfinite(met) else high + 0.1 * span
    rows = [f"{name}: {_least(value)}" for name, value in bounds.items()]
    for row, value in enumerate(bounds.values()):
        if not np.isfinite(value):
            ax.text(
                0.5, row, "nothing proven", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=9
            )
            continue
        colour = CERTIFIED if value > 0 else BROKEN if met <= 0 else OPEN
        ax.barh(row, right - value, left=value, height=0.5, color=colour, alpha=0.75)
        if right - value < 0.02 * span:
            middle, ends = (value + right) / 2, [row - 0.25, row + 0.25]
            ax.plot([middle] * 2, ends, color=colour, alpha=0.75, linewidth=SHORT, solid_capstyle="butt")
        ax.plot([value, value], [row - 0.36, row + 0.36], color="black", linewidth=2.5, solid_capstyle="butt")
    zero = ax.axvline(0, color="black", linewidth=1.2, linestyle=":")
    handles, names = [zero], ["0: the order changes"]
    if any(np.isfinite(v) for v in bounds.values()):
        handles, names = [_bar(bounds.values(), met), _tick(), zero], ["margin", "proven bound", *names]
    if np.isfinite(met):
        handles.append(ax.axvline(met, color=BROKEN, linewidth=2, linestyle="--"))
        names.append(f"an image has {met:.4g}")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(low - 0.05 * span, max(high, right) + 0.05 * span)
    _finish(ax, title, xlabel, handles, names)
    return ax


def _least(value: float) -> str:
    """What a method proves, beside its name."""
    return f"≥ {value:.4g}" if np.isfinite(value) else "-"


def _bar(values: Any, met: float) -> Any:
    """What stands for the bars in a legend: as the best of them looks."""
    from matplotlib.patches import Patch

    best = max((v for v in values if np.isfinite(v)), default=-math.inf)
    return Patch(color=CERTIFIED if best > 0 else BROKEN if met <= 0 else OPEN, alpha=0.75)


def _tick() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="|", markersize=11, markeredgewidth=2.5, color="black")


def draw_shares(shares: Mapping[str, Sequence[float]], *, title: str, xlabel: str, limit: str, ax: Any = None) -> Any:
    """For each method a strip of dots, one a question, with the median as a bar, and a line at 1, which ``limit`` says
    the meaning of. Returns the Axes."""
    ax = _axes(len(shares)) if ax is None else ax
    dots = middle = None
    for row, values in enumerate(shares.values()):
        finite = np.array([v for v in values if np.isfinite(v)])
        if not len(finite):
            ax.text(1.01, row, "none", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
            continue
        spread = np.linspace(-0.25, 0.25, len(finite)) if len(finite) > 1 else np.zeros(1)
        (dots,) = ax.plot(finite, row + spread, ".", color=CERTIFIED, markersize=6, alpha=0.6)
        median = float(np.median(finite))
        (middle,) = ax.plot([median, median], [row - 0.38, row + 0.38], color="black", linewidth=2)
        ax.text(1.01, row, f"{median:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    line = ax.axvline(1, color=BROKEN, linewidth=2, linestyle="--")
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set_ylim(len(shares) - 0.4, -0.6)
    ax.text(1.01, 1.0, "median", transform=ax.transAxes, va="bottom", fontsize=9)
    known = [(h, n) for h, n in ((dots, "one question"), (middle, "median"), (line, limit)) if h is not None]
    _finish(ax, title, xlabel, [h for h, _ in known], [n for _, n in known])
    return ax


def _axes(rows: int) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(WIDTH, 1.9 + 0.4 * rows), layout="constrained")[1]


def _finish(ax: Any, title: str, xlabel: str, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Words around a chart, in lines and letters that fit its width; the legend stands between title and bars."""
    inches = ax.figure.bbox.width / ax.figure.dpi * ax.get_position().width / 0.8
    size, place = (10, "center") if inches >= NARROW else (8, "right")
    if size == 10:  # words in the middle of the bars: the rows' names take some of the width
        inches -= 0.075 * max(len(label.get_text()) for label in ax.get_yticklabels()) + 0.3
    columns = max(1, min(len(names), round(11 * inches / (max(map(len, names)) + 6))))
    lines = math.ceil(len(names) / columns)
    ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=size - 1,
        borderaxespad=0.2,
        columnspacing=1.2,
    )
    ax.set_title(_wrapped(title, inches * 10 / size), fontsize=size, pad=10 + 1.6 * (size - 1) * lines, loc=place)
    ax.set_xlabel(_wrapped(xlabel, inches * 10 / size), fontsize=size, loc=place)
    ax.set_ylabel("method", fontsize=size)
    ax.tick_params(labelsize=size)
    ax.locator_params(axis="x", nbins=max(3, min(6, round(1.2 * inches))))
    bare(ax)


def _wrapped(text: str, inches: float) -> str:
    return wrapped(text, inches, least=16)


def bare(ax: Any) -> None:
    """Hides the top and the right side of the axes."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
