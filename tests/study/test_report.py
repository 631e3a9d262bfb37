"""The report: one file that needs nothing else; every figure shows what the store holds."""

from __future__ import annotations

import base64
import io
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import corgi_opt as co
from corgi_opt.methods import TABLE
from corgi_opt.study import Plan, Store, write_report
from corgi_opt.study.engine import row_of
from corgi_opt.study.figures import FIGURES, all_figures

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import image as mpl_image

SHARE = {"corgi": 0.4, "crown": 0.8, "bab": 0.995}


def plan() -> Plan:
    return Plan.of(
        {
            "name": "a <study>",
            "models": {"digits": "digits"},
            "images": {"t": {"source": "digits", "take": "0:6"}},
            "questions": [
                {"k": [1, 2, 4], "method": list(SHARE)},
                {"k": 2, "within": [4, 6], "method": list(SHARE)},
                {"kind": "margin", "k": 2, "eps": [0.01, 0.02], "method": list(SHARE)},
            ],
        }
    )


def exact(key: str) -> float:
    return random.Random(key).uniform(0.01, 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store whose answers are known: a method certifies its share of the exact radius."""
    folder = tmp_path_factory.mktemp("study")
    with Store.writing(folder) as store:
        made = plan()
        store.began(made.name, made.said, {"grace": 60.0, "workers": None})
        for cell in made.cells():
            share, truth = SHARE[cell.ask.method], exact(f"{cell.image.name} {cell.ask.k}")
            found = {"state": "done", "gap": 50 * truth, "corgi": 0.4 * truth, "seconds": share, "host": "here"}
            found |= {"cpu": "a processor, 2 cores", "versions": "python 3, torch 2, highspy 1"}
            if cell.ask.kind == "radius":
                closed = "closed" if share > 0.99 else "open"
                found |= {"status": closed, "lower": share * truth, "upper": truth}
            else:
                found |= {"status": "certified", "lower": share * 30 * truth, "upper": 30 * truth}
            store.put(row_of(cell, found))
        cells = made.cells()
        store.put(row_of(cells[0], {"state": "crashed", "reason": "it <died>"}))
        store.put(row_of(cells[1], {"state": "done", "status": "tied", "lower": 0.0, "upper": 0.0}))
    return folder


@pytest.fixture(scope="module")
def frame(folder):
    with Store.reading(folder) as store:
        return store.to_frame()


def lines(figure, label: str):
    ax = figure.axes[0] if hasattr(figure, "axes") and isinstance(figure.axes, list) else figure
    (line,) = (line for line in ax.lines if line.get_label().startswith(label))
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


class Links(HTMLParser):
    """Everything a page refers to, and its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_else_and_shows_every_figure(folder):
    made = write_report(folder)
    text = made.page.read_text()
    page = Links()
    page.feed(text)
    assert page.links and all(link.startswith("data:") for link in page.links)
    assert "script" not in page.tags and "@import" not in text and "url(" not in text
    assert page.tags.count("figure") == len(FIGURES)
    shown = [base64.b64decode(link.split(",")[1]) for link in page.links if link.startswith("data:image/png")]
    for data in shown:
        pixels = mpl_image.imread(io.BytesIO(data), format="png")[..., :3]
        ink = (pixels.min(axis=2) < 0.9).mean()
        assert ink > 0.01  # not an empty frame
    assert {f.name for f in made.figures} == {f"{n}{s}" for n in FIGURES for s in (".png", ".pdf")}
    for file in made.figures:
        assert file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")
    assert "<title>a &lt;study&gt;" in text and "it &lt;died&gt;" in text  # nothing from the study is read as HTML
    assert f"{made.rows} cells" in text and "1 crashed" in text and "1 of them about tied images" in text


def test_figures_have_the_size_that_they_were_drawn_in_and_tables_their_headings(folder):
    """A page that is printed repeats the line of headings; one that is wide blows nothing up."""
    text = write_report(folder).page.read_text()
    sizes = [float(size) for size in re.findall(r'style="max-width: ([0-9.]+)in"', text)]
    assert len(sizes) == len(FIGURES) and all(4 < size < 16 for size in sizes)
    assert text.count("<thead>") == text.count("</thead>") == 2
    print_rules = text.split("@media print")[1].split("</style>")[0]
    assert "overflow: visible" in print_rules  # what would scroll would be cut off


def test_the_page_says_how_its_numbers_came_about(folder):
    text = write_report(folder).page.read_text()
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))
    assert (rows["rtol"], rows["time limits"], rows["seeds"]) == ("0.01", "300 s", "0")
    assert rows["clip boxes"] == "[0, 1]" and rows["processors"] == "a processor, 2 cores"
    assert rows["versions"] == "python 3, torch 2, highspy 1"
    assert rows["page made"].startswith("20") and " to " in rows["answered"]
    assert "&#39;name&#39;: &#39;a &lt;study&gt;&#39;" in text.split("<pre>")[1].split("</pre>")[0]  # the plan
    assert "grace 60.0" in text


