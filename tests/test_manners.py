"""Long calls: they keep their time, say what they do, and hand over what they have when they are stopped."""

from __future__ import annotations

import sys
import time

import pytest
from corgi_solvers import Capabilities, Highs, Report, Solution, Status
from nets import Pooled, image, seeded

import corgi_opt as co

QUESTION = {"k": 2, "class_idx": 0, "method": "milp", "device": "cpu"}


@pytest.fixture(scope="module")
def setting():
    """A question and an eps at which only the MILP can tell."""
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    r = co.radius(net, x, rtol=0.01, **QUESTION)
    return net, x, 0.98 * r.lower


class Backend:
    """Asks HiGHS a few times, and then does something else."""

    capabilities = Capabilities(lp=True, mip=True, soc=False)

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def solve(self, problem, *, time_limit, decide_at):
        self.patience -= 1
        if self.patience >= 0:
            return Highs().solve(problem, time_limit=time_limit, decide_at=decide_at)
        return self.otherwise(time_limit)


class Stopped(Backend):
    def otherwise(self, time_limit):
        raise KeyboardInterrupt


class Slow(Backend):
    def otherwise(self, time_limit):
        time.sleep(min(time_limit, 30.0))
        report = Report("slow", "0", time_limit, 0, 0, "time limit")
        return Solution(Status.LIMIT, float("inf"), float("-inf"), None, None, report)


def use(monkeypatch, backend):
    monkeypatch.setattr(sys.modules["corgi_opt.verify"], "backend", lambda name: backend)


def test_a_stopped_verify_leaves_its_verdict(setting, monkeypatch):
    net, x, eps = setting
    use(monkeypatch, Stopped(0))
    with pytest.raises(KeyboardInterrupt) as stop:
        co.verify(net, x, eps=eps, **QUESTION)
    assert isinstance(stop.value, co.Interrupted)
    verdict = stop.value.partial
    assert (verdict.status, verdict.reason) == ("unknown", "interrupted")
    assert verdict.margin_lower <= 0 < verdict.margin_upper


@pytest.mark.parametrize("patience", [0, 3])
def test_a_stopped_radius_leaves_its_bracket(setting, monkeypatch, patience):
    net, x, _ = setting
    whole = co.radius(net, x, rtol=1e-4, **QUESTION)
    use(monkeypatch, Stopped(patience))
    with pytest.raises(KeyboardInterrupt) as stop:
        co.radius(net, x, rtol=1e-4, **QUESTION)
    bracket = stop.value.partial
    assert "interrupted" in bracket.reason
    assert bracket.lower <= whole.upper
    assert bracket.upper >= whole.lower
    assert bracket.lower < bracket.upper < float("inf")
    assert bracket.counterexample.distance == bracket.upper
    assert bracket.lower > 0  # CORGI's at least


def test_a_stopped_comparison_leaves_the_radii_it_has(setting, monkeypatch):
    net, x, _ = setting
    use(monkeypatch, Stopped(0))
    with pytest.raises(KeyboardInterrupt) as stop:
        co.compare(net, x, k=2, class_idx=0, methods=["corgi", "crown", "milp"], device="cpu")
    assert list(stop.value.partial.radii) == ["corgi", "crown"]


def test_time_limits_are_kept_within_two_seconds(setting, monkeypatch):
    net, x, eps = setting
    use(monkeypatch, Slow(0))
    for call in (
        lambda: co.verify(net, x, eps=eps, time_limit=1.5, **QUESTION),
        lambda: co.radius(net, x, time_limit=1.5, **QUESTION),
    ):
        start = time.monotonic()
        result = call()
        assert time.monotonic() - start < 3.5
        assert "time limit" in result.reason
        assert getattr(result, "status", "unknown") == "unknown"


def test_a_line_says_what_is_left_when_asked(setting, capfd):
    net, x, eps = setting
    co.verify(net, x, eps=eps, progress=True, **QUESTION)
    shown = capfd.readouterr().err
    assert "pairs left" in shown
    assert "verify" in shown
    co.verify(net, x, eps=eps, progress=False, **QUESTION)
    co.verify(net, x, eps=eps, **QUESTION)  # nobody is watching
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("call", [co.radius, co.compare, co.verify])
def test_progress_is_yes_no_or_none(setting, call):
    net, x, eps = setting
    with pytest.raises(co.InputError, match="progress must be True, False or None"):
        call(net, x, k=2, progress="yes", **({"eps": eps} if call is co.verify else {}))
