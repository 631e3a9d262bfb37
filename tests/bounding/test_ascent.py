"""Dual ascent: never below CROWN, never above the triangle LP, and most of the way from the one to the other."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from asking import pixel_rows
from corgi_solvers import Highs, Status
from encoding import PATIENT
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from oracles import points_in
from relaxing import pairs, pixels, relaxed
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.bounding import ascent as ASCENT
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.dual import Rows, descend
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.program import compile_program
from corgi_opt.encode.triangle import triangle
from corgi_opt.network.ops import ReLU

DUAL = sys.modules["corgi_opt.bounding.dual"]

CASES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...], float]] = {
    "plain": (functools.partial(seeded, Plain, channels=4), (1, 6, 6), 0.1),
    "residual": (functools.partial(seeded, Residual), (1, 7, 5), 0.08),
    "deep": (functools.partial(seeded, Deep), (1, 8, 6), 0.08),
    "pooled": (functools.partial(seeded, Pooled), (1, 8, 8), 0.05),
    "overlapping pool": (functools.partial(seeded, Pooled, kernel=3, stride=2, padding=1), (1, 9, 9), 0.03),
    "everything": (functools.partial(seeded, Everything), (3, 8, 7), 0.004),
    "wide": (functools.partial(seeded, Deep), (1, 4, 16), 0.08),  # windows outgrow the map along one axis only
}
SEEDS = (0, 1)
PAIRS = 6


class Setting:
    """A network relaxed over a region, and pairs of CAM pixels of class 0 to bound."""

    def __init__(self, case: str, seed: int) -> None:
        build, shape, eps = CASES[case]
        self.net = co.from_torch(build(seed), image(*shape))
        self.ball = co.Ball(image(*shape, seed=seed + 7), eps)
        self.known = relaxed(self.net, self.ball)
        generator = torch.Generator().manual_seed(seed)
        count = self.net.map_shape[0] * self.net.map_shape[1]
        self.pairs = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(PAIRS)])

    @functools.cached_property
    def crown(self) -> Tensor:
        return self.bound(self.known.bound)

    @functools.cached_property
    def ascent(self) -> Tensor:
        return self.bound(functools.partial(ascend, self.known))

    @functools.cached_property
    def lp(self) -> Tensor:
        """The optimum of the triangle LP of each pair, as one program."""
        expressions, found = Expressions(self.net.graph, self.known.only(0)), []
        pixels = expressions.of(self.net.features, self.pixel_rows(), PATIENT)
        for i, j in self.pairs.tolist():
            program = compile_program(expressions, self.ball, [pixels[i] - pixels[j]], PATIENT)
            solution = Highs().solve(triangle(program))
            assert solution.status is Status.OPTIMAL
            found.append(solution.bound * program.scales[0])
        return torch.tensor(found, dtype=torch.float64)

    @functools.cached_property
    def sampled(self) -> Tensor:
        """The smallest difference of each pair that images of the region show."""
        points = points_in(self.ball.lower, self.ball.upper, 500, 3)
        cams = self.net.cams(points, 0).flatten(1)
        return (cams[:, self.pairs[:, 0]] - cams[:, self.pairs[:, 1]]).min(dim=0).values

    def bound(self, by) -> Tensor:
        return pairs(self.net, self.known, 0, self.pairs, by)

    def pixel_rows(self) -> Rows:
        """All CAM pixels."""
        count = self.net.map_shape[0] * self.net.map_shape[1]
        return pixel_rows(self.net, 0, torch.arange(count), torch.zeros(count, dtype=torch.long))


@functools.cache
def setting(case: str, seed: int) -> Setting:
    return Setting(case, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES)
def test_between_crown_and_the_lp(case, seed):
    at = setting(case, seed)
    assert bool((at.ascent >= at.crown).all())
    assert bool((at.ascent <= at.lp + 1e-6).all())
    assert bool((at.ascent <= at.sampled + 1e-9).all())


def test_it_goes_most_of_the_way_to_the_lp():
    """Of what an LP adds to CROWN, where it adds anything to speak of, the ascent finds four fifths in the median."""
    shares: dict[str, list[float]] = {}
    for case in CASES:
        shares[case] = []
        for seed in SEEDS:
            at = setting(case, seed)
            room = at.lp - at.crown
            there = room > 1e-3 * at.crown.abs().clamp(min=1e-3)
            shares[case] += ((at.ascent - at.crown)[there] / room[there]).tolist()
    together = [share for found in shares.values() for share in found]
    assert len(together) >= 40
    assert statistics.median(together) >= 0.8
    for case, found in shares.items():  # and no kind of network is left behind
        assert not found or statistics.median(found) >= 0.6, case


@pytest.mark.parametrize("case", CASES)
def test_enough_stops_rows_and_keeps_their_bounds_true(case):
    at = setting(case, 1)
    rows = at.pixel_rows()
    crown = at.known.bound(at.net.features, rows)
    full = ascend(at.known, at.net.features, rows)
    cams = at.net.cams(points_in(at.ball.lower, at.ball.upper, 300, 3), 0).flatten(1).min(dim=0).values
    for enough in (float(crown.min()), float(crown.median()), float(full.median())):
        found = ascend(at.known, at.net.features, rows, enough=enough)
        assert bool((found >= crown).all())
        assert bool((found <= cams + 1e-9).all())
        # a row that can be decided is decided; the others have had all the steps (in a batch of another size)
        decided = full > enough + 1e-4 * full.abs()
        assert bool((found[decided] > enough - 1e-4 * full.abs()[decided]).all())
        torch.testing.assert_close(found[full < enough], full[full < enough], rtol=1e-3, atol=1e-4)


def test_enough_saves_steps(monkeypatch):
    """Rows that CROWN itself decides take one evaluation, not all."""
    at = setting("pooled", 0)
    evaluated: list[int] = []

    def counting(graph, node, rows, *rest):
        evaluated.append(len(rows))
        return descend(graph, node, rows, *rest)

    monkeypatch.setattr(ASCENT, "descend", counting)
    rows = at.pixel_rows()
    crown = at.known.bound(at.net.features, rows)
    totals = []
    for enough in (torch.inf, float(crown.median()), float(crown.min()) - 1.0):
        evaluated.clear()
        ascend(at.known, at.net.features, rows, enough=enough)
        totals.append(sum(evaluated))
    assert totals[0] > totals[1] > totals[2]
    assert totals[2] <= 2 * len(rows)  # one step of the search, and the bound itself


@pytest.mark.parametrize("case", ["residual", "deep"])
def test_nodes_without_a_relu_below(case):
    """The first convolution is linear: there is nothing to choose, and the bound is CROWN's."""
    at = setting(case, 0)
    first = at.net.graph.consumers(at.net.graph.input)[0]
    assert not any(isinstance(at.net.graph[n].op, ReLU) for n in at.net.graph.ancestors(first))
    channels = at.net.graph[first].shape[0]
    rows = Rows.at(
        torch.randn(5, channels, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.tensor([[0, 0], [-1, 1], [2, 2], [3, -1], [1, 1]]),
        torch.zeros(5, dtype=torch.long),
    )
    assert torch.equal(ascend(at.known, first, rows), at.known.bound(first, rows))


def test_no_rows_at_all():
    at = setting("pooled", 0)
    assert len(ascend(at.known, at.net.features, at.pixel_rows()[:0])) == 0


def test_nothing_is_unstable_in_a_region_of_one_image():
    at = setting("pooled", 0)
    known = relaxed(at.net, replace(at.ball, eps=0.0))
    found = ascend(known, at.net.features, at.pixel_rows())
    torch.testing.assert_close(found, at.net.cam(at.ball.center, 0).flatten(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["deep", "overlapping pool"])
def test_same_call_same_answer(case):
    at = setting(case, 1)
    again = at.bound(functools.partial(ascend, at.known))
    assert torch.equal(again, at.ascent)
    with torch.no_grad():  # callers may be inside it
        assert torch.equal(at.bound(functools.partial(ascend, at.known)), at.ascent)


@pytest.mark.parametrize("case", ["residual", "deep", "overlapping pool", "wide"])
def test_chunks_change_little(case, monkeypatch):
    """Each row is searched on its own, but for the rounding of float32 in batches of other sizes."""
    at = setting(case, 0)
    rows = at.pixel_rows()
    crown = at.known.bound(at.net.features, rows)
    whole = {enough: ascend(at.known, at.net.features, rows, enough=enough) for enough in (torch.inf, 0.0)}
    monkeypatch.setenv("CORGI_CHUNK_BYTES", "100000")
    for enough, expected in whole.items():
        parts = ascend(at.known, at.net.features, rows, enough=enough)
        assert bool((parts >= crown - 1e-9).all())
        torch.testing.assert_close(parts, expected, rtol=1e-3, atol=1e-4)


def test_rows_about_several_regions_stay_with_their_own():
    at = setting("pooled", 0)
    other = co.Ball(image(1, 8, 8, seed=70), 0.02)
    both = relaxed(at.net, at.ball, other)
    alone = [relaxed(at.net, ball) for ball in (at.ball, other)]
    rows = at.pixel_rows()
    count = len(rows)
    case = torch.arange(2 * count) % 2
    mixed = pixel_rows(at.net, 0, torch.arange(2 * count) // 2, case)
    found = ascend(both, at.net.features, mixed)
    for of, known in enumerate(alone):
        torch.testing.assert_close(found[case == of], ascend(known, at.net.features, rows), rtol=1e-3, atol=1e-4)
        assert bool((found[case == of] >= known.bound(at.net.features, rows) - 1e-9).all())


@pytest.mark.parametrize(("norm", "eps"), [("2", 0.3), ("1", 0.6)])
@pytest.mark.parametrize("case", ["plain", "deep", "pooled"])
def test_other_norms(case, norm, eps):
    at = setting(case, 0)
    ball = co.Ball(at.ball.center, eps, norm)
    known = relaxed(at.net, ball)
    crown, found = pixels(at.net, known, 0), pixels(at.net, known, 0, functools.partial(ascend, known))
    assert bool((found.lower >= crown.lower).all()) and bool((found.upper <= crown.upper).all())
    assert float((found.upper - found.lower).mean()) < float((crown.upper - crown.lower).mean())
    far = points_in(ball.center[0] - eps, ball.center[0] + eps, 400, 1)
    cams = at.net.cams(torch.cat([ball.project(x[None]) for x in far]), 0).flatten(1)
    assert bool((cams >= found.lower - 1e-9).all()) and bool((cams <= found.upper + 1e-9).all())


def test_public_dual_bounds_are_inside_crown_and_hold():
    at = setting("deep", 0)
    crown, found = (co.bounds(at.net, at.ball, method=m, device="cpu") for m in ("crown", "dual"))
    values = at.net.graph.values(points_in(at.ball.lower, at.ball.upper, 500, 2))
    tighter = 0.0
    for name in at.net.graph.order:
        mine, theirs = found[name], crown[name]
        assert bool((values[name] >= mine.lower - 1e-9).all()) and bool((values[name] <= mine.upper + 1e-9).all())
        tighter += float((theirs.upper - theirs.lower).mean() - (mine.upper - mine.lower).mean())
    assert tighter > 0
