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
from corgi_opt.problem.clip import intervals_in_words
from corgi_opt.study.figures import all_figures
from corgi_opt.study.own import Role, UnknownNameError, hint, is_known
from corgi_opt.study.store import Store, now, property_of

DPI = 150

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
        frame, name = store.to_frame(), store.name or folder.resolve().name
    if frame.empty:
        raise StoreError(f"the study in {str(folder)!r} has no answer yet")
    _require_known(frame)
    shown, files = _drawn(frame, folder / "figures")
    source = resources.files("corgi_opt.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    path = folder / "report.html"
    text = page.render(name=name, made=now(), figures=shown, **tables(frame))
    path.write_text(text, encoding="utf-8")
    return Report(path, tuple(files), len(frame))


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


def _drawn(frame: Any, folder: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """Draws the figures: as the page shows them, and their files in the folder."""
    shown, files = [], []
    folder.mkdir(exist_ok=True)
    for name, caption, figure in all_figures(frame):
        png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
        figure.savefig(png, dpi=DPI)
        figure.savefig(pdf)
        files += [png, pdf]
        shown.append({"name": name, "caption": caption, "data": base64.b64encode(png.read_bytes()).decode()})
    return shown, files


def tables(frame: Any) -> dict[str, Any]:
    """The names and rows of the page's tables, ready to print. ``frame``: :meth:`Store.to_frame`."""
    done = frame[frame["state"] == "done"]
    radii = done[(done["kind"] == "radius") & (done["status"] != "tied")]
    others = done[done["kind"] != "radius"]
    return {
        "cells": len(frame),
        "states": frame["state"].value_counts().to_dict(),
        "about": {
            "networks": ", ".join(sorted(set(frame["model"]))),
            "images": int(frame["image_sha256"].nunique()),
            "norms": ", ".join(sorted(set(frame["norm"]))),
            "clip boxes": ", ".join(
                sorted({_box(*c) for c in zip(frame["clip"], frame["clip_low"], frame["clip_high"], strict=True)})
            ),
            "hosts": ", ".join(sorted(set(frame["host"].dropna()))),
            "devices": ", ".join(sorted(set(frame["device"].dropna()))),
            "versions": "; ".join(sorted(set(frame["versions"].dropna()))),
            "finished": f"{frame['finished'].min()} to {frame['finished'].max()} (UTC)",
        },
        "radii": list(_radius_rows(radii)),
        "verdicts": list(_verdict_rows(others)),
        "without": frame[frame["state"] != "done"].head(MOST_LISTED).to_dict("records"),
        "tied": int((done["status"] == "tied").sum()),
    }


def _box(channels: str | None, low: float, high: float) -> str:
    """The columns ``clip``, ``clip_low`` and ``clip_high`` in words."""
    if isinstance(channels, str):  # a column of nothing but NULL holds NaN
        return intervals_in_words(json.loads(channels))
    return "none" if np.isnan(low) else intervals_in_words((low, high))


def _groups(frame: Any, *axes: str) -> Iterable[tuple[Any, Any]]:
    """The answers by these columns and by method, each with what they have in common; weaker methods come first."""
    if frame.empty:
        return []
    what = [property_of(*row).short for row in zip(frame["k"], frame["within"], frame["property"], strict=True)]
    counted = frame[["k", "within"]].fillna(0).astype(int)  # what is no top-k set comes first
    groups = frame.assign(asked=what, **counted).groupby([*axes, "method"], dropna=False)
    return sorted(groups, key=lambda item: (*item[0][:-1], list(TABLE).index(item[0][-1])))


def _radius_rows(radii: Any) -> Iterable[dict[str, str]]:
    for (model, norm, _, _, said, method), part in _groups(radii, "model", "norm", "k", "within", "asked"):
        ratio = part["upper"] / part["lower"].where(part["lower"] > 0)
        gain = part["lower"] / part["corgi"].where(part["corgi"] > 0)
        yield {
            "network": model,
            "norm": norm,
            "asked": said,
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
        }


def _verdict_rows(others: Any) -> Iterable[dict[str, str]]:
    for (model, norm, _, _, said, kind, eps, method), part in _groups(
        others, "model", "norm", "k", "within", "asked", "kind", "eps"
    ):
        counts = part["status"].value_counts()
        yield {
            "network": model,
            "norm": norm,
            "asked": said,
            "kind": kind,
            "eps": _number(eps),
            "method": method,
            "images": str(len(part)),
            **{status: str(counts.get(status, 0)) for status in ("certified", "falsified", "unknown")},
            "margin / at the image": _number((part["lower"] / part["gap"]).median()) if kind == "margin" else "",
            "seconds": _number(part["seconds"].median()),
        }


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"
