"""Receptive fields: what a window, or some positions, of the last map can depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network.cone import reach_of, windows_of
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


@pytest.mark.parametrize(("model", "kwargs", "shape"), CASES)
def test_windows_hold_every_neuron_with_a_gradient(model, kwargs, shape):
    net = build(model, kwargs, shape)
    height, width = net.map_shape
    # corners, the middle, windows that overhang the map on each side
    windows = [Window(0, 0, 1, 1), Window(height - 1, width - 1, 1, 1), Window(height // 2, width // 2, 1, 2)]
    windows += [Window(-1, -1, 3, 2), Window(height - 2, width - 2, 4, 4)]
    for window in windows:
        found = windows_of(net.graph, net.features, window)
        assert set(found) == set(net.graph.ancestors(net.features))
        mask = seen(window, (height, width))
        for seed in range(4):
            x = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            for name, moved in influence(net, x, mask).items():
                assert not bool((moved & ~seen(found[name], moved.shape)).any()), name


@pytest.mark.parametrize(("model", "shape"), [(Plain, (1, 6, 6)), (Deep, (1, 8, 6)), (Deep, (1, 4, 16))])
def test_windows_hold_no_row_or_column_more(model, shape):
    """With positive weights nothing cancels and no ReLU is off, so a window on the map ends where gradients end."""
    net = positive(model, shape)
    height, width = net.map_shape
    x = 0.1 + torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for window in (Window(0, 0, 1, 1), Window(height // 2, width // 2, 1, 1), Window(height - 1, width - 2, 1, 2)):
        found = windows_of(net.graph, net.features, window)
        for name, moved in influence(net, x.clone(), seen(window, (height, width))).items():
            on_map = seen(found[name], moved.shape)
            assert torch.equal(moved.any(dim=1), on_map.any(dim=1)), name
            assert torch.equal(moved.any(dim=0), on_map.any(dim=0)), name


def test_far_apart_pixels_leave_the_middle_out():
    net = build(Pooled, {}, (1, 16, 16))
    height, width = net.map_shape
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, -1, -1] = True
    read = reach_of(net.graph, net.features, mask)[net.graph.input][0, 0]
    apart = [windows_of(net.graph, net.features, Window(y, x, 1, 1)) for y, x in ((0, 0), (height - 1, width - 1))]
    first, second = (windows[net.graph.input] for windows in apart)
    assert not first.intersects(second)
    assert torch.equal(read, seen(first, read.shape) | seen(second, read.shape))
    assert bool(read[0, 0]) and bool(read[-1, -1])
    assert not bool(read[8, 8])


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
    window = windows_of(net.graph, net.features, Window(12, 12, 1, 1))[net.graph.input]
    assert window == Window(18, 18, 14, 14)
    mask = torch.zeros(1, *net.map_shape, dtype=torch.bool)
    mask[0, 12, 12] = True
    reach = reach_of(net.graph, net.features, mask)
    assert torch.equal(reach[net.graph.input][0, 0], seen(window, (48, 48)))
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
    """Questions of a batch do not mix, and what some positions reach is what each of them reaches, in its windows."""
    net = build(model, kwargs, shape)
    masks = marks(*net.map_shape)
    together = reach_of(net.graph, net.features, masks)
    every = torch.eye(masks[0].numel(), dtype=torch.bool).view(-1, *net.map_shape)
    each = reach_of(net.graph, net.features, every)
    for name in together:
        for case, mask in enumerate(masks):
            assert torch.equal(together[name][case], each[name][mask.flatten()].any(dim=0)), name
    height, width = net.map_shape
    for y, x in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
        for name, window in windows_of(net.graph, net.features, Window(y, x, 1, 1)).items():
            reached = each[name][y * width + x, 0]
            assert not bool((reached & ~seen(window, reached.shape)).any()), name
