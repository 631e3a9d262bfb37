"""A study as one HTML file, with tables and figures inside, and the figures as files of their own."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from corgi_opt.errors import MissingPackageError, StoreError
from corgi_opt.methods import TABLE
from corgi_opt.study.figures import all_figures
from corgi_opt.study.order import order_in_words, with_weaker
from corgi_opt.study.own import Role, UnknownNameError, hint, is_known
from corgi_opt.study.panels import SETTING, box, prepared
from corgi_opt.study.pictures import all_pictures
from corgi_opt.study.store import Store, now

DPI = 150

WIDE = 7.5
"""Inches from which a figure has a row of the page to itself."""

MOST_LISTED = 50
"""Cells without an answer that the page lists."""


@dataclass(frozen=True)
class Report:
    """``page``: the HTML file; ``figures``: PNG and PDF files; ``rows``: how many cells they are about."""

    page: Path
    figures: tuple[Path, ...]
    rows: int


def write_report(folder: str | Path) -> Report:
    """Writes ``report.html`` and ``figures/*.png, *.pdf`` into a study's folder, from what its store holds by now.

    Methods, properties and figures of one's own have to be registered by then; to load the study's plan imports what it
    names for that. Raises StoreError where there is no answer yet, UnknownNameError (a StudyError) for a method or
    property that nobody registered here, MissingPackageError without jinja2.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingPackageError("jinja2", "writing a report", "pip install 'corgi_opt[study]'") from error
    folder = Path(folder)
    with Store.reading(folder) as store:
        frame, run = store.to_frame(), store.last_run
        if frame.empty:
            raise StoreError(f"the study in {str(folder)!r} has no answer yet")
        _require_known(frame)
        shown, files = _saved(all_figures(frame), folder / "figures")
        pictures, more = _saved(all_pictures(store, frame), folder / "figures")
    source = resources.files("corgi_opt.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    path = folder / "report.html"
    name = run.name if run is not None else folder.resolve().name
    text = page.render(name=name, figures=shown, pictures=pictures, run=run, **tables(frame))
    path.write_text(text, encoding="utf-8")
    return Report(path, (*files, *more), len(frame))


def _require_known(frame: Any) -> None:
    """Raises UnknownNameError."""
    properties = {json.loads(said)["name"] for said in set(frame["property"].dropna())}
    names: list[tuple[Role, str]] = [
        *(("method", name) for name in sorted(set(frame["method"]))),
        *(("property", name) for name in sorted(properties)),
    ]
    for role, name in names:
        if not is_known(role, name):
            raise UnknownNameError(
                f"the study has answers about the {role} {name!r}, which is not registered here. Import what registers "
                f"it, or load a plan that does. {hint(role)}"
            )


def _saved(drawn: Iterable[tuple[str, str, Any]], folder: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """Figures by name with their captions: as the page shows them, and their files in the folder."""
    shown, files = [], []
    folder.mkdir(exist_ok=True)
    for name, caption, figure in drawn:
        png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
        figure.savefig(png, dpi=DPI)
        figure.savefig(pdf)
        files += [png, pdf]
        wide = "wide" if figure.get_figwidth() > WIDE else ""
        data = base64.b64encode(png.read_bytes()).decode()
        inches = f"{figure.get_figwidth():.1f}in"
        shown.append({"name": name, "caption": caption, "data": data, "wide": wide, "inches": inches})
    return shown, files


def tables(frame: Any) -> dict[str, Any]:
    """The names and rows of the page's tables, ready to print. ``frame``: :meth:`Store.to_frame`."""
    done = with_weaker(prepared(frame[frame["state"] == "done"]))
    radii = done[(done["kind"] == "radius") & (done["status"] != "tied")]
    others = done[done["kind"].isin(["verify", "margin"])]
    return {
        "cells": len(frame),
        "states": frame["state"].value_counts().to_dict(),
        "about": {
            "networks": ", ".join(sorted(set(frame["model"]))),
            "images": int(frame["image_sha256"].nunique()),
            "norms": ", ".join(sorted(set(frame["norm"]))),
            "clip boxes": ", ".join(
                sorted({box(*c) for c in zip(frame["clip"], frame["clip_low"], frame["clip_high"], strict=True)})
            ),
            "rtol": _each(frame, "rtol", "{:g}"),
            "time limits": _each(frame, "time_limit", "{:g} s"),
            "seeds": _each(frame, "seed", "{}"),
            "solvers": ", ".join(sorted(set(frame["solver"].dropna()))) or "each method's own",
            "hosts": ", ".join(sorted(set(frame["host"].dropna()))),
            "processors": "; ".join(sorted(set(frame["cpu"].dropna()))) or "not recorded",
            "devices": ", ".join(sorted(set(frame["device"].dropna()))),
            "versions": "; ".join(sorted(set(frame["versions"].dropna()))),
            "answered": f"{frame['finished'].min()} to {frame['finished'].max()} (UTC)",
            "page made": f"{now()} (UTC)",
        },
        "radii": list(_radius_rows(radii)),
        "verdicts": list(_verdict_rows(others)),
        "without": frame[frame["state"] != "done"].head(MOST_LISTED).to_dict("records"),
        "tied": int((done["status"] == "tied").sum()),
    }


def _each(frame: Any, column: str, form: str) -> str:
    """The different values of a column, in order."""
    return ", ".join(form.format(value) for value in sorted(set(frame[column])))


def _groups(frame: Any, *axes: str) -> Iterable[tuple[Any, Any]]:
    """The answers by these columns and by method, each with what they have in common; weaker methods come first."""
    if frame.empty:
        return []
    counted = frame[["k", "within"]].fillna(0).astype(int)  # what is no top-k set comes first
    groups = frame.assign(**counted).groupby([*SETTING, *axes, "method"], dropna=False)
    return sorted(groups, key=lambda item: (*item[0][:-1], list(TABLE).index(item[0][-1])))


def _head(network: str, norm: str, clip: str, kept: bool, asked: str) -> dict[str, str]:
    """The first columns of every table."""
    return {"network": network, "norm": norm, "clip": clip, "asked": f"{asked}, class kept" if kept else asked}


def _order(part: Any) -> dict[str, str]:
    """The last column of every table."""
    return {"order of methods": order_in_words(part) or "kept"}


def _radius_rows(radii: Any) -> Iterable[dict[str, str]]:
    for (norm, clip, kept, network, _, _, said, method), part in _groups(radii, "network", "k", "within", "asked"):
        ratio = part["upper"] / part["lower"].where(part["lower"] > 0)
        gain = part["lower"] / part["corgi"].where(part["corgi"] > 0)
        yield {
            **_head(network, norm, clip, kept, said),
            "method": method,
            "images": str(len(part)),
            "certified eps": _number(part["lower"].median()),
            "falsified eps": _number(part["upper"].median()),
            "falsified / certified": _number(ratio.median()),
            "worst": _number(ratio.max()),
            "over CORGI": _number(gain.median()),
            "seconds": _number(part["seconds"].median()),
            "most": _number(part["seconds"].max()),
            "peak MB": _number(part["peak_mb"].max()),
            **_order(part),
        }


def _verdict_rows(others: Any) -> Iterable[dict[str, str]]:
    axes = ("network", "k", "within", "asked", "kind", "eps")
    for (norm, clip, kept, network, _, _, said, kind, eps, method), part in _groups(others, *axes):
        counts = part["status"].value_counts()
        yield {
            **_head(network, norm, clip, kept, said),
            "kind": kind,
            "eps": _number(eps),
            "method": method,
            "images": str(len(part)),
            **{status: str(counts.get(status, 0)) for status in ("certified", "falsified", "unknown")},
            "margin / at the image": _number((part["lower"] / part["gap"]).median()) if kind == "margin" else "",
            "seconds": _number(part["seconds"].median()),
            **(_order(part) if kind == "margin" else {"order of methods": ""}),
        }


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"
