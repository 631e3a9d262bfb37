"""The recipes of CONTRIBUTING.md run as they stand: a method, a layer, a solver, a property, a figure from outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from corgi_solvers.choose import BACKENDS
from page_code import blocks, run

import corgi_opt as co
from corgi_opt import methods
from corgi_opt.network.builders import BUILDERS
from corgi_opt.problem.properties import PROPERTIES
from corgi_opt.study import Ask, Plan, Store
from corgi_opt.study.answer import answer
from corgi_opt.study.engine import row_of, task_of
from corgi_opt.study.figures import FIGURES, all_figures
from corgi_opt.study.report import tables

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
RECIPES = ("A bound method", "A layer that is piecewise linear", "A solver", "A property", "A figure")
TABLES: tuple[dict[str, Any], ...] = (methods.TABLE, BUILDERS, BACKENDS, PROPERTIES, FIGURES)


@pytest.fixture
def names():
    """What the page's Python has made when it has run from top to bottom; the tables are as before afterwards."""
    before = [dict(table) for table in TABLES]
    found: dict[str, Any] = {}
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(RECIPES)
    try:
        for section in sections:
            (block,) = blocks(section, "python")
            run(block, PAGE, found)
        yield found
    finally:
        for table, rows in zip(TABLES, before, strict=True):
            table.clear()
            table.update(rows)


def test_each_is_used_through_the_public_api(names, tmp_path, capsys):
    net, x = names["net"], names["x"]
    assert list(methods.TABLE)[3] == "both"
    # the layer: what it certifies holds at images of the region, in the model itself
    other, model = names["other"], names["other"].model
    found = co.radius(other, x, k=2, rtol=0.01)
    assert 0 < found.lower < found.upper and found.counterexample is not None
    noise = (torch.rand(200, *x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5) * 2
    images = (x.double() + found.lower * noise).clamp(0, 1)
    maps = torch.nn.functional.softshrink(model.conv(images), 0.1)
    cams = torch.einsum("c,nchw->nhw", model.head.weight[found.asked.class_idx], maps).flatten(1)
    top = set(other.cam(x).flatten().topk(2).indices.tolist())
    assert all(set(row.topk(2).indices.tolist()) == top for row in cams)
    # the solver
    assert names["Counted"].asked > 0
    with pytest.raises(co.InputError, match="counted"):
        co.verify(net, x, eps=0.01, k=3, solver="none")
    # the property: by its name, against the count of brighter pixels, with a certificate
    wanted = names["InTop"](names["brightest"], 2)
    radius = co.radius(net, x, property=wanted.to_dict(), rtol=0.05, time_limit=60)
    assert radius.asked.property == wanted and 0 < radius.lower < radius.upper
    if radius.counterexample is not None:
        cam = net.model_cam(radius.counterexample.image, radius.asked.class_idx).flatten()
        assert int((cam >= cam[wanted.pixel]).sum()) - 1 >= 2
    proven = co.verify(net, x, eps=0.5 * radius.lower, property=wanted, proof="checked")
    assert proven.proof == "checked"
    proven.certificate.save(tmp_path / "a.cert")
    assert co.check_certificate(tmp_path / "a.cert", net).said["name"] == "InTop"


def test_a_study_answers_and_draws_with_them(names, tmp_path):
    """Cells are answered here, as a worker would: one that runs elsewhere has to be told of what is new itself."""
    wanted = {"name": "InTop", "pixel": names["brightest"], "rank": 2}
    plan = Plan.of(
        {
            "name": "recipes",
            "models": {"digits": {"build": "digits"}},
            "images": {"one": {"source": names["x"]}},
            "questions": [
                {"property": wanted, "method": ["both", "corgi"], "rtol": 0.2},
                {"k": [1, 3], "method": "both", "rtol": 0.2},
            ],
        }
    )
    with Store.writing(tmp_path) as store:
        for cell in plan.cells():
            store.put(row_of(cell, {**answer(task_of(cell, 0.0, 60.0, "cpu")), "peak_mb": 1.0}))
        frame = store.to_frame()
    assert list(frame["state"]) == ["done"] * 4 and set(frame["method"]) == {"both", "corgi"}
    assert list(frame["property"].notna()) == [True, True, False, False] and (frame["lower"] > 0).all()
    drawn = {name: caption for name, caption, _ in all_figures(frame)}
    assert drawn["seconds_by_k"] == "Seconds of every answer by k."
    (shown, *_) = tables(frame)["radii"]
    assert shown["asked"].startswith("InTop(pixel=")
    with pytest.raises(co.InputError, match="no property"):
        Ask("radius", None, "crown", property="Nothing")