def test_a_row_says_where_the_order_of_methods_is_not_kept(folder, tmp_path):
    with Store.reading(folder) as store, Store.writing(tmp_path) as other:
        for row in store.rows():
            wrong = row.method == "bab" and row.kind == "radius" and row.k == 4 and row.image == "t[0]"
            other.put(replace(row, lower=(row.lower or 0) * 0.8) if wrong else row)
    page = write_report(tmp_path).page.read_text()
    (row,) = (r for r in re.findall(r"<tr>(.*?)</tr>", page, re.S) if "below crown" in r)
    assert "<td>bab</td>" in row and "<td>k=4</td>" in row
    assert "1 of 6 below crown by up to 0.005 of it (both ±rtol=0.01)" in row
    assert "below crown" not in write_report(folder).page.read_text()


def test_tables_say_the_medians(folder, frame):
    text = write_report(folder).page.read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.S)]
    (row,) = (r for r in rows if r[1:5] == ["inf", "[0, 1]", "k=2", "bab"] and len(r) == 15)
    truths = [exact(f"test[{i}] 2".replace("test", "t")) for i in range(6)]
    assert row[0] == "digits" and row[5] == "6" and row[-1] == "kept"
    assert float(row[6]) == pytest.approx(0.995 * np.median(truths), rel=1e-3)
    assert float(row[7]) == pytest.approx(np.median(truths), rel=1e-3)
    assert float(row[8]) == pytest.approx(1 / 0.995, rel=1e-3)


def test_the_certified_fraction_is_counted(frame):
    figure = FIGURES["certified_fraction"][0](frame[frame["state"] == "done"])
    radii = frame[(frame["kind"] == "radius") & (frame["within"] == frame["k"]) & (frame["state"] == "done")]
    radii = radii[radii["status"] != "tied"]
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["k=1", "k=2", "k=4"]
    for k, ax in zip((1, 2, 4), figure.axes, strict=True):
        part = radii[radii["k"] == k]
        for method in SHARE:
            x, y = lines(ax, method)
            lower = part[part["method"] == method]["lower"].to_numpy()
            for eps in np.linspace(0, 0.9 * part["upper"].max(), 37):
                at = y[np.searchsorted(x, eps, side="right") - 1]  # a step holds from its x on
                assert at == pytest.approx((lower > eps).mean())
        x, y = lines(ax, "not broken")
        upper = part.groupby("image_sha256")["upper"].min().to_numpy()
        for eps in np.linspace(0, 0.9 * part["upper"].max(), 37):
            assert y[np.searchsorted(x, eps, side="right") - 1] == pytest.approx((upper > eps).mean())


def test_curves_hold_the_medians(frame):
    done = frame[frame["state"] == "done"]
    x, y = lines(FIGURES["tightness"][0](done), "crown")
    assert x.tolist() == [0.01, 0.02] and y == pytest.approx([0.8 * 30 / 50] * 2)
    x, y = lines(FIGURES["radius_by_k"][0](done), "bab")
    assert x.tolist() == [1, 2, 4]
    assert y[1] == pytest.approx(0.995 * np.median([exact(f"t[{i}] 2") for i in range(6)]))
    x, y = lines(FIGURES["relaxed_curve"][0](done), "falsified")
    assert x.tolist() == [2, 4, 6]
    x, y = lines(FIGURES["cactus"][0](done), "bab")
    assert len(x) == x[-1] == ((done["method"] == "bab") & (done["status"] != "tied")).sum()


def test_the_histogram_counts_every_question(frame):
    done = frame[frame["state"] == "done"]
    figure = FIGURES["ratio_histogram"][0](done)
    counts = {p.get_label().split(",")[0]: p.get_data().values.sum() for p in figure.axes[0].patches}
    assert counts == {"corgi": 17, "crown": 17, "bab": 18}  # one crashed, one is tied
    assert "median 2.5" in next(p.get_label() for p in figure.axes[0].patches if p.get_label().startswith("corgi"))


def test_a_study_without_what_a_figure_shows_has_no_such_figure(frame):
    done = frame[frame["kind"] == "margin"]
    assert {name for name, _, _ in all_figures(done)} == {"tightness", "cactus"}
    one_k = frame[(frame["k"] == 1) & (frame["kind"] == "radius")]
    assert {n for n, _, _ in all_figures(one_k)}.isdisjoint({"radius_by_k", "relaxed_curve", "tightness"})
    assert list(all_figures(frame[frame["state"] == "crashed"])) == []


def test_methods_can_be_told_in_print():
    looks = [method.look for method in TABLE.values()]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks)


def test_there_is_nothing_to_report_before_an_answer(tmp_path):
    with pytest.raises(co.StoreError, match="no results"):
        write_report(tmp_path)
    Store.writing(tmp_path).close()
    with pytest.raises(co.StoreError, match="no answer yet"):
        write_report(tmp_path)
