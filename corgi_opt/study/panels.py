"""Panels of a study's figures: one for each setting (norm, clip box, class kept, k), in each a curve for every method
of every network.

A method has the colour and marker of the table of methods. Of several networks each has a line and a fill of its own,
and the legend names it. The legend stands beside the panels, never over them.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corgi_opt.drawing.charts import BROKEN, bare
from corgi_opt.methods import TABLE, weakest_first
from corgi_opt.problem.clip import intervals_in_words
from corgi_opt.study.store import property_of

PANEL = (5.0, 3.6)
"""Width and height of a panel, in inches."""

ACROSS = 2
"""The most panels side by side: of more, nobody could read the words in print."""

MOST_MARKERS = 12
"""The most markers along one line."""

LEGEND_ROWS = 18
"""The most entries of a legend in one column, for each row of panels."""

TITLE_LETTERS = 50
"""How many letters of a title stand over one panel."""

LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (9, 2)))
FILLS = ("full", "none", "left", "bottom")
"""How networks differ where there are several, one after the other."""

NORMS = {"inf": "L-inf", "2": "L2", "1": "L1"}

STEPS = (
    (3.0, (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)),
    (20.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (1000.0, (1.0, 2.0, 5.0)),
)
"""Ticks within a power of ten, on an axis whose upper end is less than so many times its lower."""

SETTING = ("norm", "clip_words", "keep_class")
"""What every panel holds one of, beside what a figure asks for."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The answers (rows of the table) of one method about one network; ``label``: its words in a legend; ``place``: the
    network's number."""

    method: str
    label: str
    place: int
    frame: Any

    @property
    def style(self) -> dict[str, Any]:
        """Keywords of a line: the network's line and fill where it is not the only one."""
        look = TABLE[self.method].look
        line, fill = (look.line, "full") if self.place < 0 else styled(self.place)
        return {"color": look.colour, "linestyle": line, "marker": look.marker, "fillstyle": fill}


def styled(place: int) -> tuple[Any, str]:
    """The line and the fill of a network among several."""
    return LINES[place % len(LINES)], FILLS[place % len(FILLS)]


def prepared(frame: Any) -> Any:
    """The table with what panels ask for: ``network`` (a name that no two networks share), ``clip_words``, ``asked``
    (the property in short) and ``about`` (the same for all methods and seeds, and for nothing else)."""
    words = [box(*c) for c in zip(frame["clip"], frame["clip_low"], frame["clip_high"], strict=True)]
    asked = [property_of(*row).short for row in zip(frame["k"], frame["within"], frame["property"], strict=True)]
    made = frame.assign(network=networks(frame), clip_words=words, asked=asked)
    parts = ("model_sha256", "image_sha256", "class_idx", "asked", "eps", "kind", *SETTING)
    return made.assign(about=["|".join(map(str, row)) for row in zip(*(made[p] for p in parts), strict=True)])


def networks(frame: Any) -> list[str]:
    """A name for each row's network: that of the plan, with the start of its hash where several networks have it."""
    several = frame.groupby("model")["model_sha256"].nunique()
    pairs = zip(frame["model"], frame["model_sha256"], strict=True)
    return [f"{name} {sha[:6]}" if several[name] > 1 else str(name) for name, sha in pairs]


def box(channels: str | None, low: float, high: float) -> str:
    """The columns ``clip``, ``clip_low`` and ``clip_high`` in words."""
    if isinstance(channels, str):  # a column of nothing but NULL holds NaN
        return str(intervals_in_words(json.loads(channels)))
    return "none" if np.isnan(low) else str(intervals_in_words((low, high)))


def settings(frame: Any, *more: str) -> list[tuple[str, Any]]:
    """A title and the answers of each setting that a prepared table holds; ``more``: columns of which a panel holds one
    value too."""
    columns = [*SETTING, *more]
    found = list(frame.groupby(columns, dropna=False))
    found.sort(key=lambda item: (list(NORMS).index(item[0][0]), *map(str, item[0][1:3]), *_size(item[1])))
    return [(_words(dict(zip(columns, key, strict=True))) + _alone(part), part) for key, part in found]


def _alone(part: Any) -> str:
    """Of a panel of a single question, which has no median and no share, that it is one."""
    return " (one question)" if part["about"].nunique() == 1 else ""


def _size(part: Any) -> tuple[float, float]:
    """What panels of one region stand in the order of: k and within of their first answer; other properties first."""
    return (float(part["k"].fillna(0).iloc[0]), float(part["within"].fillna(0).iloc[0]))


