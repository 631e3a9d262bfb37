"""What a bound pass leaves out, shares or takes over from a larger region does not change what it proves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import cam_bounds
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from oracles import points_in
from patience import mostly_slow
from relaxing import regions
from torch import nn

import corgi_opt as co
from corgi_opt.bounding.crown import Relaxed, crown_pass, refine
from corgi_opt.bounding.dual import Interval
from corgi_opt.data import digits
from corgi_opt.network.cone import reach_of
from corgi_opt.problem.region import Norm

CASES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "plain": (functools.partial(seeded, Plain), (1, 6, 6)),
    "residual": (functools.partial(seeded, Residual), (1, 7, 5)),
    "deep": (functools.partial(seeded, Deep), (1, 8, 6)),
    "pooled": (functools.partial(seeded, Pooled), (1, 8, 8)),
    "overlapping pool": (functools.partial(seeded, Pooled, kernel=3, stride=2, padding=1), (1, 9, 9)),
    "dilated pool": (functools.partial(seeded, Pooled, kernel=3, stride=2, padding=1, dilation=2), (1, 9, 8)),
    "everything": (functools.partial(seeded, Everything), (3, 10, 9)),
}
QUESTIONS = [("inf", 0.003), ("inf", 0.03), ("inf", 0.1), ("2", 0.3), ("1", 0.5)]
ASKED = [(case, *question) for case in CASES for question in QUESTIONS]
OFTEN = mostly_slow(ASKED, ASKED[::4])

INTERVALS_MATTER = ("everything",)
"""Networks in which something other than the sign of a stable neuron is read from its interval: a second pool takes
its candidates' intervals, and these come from interval arithmetic. There a pass that bounds every neuron may be a
little tighter; in all others it must be the same."""


@functools.cache
def network(case: str) -> co.CamNetwork:
    build, shape = CASES[case]
    return co.from_torch(build(0), image(*shape))


def ball_of(case: str, norm: Norm, eps: float, seed: int = 100) -> co.Ball:
    return co.Ball(image(*CASES[case][1], seed=seed), eps, norm)


def cams(net: co.CamNetwork, known: Relaxed, wanted: torch.Tensor | None = None) -> Interval:
    """CAM bounds (B, P) of class 0."""
    if wanted is None:
        wanted = torch.ones(len(known.regions), net.map_shape[0] * net.map_shape[1], dtype=torch.bool)
    return cam_bounds(net, 0, known.bound, wanted)


def mean_width(bounds: Interval) -> float:
    return float((bounds.upper - bounds.lower).mean())


def assert_equal(found: Interval, expected: Interval, mask: torch.Tensor | None = None) -> None:
    for side, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            side if mask is None else side[mask], other if mask is None else other[mask], rtol=1e-9, atol=1e-9
        )


def assert_inside(found: Interval, outer: Interval) -> None:
    assert bool((found.lower >= outer.lower - 1e-9).all())
    assert bool((found.upper <= outer.upper + 1e-9).all())


def unscreened(graph, name, interval, matter, bound):
    """Bounds every neuron from both sides, whatever its interval says."""
    return refine(graph, name, interval, matter.expand_as(interval.lower), bound)


@pytest.mark.parametrize(("case", "norm", "eps"), OFTEN)
def test_neurons_that_are_left_out_do_not_matter(case, norm, eps):
    net, region = network(case), regions(ball_of(case, norm, eps))
    screened = crown_pass(net.graph, region)
    full = crown_pass(net.graph, region, refiner=unscreened)
    if case in INTERVALS_MATTER:
        assert mean_width(cams(net, screened)) <= mean_width(cams(net, full)) * 1.03
        return
    for name in net.graph.preactivations:
        mine, theirs = screened.intervals[name], full.intervals[name]
        assert torch.equal(mine.unstable, theirs.unstable), name
        assert_equal(mine, theirs, mine.unstable)
        assert_inside(theirs, mine)
    assert_equal(cams(net, screened), cams(net, full))


@pytest.mark.parametrize(("case", "norm", "eps"), OFTEN)
def test_far_neurons_do_not_matter(case, norm, eps):
    """Bounds of a few CAM pixels need only the neurons in those pixels' receptive fields."""
    net = network(case)
    height, width = net.map_shape
    region = regions(ball_of(case, norm, eps), ball_of(case, norm, 0.7 * eps, seed=101))
    mask = torch.zeros(2, height, width, dtype=torch.bool)  # other pixels in each case
    mask[0, 0, 0] = mask[0, height - 1, width // 2] = mask[1, 0, width - 1] = True
    few = mask.flatten(1)
    matter = reach_of(net.graph, net.features, mask)
    whole, part = (crown_pass(net.graph, region, matter=m) for m in (None, matter))
    found, expected = cams(net, part, few), cams(net, whole, few)
    assert_equal(found, expected, few)
    assert bool(found.lower[~few].isinf().all())
    for name in net.graph.preactivations:
        mine, theirs = part.intervals[name], whole.intervals[name]
        assert torch.equal(mine.unstable & matter[name], theirs.unstable & matter[name])
        assert_equal(mine, theirs, mine.unstable & matter[name])


def test_pixels_in_a_corner_leave_work_out():
    """The screening above would pass if nothing were left out."""
    net = co.from_torch(seeded(Pooled), image(1, 16, 16))
    asked: list[int] = []

    def counting(known, node, rows):
        asked.append(len(rows))
        return Relaxed.bound(known, node, rows)

    mask = torch.zeros(1, *net.map_shape, dtype=torch.bool)
    mask[0, 0, 0] = True
    region = regions(co.Ball(image(1, 16, 16, seed=1), 0.1))
    rows = []
    for matter in (None, reach_of(net.graph, net.features, mask)):
        asked.clear()
        crown_pass(net.graph, region, matter=matter, bounder=counting)
        rows.append(sum(asked))
    assert 0 < rows[1] < 0.25 * rows[0]


LARGER = [(case, *question, factor) for case in CASES for factor in (1.02, 2.0) for question in QUESTIONS[2:]]


@pytest.mark.parametrize(("case", "norm", "eps", "factor"), mostly_slow(LARGER, LARGER[::5]))
def test_what_holds_over_a_larger_region_is_kept(case, norm, eps, factor):
    """Nothing that is known is lost: neurons that a larger region has settled stay settled, bounds stay inside."""
    net, ball = network(case), ball_of(case, norm, eps)
    larger = crown_pass(net.graph, regions(replace(ball, eps=factor * eps)))
    alone = crown_pass(net.graph, regions(ball))
    found = crown_pass(net.graph, regions(ball), above=larger.intervals)
    points = points_in(ball.lower, ball.upper, 200, 0)
    values = net.graph.values(torch.cat([ball.project(x[None]) for x in points]))
    for name in net.graph.order:
        mine = found.intervals[name]
        assert_inside(mine, larger.intervals[name])
        assert bool((values[name] >= mine.lower - 1e-9).all()), name
        assert bool((values[name] <= mine.upper + 1e-9).all()), name
    for name in net.graph.preactivations:
        mine, theirs = found.intervals[name], alone.intervals[name]
        settled = ~larger.intervals[name].unstable
        assert not bool((mine.unstable & settled).any())
        if case not in INTERVALS_MATTER:
            open_ = mine.unstable
            assert bool((mine.lower >= theirs.lower - 1e-9)[open_].all()), name
            assert bool((mine.upper <= theirs.upper + 1e-9)[open_].all()), name
    if case in INTERVALS_MATTER:
        assert mean_width(cams(net, found)) <= mean_width(cams(net, alone)) * 1.01
    else:
        assert_inside(cams(net, found), cams(net, alone))


def batch_of_balls(case: str, norm: Norm, eps: float) -> list[co.Ball]:
    """Three images, and one of them at two other eps (0 is one of them)."""
    balls = [ball_of(case, norm, eps, seed) for seed in (100, 101, 102)]
    return [*balls, replace(balls[1], eps=0.0), replace(balls[1], eps=2 * eps)]


BATCHES = [(case, *ball) for case in CASES for ball in (("inf", 0.05), ("2", 0.3), ("1", 0.5))]


@pytest.mark.parametrize(("case", "norm", "eps"), mostly_slow(BATCHES, BATCHES[::4]))
def test_a_batch_of_regions_equals_the_single_ones(case, norm, eps):
    net, balls = network(case), batch_of_balls(case, norm, eps)
    together = crown_pass(net.graph, regions(*balls))
    pixels = cams(net, together)
    for of, ball in enumerate(balls):
        alone = crown_pass(net.graph, regions(ball))
        one = slice(of, of + 1)
        for name in net.graph.order:
            assert_equal(Interval(*(side[one] for side in together.intervals[name])), alone.intervals[name])
        assert_equal(Interval(*(side[one] for side in pixels)), cams(net, alone))


POINTS = [(case, norm) for case in CASES for norm in ("inf", "2", "1")]


@pytest.mark.parametrize(("case", "norm"), mostly_slow(POINTS, POINTS[::4]))
def test_a_region_of_one_image_has_that_images_values(case, norm):
    """Intervals of no width, up to rounding: nothing in a pass may divide by it or find that no candidate wins."""
    net, ball = network(case), ball_of(case, norm, 0.0)
    known = crown_pass(net.graph, regions(ball))
    values = net.graph.values(ball.center)
    for name in net.graph.order:
        assert_equal(known.intervals[name], Interval(values[name], values[name]))
    at_center = net.cam(ball.center, 0).flatten()[None]
    assert_equal(cams(net, known), Interval(at_center, at_center))


PUBLIC = [(method, norm) for method in ("ibp", "crown", "dual") for norm in ("inf", "2", "1")]


@pytest.mark.parametrize(("method", "norm"), mostly_slow(PUBLIC, PUBLIC[::4]))
def test_public_bounds_of_a_batch_equal_the_single_ones(method, norm):
    case = "pooled"
    net, balls = network(case), batch_of_balls(case, norm, 0.1)
    together = co.bounds(net, balls, method=method, device="cpu")
    for of, ball in enumerate(balls):
        alone = co.bounds(net, ball, method=method, device="cpu")
        assert set(alone) == set(together)
        for name, bound in alone.items():
            assert bound.lower.shape == net.graph[name].shape
            # the ascent searches in float32: what it finds depends on rounding, if hardly
            tolerance = 1e-4 if method == "dual" else 1e-9
            for mine, theirs in zip(bound, together[name], strict=True):
                torch.testing.assert_close(theirs[of], mine, rtol=tolerance, atol=tolerance)


def test_a_list_of_one_keeps_its_batch_dimension():
    net, ball = network("plain"), ball_of("plain", "inf", 0.05)
    assert co.bounds(net, [ball])[net.features].lower.shape == (1, *net.graph[net.features].shape)
    with pytest.raises(co.InputError, match="share their norm"):
        co.bounds(net, [ball, ball_of("plain", "2", 0.05)])
    given: tuple[Any, ...] = ([], [ball, "ball"], "ball")
    for wrong in given:
        with pytest.raises(co.InputError, match="takes a CamNetwork and a Ball"):
            co.bounds(net, wrong)


def compare_digits(device: str, eps: float = 0.03) -> None:
    """256 images of the digits in one float32 pass, against a few of them one by one in float64 on the CPU."""
    images, _ = digits.load_digits()
    net = co.from_torch(digits.digits_model(), images[:1])
    balls = [co.Ball(x[None], eps) for x in images[:256]]
    together = co.bounds(net, balls, device=device, dtype=torch.float32)
    for of in (0, 1, 100, 255):
        alone = co.bounds(net, balls[of], device="cpu")
        for name, bound in alone.items():
            scale = float(torch.maximum(bound.lower.abs(), bound.upper.abs()).max())
            # where float32 settles a sign that float64 leaves open, or the other way round, bounds jump a little
            tolerance = (1e-3 if device == "cuda" else 1e-5) * scale
            for mine, theirs in zip(bound, together[name], strict=True):
                torch.testing.assert_close(theirs[of].cpu().double(), mine, rtol=0, atol=tolerance)


def test_256_digits_in_one_batch():
    compare_digits("cpu")


@pytest.mark.gpu
def test_256_digits_in_one_batch_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    compare_digits("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "norm", "eps"), mostly_slow(BATCHES, BATCHES[::4]))
def test_a_batch_on_cuda_equals_the_cpu(case, norm, eps):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net, balls = network(case), batch_of_balls(case, norm, eps)
    cpu, cuda = (co.bounds(net, balls, device=d) for d in ("cpu", "cuda"))
    for name in net.graph.order:
        assert_equal(Interval(*(side.cpu() for side in cuda[name])), cpu[name])
