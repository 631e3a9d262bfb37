"""The pictures of a study: the nearest counterexamples that it met, and the heat maps that it asked for.

They are drawn from what the store keeps beside a cell's answer, so that no network is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from corgi_opt.drawing.maps import Shown, as_it_is, draw_counterexample, plot_heat_map
from corgi_opt.drawing.panels import Scale
from corgi_opt.study.panels import NORMS, prepared
from corgi_opt.study.sharing import WITNESS
from corgi_opt.study.store import Store

NEAREST = 2
"""Counterexamples that are shown of each network and norm: the nearest."""

MOST_COUNTEREXAMPLES, MOST_HEAT_MAPS = 12, 24
"""That a page holds."""


def all_pictures(store: Store, frame: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, caption and matplotlib Figure of each. ``frame``: the store's table."""
    done = prepared(frame[frame["state"] == "done"])
    yield from _closed(_counterexamples(store, done))
    yield from _closed(_heat_maps(store, done[done["kind"] == "heat_map"].head(MOST_HEAT_MAPS)))


def _closed(drawn: Iterator[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Lets go of each figure once it was taken: pyplot would keep them all."""
    import matplotlib.pyplot as plt

    for name, caption, figure in drawn:
        yield name, caption, figure
        plt.close(figure)


def _counterexamples(store: Store, done: Any) -> Iterator[tuple[str, str, Any]]:
    """The nearest of each network and norm, of one question only one."""
    met = done[(done["kind"] == "radius") & done["upper"].notna() & done["key"].isin(store.pictured(None, WITNESS))]
    nearest = met.sort_values("upper", kind="stable").drop_duplicates("about")
    chosen = nearest.groupby(["network", "norm"]).head(NEAREST).head(MOST_COUNTEREXAMPLES)
    for place, row in enumerate(chosen.to_dict("records"), start=1):
        maps = store.arrays(row["key"])
        k, within = (0 if np.isnan(row[name]) else int(row[name]) for name in ("k", "within"))
        before, after = (
            Shown(maps[image][0], maps[cam], _brightest(maps[cam], size))
            for image, cam, size in (("image", "cam", k), (WITNESS, "witness_cam", within))
        )
        title = (
            f"{row['network']}, {row['image']}: {row['asked']} breaks at {NORMS[row['norm']]} eps {row['upper']:.4g}"
        )
        figure = draw_counterexample(
            before,
            after,
            title=title,
            cam=f"CAM of class {int(row['class_idx'])}",
            scale=Scale(*_range(row, before.image, after.image)),
            map_panel=as_it_is,
        )
        yield f"counterexample_{place}", f"{title} (clip {row['clip_words']}; met by {row['method']})", figure


def _brightest(cam: Any, k: int) -> list[int]:
    """The flat indices of the k brightest pixels of a CAM (H, W)."""
    found: list[int] = np.argsort(-cam.flatten(), kind="stable")[:k].tolist()
    return found


def _range(row: dict[str, Any], *images: Any) -> tuple[Any, Any]:
    """The darkest and the brightest value, or one a channel: of the clip box, or of what the images hold."""
    if isinstance(row["clip"], str):
        low, high = json.loads(row["clip"])
        return np.array(low), np.array(high)
    if not np.isnan(row["clip_low"]):
        return np.array([row["clip_low"]]), np.array([row["clip_high"]])
    return np.array([min(i.min() for i in images)]), np.array([max(i.max() for i in images)])


def _heat_maps(store: Store, asked: Any) -> Iterator[tuple[str, str, Any]]:
    for place, row in enumerate(asked.to_dict("records"), start=1):
        maps, k = store.arrays(row["key"]), int(row["k"])
        title = (
            f"{row['network']}, {row['image']}, class {int(row['class_idx'])}: top {k} at {NORMS[row['norm']]} "
            f"eps {row['eps']:.4g}, by {row['method']}"
        )
        figure = plot_heat_map(
            maps["cam"],
            maps["upper"] - maps["lower"],
            maps["worst"] - maps["best"],
            maps["worst"] <= k,
            maps["best"] > k,
            title=title,
        )
        yield f"heat_map_{place}", f"{title} (clip {row['clip_words']}): {row['reason']}", figure
