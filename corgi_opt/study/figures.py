"""The figures of a study, each from the table of its cells; None where the study does not ask for what it shows.

Each has a panel for every norm, clip box and k (or other property) that differ, where it does not say that it takes
them together, and a curve for every method of every network (study/panels.py). What is broken is purple throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from corgi_opt.drawing.charts import BROKEN
from corgi_opt.study import panels
from corgi_opt.study.panels import by_network, curves, drawn, line, settings

EPS = "eps (units of the input)"


def all_figures(frame: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, caption and matplotlib Figure of each that the cells (:meth:`Store.to_frame`) have data for."""
    for name, (draw, caption) in FIGURES.items():
        figure = draw(frame[frame["state"] == "done"])
        if figure is not None:
            yield name, caption, figure


def _radii(frame: Any) -> Any:
    """Radii where nothing is tied at the image; of top-k sets those in which the set itself stays (within = k)."""
    whole = (frame["within"] == frame["k"]) | frame["property"].notna()
    return panels.prepared(frame[(frame["kind"] == "radius") & whole & (frame["status"] != "tied")])


def _nearest_broken(frame: Any) -> Any:
    """The smallest falsified eps that any method knows, for each row's question; infinite where none is."""
    return frame["upper"].fillna(np.inf).groupby(frame["about"]).transform("min")


def certified_fraction(frame: Any) -> Any:
    """Share of questions certified at eps or more, by method; and not known to be broken at eps."""
    radii = _radii(frame)
    if radii.empty:
        return None

    def draw(ax: Any, part: Any) -> None:
        # the longest tails would leave no room for the rest
        finite = part["upper"].dropna()
        right = 1.05 * float(max([part["lower"].quantile(0.98), *([finite.quantile(0.98)] if len(finite) else [])]))
        for curve in curves(part, radii):
            line(ax, *_above(np.sort(curve.frame["lower"]), right), curve, drawstyle="steps-post")
        for words, style, one in by_network(part, radii):
            ends = np.sort(_nearest_broken(one).groupby(one["about"]).first())
            panels.broken(ax, *_above(ends, right), f"not broken{words}", drawstyle="steps-post", **style)
        images = part["image_sha256"].nunique()
        counted = "1 image" if images == 1 else f"{images} images"
        ax.set(xlim=(0, right or 1), ylim=(0, 1.02), xlabel=EPS, ylabel=f"share of questions ({counted})")

    return drawn("Share of questions certified at eps, or not known to be broken", settings(radii, "asked"), draw)


def _above(values: Any, right: float) -> tuple[Any, Any]:
    """The share of sorted values above x, as steps from 0 to ``right``."""
    seen = values[values < right]
    shares = 1 - np.arange(len(seen) + 1) / len(values)
    return np.concatenate([[0.0], seen, [right]]), np.concatenate([shares, shares[-1:]])


def tightness(frame: Any) -> Any:
    """Proven margin at eps over the margin at the image, the median over questions; 1 loses nothing, 0 is undecided."""
    margins = panels.prepared(frame[(frame["kind"] == "margin") & (frame["gap"] > 0)])
    if margins.empty:
        return None
    shares = margins.assign(lower=margins["lower"] / margins["gap"], upper=margins["upper"] / margins["gap"])

    def draw(ax: Any, part: Any) -> None:
        for curve in curves(part, shares):
            middle = curve.frame.groupby("eps")["lower"].median()
            line(ax, middle.index, middle, curve)
        lowest = np.inf
        for words, style, one in by_network(part, shares):
            nearest = one.groupby(["about", "eps"])["upper"].min().groupby("eps").median()
            panels.broken(ax, nearest.index, nearest, f"an image has{words}", **style)
            lowest = min(lowest, float(nearest.min()))
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_ylim(max(float(ax.get_ylim()[0]), min(-1.0, 3 * lowest)), 1.05)
        panels.tick_where_one(ax, part["eps"])
        ax.set(xlabel=EPS, ylabel="margin / margin at the image, median")

    return drawn("Proven margin at eps, as a share of the margin at the image", settings(shares, "asked"), draw)


def ratio_histogram(frame: Any) -> Any:
    """Falsified eps over certified eps, by method: 1 is the exact radius."""
    radii = _radii(frame)
    radii = radii.assign(ratio=_nearest_broken(radii) / radii["lower"].where(radii["lower"] > 0))
    radii = radii[np.isfinite(radii["ratio"])]
    if radii.empty:
        return None

    parts = settings(radii)

    def draw(ax: Any, part: Any) -> None:
        edges = np.geomspace(1.0, max(2.0, float(part["ratio"].max()) * 1.02), 31)
        for curve in curves(part, radii):
            values = curve.frame["ratio"].clip(lower=1.0)
            counts, _ = np.histogram(values, edges)
            label, style = curve.label, curve.style
            if len(parts) == 1:  # one legend for all panels has no room for the medians of each
                label += f", median {values.median():.3g}"
            ax.stairs(counts, edges, label=label, color=style["color"], linestyle=style["linestyle"], linewidth=1.8)
        ax.set_xscale("log")
        ax.set(xlabel="falsified eps / certified eps", ylabel="number of questions")
        panels.whole_numbers(ax.yaxis)
        panels.plain_ticks(ax.xaxis)

    return drawn("How far apart the certified and the falsified eps are (all k)", parts, draw)


