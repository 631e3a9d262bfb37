"""Cones: the slice computes exactly what the whole network computes, and depends on nothing else."""

from __future__ import annotations

import pytest
import torch
from nets import Everything, Pooled, Residual, image, seeded

import corgi_opt as co
from corgi_opt.network.cone import Cone, windows_of
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
