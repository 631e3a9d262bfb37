"""Receptive fields over all paths: which pixels share an input, against masks and against gradients."""

from __future__ import annotations

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network import fields
from corgi_opt.network.cone import reach_of
from corgi_opt.network.fields import fields_of


class TwoStrides(nn.Module):
    """Branches of different strides, paddings and kernels, added."""

    def __init__(self, kernel: int = 1, stride: int = 2, padding: int = 2, dilation: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, kernel, stride=stride, padding=padding, dilation=dilation)
        self.b, self.c, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.c(torch.relu(self.a(x) + self.b(x)))).mean((2, 3)))


CASES = [
    (Plain, {}, (1, 6, 6)),
    (Everything, {}, (3, 12, 11)),
    (Residual, {}, (1, 7, 5)),
    (Deep, {}, (1, 8, 6)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
    (Pooled, {"kernel": 2, "stride": 2, "dilation": 2}, (1, 9, 8)),
    (TwoStrides, {}, (1, 5, 5)),
    (TwoStrides, {"kernel": 3, "stride": 3, "padding": 7}, (1, 7, 7)),
    (TwoStrides, {"kernel": 2, "stride": 2, "padding": 5, "dilation": 4}, (1, 6, 6)),
]


def built(model, kwargs, shape) -> tuple[co.CamNetwork, Tensor]:
    """With positive weights, so that no gradient cancels and no unit is off; and all pairs of pixels."""
    torch_model = seeded(model, **kwargs)
    with torch.no_grad():
        for parameter in torch_model.parameters():
            parameter.abs_()
    net = co.from_torch(torch_model, image(*shape))
    pixels = net.map_shape[0] * net.map_shape[1]
    return net, torch.cartesian_prod(torch.arange(pixels), torch.arange(pixels))


@pytest.mark.parametrize(("model", "kwargs", "shape"), CASES)
def test_pairs_share_what_masks_say_and_all_that_gradients_say(model, kwargs, shape):
    net, pairs = built(model, kwargs, shape)
    height, width = net.map_shape
    found = fields_of(net.graph, net.features).share(pairs).view(height * width, -1)
    one_each = torch.eye(height * width, dtype=torch.bool).view(-1, height, width)
    masks = reach_of(net.graph, net.features, one_each)[net.graph.input].flatten(1).float()
    by_mask = masks @ masks.T > 0
    x = image(*shape).double().requires_grad_(True)
    cam = net.cams(x, 0)[0].flatten()
    read = torch.stack([torch.autograd.grad(p, x, retain_graph=True)[0].abs().sum(dim=1).flatten() > 0 for p in cam])
    by_gradient = read.float() @ read.float().T > 0
    assert bool((found | ~by_gradient).all())
    assert bool((by_mask | ~found).all())
    dilated = any(getattr(net.graph[n].op, "dilation", (1, 1)) != (1, 1) for n in net.graph.order)
    if not dilated and model not in (Pooled, Everything):  # the gradient of a maximum is that of one candidate
        assert torch.equal(found, by_gradient)
    assert torch.equal(found, found.T)
    assert bool(found.diagonal().all())


def test_paths_of_one_kind_are_one(monkeypatch):
    """A residual network's skips are held by its branches; too many paths become fewer, larger ones."""
    net, pairs = built(Deep, {}, (1, 8, 6))
    assert len(fields_of(net.graph, net.features).meets) == 1
    wide = {"kernel": 3, "stride": 3, "padding": 7}
    net, pairs = built(TwoStrides, wide, (1, 7, 7))
    exact = fields_of(net.graph, net.features).share(pairs)
    assert len(fields_of(net.graph, net.features).meets) == 4
    monkeypatch.setattr(fields, "MOST_PATHS", 1)
    other, _ = built(TwoStrides, wide, (1, 7, 7))
    assert len(fields_of(other.graph, other.features).meets) == 1
    assert bool((fields_of(other.graph, other.features).share(pairs) | ~exact).all())


def test_a_network_is_looked_at_once(monkeypatch):
    net, pairs = built(TwoStrides, {}, (1, 5, 5))
    first = fields_of(net.graph, net.features).share(pairs)
    monkeypatch.setattr(fields, "_paths", None)
    assert torch.equal(fields_of(net.graph, net.features).share(pairs), first)


@pytest.mark.parametrize("seed", [1, 2])
def test_an_exact_method_stays_exact_on_two_strides(seed):
    """A pair of pixels that share inputs on one path only is one program; apart, its bounds would not meet."""
    x = image(1, 5, 5, seed=seed)
    r = co.radius(co.from_torch(seeded(TwoStrides, seed), x), x, k=1, method="bab", rtol=0.01, device="cpu")
    assert r.ratio <= 1.01
    assert r.reason == "bracket closed to rtol=0.01"
