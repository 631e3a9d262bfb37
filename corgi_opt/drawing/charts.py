"""Charts of bounds, with what is proven as bars and what is broken as a line; and results as HTML tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CERTIFIED, BROKEN = "#4477aa", "#aa3377"
"""Colours that stay apart for the colour-blind; in grey print the line's dashes tell it from the bars."""


def draw_ladder(bounds: Mapping[str, float], broken: float, broken_label: str, ax: Any = None) -> Any:
    """One bar per bound from zero, the first on top, and a dashed line at what is broken. Returns the Axes.

    Bounds that are not finite have no bar; ``broken`` likewise no line.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 1.3 + 0.4 * len(bounds)), layout="constrained")
    drawn = [value if np.isfinite(value) else 0.0 for value in bounds.values()]
    ends = [0.0, *drawn, *([broken] if np.isfinite(broken) else [])]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    ax.barh(list(bounds), drawn, color=CERTIFIED, height=0.7)
    for row, value in enumerate(bounds.values()):
        if low == 0:
            _write(ax, row, value, span)
    if low < 0:  # with bars on both sides of zero a number beside a bar would overlap something
        ax.set_yticks(range(len(bounds)), [f"{name}  {value:.4g}" for name, value in bounds.items()])
    if np.isfinite(broken):
        ax.axvline(broken, color=BROKEN, linewidth=2, linestyle="--")
        above = ax.get_xaxis_transform()  # x in data, y as a share of the axes' height
        side = "right" if broken - low > span / 2 else "left"
        ax.text(broken, 1.02, f"{broken_label} {broken:.4g}", transform=above, ha=side, fontsize=9, color=BROKEN)
    if low < 0:
        ax.axvline(0, color="black", linewidth=0.8)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlim(low - 0.05 * span if low < 0 else 0, high + 0.05 * span)
    bare(ax)
    return ax


def _write(ax: Any, row: int, value: float, span: float) -> None:
    """A bar's number: inside the bar where it is long enough, so that no number meets the line at its end."""
    inside = value > 0.3 * span
    ax.text(
        value if np.isfinite(value) else 0.0,
        row,
        f" {value:.4g} " if np.isfinite(value) else " nothing proven ",
        va="center",
        ha="right" if inside else "left",
        color="white" if inside else "black",
        fontsize=9,
    )


def draw_shares(shares: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """For each method a strip of dots, one a question, with the median as a bar. Returns the Axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 1.3 + 0.45 * len(shares)), layout="constrained")
    for row, values in enumerate(shares.values()):
        finite = np.array([v for v in values if np.isfinite(v)])
        if not len(finite):
            continue
        spread = np.linspace(-0.25, 0.25, len(finite)) if len(finite) > 1 else np.zeros(1)
        ax.plot(finite, row + spread, ".", color=CERTIFIED, markersize=5, alpha=0.6)
        median = float(np.median(finite))
        ax.plot([median, median], [row - 0.38, row + 0.38], color="black", linewidth=2)
        ax.text(1.01, row, f"{median:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.axvline(1, color=BROKEN, linewidth=2, linestyle="--")
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set_ylim(len(shares) - 0.4, -0.6)
    ax.text(1.01, 1.0, "median", transform=ax.transAxes, va="bottom", fontsize=9)
    bare(ax)
    return ax


def bare(ax: Any) -> None:
    """Hides the top and the right side of the axes."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """A small table for a notebook: names and values, numbers to six digits."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(_said(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{cells}</table>"


def _said(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