def _words(setting: dict[str, Any]) -> str:
    """A setting as a panel's title says it."""
    clip = setting["clip_words"]
    said = [NORMS.get(setting["norm"], setting["norm"]), "no clip box" if clip == "none" else f"clip {clip}"]
    if "asked" in setting:
        said.insert(0, setting["asked"])
    if "k" in setting:
        said.insert(0, f"k1={int(setting['k'])}")
    return ", ".join([*said, *(["class kept"] if setting["keep_class"] else [])])


def curves(frame: Any, every: Any) -> Iterator[Curve]:
    """The curves of a panel, network by network, weaker methods first. ``every``: the figure's whole table, whose
    networks are told apart."""
    names = sorted(set(every["network"]))
    for place, name in enumerate(names):
        part = frame[frame["network"] == name]
        for method in weakest_first(part["method"]):
            alone = len(names) == 1
            label = method if alone else f"{method}, {name}"
            yield Curve(method, label, -1 if alone else place, part[part["method"] == method])


def by_network(frame: Any, every: Any) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Words to put behind a label, keywords of a line, and the answers, for each network of a panel."""
    names = sorted(set(every["network"]))
    for place, name in enumerate(names):
        part = frame[frame["network"] == name]
        if len(names) == 1:
            yield "", {"linestyle": "--"}, part
        elif len(part):
            line, fill = styled(place)
            yield f", {name}", {"linestyle": line, "fillstyle": fill}, part


def line(ax: Any, x: Any, y: Any, curve: Curve, **more: Any) -> None:
    """A curve, with few enough markers to tell them apart."""
    step = max(1, len(x) // MOST_MARKERS)
    ax.plot(x, y, label=curve.label, linewidth=1.8, markersize=5, markevery=step, **{**curve.style, **more})


def broken(ax: Any, x: Any, y: Any, label: str, **more: Any) -> None:
    """What is not certified but broken: purple throughout, broad and pale below the curves, so that one that reaches it
    is seen; a single point shows as a dash. Where nothing is known to be broken, nothing is drawn."""
    if not np.isfinite(np.asarray(y, dtype=float)).any():
        return
    marker = {"marker": "_", "markersize": 14, "markeredgewidth": 3} if len(x) == 1 else {}
    style = {"linestyle": "--", "linewidth": 4, "alpha": 0.4, "zorder": 1.5, "solid_capstyle": "butt"}
    ax.plot(x, y, color=BROKEN, label=label, **{**style, "dash_capstyle": "butt", **marker, **more})


def drawn(title: str, panels: Sequence[tuple[str, Any]], draw: Callable[[Any, Any], None]) -> Any:
    """A figure with a panel for each setting: ``draw`` is given its axes and its answers. One legend says what all
    panels hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr,call-arg]
    FigureCanvasAgg(figure)  # which can say how large a legend is
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax, (words, answers) in zip(axes, panels, strict=False):
        bare(ax)
        draw(ax, answers)
        ax.set_title(words, fontsize=10)
    for ax in axes[len(panels) :]:
        ax.remove()
    taken = _legend(figure, axes[: len(panels)], down)
    words = textwrap.fill(title, TITLE_LETTERS * across)
    figure.suptitle(words, fontsize=11, x=PANEL[0] * across / (PANEL[0] * across + taken) / 2)  # over the panels
    return figure


def _legend(figure: Any, axes: Iterable[Any], down: int) -> float:
    """Beside the panels; the figure grows by what it takes, so that no panel shrinks. Returns by how many inches."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = math.ceil(len(entries) / (LEGEND_ROWS * down)) or 1
    legend = figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside right upper",
        frameon=False,
        fontsize=8.5,
        ncols=columns,
        handlelength=4,
    )
    width, height = figure.get_size_inches()
    taken = float(legend.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi) + 0.2
    figure.set_size_inches(width + taken, height)
    return taken


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def tick_where_one(ax: Any, x: Any) -> None:
    """A single tick where all values stand at one x: there is no scale around it."""
    if len(found := sorted(set(x))) == 1:
        ax.set_xticks(found)


def log_where_positive(ax: Any) -> None:
    """A logarithmic y axis, where every value can stand on one. Its ticks are plain numbers."""
    values = np.concatenate([np.asarray(one.get_ydata(), dtype=float) for one in ax.lines])
    values = values[np.isfinite(values)]
    if len(values) and (values > 0).all():
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)


def plain_ticks(axis: Any) -> None:
    """On a logarithmic axis that shows up to three powers of ten: 0.02, 0.03 ... and not 2 x 10^-2 beside a lonely
    10^-2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    fine = [steps for most, steps in STEPS if high < most * low]
    if not fine:
        return
    axis.set_major_locator(LogLocator(subs=fine[0]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())
