"""Random networks, questions and answers, against oracles of their own: a dozen always, two thousand with -m slow.

``CORGI_FUZZ_NETS=30`` changes how many. A failure names seeds: ``python tests/fuzz_run.py SEED`` replays one alone and
prints its network, what was asked and what is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fuzz_run
import pytest
import torch
from fuzz_attack import least
from fuzz_nets import Head, random_case
from fuzz_oracle import Oracle, Region
from fuzz_run import Tally, fuzz
from nets import Plain, image, seeded
from scipy.optimize import linprog
from torch import nn

import corgi_opt as co

SHOWN = 6
"""Faults that a failure prints in full."""


@pytest.fixture(autouse=True)
def nobody_else_attacks(monkeypatch, what_is_certified_is_attacked):
    """The attack here is another one, and it comes after whatever is asked."""
    monkeypatch.setattr(sys.modules["corgi_opt.answering.verdict"], "settle", what_is_certified_is_attacked)


@pytest.mark.parametrize(
    ("first", "nets"),
    [
        pytest.param(0, 12, id="some"),
        pytest.param(0, 100, id="a hundred", marks=pytest.mark.slow),
        pytest.param(100_000, 2_000, id="many", marks=pytest.mark.slow),
    ],
)
def test_no_random_network_is_answered_wrongly(first, nets):
    nets = int(os.environ.get("CORGI_FUZZ_NETS", nets))
    tally, end = Tally(), time.monotonic() + 600 + 10 * nets  # many times what it needs: a hang ends, and fails
    for seed in range(first, first + nets):
        fuzz(seed, tally)
        if time.monotonic() > end:
            break
    print(tally.table())
    assert not tally.faults, shown(tally)
    count = tally.counts
    assert count["nets"] == nets, f"stopped after {count['nets']} nets: they take far too long"
    # what is refused, tied or unknown proves nothing
    assert count["nets built"] >= 0.7 * nets, tally.table()
    assert count["certified"] >= 1.5 * nets, tally.table()
    assert count["verify: falsified"] >= 0.3 * nets, tally.table()
    assert count["certificates checked"] >= 0.05 * nets, tally.table()
    assert count["breakable and broken"] >= 0.6 * count["breakable"] > 0, tally.table()  # the attack is worth something
    for kind in ("norm inf", "norm 2", "norm 1", "clip none", "clip one", "clip per channel", "within", "keep_class"):
        assert count[f"certified, {kind}"] >= 0.03 * nets, tally.table()


def shown(tally: Tally) -> str:
    kinds = {kind: [f.seed for f in tally.faults if f.kind == kind] for kind in sorted({f.kind for f in tally.faults})}
    first = "\n\n".join(f"seed {f.seed}: {f.kind}: {f.what}" for f in tally.faults[:SHOWN])
    return f"{len(tally.faults)} faults, seeds by kind: {kinds}\n\n{first}\n\n{tally.table()}"


# --- the fuzzer itself: what it would see if something were wrong ----------------------------------------------------


def kinds_found(seeds: range, *kinds: str) -> set[str]:
    """The kinds of faults that some seeds show, until all that are looked for have been seen.

    Tests below begin at a seed that showed them once, so that they end early; the other seeds are there for changes.
    """
    tally = Tally()
    for seed in seeds:
        fuzz(seed, tally)
        found = {f.kind for f in tally.faults}
        if found >= set(kinds):
            break
    return {f.kind for f in tally.faults}


def test_too_large_a_radius_is_broken(monkeypatch):
    def too_large(net, x, **asked):
        found = co.radius(net, x, **asked)
        return replace(found, lower=found.upper * 1.01, upper=found.upper * 1.02) if found.upper < 1e9 else found

    plant(monkeypatch, radius=too_large)
    assert "broken" in kinds_found(range(4, 44), "broken")


def test_a_certified_that_is_falsified_is_broken(monkeypatch):
    def the_other_way(net, x, **asked):
        found = co.verify(net, x, **asked)
        claim = replace(found, status="certified", margin_lower=1e-9, counterexample=None, proof="float64")
        return claim if found.status == "falsified" else found

    plant(monkeypatch, verify=the_other_way)
    assert "broken" in kinds_found(range(2, 42), "broken")


def test_a_witness_outside_its_region_or_that_breaks_nothing_is_seen(monkeypatch):
    def moved(net, x, **asked):
        found = co.verify(net, x, **asked)
        if found.counterexample is None:
            return found
        far = replace(found.counterexample, image=found.counterexample.image + 2 * asked["eps"] + 1e-9)
        still = replace(found.counterexample, image=x.double())
        return replace(found, counterexample=far if asked["seed"] else still)

    plant(monkeypatch, verify=moved)
    assert "witness" in kinds_found(range(2, 42), "witness")


def test_what_happens_to_the_caller_s_objects_is_seen(monkeypatch):
    def careless(model, example):
        with torch.no_grad():
            example.view(-1)[0] += 0.0  # the same number, written
        return co.from_torch(model, example)

    plant(monkeypatch, from_torch=careless)
    assert "changed" in kinds_found(range(3), "changed")


def test_a_network_that_reads_its_model_wrongly_is_seen(monkeypatch):
    def misread(model, example):
        net = co.from_torch(model, example)
        return SimpleNamespace(classes=net.classes, cam=lambda x, c: net.cam(x, c) * (1 + 1e-8))

    plant(monkeypatch, from_torch=misread)
    assert "cam" in kinds_found(range(10), "cam")


def test_errors_that_are_nobody_s_and_hangs_are_seen(monkeypatch):
    def dies(net, x, **asked):
        if asked["norm"] == "2":
            raise KeyError("node")
        while True:
            time.sleep(0.01)

    co.from_torch(seeded(Plain), image(1, 6, 6))  # torch's first export takes longer than the patience here
    monkeypatch.setattr(fuzz_run, "PATIENCE", 4.0)
    plant(monkeypatch, verify=dies)
    assert {"untyped", "hang"} <= kinds_found(range(7, 19), "untyped", "hang")


def plant(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """The fuzzer meets these instead of the package's own."""

    class Planted:
        def __getattr__(self, name):
            return functions.get(name, getattr(co, name))

    monkeypatch.setattr(fuzz_run, "co", Planted())


