"""Brackets: two-sided, resolved, and honest about how they ended."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from corgi_solvers import Highs
from nets import Plain, Pooled, image, seeded
from patience import diagonal, mostly_slow
from torch import nn

import corgi_opt as co


@pytest.fixture(scope="module")
def pooled():
    x = image(1, 8, 8, seed=4)
    return co.from_torch(seeded(Pooled, 1), x), x


ASKED: list[list[Any]] = [["ibp", "corgi", "crown", "lp", "milp"], [0.05, 0.005]]


@pytest.mark.parametrize(("method", "rtol"), mostly_slow(product(*ASKED), diagonal(*ASKED)))
def test_lower_is_certified_and_the_limit_is_resolved(pooled, method, rtol):
    net, x = pooled
    r = co.radius(net, x, k=2, class_idx=0, method=method, rtol=rtol)
    assert 0 < r.lower < r.upper <= r.attack
    assert co.verify(net, x, eps=r.lower, k=2, class_idx=0, method=method).status == "certified"
    above = co.verify(net, x, eps=r.lower * (1 + rtol), k=2, class_idx=0, method=method)
    assert above.status != "certified"
    assert r.counterexample is not None
    assert net.model_cam(r.counterexample.image, 0) is not None
    assert r.counterexample.distance == r.upper


def test_clipping_only_helps(pooled):
    net, _ = pooled
    x = image(1, 8, 8, seed=9).round().float()  # black and white: half of every ball is outside [0, 1]
    boxed, free = (co.radius(net, x, k=2, class_idx=0, method="milp", clip=c) for c in ((0.0, 1.0), None))
    assert boxed.upper >= free.lower


def test_a_cam_that_cannot_change_is_certified_over_the_whole_box():
    """One bright pixel comes from a constant padding pattern that no input can outweigh."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(torch.relu(self.c(x * 0.001 + 1.0)).mean((2, 3)))

    model = seeded(Fixed)
    with torch.no_grad():
        model.c.weight.fill_(1.0)
        # corner sums are about 4, edges 6, the middle 9: the corners' order against the middle never changes
        model.fc.weight.fill_(1.0)
    x = image(1, 3, 3)
    net = co.from_torch(model, x)
    r = co.radius(net, x, k=1, method="milp")
    assert r.upper == float("inf")
    assert r.counterexample is None
    assert r.lower >= max(float(x.max()), 1 - float(x.min())) / 1.01
    assert "no counterexample" in r.reason or "largest" in r.reason


def test_time_limit_is_reported():
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    r = co.radius(net, x, k=2, class_idx=0, method="milp", time_limit=1e-9)
    assert r.reason == "time limit"
    assert 0 <= r.lower <= r.upper


def test_compare_frame_and_order(pooled):
    net, x = pooled
    c = co.compare(net, x, k=2, class_idx=0, methods=["milp", "ibp", "crown", "corgi", "lp", "dual"])
    assert list(c.radii) == ["ibp", "corgi", "crown", "dual", "lp", "milp"]
    assert all(a.lower <= b.lower for a, b in pairwise(c.radii.values()))
    frame = c.to_frame()
    assert frame.loc["milp", "ratio"] <= 1.01
    assert frame.loc["corgi", "over_corgi"] == 1.0
    assert (frame["seconds"] >= 0).all()
    assert set(c.only.seconds) >= {"attack", *c.radii}


def test_a_contradiction_is_raised(pooled, monkeypatch):
    """A bound pass that claims too much must not survive the attack."""
    import sys

    from corgi_opt.bounding.dual import Interval

    net, x = pooled
    features = net.graph.forward(net.image(x), net.features)
    monkeypatch.setattr(
        sys.modules["corgi_opt.bounding.margins"], "corgi_bounds", lambda *_: Interval(features - 1e-6, features + 1e-6)
    )
    with pytest.raises(co.BoundOrderError):
        co.radius(net, x, k=2, class_idx=0, method="corgi")


def test_a_certified_eps_beyond_a_witness_found_later_is_raised(pooled):
    """An exact probe can move the nearest witness below what an earlier method had certified."""
    from asking import ask

    from corgi_opt._deadline import Deadline
    from corgi_opt.answering.radius_search import Certified, RadiusSearch

    net, x = pooled
    question = ask(net, x, k=2, class_idx=0, norm="inf", clip=(0.0, 1.0), tie_tol=None)
    search = RadiusSearch(question, torch.device("cpu"), co.PgdOptions(), 0.01, Highs())
    broken = search.run("corgi", Deadline(600)).upper
    search._certified["crown"] = Certified(1.001 * broken, 1.0, "float64", "")
    with pytest.raises(co.BoundOrderError, match="crown certified"):
        search.run("milp", Deadline(600))


def test_plain_network_and_predicted_class():
    x = image(1, 6, 6, seed=2)
    net = co.from_torch(seeded(Plain, 2), x)
    r = co.radius(net, x, k=3)
    assert r.asked.class_idx == int(net.logits(x).argmax())
    assert r.method == "bab"
    assert r.proof == "float64"
    assert r.upper / r.lower <= 1.01
