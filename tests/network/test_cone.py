"""Cones: the slice computes exactly what the whole network computes, and depends on nothing else."""

from __future__ import annotations

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded

import corgi_opt as co
from corgi_opt.network.cone import Cone, reach_of, windows_of
from corgi_opt.network.ops import Window, crop

CASES = [
    (Everything, {}, (3, 20, 22)),
    (Residual, {}, (1, 7, 5)),
    (Pooled, {}, (1, 8, 8)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 9, 8)),
]


def build(model, kwargs, shape):
    return co.from_torch(seeded(model, **kwargs), image(*shape))


@pytest.mark.parametrize(("model", "kwargs", "shape"), CASES)
def test_cone_equals_the_network_on_every_window(model, kwargs, shape):
    net = build(model, kwargs, shape)
    channels, height, width = net.graph[net.features].shape
    xs = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = net.graph.forward(xs, net.features)
    # corners, the middle, a window that overhangs the map on each side
    windows = [Window(0, 0, 1, 1), Window(height - 1, width - 1, 1, 1), Window(height // 2, width // 2, 1, 2)]
    windows += [Window(-1, -1, 3, 2), Window(height - 2, width - 2, 4, 4)]
    for seed, window in enumerate(windows):
        q = torch.randn(channels, window.h, window.w, generator=torch.Generator().manual_seed(seed)).double()
        cone = Cone.of(net.graph, net.features, window, q)
        expected = (crop(values, window) * q).sum(dim=(1, 2, 3))
        torch.testing.assert_close(cone.forward(xs), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("model", "kwargs", "shape"), CASES)
def test_reach_holds_every_input_with_a_gradient(model, kwargs, shape):
    net = build(model, kwargs, shape)
    channels, height, width = net.graph[net.features].shape
    q = torch.zeros(channels, height, width, dtype=torch.float64)
    q[:, 0, 0], q[:, -1, -1] = 1.0, -1.0
    cone = Cone.of(net.graph, net.features, Window(0, 0, height, width), q)
    reached = torch.zeros(shape, dtype=torch.bool)
    window, reach = cone.windows[net.graph.input], cone.reach[net.graph.input]
    c, y, x = torch.nonzero(reach, as_tuple=True)
    reached[c, y + window.y, x + window.x] = True
    for seed in range(20):
        point = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        point.requires_grad_(True)
        value = (net.graph.forward(point, net.features)[0] * q).sum()
        (gradient,) = torch.autograd.grad(value, point)
        assert not bool((gradient[0] != 0)[~reached].any())


def test_far_apart_pixels_leave_the_middle_out():
    net = build(Pooled, {}, (1, 16, 16))
    channels, height, width = net.graph[net.features].shape
    q = torch.zeros(channels, height, width, dtype=torch.float64)
    q[:, 0, 0], q[:, -1, -1] = 1.0, -1.0
    cone = Cone.of(net.graph, net.features, Window(0, 0, height, width), q)
    assert int(cone.reach[net.graph.input].sum()) < 16 * 16
    assert not bool(cone.reach[net.graph.input][0, 8, 8])


def test_the_papers_receptive_field():
    """conv3-conv3-pool2-conv3-conv3: one CAM pixel reads 14x14 inputs."""
    from torch import nn

    class Paper(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
                nn.ReLU(),
            )
            self.fc = nn.Linear(16, 43)

        def forward(self, x):
            return self.fc(self.f(x).mean((2, 3)))

    net = co.from_torch(seeded(Paper), image(3, 48, 48))
    window = windows_of(net.graph, net.features, Window(12, 12, 1, 1))[net.graph.input]
    assert window == Window(18, 18, 14, 14)
    cone = Cone.of(net.graph, net.features, Window(12, 12, 1, 1), torch.ones(16, 1, 1, dtype=torch.float64))
    assert sum(int(cone.reach[r].sum()) for r in net.graph.relus) == 2112
    assert sum(torch.Size(net.graph[r].shape).numel() for r in net.graph.relus) == 55296


REACH_CASES = [*CASES, (Deep, {}, (1, 8, 6)), (Deep, {}, (1, 4, 16)), (Pooled, {"kernel": 2, "stride": 3}, (1, 11, 9))]


def marks(height: int, width: int) -> torch.Tensor:
    """Positions (B, H, W) of a map: a corner, two corners, a few anywhere, none, all."""
    mask = torch.zeros(5, height, width, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, -1] = mask[1, -1, 0] = True
    mask[2] = torch.rand(height, width, generator=torch.Generator().manual_seed(3)) < 0.15
    mask[4] = True
    return mask


def influence(net, x, mask):
    """{node: positions (H, W)} with a nonzero gradient, in any channel, of random weights on marked positions."""
    leaves = {n: v for n, v in net.graph.values(x.requires_grad_(True), net.features).items() if v.requires_grad}
    weights = torch.randn(leaves[net.features].shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    total = (leaves[net.features] * weights * mask).sum()
    names = [n for n in leaves if n != net.features]
    gradients = torch.autograd.grad(total, [leaves[n] for n in names], allow_unused=True)
    found = zip(names, gradients, strict=True)
    return {n: (g != 0).any(dim=1)[0] for n, g in found if g is not None}


@pytest.mark.parametrize(("model", "kwargs", "shape"), REACH_CASES)
def test_reach_of_positions_holds_every_neuron_with_a_gradient(model, kwargs, shape):
    net = build(model, kwargs, shape)
    masks = marks(*net.map_shape)
    reach = reach_of(net.graph, net.features, masks)
    assert set(reach) == set(net.graph.ancestors(net.features))
    for name, found in reach.items():
        assert found.dtype == torch.bool
        assert found.shape == (len(masks), 1, *net.graph[name].shape[1:])
    for case, mask in enumerate(masks):
        for seed in range(4):
            x = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            for name, moved in influence(net, x, mask).items():
                assert not bool((moved & ~reach[name][case, 0]).any()), name
    assert not any(bool(found[3].any()) for found in reach.values())  # nothing is marked, nothing is reached


@pytest.mark.parametrize(("model", "shape"), [(Plain, (1, 6, 6)), (Deep, (1, 8, 6)), (Deep, (1, 4, 16))])
def test_reach_of_positions_holds_nothing_else(model, shape):
    """With positive weights nothing cancels and no ReLU is off: what is reached has a gradient."""
    torch_model = seeded(model)
    with torch.no_grad():
        for parameter in torch_model.parameters():
            parameter.abs_()
    net = co.from_torch(torch_model, image(*shape))
    masks = marks(*net.map_shape)
    reach = reach_of(net.graph, net.features, masks)
    x = 0.1 + torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for case, mask in enumerate(masks):
        moved = influence(net, x.clone(), mask)
        for name in reach:
            if name != net.features:
                expected = moved.get(name, torch.zeros(net.graph[name].shape[1:], dtype=torch.bool))
                assert torch.equal(reach[name][case, 0], expected), name


@pytest.mark.parametrize(("model", "kwargs", "shape"), REACH_CASES)
def test_reach_of_positions_is_that_of_their_cone(model, kwargs, shape):
    net = build(model, kwargs, shape)
    channels, height, width = net.graph[net.features].shape
    masks = marks(height, width)
    together = reach_of(net.graph, net.features, masks)
    for case, mask in enumerate(masks):
        alone = reach_of(net.graph, net.features, mask[None])
        cone = Cone.of(net.graph, net.features, Window(0, 0, height, width), mask.expand(channels, -1, -1).double())
        for name in together:
            assert torch.equal(together[name][case : case + 1], alone[name])
            whole = Window(0, 0, *net.graph[name].shape[1:])
            window = cone.windows[name]
            seen = crop(cone.reach[name].any(dim=0), Window(-window.y, -window.x, whole.h, whole.w))
            assert torch.equal(seen, alone[name][0, 0]), name