def test_a_seed_is_the_same_case_again_and_leaves_torch_alone():
    before = torch.get_rng_state()
    first, second = random_case(7), random_case(7)
    assert str(first) == str(second)
    states = (case.model.state_dict() for case in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert torch.equal(first.x, second.x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def cases():
    return [random_case(seed) for seed in range(250)]


def test_cases_hold_the_whole_vocabulary(cases):
    """Every layer with every argument away from its default, every type and size: in a few hundred seeds."""
    modules = [m for case in cases for m in case.model.modules()]
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]
    pools = [m for m in modules if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))]
    for name, usual in (("groups", 1), ("stride", (1, 1)), ("dilation", (1, 1)), ("padding", (0, 0))):
        assert sum(getattr(m, name) != usual for m in convs) > 20, name
    assert sum(m.kernel_size[0] != m.kernel_size[1] for m in convs) > 20
    assert sum(m.ceil_mode for m in pools) > 20
    averages = [m for m in pools if isinstance(m, nn.AvgPool2d)]
    assert sum(not m.count_include_pad for m in averages) > 10
    assert sum(m.divisor_override is not None for m in averages) > 10
    assert len({m.negative_slope for m in modules if isinstance(m, nn.LeakyReLU)}) > 6
    assert {m.affine for m in modules if isinstance(m, nn.BatchNorm2d)} == {True, False}
    assert len({(m.pool, m.kind) for m in modules if isinstance(m, Head)}) > 40
    assert len({case.x.dtype for case in cases}) == 3
    sizes = [float(case.x.abs().max()) for case in cases]
    assert min(sizes) < 1e-6
    assert max(sizes) > 1e6


@pytest.mark.parametrize("norm", ["inf", "1"])
def test_the_attack_s_steps_are_the_best_there_are(norm):
    """The least of a linear function over ball and box, against a linear program."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        center = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
        slopes = torch.randn(1, 1, 2, 3, generator=generator, dtype=torch.float64)
        region = Region.of(center, 0.1 * (seed + 1), norm, (0.0, 1.0) if seed % 2 else (center - 0.1, center + 0.2))
        point = least(slopes, region)
        assert region.holds(point)
        c, x, n = slopes.flatten().numpy(), center.flatten().numpy(), 6
        low, high = ((end - center).flatten().numpy() for end in (region.low, region.high))
        each = region.eps if norm == "inf" else None
        total = None if norm == "inf" else [region.eps]
        bounds = [(0, min(size, region.eps)) for size in (*high, *-low)]  # moves up, moves down
        rows = None if norm == "inf" else [[1.0] * (2 * n)]
        best = linprog([*c, *-c], A_ub=rows, b_ub=total, bounds=bounds)
        assert each is None or each == region.eps
        assert float(c @ point.flatten().numpy()) == pytest.approx(best.fun + c @ x, rel=1e-9, abs=1e-9)


def test_the_attack_s_steps_in_l2_are_the_best_there_are():
    """By their multiplier: what moves freely moves along the slope, what is at its end would move further."""
    generator = torch.Generator().manual_seed(1)
    for seed in range(20):
        center = torch.rand(1, 1, 3, 3, generator=generator, dtype=torch.float64)
        slopes = torch.randn(1, 1, 3, 3, generator=generator, dtype=torch.float64)
        region = Region.of(center, 0.1 * (seed + 1), "2", (0.0, 1.0))
        point = least(slopes, region)
        assert region.holds(point)
        moved, steep = (point - center).flatten(), slopes.flatten()
        free = (point > 1e-9).flatten() & (point < 1 - 1e-9).flatten()
        assert bool((moved * steep <= 1e-12).all())
        if bool(free.any()):
            shares = -moved[free] / steep[free]
            assert float(shares.max() - shares.min()) < 1e-9 * float(shares.max())
            assert region.distance(point) == pytest.approx(region.eps, rel=1e-9)
            assert bool((moved[~free].abs() <= float(shares.max()) * steep[~free].abs() + 1e-9).all())


def test_heads_that_are_none_have_no_cam(cases):
    """The oracle's own word on heads: by gradients, whatever their spelling."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for case in cases:
        found[bool(Oracle(case).has_cam)].add(case.model.head.pool)
    assert {"partial", "shifted", "max"} & found[False]
    assert {"mean(2,3)", "adaptive", "F.avg_pool2d", "AvgPool2d", "twice", "depthwise"} <= found[True]
