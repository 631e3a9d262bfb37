"""The figures of a study, each from the table of its cells; None where the study does not ask for what it shows.

Every method is drawn as the table of methods says. What is broken is dashed and purple throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from corgi_opt.drawing.charts import BROKEN, bare
from corgi_opt.methods import TABLE, weakest_first

SIZE = (6.4, 4.0)

MOST_MARKERS = 12
"""The most markers along one line."""


def all_figures(frame: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, caption and matplotlib Figure of each that the cells (:meth:`Store.to_frame`) have data for."""
    for name, (draw, caption) in FIGURES.items():
        figure = draw(frame[frame["state"] == "done"])
        if figure is not None:
            yield name, caption, figure


def _axes(title: str, frame: Any) -> tuple[Any, Any]:
    """A figure and its axes; the title says so where several networks are drawn together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.add_subplot()
    networks = frame["model_sha256"].nunique()
    ax.set_title(f"{title}, {networks} networks together" if networks > 1 else title, fontsize=10)
    bare(ax)
    return figure, ax


def _whole(axis: Any) -> None:
    """Ticks at whole numbers only, of what is counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _line(ax: Any, x: Any, y: Any, method: str, **more: Any) -> None:
    step = max(1, len(x) // MOST_MARKERS)
    look = TABLE[method].look
    style = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "markevery": step}
    ax.plot(x, y, label=method, linewidth=1.8, markersize=5, **{**style, **more})


def _broken(ax: Any, x: Any, y: Any, label: str, **more: Any) -> None:
    single = {"marker": "_", "markersize": 12, "markeredgewidth": 2} if len(x) == 1 else {}  # no line has one point
    ax.plot(x, y, color=BROKEN, linestyle="--", linewidth=1.8, label=label, **{**single, **more})


def _methods(frame: Any) -> list[str]:
    return weakest_first(frame["method"])


def _radii(frame: Any) -> Any:
    """Radii where nothing is tied at the image; of top-k sets those in which the set itself stays (within = k)."""
    whole = (frame["within"] == frame["k"]) | frame["property"].notna()
    return frame[(frame["kind"] == "radius") & whole & (frame["status"] != "tied")]


def _per_question(frame: Any) -> Any:
    """A name of each row's question that is the same for every method."""
    what = frame["k"].astype(str) + frame["property"].fillna("").astype(str)
    return frame["model_sha256"] + frame["image_sha256"] + what + frame["norm"]


def _nearest_broken(frame: Any) -> Any:
    """The smallest falsified eps that any method knows, for each row's question; infinite where none is."""
    return frame["upper"].fillna(np.inf).groupby(_per_question(frame)).transform("min")


def certified_fraction(frame: Any) -> Any:
    """Share of questions certified at eps or more, by method; and not known to be broken at eps."""
    radii = _radii(frame)
    if radii.empty:
        return None
    figure, ax = _axes("questions certified, and not broken, by eps", radii)
    # the longest tails would leave no room for the rest
    finite = radii["upper"].dropna()
    right = 1.05 * float(max([radii["lower"].quantile(0.98), *([finite.quantile(0.98)] if len(finite) else [])]))
    for method in _methods(radii):
        values = np.sort(radii[radii["method"] == method]["lower"])
        _line(ax, *_above(values, right), method, drawstyle="steps-post")
    broken = np.sort(_nearest_broken(radii).groupby(_per_question(radii)).first())
    _broken(ax, *_above(broken, right), "not broken", drawstyle="steps-post")
    ax.set(xlim=(0, right or 1), ylim=(0, 1.02), xlabel="eps (units of the input)", ylabel="share of questions")
    ax.legend(frameon=False)
    return figure


def _above(values: Any, right: float) -> tuple[Any, Any]:
    """The share of sorted values above x, as steps from 0 to ``right``."""
    seen = values[values < right]
    shares = 1 - np.arange(len(seen) + 1) / len(values)
    return np.concatenate([[0.0], seen, [right]]), np.concatenate([shares, shares[-1:]])


def tightness(frame: Any) -> Any:
    """Proven margin at eps over the margin at the image, the median over questions; 1 loses nothing, 0 is undecided."""
    margins = frame[(frame["kind"] == "margin") & (frame["gap"] > 0)]
    if margins.empty:
        return None
    figure, ax = _axes("margins proven by eps", margins)
    shares = margins.assign(lower=margins["lower"] / margins["gap"], upper=margins["upper"] / margins["gap"])
    for method in _methods(shares):
        middle = shares[shares["method"] == method].groupby("eps")["lower"].median()
        _line(ax, middle.index, middle, method)
    nearest = shares.groupby([_per_question(shares), "eps"])["upper"].min().groupby("eps").median()
    _broken(ax, nearest.index, nearest, "an image has")
    ax.axhline(0, color="black", linewidth=0.8)
    lowest = float(nearest.min())
    ax.set_ylim(max(float(ax.get_ylim()[0]), min(-1.0, 3 * lowest)), 1.05)
    ax.set(xlabel="eps (units of the input)", ylabel="margin / margin at the image, median")
    ax.legend(frameon=False)
    return figure


