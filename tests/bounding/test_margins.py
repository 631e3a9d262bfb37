"""Margins over several eps at once are those of each eps, only ever tighten, and build on what is known already."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from asking import ask
from nets import Deep, Everything, Plain, Pooled, image, seeded
from oracles import points_in
from patience import mostly_slow
from torch import nn

import corgi_opt as co
from corgi_opt.bounding.margins import ATOMS_AT_ONCE, Known, Margins
from corgi_opt.problem.question import Question

CPU = torch.device("cpu")
RUNGS = ("ibp", "corgi", "crown", "dual")
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (functools.partial(seeded, Plain, 2, channels=4), (1, 5, 4)),
    "deep": (functools.partial(seeded, Deep, 1), (1, 8, 6)),
    "overlapping pool": (functools.partial(seeded, Pooled, 1, kernel=3, stride=2, padding=1), (1, 7, 7)),
    "everything": (functools.partial(seeded, Everything), (3, 8, 7)),
}
EPSES = {"inf": (0.002, 0.01, 0.04), "2": (0.02, 0.08, 0.3), "1": (0.05, 0.2, 0.8)}
OTHER_NORMS = [("plain", "2"), ("overlapping pool", "2"), ("deep", "1"), ("everything", "1")]
ASKED = [*((case, "inf") for case in CASES), *OTHER_NORMS]
OFTEN = mostly_slow(ASKED, [("plain", "inf"), ("plain", "2"), ("everything", "1")])
TOLERANCE = {"ibp": 1e-9, "corgi": 1e-9, "crown": 1e-9, "dual": 1e-4}


@functools.cache
def question(case: str, norm: str = "inf") -> Question:
    build, shape = CASES[case]
    x = image(*shape, seed=4)
    net = co.from_torch(build(), x)
    return ask(net, x, k=2, class_idx=0, norm=norm, clip=(0.0, 1.0), tie_tol=None)


def margins(asked: Question, epses, dtype: torch.dtype = torch.float64, above: Known | None = None) -> Margins:
    return Margins(asked, epses, dtype, CPU, above)


def smallest_seen(asked: Question, eps: float) -> torch.Tensor:
    """The smallest ``CAM_i - CAM_j`` (A,) that images of the region show."""
    ball = asked.ball(eps)
    points = points_in(asked.x[0] - eps, asked.x[0] + eps, 300, 1)
    cams = asked.net.cams(torch.cat([ball.project(x[None]) for x in points]), asked.class_idx).flatten(1)
    return (cams[:, asked.groups.labels[:, 0]] - cams[:, asked.groups.labels[:, 1]]).amin(dim=0)


@dataclass
class Climbed:
    """All rungs of one batch: the margins each returned, and ``lower`` after it."""

    margins: Margins
    found: dict[str, torch.Tensor]
    lower: dict[str, torch.Tensor]


@functools.cache
def climbed(case: str, norm: str, epses: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Climbed:
    ours = Climbed(margins(question(case, norm), epses, dtype), {}, {})
    for rung in RUNGS:
        ours.found[rung] = getattr(ours.margins, rung)().clone()
        ours.lower[rung] = ours.margins.lower.clone()
    return ours


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_several_eps_at_once_equal_each_alone(case, norm):
    together = climbed(case, norm, EPSES[norm])
    for of in (0, 2):
        alone = climbed(case, norm, (EPSES[norm][of],))
        for rung in RUNGS:
            # the ascent searches in float32, and its rounding depends on the size of a batch
            for ours, one in ((together.found, alone.found), (together.lower, alone.lower)):
                torch.testing.assert_close(ours[rung][of], one[rung][0], rtol=TOLERANCE[rung], atol=TOLERANCE[rung])
        mine, theirs = together.margins.known(of), alone.margins.known(0)
        assert mine.intervals is not None and theirs.intervals is not None
        for name, bound in theirs.intervals.items():
            for side, other in zip(mine.intervals[name], bound, strict=True):
                torch.testing.assert_close(side, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_rungs_only_tighten_and_stay_true(case, norm):
    asked, ours = question(case, norm), climbed(case, norm, EPSES[norm])
    true = torch.stack([smallest_seen(asked, eps) for eps in EPSES[norm]])
    before = torch.full_like(true, -torch.inf)
    for rung in RUNGS:
        assert bool((ours.lower[rung] >= before).all())
        assert bool((ours.lower[rung] <= true + 1e-9).all())
        # what a rung returns is what it computed of the pairs that were open when it began, at its worst
        entered, own = ~(before > 0), ours.margins.own[rung]
        assert bool((own <= ours.lower[rung]).all())
        expected = torch.where(entered, own, torch.inf).amin(dim=1)
        worst = ours.lower[rung].amin(dim=1)
        assert torch.equal(ours.found[rung], torch.where(entered.any(dim=1), expected, worst))
        before = ours.lower[rung]
    assert torch.equal(ours.margins.margin, before.amin(dim=1))
    assert torch.equal(ours.margins.open, ~(before > 0))
    certified = (ours.margins.margin > 0).tolist()
    assert certified == sorted(certified, reverse=True)
    assert bool(before.isfinite().all())


def test_an_ascent_that_loses_what_crown_has_is_raised(monkeypatch):
    """Each rung's own bounds are compared, not the best so far: that could not fall."""
    broken = margins(question("overlapping pool"), [0.04])
    broken.crown()
    module = sys.modules["corgi_opt.bounding.margins"]
    honest = module.ascend
    monkeypatch.setattr(module, "ascend", lambda *given, **more: honest(*given, **more) - 0.01)
    with pytest.raises(co.BoundOrderError, match=r"the dual bound of pixels .* below the crown bound"):
        broken.dual()


