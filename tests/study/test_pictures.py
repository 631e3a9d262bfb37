"""Pictures from the store alone: the nearest counterexamples of each network and norm, and every heat map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from corgi_opt.study import Plan, Store
from corgi_opt.study.answer import answer
from corgi_opt.study.engine import arrays_of, row_of, task_of
from corgi_opt.study.pictures import NEAREST, all_pictures

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A heat map, and a radius; its row stands for those of other images too, each farther away than the one before."""
    folder = tmp_path_factory.mktemp("pictures")
    plan = Plan.of(
        {
            "name": "pictures",
            "models": {"m": "digits"},
            "images": {"i": {"source": "digits", "take": [0]}},
            "questions": [
                {"k": 2, "method": "corgi", "rtol": 0.2},
                {"kind": "heat_map", "k": 2, "eps": 0.02, "method": "crown"},
            ],
        }
    )
    with Store.writing(folder) as store:
        for cell in plan.cells():
            columns = answer(task_of(cell, 0.0, 60.0, "cpu"))
            row, maps = row_of(cell, columns), arrays_of(columns)
            store.put(row, maps)
            if row.kind == "radius":
                for n in range(1, 4):
                    more: dict[str, Any] = dict.fromkeys(("key", "image_sha256", "question"), f"{n}")
                    more["image"] = f"image {n}"
                    store.put(replace(row, **more, upper=(row.upper or 0) + n), maps)
    return folder


def test_the_nearest_are_drawn_and_the_heat_map_and_pyplot_keeps_none(folder):
    with Store.reading(folder) as store:
        captions = {name: caption for name, caption, _ in all_pictures(store, store.to_frame())}
    assert list(captions) == [*(f"counterexample_{n}" for n in range(1, NEAREST + 1)), "heat_map_1"]
    assert "i[0]: k=2 breaks at L-inf eps" in captions["counterexample_1"]
    assert "image 1: k=2" in captions["counterexample_2"]
    assert "top 2 at L-inf eps 0.02, by crown" in captions["heat_map_1"] and "undecided" in captions["heat_map_1"]
    assert not plt.get_fignums()


def test_a_counterexample_is_the_one_of_the_store(folder):
    with Store.reading(folder) as store:
        frame = store.to_frame()
        (_, _, figure), *_ = all_pictures(store, frame)
        key = frame[(frame["kind"] == "radius")].sort_values("upper")["key"].iloc[0]
        maps = store.arrays(key)
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[:5]]
    np.testing.assert_allclose(shown[0], maps["image"][0, 0])
    np.testing.assert_allclose(shown[2], maps["witness"][0, 0])
    np.testing.assert_allclose(shown[4], maps["witness_cam"])


def test_of_a_relaxed_set_the_larger_one_is_outlined_at_the_counterexample(folder, tmp_path):
    """k=2 within 4: the two brightest of the image, then the four among which they were to stay."""
    with Store.reading(folder) as store, Store.writing(tmp_path) as relaxed:
        (row,) = (row for row in store.rows() if row.kind == "radius" and row.image == "i[0]")
        relaxed.put(replace(row, within=4), store.arrays(row.key))
        ((_, _, figure),) = all_pictures(relaxed, relaxed.to_frame())
    assert "top 2, then top 4" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_store_of_before_has_no_pictures(folder, tmp_path):
    with Store.reading(folder) as store, Store.writing(tmp_path) as bare:
        for row in store.rows():
            if row.kind == "radius":
                bare.put(row)
        assert list(all_pictures(bare, bare.to_frame())) == []