def radius_by_k(frame: Any) -> Any:
    """Certified and falsified eps against k, the median over images (the paper's figure 4)."""
    radii = _radii(frame)
    radii = radii[radii["k"].notna()]
    if radii["k"].nunique() < 2:
        return None

    def draw(ax: Any, part: Any) -> None:
        for curve in curves(part, radii):
            middle = curve.frame.groupby("k")["lower"].median()
            line(ax, middle.index, middle, curve)
        for words, style, one in by_network(part, radii):
            nearest = _nearest_broken(one).groupby(one["k"]).median()
            panels.broken(ax, nearest.index, nearest.where(np.isfinite(nearest)), f"falsified{words}", **style)
        panels.log_where_positive(ax)
        panels.whole_numbers(ax.xaxis)
        ax.set(xlabel="k (pixels in the top-k set)", ylabel=f"{EPS}, median")

    return drawn("Certified and falsified eps against k", settings(radii), draw)


def radius_by_gap(frame: Any) -> Any:
    """Certified eps against the margin at the image; of a top-k set, the gap below it (the paper's second figure)."""
    radii = _radii(frame)
    radii = radii[(radii["gap"] > 0) & (radii["lower"] > 0)]
    if len(radii) < 3:
        return None

    def draw(ax: Any, part: Any) -> None:
        per_network: dict[int, list[Any]] = {}
        for curve in curves(part, radii):
            per_network.setdefault(curve.place, []).append(curve)
        for found in per_network.values():
            for curve in dict.fromkeys((found[0], found[-1])):  # the weakest and the strongest
                style = {**curve.style, "linestyle": "", "markersize": 4, "alpha": 0.7}
                ax.plot(curve.frame["gap"], curve.frame["lower"], label=curve.label, **style)
        ends = _nearest_broken(part).where(lambda e: np.isfinite(e))
        if ends.notna().any():
            ax.plot(part["gap"], ends, "_", color=BROKEN, markersize=7, label="falsified")
        ax.set(xscale="log", yscale="log", xlabel="margin at the image (units of the CAM)", ylabel=EPS)
        panels.plain_ticks(ax.xaxis)
        panels.plain_ticks(ax.yaxis)

    return drawn("Certified and falsified eps against the margin at the image (all k)", settings(radii), draw)


def relaxed_curve(frame: Any) -> Any:
    """Certified and falsified eps against k2: each of the k1 brightest pixels stays among the k2 brightest."""
    radii = frame[(frame["kind"] == "radius") & (frame["status"] != "tied")]
    relaxed = panels.prepared(radii[radii["k"].isin(radii[radii["within"] > radii["k"]]["k"])])
    if relaxed.empty:
        return None

    def draw(ax: Any, part: Any) -> None:
        for curve in curves(part, relaxed):
            middle = curve.frame.groupby("within")["lower"].median()
            line(ax, middle.index, middle, curve)
        for words, style, one in by_network(part, relaxed):
            upper = one.groupby(["within", "about"])["upper"].min().groupby("within").median()
            panels.broken(ax, upper.index, upper, f"falsified{words}", **style)
        panels.log_where_positive(ax)
        panels.whole_numbers(ax.xaxis)
        ax.set(xlabel="k2 (pixels that each of the k1 must stay among)", ylabel=f"{EPS}, median")

    return drawn("Certified and falsified eps against k2", settings(relaxed, "k"), draw)


def cactus(frame: Any) -> Any:
    """How many questions each method settles within a time each (a cactus plot)."""
    solved = frame[frame["status"].isin(["closed", "certified", "falsified"]) & frame["seconds"].notna()]
    if solved.empty:
        return None
    solved = panels.prepared(solved)

    def draw(ax: Any, part: Any) -> None:
        for curve in curves(part, solved):
            seconds = np.sort(curve.frame["seconds"])
            line(ax, np.arange(1, len(seconds) + 1), seconds, curve)
        panels.log_where_positive(ax)
        panels.whole_numbers(ax.xaxis)
        ax.set(xlabel="questions settled (of all kinds and k)", ylabel="seconds each, at most")

    return drawn("How many questions a method settles, and in how many seconds each", settings(solved), draw)


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