def ratio_histogram(frame: Any) -> Any:
    """Falsified eps over certified eps, by method: 1 is the exact radius."""
    radii = _radii(frame)
    radii = radii.assign(ratio=_nearest_broken(radii) / radii["lower"].where(radii["lower"] > 0))
    radii = radii[np.isfinite(radii["ratio"])]
    if radii.empty:
        return None
    figure, ax = _axes("falsified eps over certified eps", radii)
    edges = np.geomspace(1.0, max(2.0, float(radii["ratio"].max()) * 1.02), 31)
    for method in _methods(radii):
        values = radii[radii["method"] == method]["ratio"].clip(lower=1.0)
        counts, _ = np.histogram(values, edges)
        label = f"{method}, median {values.median():.3g}"
        look = TABLE[method].look
        ax.stairs(counts, edges, label=label, color=look.colour, linestyle=look.line, linewidth=1.8)
    ax.set_xscale("log")
    _whole(ax.yaxis)
    ax.set(xlabel="falsified eps / certified eps", ylabel="questions")
    from matplotlib.ticker import ScalarFormatter

    for which in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        which(ScalarFormatter())
    ax.legend(frameon=False)
    return figure


def radius_by_k(frame: Any) -> Any:
    """Certified and falsified eps against k, the median over images (the paper's figure 4)."""
    radii = _radii(frame)
    if radii["k"].nunique() < 2:
        return None
    figure, ax = _axes("radii by k", radii)
    for method in _methods(radii):
        middle = radii[radii["method"] == method].groupby("k")["lower"].median()
        _line(ax, middle.index, middle, method)
    nearest = _nearest_broken(radii).groupby(radii["k"]).median()
    _broken(ax, nearest.index, nearest.where(np.isfinite(nearest)), "falsified")
    _log_where_positive(ax)
    _whole(ax.xaxis)
    ax.set(xlabel="k", ylabel="eps (units of the input), median")
    ax.legend(frameon=False)
    return figure


def radius_by_gap(frame: Any) -> Any:
    """Certified eps against the margin at the image; of a top-k set, the gap below it (the paper's second figure)."""
    radii = _radii(frame)
    radii = radii[(radii["gap"] > 0) & (radii["lower"] > 0)]
    if len(radii) < 3:
        return None
    figure, ax = _axes("radii by the margin at the image", radii)
    methods = _methods(radii)
    for method in dict.fromkeys([methods[0], methods[-1]]):
        part, look = radii[radii["method"] == method], TABLE[method].look
        ax.plot(part["gap"], part["lower"], look.marker, color=look.colour, markersize=4, alpha=0.7, label=method)
    ax.plot(
        radii["gap"],
        _nearest_broken(radii).where(lambda e: np.isfinite(e)),
        "_",
        color=BROKEN,
        markersize=7,
        label="falsified",
    )
    ax.set(
        xscale="log", yscale="log", xlabel="margin at the image (units of the CAM)", ylabel="eps (units of the input)"
    )
    ax.legend(frameon=False)
    return figure


def relaxed_curve(frame: Any) -> Any:
    """Certified and falsified eps against k2: each of the k1 brightest pixels stays among the k2 brightest."""
    radii = frame[(frame["kind"] == "radius") & (frame["status"] != "tied")]
    relaxed = radii[radii["k"].isin(radii[radii["within"] > radii["k"]]["k"])]
    if relaxed.empty:
        return None
    figure, ax = _axes("radii by k2", relaxed)
    several = relaxed["k"].nunique() > 1
    for (k, method), part in relaxed.groupby(["k", "method"]):
        middle = part.groupby("within")["lower"].median()
        _line(ax, middle.index, middle, method)
        if several:
            ax.lines[-1].set_label(f"{method}, k1={k}")
    for k, part in relaxed.groupby("k"):
        upper = part.groupby(["within", "image_sha256"])["upper"].min().groupby("within").median()
        _broken(ax, upper.index, upper, f"falsified, k1={k}" if several else "falsified")
    _log_where_positive(ax)
    about = "" if several else f" (k1 = {relaxed['k'].iloc[0]})"
    _whole(ax.xaxis)
    ax.set(xlabel=f"k2{about}", ylabel="eps (units of the input), median")
    ax.legend(frameon=False)
    return figure


def cactus(frame: Any) -> Any:
    """How many questions each method settles within a time each (a cactus plot)."""
    solved = frame[frame["status"].isin(["closed", "certified", "falsified"]) & frame["seconds"].notna()]
    if solved.empty:
        return None
    figure, ax = _axes("questions settled by time", solved)
    for method in _methods(solved):
        seconds = np.sort(solved[solved["method"] == method]["seconds"])
        _line(ax, np.arange(1, len(seconds) + 1), seconds, method)
    ax.set_yscale("log")
    _whole(ax.xaxis)
    ax.set(xlabel="questions settled (of all kinds)", ylabel="seconds each, at most")
    ax.legend(frameon=False)
    return figure


def _log_where_positive(ax: Any) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
    if (values[np.isfinite(values)] > 0).all():
        ax.set_yscale("log")


Draw = Callable[[Any], Any]

FIGURES: dict[str, tuple[Draw, str]] = {
    draw.__name__: (draw, str(draw.__doc__).strip())
    for draw in (
        certified_fraction,
        tightness,
        ratio_histogram,
        radius_by_k,
        radius_by_gap,
        relaxed_curve,
        cactus,
    )
}
