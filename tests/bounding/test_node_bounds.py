"""Containment and order of interval, CROWN and CORGI bounds; the public ``co.bounds``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, network
from oracles import points_in
from patience import mostly_slow
from relaxing import corgi_pixels, ibp_pixels, pairs, pixels, relaxed
from torch import nn

import corgi_opt as co
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.relaxation import direct_planes, window_taps
from corgi_opt.network.fields import fields_of
from corgi_opt.network.ops import MaxPool2d
from corgi_opt.problem.clip import Clip

CASES = [
    (Plain, {}, (1, 6, 6)),
    (Everything, {}, (3, 20, 22)),
    (Residual, {}, (1, 7, 5)),
    (Deep, {}, (1, 8, 6)),
    (Pooled, {}, (1, 8, 8)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 9, 8)),
    (Pooled, {"kernel": 3, "stride": 1, "padding": 0}, (1, 8, 8)),
]


def setting(
    model: type[nn.Module],
    kwargs: dict[str, int],
    shape: tuple[int, int, int],
    seed: int,
    eps: float,
    clip: Clip = (0.0, 1.0),
) -> tuple[co.CamNetwork, co.Ball]:
    net = network(model, shape, seed, **kwargs)
    return net, co.Ball(image(*shape, seed=100 + seed), eps, clip=clip)


ASKED = [(*case, eps, method) for case in CASES for eps in (0.1, 0.003) for method in ("ibp", "crown")]


@pytest.mark.parametrize(("model", "kwargs", "shape", "eps", "method"), mostly_slow(ASKED, ASKED[::5]))
def test_every_node_is_contained(model, kwargs, shape, eps, method):
    for seed in range(2):
        net, ball = setting(model, kwargs, shape, seed, eps)
        found = co.bounds(net, ball, method=method)
        values = net.graph.values(points_in(ball.lower, ball.upper, 400, seed))
        assert set(found) == set(net.graph.order)
        for name, bound in found.items():
            assert bool((values[name] >= bound.lower - 1e-9).all()), name
            assert bool((values[name] <= bound.upper + 1e-9).all()), name


@pytest.mark.parametrize(("model", "kwargs", "shape"), mostly_slow(CASES, CASES[::2]))
def test_crown_is_inside_interval_arithmetic(model, kwargs, shape):
    net, ball = setting(model, kwargs, shape, 0, 0.05)
    ibp, crown = (co.bounds(net, ball, method=m) for m in ("ibp", "crown"))
    for name in net.graph.order:
        assert bool((crown[name].lower >= ibp[name].lower - 1e-12).all())
        assert bool((crown[name].upper <= ibp[name].upper + 1e-12).all())


CLIPPED = [(*case, clip) for case in CASES for clip in (None, (0.0, 1.0))]


@pytest.mark.parametrize(("model", "kwargs", "shape", "clip"), mostly_slow(CLIPPED, CLIPPED[::5]))
def test_cam_bounds_contain_sampled_cams(model, kwargs, shape, clip):
    for seed, eps in ((0, 0.01), (1, 0.2)):
        net, ball = setting(model, kwargs, shape, seed, eps, clip)
        cams = net.cams(points_in(ball.lower, ball.upper, 400, seed), 1).flatten(1)
        crown = pixels(net, relaxed(net, ball), 1)
        corgi, ibp = corgi_pixels(net, ball, 1), ibp_pixels(net, ball, 1)
        for bound in (crown, corgi, ibp):
            assert bool((cams >= bound.lower - 1e-9).all())
            assert bool((cams <= bound.upper + 1e-9).all())
        assert bool((corgi.lower >= ibp.lower - 1e-9).all())


@pytest.mark.parametrize(("model", "kwargs", "shape"), mostly_slow(CASES, CASES[1::3]))
def test_pair_bounds_contain_and_beat_single_pixels(model, kwargs, shape):
    net, ball = setting(model, kwargs, shape, 0, 0.05)
    known = relaxed(net, ball)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randint(0, net.map_shape[0] * net.map_shape[1], (60, 2), generator=generator)
    wanted = wanted[wanted[:, 0] != wanted[:, 1]]
    bound = pairs(net, known, 0, wanted)
    single = pixels(net, known, 0)
    cams = net.cams(points_in(ball.lower, ball.upper, 400, 1), 0).flatten(1)
    gaps = cams[:, wanted[:, 0]] - cams[:, wanted[:, 1]]
    assert bool((gaps >= bound - 1e-9).all())
    apart = single.lower[wanted[:, 0]] - single.upper[wanted[:, 1]]
    assert bool((bound >= apart - 1e-9).all())
    far = ~fields_of(net.graph, net.features).share(wanted)
    torch.testing.assert_close(bound[far], apart[far], rtol=1e-9, atol=1e-9)


def test_a_larger_region_is_never_tighter():
    net, ball = setting(Pooled, {}, (1, 8, 8), 3, 0.01)
    last: Interval | None = None
    for eps in (0.01, 0.03, 0.09):
        now = pixels(net, relaxed(net, replace(ball, eps=eps)), 0)
        if last is not None:
            assert bool((now.lower <= last.lower + 1e-9).all())
        last = now


@pytest.mark.parametrize("pool", [MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1)), MaxPool2d((3, 3), (2, 2), (1, 1), (1, 1))])
def test_pooling_planes_hold(pool):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4, 8, 8, generator=generator, dtype=torch.float64)
    high = low + torch.rand(4, 8, 8, generator=generator, dtype=torch.float64) ** 3
    high[0] = low[0]  # a channel that is known exactly
    planes = direct_planes(pool, Interval(low[None], high[None]))
    points = points_in(low, high, 400, 0)
    best = pool.apply([points])
    taps = window_taps(pool, points, 0.0)
    assert bool((planes.upper.at(taps) >= best - 1e-9).all())
    assert bool((planes.lower.at(taps) <= best + 1e-9).all())


def test_float32_bounds_are_close_and_device_auto_works():
    net, ball = setting(Residual, {}, (1, 7, 5), 0, 0.05)
    single, double = (co.bounds(net, ball, dtype=d, device="auto") for d in (torch.float32, torch.float64))
    for name in net.graph.order:
        torch.testing.assert_close(single[name].lower.cpu().double(), double[name].lower.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net, ball = setting(Everything, {}, (3, 20, 22), 0, 0.05)
    cpu, cuda = (co.bounds(net, ball, device=d) for d in ("cpu", "cuda"))
    for name in net.graph.order:
        torch.testing.assert_close(cuda[name].lower.cpu(), cpu[name].lower, rtol=1e-8, atol=1e-8)


def test_bad_arguments():
    net, ball = setting(Plain, {}, (1, 6, 6), 0, 0.05)
    with pytest.raises(co.UnknownMethodError, match="'ibp', 'crown', 'dual'"):
        co.bounds(net, ball, method="magic")
    with pytest.raises(co.InputError, match="dtype"):
        co.bounds(net, ball, dtype=torch.float16)
    with pytest.raises(co.InputError, match="device 'nowhere'"):
        co.bounds(net, ball, device="nowhere")
    with pytest.raises(co.InputError, match="must have shape"):
        co.bounds(net, co.Ball(image(1, 5, 5), 0.1))
