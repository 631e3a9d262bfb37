"""Smooth activations and products of maps are read as what they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, image, seeded
from reading import Asked, require_read
from torch import nn

import corgi_opt as co
from corgi_opt.answering.plain import plain_network
from corgi_opt.network.curves import Silu, Square
from corgi_opt.network.smooth import Curved, Product, Smooth


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda y: torch.sigmoid(4 * y - 1), ["sigmoid"]),
        (lambda y: torch.tanh(4 * y - 1), ["tanh"]),
        (lambda y: F.silu(4 * y - 2), ["SiLU"]),
        (lambda y: F.gelu(4 * y - 2), ["GELU"]),
        (lambda y: F.gelu(4 * y - 2, approximate="tanh"), ["GELU (tanh)"]),
        (lambda y: F.elu(4 * y - 2, 0.7), ["ELU"]),
        (lambda y: F.celu(4 * y - 2, 0.5), ["ELU"]),
        (lambda y: F.selu(4 * y - 2), ["ELU"]),
        (lambda y: F.softplus(4 * y - 2), ["softplus"]),
        (lambda y: F.softplus(4 * y - 2, 2.0, 1.5), ["softplus"]),
        (lambda y: F.hardswish(9 * y - 4), ["hardswish"]),
        (lambda y: F.mish(4 * y - 2), ["Mish"]),
        (lambda y: F.logsigmoid(4 * y - 2), ["softplus"]),
        (lambda y: y.square() + (y - 1) ** 2, ["square", "square"]),
        (lambda y: (y - 0.3) * y.flip(3), ["a product of two maps"]),
        (lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)), ["sigmoid", "a product of two maps"]),
        (lambda y: torch.addcmul(y, y, y.flip(2), value=-0.5), ["a product of two maps"]),
        (lambda y: F.glu(torch.cat([y, 1 - y], 1), 1), ["sigmoid", "a product of two maps"]),
        (lambda y: F.silu(y.transpose(2, 3)).flatten(1).view(1, 2, 6, 6).transpose(2, 3), ["SiLU"]),
    ],
)
def test_it_is_read_with_its_arguments(change, what):
    net = require_read(change)
    ops = [net.graph[name].op for name in net.graph.curved]
    assert [op.title for op in ops if isinstance(op, Curved)] == what


def test_a_product_with_itself_or_its_own_sigmoid_is_one_function():
    for change, function in ((lambda y: y * y, Square()), (lambda y: torch.sigmoid(y) * y, Silu())):
        net = require_read(change)
        (curved,) = net.graph.curved
        op = net.graph[curved].op
        assert isinstance(op, Smooth) and op.function == function


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: F.elu(y, -0.5), "positive numbers only"),
        (lambda y: F.celu(y, -0.5), "positive alpha only"),
        (lambda y: F.softplus(y, -1.0), "positive beta only"),
        (lambda y: y**3, "only the square"),
        (lambda y: torch.erf(y), "Of curved functions"),
        (lambda y: y / (1 + y), "quotient"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(change, words):
    with pytest.raises(co.UnsupportedOpError, match=words):
        co.from_torch(seeded(Asked, change=change), image(1, 6, 6))


def test_curved_layers_have_names_and_what_they_read_is_measured():
    class Gated(Plain):
        def __init__(self):
            super().__init__()
            self.down, self.act, self.up = nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            y = self.body(x)
            gate = torch.sigmoid(self.up(self.act(self.down(y.mean((2, 3), keepdim=True)))))
            return self.head((y * gate).mean((2, 3)))

    net = co.from_torch(seeded(Gated), image(1, 6, 6))
    assert net.curved == ("sigmoid (sigmoid)", "mul (a product of two maps)")
    # the gate's own input, and through the ReLU the other factor's
    assert net.graph.measured == {"up", "body.2"}
    assert isinstance(net.graph["mul"].op, Product) and isinstance(net.graph["sigmoid"].op, Smooth)
    assert co.check_model(seeded(Gated), image(1, 6, 6)) == ()


def test_another_function_is_another_network():
    """The hash is over the function and its numbers."""
    hashes = set()
    for change in (F.silu, F.gelu, F.mish, F.elu, lambda y: F.elu(y, 0.5), lambda y: y * y.flip(2)):
        net = co.from_torch(seeded(Asked, change=change), image(1, 6, 6))
        hashes.add(plain_network(net).sha256)
    assert len(hashes) == 6
