"""A misread operation is seen however small its maps are, however deep it stands and wherever it errs."""

from __future__ import annotations

import inspect
import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Everything, Plain, Residual, bias_of, conv_of, image, seeded
from patience import diagonal, mostly_slow
from torch import nn

import corgi_opt as co
from corgi_opt.network import builders, parity
from corgi_opt.network.cam import require_parity
from corgi_opt.network.exported import module_path
from corgi_opt.network.lowering import scalar
from corgi_opt.network.ops import Combine, ReLU

X = image(1, 6, 6)


def scaled(scale: float, channels: int = 2) -> Plain:
    model = seeded(Plain, channels=channels).double()
    with torch.no_grad():
        for weight in model.body[0].parameters():
            weight.mul_(scale)
        bias_of(model.body[2]).mul_(scale)
    return model


@pytest.mark.parametrize("at_once", [1, 150, 1 << 26])
def test_all_images_are_gone_through_however_many_at_once(monkeypatch, at_once):
    """A step that is misread where an image is negative: some of the probes are, the example is not."""
    monkeypatch.setattr(parity, "AT_ONCE", at_once)
    net = co.from_torch(seeded(Plain), X)
    assert net.classes == len(seeded(Plain).head.weight)

    def wrong(t, fx, *, x, negative_slope=None):
        operand = t.value(x)
        shifted = t.add(fx, f"{fx.name}.on", Combine((scalar(1.0),), scalar(1e3)), (operand,))
        rectified = t.add(fx, f"{fx.name}.relu", ReLU(), (shifted,))
        return t.add(fx, str(fx.name), Combine((scalar(1.0),), scalar(-1e3)), (rectified,))

    monkeypatch.setitem(builders.BUILDERS, "relu.default", wrong)
    with pytest.raises(co.ParityError, match="differs"):
        co.from_torch(seeded(Plain), X)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_scales_do_not_hide_a_misread_operation(monkeypatch, scale):
    model = scaled(scale)
    co.from_torch(model, X)

    def wrong(t, fx, *, x, negative_slope=None):
        return t.value(x)

    monkeypatch.setitem(builders.BUILDERS, "relu.default", wrong)
    with pytest.raises(co.ParityError, match="differs"):
        co.from_torch(model, X)


def test_a_small_channel_beside_a_large_one_counts_as_much(monkeypatch):
    model = scaled(1.0)
    with torch.no_grad():
        conv_of(model.body[2]).weight[0] *= 1e12
        model.head.weight[:, 0] = 0
    right = builders.BUILDERS["conv2d.default"]
    co.from_torch(model, X)

    def wrong(t, fx, *, bias, **given):
        given_bias = bias
        if "body.2" in module_path(fx):
            t.constants = {**t.constants, bias: t.constants[bias] + torch.tensor([0.0, 1e-3])}
        return right(t, fx, bias=given_bias, **given)

    wrong.__signature__ = inspect.signature(right)  # type: ignore[attr-defined]
    monkeypatch.setitem(builders.BUILDERS, "conv2d.default", wrong)
    with pytest.raises(co.ParityError, match=r"body\.2"):
        co.from_torch(model, X)


def test_deep_networks_are_held_against_torch_step_by_step(monkeypatch):
    class Deep(nn.Module):
        def __init__(self, layers=24):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4 if k else 1, 4, 3, padding=1) for k in range(layers))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            for k, layer in enumerate(self.layers):
                x = F.leaky_relu(layer(x), 0.1 if k == 3 else 0.2)
            return self.head(x.mean((2, 3)))

    model = seeded(Deep)
    co.from_torch(model, X)
    right = builders.BUILDERS["leaky_relu.default"]
    monkeypatch.setitem(
        builders.BUILDERS,
        "leaky_relu.default",
        lambda t, fx, *, x, negative_slope: right(
            t, fx, x=x, negative_slope=negative_slope + (1e-9 if fx.name == "leaky_relu_3" else 0)
        ),
    )
    with pytest.raises(co.ParityError):
        co.from_torch(model, X)


FLAT: list[list[Any]] = [[Plain, Residual, Everything], [0.0, 0.5, 1.0, 255.0]]


@pytest.mark.parametrize(("build", "value"), mostly_slow(product(*FLAT), diagonal(*FLAT)))
def test_flat_examples_are_no_reason_to_refuse(build, value):
    shape = {Plain: (1, 6, 6), Residual: (1, 7, 5), Everything: (3, 20, 22)}[build]
    net = co.from_torch(seeded(build), torch.full((1, *shape), value))
    require_parity(net, torch.full((1, *shape), 3.0, dtype=torch.float64))


def test_a_channel_of_zeros_has_a_tolerance_like_all_others():
    """Beside a channel that rounding makes 2.8e-17 of zero (a value less the mean of five such)."""

    class Centred(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x).relu()
            y = y - y.mean((2, 3), keepdim=True)
            return self.head(y.mean((2, 3)))

    net, x = co.from_torch(seeded(Centred, channels=4), X), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    values = net.graph.values(x)
    tolerance = parity.allowed(net.graph, net.features, x, values, math.inf)
    assert bool((parity.size_of_step(net.graph, net.features, values).amax(dim=(2, 3)) == 0).any())
    assert bool((tolerance >= 0).all()) and float(tolerance.max()) > 0
    require_parity(net, x)


def test_a_net_whose_graph_was_swapped_is_refused_at_any_image():
    net, other = co.from_torch(seeded(Plain), X), co.from_torch(seeded(Plain, seed=1), X)
    object.__setattr__(net, "graph", other.graph)
    with pytest.raises(co.ParityError):
        require_parity(net, X.double())


def test_a_quantiser_of_small_steps_is_not_read_as_affine():
    class Steps(Plain):
        def forward(self, x):
            return self.head(self.body(torch.round(x, decimals=6) * 1e-10).mean((2, 3)))

    with pytest.raises(co.UnsupportedOpError, match="round"):
        co.from_torch(seeded(Steps), X)
