"""Each figure from a table made by hand: its lines hold the table's numbers, and what is not there is not drawn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from corgi_opt.study.figures import FIGURES, all_figures

LOWER = {"corgi": 0.4, "crown": 0.8, "bab": 1.0}
TRUTH = {(image, k): 0.01 * (1 + image) / k for image in range(5) for k in (1, 2)}


def table(**changes: object) -> pd.DataFrame:
    """Radii of five images, two k and three methods: each certifies its share of the truth."""
    rows = [
        {
            "kind": "radius",
            "state": "done",
            "status": "closed" if method == "bab" else "open",
            "method": method,
            "model_sha256": "m",
            "image_sha256": f"i{image}",
            "norm": "inf",
            "k": k,
            "within": k,
            "property": None,
            "eps": math.nan,
            "gap": 2 * truth,
            "lower": share * truth,
            "upper": 1.25 * truth if method == "corgi" else truth,
            "seconds": share * (1 + image),
        }
        for (image, k), truth in TRUTH.items()
        for method, share in LOWER.items()
    ]
    return pd.DataFrame(rows).assign(**changes)


def drawn(name: str, frame: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    figure = FIGURES[name][0](frame)
    assert figure is not None
    return {
        line.get_label(): (np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float))
        for line in figure.axes[0].lines
    }


def test_certified_and_broken_eps_by_k_are_medians():
    lines = drawn("radius_by_k", table())
    for method, share in LOWER.items():
        x, y = lines[method]
        assert x.tolist() == [1, 2]
        assert y == pytest.approx([share * np.median([TRUTH[i, k] for i in range(5)]) for k in (1, 2)])
    # the nearest that any method broke, not each its own
    assert lines["falsified"][1] == pytest.approx([np.median([TRUTH[i, k] for i in range(5)]) for k in (1, 2)])
    assert FIGURES["radius_by_k"][0](table()[table()["k"] == 1]) is None


def test_the_gap_is_drawn_against_the_weakest_and_the_strongest():
    lines = drawn("radius_by_gap", table())
    assert set(lines) == {"corgi", "bab", "falsified"}
    for method in ("corgi", "bab"):
        x, y = lines[method]
        assert y == pytest.approx(LOWER[method] * x / 2)
    assert FIGURES["radius_by_gap"][0](table(gap=0.0)) is None


def test_a_share_is_of_all_questions_and_never_rises():
    lines = drawn("certified_fraction", table())
    truths = np.array(list(TRUTH.values()))
    for label, bounds in {**{m: s * truths for m, s in LOWER.items()}, "not broken": truths}.items():
        x, y = lines[label]
        assert y[0] == 1.0 and (np.diff(y) <= 0).all()
        for eps in np.linspace(0, 0.9 * truths.max(), 23) + 1e-9:
            assert y[np.searchsorted(x, eps, side="right") - 1] == pytest.approx((bounds > eps).mean())


def test_ratios_are_to_the_nearest_that_is_broken():
    figure = FIGURES["ratio_histogram"][0](table())
    labels = [p.get_label() for p in figure.axes[0].patches]
    assert labels == ["corgi, median 2.5", "crown, median 1.25", "bab, median 1"]
    assert [p.get_data().values.sum() for p in figure.axes[0].patches] == [10, 10, 10]


def test_settled_questions_by_time():
    lines = drawn("cactus", table())
    assert set(lines) == {"bab"}  # the others leave theirs open
    x, y = lines["bab"]
    assert x.tolist() == list(range(1, 11)) and y.tolist() == sorted([1.0, 2, 3, 4, 5] * 2)


def test_margins_are_shares_of_the_margin_at_the_image():
    margins = table(kind="margin", eps=0.01, gap=2.0)
    lines = drawn("tightness", margins.assign(lower=margins["method"].map(LOWER), upper=1.5))
    for method, share in LOWER.items():
        assert lines[method][0].tolist() == [0.01] and lines[method][1] == pytest.approx([share / 2])
    assert lines["an image has"][1] == pytest.approx([0.75])
    assert FIGURES["tightness"][0](table()) is None


def test_relaxed_sets_are_a_curve_over_k2():
    frame = pd.concat([table(k=1, within=w, lower=0.01 * w, upper=0.02 * w) for w in (1, 3, 6)])
    lines = drawn("relaxed_curve", frame)
    assert lines["bab"][0].tolist() == [1, 3, 6] and lines["bab"][1] == pytest.approx([0.01, 0.03, 0.06])
    assert lines["falsified"][1] == pytest.approx([0.02, 0.06, 0.12])
    assert FIGURES["relaxed_curve"][0](table()) is None


def test_ties_and_cells_without_an_answer_are_in_no_figure():
    tied = table(status="tied", lower=0.0, upper=0.0)
    for name in ("certified_fraction", "ratio_histogram", "radius_by_k", "radius_by_gap", "relaxed_curve", "cactus"):
        assert FIGURES[name][0](tied) is None
    assert list(all_figures(table(state="failed"))) == []
    names = [name for name, caption, _ in all_figures(table()) if caption]
    assert names == ["certified_fraction", "ratio_histogram", "radius_by_k", "radius_by_gap", "cactus"]


@pytest.mark.parametrize("name", ["radius_by_k", "cactus"])
def test_what_is_counted_has_whole_ticks(name):
    """k = 1.25 is nothing."""
    figure = FIGURES[name][0](table())
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks)


def test_every_figure_says_what_it_shows_and_of_how_many_networks():
    one, two = table(), pd.concat([table(), table(model_sha256="other")])
    for frame, networks in ((one, 1), (two, 2)):
        for name, _, figure in all_figures(frame):
            ax = figure.axes[0]
            assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel() and ax.get_legend(), name
            assert ("2 networks together" in ax.get_title()) == (networks == 2), name


def test_a_single_falsified_point_is_seen():
    """A dashed line through one point is none."""
    frame = table().assign(within=lambda f: f["k"] + 1)
    figure = FIGURES["relaxed_curve"][0](frame[frame["k"] == 1])
    (line,) = [one for one in figure.axes[0].lines if one.get_label() == "falsified"]
    assert len(line.get_xdata()) == 1 and line.get_marker() == "_"
