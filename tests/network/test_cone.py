"""Receptive fields: what some positions of the last map can depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network.cone import reach_of
from corgi_opt.network.ops import Window

CASES: list[tuple[type[nn.Module], dict[str, int], tuple[int, ...]]] = [
    (Everything, {}, (3, 20, 22)),
    (Residual, {}, (1, 7, 5)),
    (Pooled, {}, (1, 8, 8)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 9, 8)),
]


def build(model: type[nn.Module], kwargs: dict[str, int], shape: tuple[int, ...]) -> co.CamNetwork:
    return co.from_torch(seeded(model, **kwargs), image(*shape))


def positive(model: type[nn.Module], shape: tuple[int, ...]) -> co.CamNetwork:
    torch_model = seeded(model)
    with torch.no_grad():
        for parameter in torch_model.parameters():
            parameter.abs_()
    return co.from_torch(torch_model, image(*shape))


def seen(window: Window, size: Sequence[int]) -> Tensor:
    """The positions (H, W) of a map that a window holds."""
    y, x = torch.arange(size[0])[:, None] - window.y, torch.arange(size[1]) - window.x
    return (y >= 0) & (y < window.h) & (x >= 0) & (x < window.w)


def test_far_apart_pixels_leave_the_middle_out():
    net = build(Pooled, {}, (1, 16, 16))
    height, width = net.map_shape
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, -1, -1] = True
    read = reach_of(net.graph, net.features, mask)[net.graph.input][0, 0]
    # rows 0 and 7 of the map read rows -1..1 and 6..8 of the pool, these -2..3 and 12..17, these -3..4 and 11..18
    first, second = Window(-3, -3, 8, 8), Window(11, 11, 8, 8)
    assert torch.equal(read, seen(first, read.shape) | seen(second, read.shape))


def test_the_papers_receptive_field():
    """conv3-conv3-pool2-conv3-conv3: one CAM pixel reads 14x14 inputs."""

    class Paper(nn.Module):
        def __init__(self) -> None:
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
    mask = torch.zeros(1, *net.map_shape, dtype=torch.bool)
    mask[0, 12, 12] = True
    reach = reach_of(net.graph, net.features, mask)
    assert torch.equal(reach[net.graph.input][0, 0], seen(Window(18, 18, 14, 14), (48, 48)))
    assert sum(net.graph[r].shape[0] * int(reach[r].sum()) for r in net.graph.relus) == 2112
    assert sum(torch.Size(net.graph[r].shape).numel() for r in net.graph.relus) == 55296


REACH_CASES = [*CASES, (Deep, {}, (1, 8, 6)), (Deep, {}, (1, 4, 16)), (Pooled, {"kernel": 2, "stride": 3}, (1, 11, 9))]


def marks(height: int, width: int) -> torch.Tensor:
    """Positions (B, H, W) of a map: a corner, two corners, a few anywhere, none, all."""
    mask = torch.zeros(5, height, width, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, -1] = mask[1, -1, 0] = True
    mask[2] = torch.rand(height, width, generator=torch.Generator().manual_seed(3)) < 0.15
    mask[4] = True
    return mask


def influence(net: co.CamNetwork, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
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
    net = positive(model, shape)
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
def test_reach_of_positions_is_that_of_each_alone(model, kwargs, shape):
    """Questions of a batch do not mix, and what some positions reach is what each of them reaches."""
    net = build(model, kwargs, shape)
    masks = marks(*net.map_shape)
    together = reach_of(net.graph, net.features, masks)
    every = torch.eye(masks[0].numel(), dtype=torch.bool).view(-1, *net.map_shape)
    each = reach_of(net.graph, net.features, every)
    for name in together:
        for case, mask in enumerate(masks):
            assert torch.equal(together[name][case], each[name][mask.flatten()].any(dim=0)), name
