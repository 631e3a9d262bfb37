"""How a verdict shares its time with CORGI's bound and the attack, by a clock that only they move."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
from nets import Pooled, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.bounding.dual import Interval


@pytest.fixture(scope="module")
def gap():
    """A question and an eps at which it is stable, but only the exact methods can tell."""
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    return net, x, 0.98 * co.radius(net, x, k=2, class_idx=0, method="bab").lower


class Slow:
    """CORGI's bound as it is on a deep network: ``seconds`` of a clock that nothing else moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        self.calls: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: self.now)
        real = sys.modules["corgi_opt.bounding.margins"].corgi_bounds

        def corgi_bounds(net, regions, matter, deadline):
            self.calls.append(deadline.left)
            if deadline.left < self.seconds:
                self.now += deadline.left
                raise TimeoutError("time limit")
            self.now += self.seconds
            return real(net, regions, matter)

        monkeypatch.setattr(sys.modules["corgi_opt.bounding.margins"], "corgi_bounds", corgi_bounds)
        for name in ("corgi_opt._deadline", "corgi_opt.bounding.margins"):
            monkeypatch.setattr(sys.modules[name], "time", clock)


METHODS = ["ibp", "crown", "dual", "lp", "milp", "bab", "auto"]


@pytest.mark.parametrize("method", mostly_slow(METHODS, METHODS[::3]))
def test_nothing_waits_long_for_corgi(method, gap, monkeypatch):
    """A second at first; then, when the answer is there, its tenth of the time: the answer is the same."""
    net, x, eps = gap
    asked = {"eps": 0.3 * eps if method == "crown" else eps, "k": 2, "class_idx": 0, "method": method}
    plain = co.verify(net, x, **asked)
    slow = Slow(monkeypatch, 13.0)
    v = co.verify(net, x, time_limit=200.0, **asked)
    assert slow.calls == pytest.approx(([1.0] if method != "ibp" else []) + [20.0])
    assert v.status == plain.status and v.corgi_margin == pytest.approx(plain.corgi_margin)
    assert v.margin_lower == pytest.approx(plain.margin_lower, abs=1e-6) or v.margin_lower > 0
    assert "corgi_cut_off" not in v.stats


@pytest.mark.parametrize("method", ["ibp", "crown", "bab"])
def test_a_corgi_bound_that_takes_more_than_its_tenth_is_left_out(method, gap, monkeypatch):
    net, x, eps = gap
    asked = {"eps": eps, "k": 2, "class_idx": 0, "method": method}
    plain = co.verify(net, x, **asked)
    slow = Slow(monkeypatch, 13.0)
    v = co.verify(net, x, time_limit=100.0, **asked)
    assert v.status == plain.status
    assert math.isnan(v.corgi_margin) and v.stats["corgi_cut_off"] == 1.0
    assert slow.now <= 11.0
    own = co.verify(net, x, time_limit=100.0, **asked | {"method": "corgi"})
    assert own.corgi_margin == pytest.approx(plain.corgi_margin)


def test_what_corgi_proves_last_counts(gap, monkeypatch):
    """Sometimes it is CROWN that is too weak: a later CORGI's certificate is not thrown away."""
    net, x, _ = gap
    low = co.radius(net, x, k=2, class_idx=0, method="corgi").lower
    Slow(monkeypatch, 13.0)
    monkeypatch.setattr(sys.modules["corgi_opt.bounding.margins"].Margins, "_crown", lambda self, deadline: None)
    v = co.verify(net, x, eps=low, k=2, class_idx=0, method="crown", time_limit=200.0)
    assert v.status == "certified" and v.method == "corgi" and v.margin_lower == v.corgi_margin > 0


def test_a_late_corgi_is_checked_against_the_witness(gap, monkeypatch):
    """The order of bounds is checked whenever the bound is had."""
    net, x, _ = gap
    eps = 1.5 * co.radius(net, x, k=2, class_idx=0, method="milp").upper
    Slow(monkeypatch, 13.0)
    features = net.graph.forward(net.image(x), net.features)
    honest = sys.modules["corgi_opt.bounding.margins"].corgi_bounds

    def liar(*given):
        honest(*given)
        return Interval(features - 1e-6, features + 1e-6)

    monkeypatch.setattr(sys.modules["corgi_opt.bounding.margins"], "corgi_bounds", liar)
    with pytest.raises(co.BoundOrderError):
        co.verify(net, x, eps=eps, k=2, class_idx=0, method="crown", time_limit=200.0)


def test_an_attack_has_a_quarter_of_the_time(gap, monkeypatch):
    net, x, eps = gap
    had: list[float] = []

    def endless(question, ball, targets, device, options, deadline):
        had.append(deadline.left)

    monkeypatch.setattr(sys.modules["corgi_opt.answering.ladder"], "pgd", endless)
    co.verify(net, x, eps=eps, k=2, class_idx=0, method="crown", time_limit=1000.0)
    assert len(had) == 1 and had[0] <= 250.0
