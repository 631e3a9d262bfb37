"""Long calls: they keep their time, say what they do, and hand over what they have when they are stopped."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from clock import Clock
from corgi_solvers import Capabilities, Highs, Report, Solution, Status
from nets import Pooled, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt import _deadline as deadline
from corgi_opt.answering import backends

SOON = 20
"""Looks at the clock after time is over. A radius takes the most, 17: two or three in each of its steps (the attack,
IBP, CORGI, CROWN, dual, the tree), which find that there is nothing left to do."""

QUESTION: dict[str, Any] = {"k": 2, "class_idx": 0, "method": "milp", "device": "cpu"}


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

    def require(self):
        pass

    def solve(self, problem, *, time_limit, decide_at):
        self.patience -= 1
        if self.patience >= 0:
            return Highs().solve(problem, time_limit=time_limit, decide_at=decide_at)
        return self.otherwise(time_limit)

    def otherwise(self, time_limit: float) -> Solution:
        raise NotImplementedError


class Stopped(Backend):
    def otherwise(self, time_limit: float) -> Solution:
        raise KeyboardInterrupt


class Slow(Backend):
    """Takes all the time it is given, on a clock that nothing else moves."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(0)
        self.clock = clock
        self.given: list[float] = []

    def otherwise(self, time_limit: float) -> Solution:
        self.given.append(time_limit)
        self.clock.now += time_limit
        report = Report("slow", "0", time_limit, 0, 0, "time limit")
        return Solution(Status.LIMIT, float("inf"), float("-inf"), None, None, report)


def use(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    monkeypatch.setattr(backends, "backend", lambda name: backend)


def test_a_stopped_verify_leaves_its_verdict(setting, monkeypatch):
    net, x, eps = setting
    use(monkeypatch, Stopped(0))
    with pytest.raises(KeyboardInterrupt) as stop:
        co.verify(net, x, eps=eps, **QUESTION)
    assert isinstance(stop.value, co.Interrupted)
    verdict = stop.value.partial
    assert isinstance(verdict, co.Verdict)
    assert (verdict.status, verdict.reason) == ("unknown", "interrupted")
    assert verdict.margin_lower <= 0 < verdict.margin_upper


@pytest.mark.parametrize("patience", mostly_slow([0, 3], [3]))
def test_a_stopped_radius_leaves_its_bracket(setting, monkeypatch, patience):
    net, x, _ = setting
    whole = co.radius(net, x, rtol=1e-4, **QUESTION)
    use(monkeypatch, Stopped(patience))
    with pytest.raises(KeyboardInterrupt) as stop:
        co.radius(net, x, rtol=1e-4, **QUESTION)
    assert isinstance(stop.value, co.Interrupted)
    bracket = stop.value.partial
    assert isinstance(bracket, co.Radius) and bracket.counterexample is not None
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
    assert isinstance(stop.value, co.Interrupted) and isinstance(stop.value.partial, co.Comparison)
    assert list(stop.value.partial.radii) == ["corgi", "crown"]


@pytest.mark.parametrize("call", ["verify", "radius"])
def test_solvers_share_one_time_limit(setting, monkeypatch, call):
    net, x, eps = setting
    clock = Clock()
    clock.stand_in(monkeypatch, deadline)
    solver = Slow(clock)
    use(monkeypatch, solver)
    asked = {"eps": eps} if call == "verify" else {}
    result = getattr(co, call)(net, x, time_limit=1.5, **asked, **QUESTION)
    assert solver.given and all(0 <= given <= 1.5 for given in solver.given)
    assert clock.now == pytest.approx(1.5)  # all of it, and no more
    assert "time limit" in result.reason
    assert getattr(result, "status", "unknown") == "unknown"


class Deep(torch.nn.Module):
    """A network whose bounds alone take tens of seconds: many layers of full resolution, nearly all of them open."""

    def __init__(self) -> None:
        super().__init__()
        convs = [torch.nn.Conv2d(8 if n else 1, 8, 3, padding=1) for n in range(10)]
        self.features = torch.nn.Sequential(*(part for conv in convs for part in (conv, torch.nn.ReLU())))
        self.classify = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.classify(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def deep():
    x = image(1, 32, 32, seed=1)
    return co.from_torch(seeded(Deep, 0), x), x


EVERY_LOOK = itertools.product(("corgi", "crown", "dual", "bab"), (2, 10, 30))


@pytest.mark.parametrize(
    ("method", "looks"), mostly_slow(EVERY_LOOK, [("corgi", 2), ("crown", 10), ("dual", 30), ("bab", 10)])
)
def test_bounds_keep_a_time_limit(deep, method, looks, monkeypatch):
    """Time is over at some look at the clock, early in tens of seconds of work; few looks later all is said."""
    net, x = deep
    asked = {"k": 2, "class_idx": 0, "method": method, "device": "cpu", "time_limit": 1.0}
    clock = Clock(tick=1 / looks)
    clock.stand_in(monkeypatch, deadline)
    verdict = co.verify(net, x, eps=0.01, **asked)
    assert verdict.status == "unknown"
    assert verdict.reason == "time limit reached in the bounds"
    assert verdict.margin_lower <= 0 < verdict.margin_upper
    assert looks < clock.looks <= looks + SOON
    clock.now, clock.looks = 0.0, 0
    bracket = co.radius(net, x, **asked)
    assert "time limit" in bracket.reason
    assert bracket.lower < bracket.upper
    assert looks < clock.looks <= looks + SOON


def again_and_again(call: Callable[[], object]) -> NoReturn:
    while True:
        call()


@pytest.mark.parametrize("method", ["milp", "bab"])
def test_ctrl_c_stops_a_real_radius(setting, monkeypatch, method):
    """SIGINT in the middle of solvers and trees: the bracket by then is in ``partial``."""
    net, x, _ = setting
    asked = QUESTION | {"method": method, "rtol": 1e-7}
    for after in (0.3, 0.6):
        timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
        run = sys.modules["corgi_opt.answering.radius_search"].RadiusSearch.run

        def timed_run(search, *args, timer=timer, run=run):
            if not timer.is_alive():
                timer.start()
            return run(search, *args)

        monkeypatch.setattr(sys.modules["corgi_opt.answering.radius_search"].RadiusSearch, "run", timed_run)
        try:
            with pytest.raises(co.Interrupted) as stop:
                again_and_again(lambda: co.radius(net, x, **asked))  # a machine may be quick
        finally:
            timer.cancel()
            monkeypatch.undo()
        bracket = stop.value.partial
        assert isinstance(bracket, co.Radius)
        assert bracket.lower < bracket.upper


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
