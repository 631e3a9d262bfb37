"""The table of methods: its rows are whole, and one that is added from outside is a method like any other."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from nets import Pooled, image, seeded

import corgi_opt as co
from corgi_opt import methods
from corgi_opt.methods import TABLE, Look, Method, check_method, settled_by, up_to, weakest_first


@pytest.fixture
def with_mine(monkeypatch):
    """A table with a relaxation of one's own: CROWN, and the paper's bound where that is better."""
    rows = dict(TABLE)

    def bound(margins, deadline):
        margins.corgi(deadline)
        return margins.crown(deadline)

    methods.add(Method("mine", Look("#aa3377", "--", "h"), bound=bound), before="dual")
    yield
    TABLE.clear()
    TABLE.update(rows)


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_a_row_bounds_or_solves(row):
    assert TABLE[row.name] is row
    assert (row.bound is None) != (row.solve is None)
    assert (row.asks == "nothing") == (row.solve is None or row.name == "split")
    assert set(row.after) <= set(up_to(row.name)[:-1])
    assert all(TABLE[name].bound is not None for name in row.after)


def test_names_are_put_in_order():
    assert weakest_first(["bab", "crown", "corgi", "crown"]) == ["corgi", "crown", "bab"]
    assert up_to("dual") == ["ibp", "corgi", "crown", "dual"]


def test_auto_is_owed_to_whom_it_asked():
    assert [settled_by("auto", proof) for proof in ("solver", "float64")] == ["milp", "bab"]
    assert settled_by("bab", "solver") == "bab"


def test_what_is_no_method_is_refused_with_the_table():
    for given in ("magic", None, ["lp"]):
        with pytest.raises(co.UnknownMethodError, match=", ".join(map(repr, TABLE))):
            check_method(given, "inf")
    for name in TABLE:
        assert check_method(name, "inf").name == name


def test_a_method_of_ones_own_is_asked_by_name(with_mine):
    assert list(TABLE)[2:5] == ["crown", "mine", "dual"]
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    asked: dict[str, Any] = {"k": 2, "class_idx": 0, "device": "cpu"}
    found = co.compare(net, x, methods=["bab", "mine", "crown"], **asked)
    assert list(found.radii) == ["crown", "mine", "bab"]
    crown, mine, bab = (r.lower for r in found.radii.values())
    assert crown <= mine <= bab
    assert co.radius(net, x, method="mine", **asked).lower == pytest.approx(mine, rel=0.011)
    assert co.verify(net, x, eps=0.99 * mine, method="mine", **asked).status == "certified"
    beyond = co.verify(net, x, eps=1.3 * bab, method="mine", **asked)
    assert beyond.status == "falsified"
    margins = co.compare(net, x, eps=0.5 * mine, methods=["mine", "crown"], **asked).only
    assert margins.lower("crown") <= margins.lower("mine") <= margins.attack
    found.plot()


@pytest.mark.parametrize("module", ["corgi_opt.answering.heatmap", "corgi_opt.bounding.node_bounds"])
def test_bounds_of_pixels_and_of_nodes_are_by_methods_of_the_table(module):
    """They have answers of another type than a margin, which not every row gives: their names are rows', in order."""
    names = list(importlib.import_module(module).METHODS)
    assert names == weakest_first(names) and all(TABLE[name].bound is not None for name in names)