@pytest.mark.parametrize("case", mostly_slow(CASES, ["plain", "everything"]))
def test_what_parts_say_of_other_atoms_is_not_compared(case, monkeypatch):
    """An ascent on the parts of some atoms bounds others too, which CROWN has bounded better as one objective each."""
    module = sys.modules["corgi_opt.bounding.margins"]
    monkeypatch.setattr(module, "share_in_atoms", lambda net, groups, atoms: atoms % 2 == 0)
    found = margins(question(case), [EPSES["inf"][2]])
    found.crown()
    monkeypatch.setattr(module, "share_in_atoms", lambda net, groups, atoms: atoms % 2 == 1)
    found.dual()
    assert bool((found.own["dual"] >= found.own["crown"]).all())


@pytest.mark.parametrize("case", mostly_slow(CASES, ["plain"]))
def test_a_rung_runs_once(case):
    ours = climbed(case, "inf", EPSES["inf"])
    for rung in RUNGS:
        assert torch.equal(getattr(ours.margins, rung)(), ours.found[rung])
    assert torch.equal(ours.margins.lower, ours.lower["dual"])


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_what_is_known_at_a_larger_eps_is_kept(case, norm):
    """Bounds over a larger region hold in a smaller one: they are where a smaller one starts, and nothing is lost."""
    asked = question(case, norm)
    small, large = EPSES[norm][:2]
    at_large = margins(asked, [large])
    for rung in ("corgi", "crown"):
        getattr(at_large, rung)()
    known = at_large.known(0)
    assert known.intervals is not None
    fresh = margins(asked, [small, 0.7 * small])  # without what is known
    built = margins(asked, [small, 0.7 * small], above=known)
    assert bool((built.lower == known.lower).all())
    for ours in (fresh, built):
        ours.corgi()
        ours.crown()
    assert bool((built.lower >= known.lower).all())
    assert bool((built.lower <= torch.stack([smallest_seen(asked, e) for e in (small, 0.7 * small)]) + 1e-9).all())
    # every pair that a fresh start settles is settled, and the worst pair's bound is as good
    assert bool((built.lower > 0)[fresh.lower > 0].all())
    assert bool((built.margin >= fresh.margin - 0.02 * fresh.margin.abs() - 1e-6)[fresh.margin <= 0].all())
    built_intervals = built.known(1).intervals
    assert built_intervals is not None
    for name, bound in built_intervals.items():
        assert bool((bound.lower >= known.intervals[name].lower - 1e-12).all())
        assert bool((bound.upper <= known.intervals[name].upper + 1e-12).all())


def test_nothing_is_asked_about_settled_pairs():
    """Once all pairs are settled a rung has nothing to do, and answers with what is known."""
    asked = question("overlapping pool")
    tiny = margins(asked, [1e-6])
    settled = float(tiny.corgi()[0])
    assert settled > 0
    lower = tiny.lower.clone()
    for rung in ("crown", "dual"):
        assert float(getattr(tiny, rung)()[0]) == pytest.approx(settled)
    assert torch.equal(tiny.lower, lower)


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_float32_is_close_to_float64(case, norm):
    double, single = (climbed(case, norm, EPSES[norm], dtype) for dtype in (torch.float64, torch.float32))
    assert single.margins.regions.eps.dtype == torch.float32
    assert single.margins.lower.dtype == torch.float64
    for rung in RUNGS:
        expected, found = double.found[rung], single.found[rung]
        # one sign of a neuron decided otherwise moves a bound a little
        assert bool(((found - expected).abs() <= 1e-3 * (expected.abs() + question(case, norm).scale)).all())


def test_float64_bounds_give_little_away():
    asked = question("plain")
    ours = margins(asked, [0.0])
    ours.ibp()
    cam = asked.cam.flatten()
    gaps = cam[asked.groups.labels[:, 0]] - cam[asked.groups.labels[:, 1]]
    given = gaps - ours.lower[0]
    assert bool((given > 0).all())
    assert float(given.max()) < 1e-11 * asked.scale


def test_the_most_doubtful_pairs_come_first(monkeypatch):
    """Where only a few pairs get a bound of their own, these are the ones with the lowest bounds."""
    asked = question("plain")
    everything, few = (margins(asked, [0.04, 0.05]) for _ in range(2))
    everything.corgi()
    few.corgi()
    everything.crown()
    monkeypatch.setattr(sys.modules["corgi_opt.bounding.margins"], "ATOMS_AT_ONCE", 3)
    few.crown()
    assert everything.lower[0].numel() < ATOMS_AT_ONCE  # all pairs had one
    better = everything.lower > few.lower + 1e-12
    assert bool(better.any())
    for of in range(2):
        # whoever was left out stood no lower than the lowest of those that were not
        left_out, lowest = few.lower[of][better[of]], few.lower[of].min()
        assert bool((left_out >= lowest - 1e-12).all())
    assert bool((few.lower <= everything.lower + 1e-12).all())
