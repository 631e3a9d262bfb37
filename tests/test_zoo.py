"""Trained networks of the usual kinds: what an exact method certifies beside what CROWN does in the same time."""

from __future__ import annotations

import pytest

import corgi_opt as co

pytestmark = pytest.mark.zoo


def test_corgi_never_keeps_crown_waiting(zoo):
    """One verdict on the strided network: CROWN's, with CORGI's bound beside it or a word that there was no time."""
    x = zoo.image(0)
    net = co.from_torch(zoo.model("strided"), x)
    v = co.verify(net, x, eps=2e-4, k=5, method="crown", time_limit=60.0)
    assert v.status == "certified" and v.margin_lower > 0
    assert v.corgi_margin <= v.margin_lower or v.stats["corgi_cut_off"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("limit", [30.0, 120.0])
@pytest.mark.parametrize("index", [0, 1])
def test_no_method_certifies_less_than_a_weaker_one(zoo, index, limit):
    """Every network that builds. Each radius is resolved to rtol; the same limit for each."""
    built = 0
    for name in zoo.names:
        x = zoo.image(index)
        try:
            net = co.from_torch(zoo.model(name), x)
        except co.CorgiError:
            continue
        built += 1
        radii = {
            method: co.radius(net, x, k=5, method=method, rtol=0.01, time_limit=limit)
            for method in ("ibp", "crown", "bab", "milp", "auto")
        }
        print(name, index, limit, {method: f"{r.lower:.4g}" for method, r in radii.items()})
        for method, r in radii.items():
            assert 0 < r.lower < r.upper, (name, method)
        assert radii["crown"].lower >= radii["ibp"].lower, name
        for method in ("bab", "milp", "auto"):
            assert radii[method].lower >= radii["crown"].lower / 1.01, (name, method)
    assert built
