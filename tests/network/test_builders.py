"""Every argument of every operation that is read is read, or refused by its name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, conv_of, image, seeded
from reading import Asked, ramp
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network.builders import (
    BUILDERS,
    SAME_VALUES,
    NotCoveredError,
    Translation,
    argument_name,
    build,
    handled,
)

X = image(1, 6, 6)


def schema(overload: str) -> torch._C.FunctionSchema:
    name, _, variant = overload.partition(".")
    return getattr(getattr(torch.ops.aten, name), variant)._schema


@pytest.mark.parametrize("overload", sorted(BUILDERS))
def test_every_argument_is_handled_or_has_a_default_to_keep(overload):
    named, arguments = handled(BUILDERS[overload]), schema(overload).arguments
    for argument in arguments:
        name = argument_name(argument.name)
        assert name in named or name in SAME_VALUES or argument.has_default_value(), f"{overload} forgets {name}"
    every = {argument_name(a.name) for s in BUILDERS if BUILDERS[s] is BUILDERS[overload] for a in schema(s).arguments}
    assert named <= every, f"{named - every} is no argument of {overload}"


def test_an_argument_that_a_builder_does_not_name_is_refused_by_its_name(monkeypatch):
    """As if somebody had forgotten one: each in turn, at a value that is not its default."""

    def forgetful(t: Translation, fx: object, *, x: object) -> str:
        return "read"

    others = {"float": 0.5, "int": 3, "bool": True, "ScalarType": torch.float64, "str": "floor", "Scalar": 2}
    refused = set()
    for overload in sorted(BUILDERS):
        monkeypatch.setitem(BUILDERS, overload, forgetful)
        name, _, variant = overload.partition(".")
        target = getattr(getattr(torch.ops.aten, name), variant)
        for argument in schema(overload).arguments[1:]:
            kind = str(argument.type).removeprefix("Optional[").removesuffix("]").removeprefix("number")
            value = not argument.default_value if kind == "bool" else others.get(kind, 7)
            fx = SimpleNamespace(target=target, args=("x",), kwargs={argument.name: value})
            if argument_name(argument.name) in SAME_VALUES:
                assert build(Translation({}), fx) == "read"
                continue
            with pytest.raises(NotCoveredError, match=f"argument {argument.name}="):
                build(Translation({}), fx)
            refused.add((overload, argument.name))
    assert {("conv2d.default", "groups"), ("mean.dim", "dtype"), ("avg_pool2d.default", "divisor_override")} <= refused
    assert len(refused) > 60


def test_getitem_is_the_only_call_beside_the_table():
    assert all("." in name and not name.startswith("getitem") for name in BUILDERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: torch.div(y, 0.25, rounding_mode="floor"), "rounding_mode='floor' rounds"),
        (lambda y: torch.div(y, 0.25, rounding_mode="trunc"), "rounding_mode='trunc' rounds"),
        (lambda y: y.to(torch.int64).float(), r"rounds to torch\.int64"),
        (lambda y: F.dropout(y, 0.5), r"training=self\.training"),
        (lambda y: F.max_pool2d(y, 2, return_indices=True)[1].to(y), "output 1 of max_pool2d_with_indices"),
        (lambda y: y / (y + 1), "quotient by a feature map"),
        (lambda y: y @ y, "product of two feature maps"),
        (lambda y: ramp(y, 2, 6, 6) @ y, r"not one of shape \(2, 6, 6\)"),
        (lambda y: torch.lerp(y, 2 * y, y), "Only a constant way"),
        (lambda y: F.threshold(y, 0.1, 0.2), "It jumps from 0.2 to 0.1"),
        (lambda y: y[:, y[0, :, 0, 0].argmax()][:, None].expand(1, 2, 6, 6), "argmax is not supported"),
        (lambda y: torch.take_along_dim(y, y.argsort(1), 1), "is not supported"),
        (lambda y: torch.where(y > 0.1, y, 0.0), "is not supported"),
        (lambda y: F.rrelu(y, 0.1, 0.3, training=True), "is not supported|at random"),
    ],
)
def test_what_would_be_misread_is_refused(change, message):
    model = seeded(Asked, change=change)
    with pytest.raises(co.UnsupportedOpError, match=message):
        co.from_torch(model, X)
    assert co.check_model(model, X)


def test_what_depends_on_weights_alone_is_calculated():
    class Standardised(Plain):
        def forward(self, x):
            first = conv_of(self.body[0])
            w = first.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
            y = F.relu(F.conv2d(x, w, first.bias, padding=1)) * torch.sigmoid(self.head.weight.mean())
            return self.head(self.body[2:](y).mean((2, 3)))

    model = seeded(Standardised)
    net = co.from_torch(model, X)
    torch.testing.assert_close(net.logits(X), model.double()(X.double())[0], rtol=1e-12, atol=1e-12)


def test_weights_are_frozen_scaled_and_normalised_in_many_ways():
    """LayerScale, a frozen batch norm and the usual normalisation of images, in spellings of their own."""

    class Frozen(nn.Module):
        """As torchvision has it: four buffers, no module of torch."""

        weight: Tensor
        bias: Tensor
        mean: Tensor
        var: Tensor

        def __init__(self) -> None:
            super().__init__()
            for name, value in (("weight", 1.5), ("bias", -0.2), ("mean", 0.1), ("var", 0.7)):
                self.register_buffer(name, torch.linspace(0.5, 1.0, 2) * value)

        def forward(self, x):
            scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
            return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)

    class Normalised(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.gamma = Frozen(), nn.Parameter(torch.tensor([0.3, -2.0]))

        def forward(self, x):
            mean, std = torch.tensor([0.485], dtype=x.dtype), torch.as_tensor([0.229], dtype=x.dtype)
            y = self.body((x - mean[None, :, None, None]).div(std.view(1, -1, 1, 1)))
            y = F.relu(y + self.gamma.view(-1, 1, 1) * self.frozen(y))
            y = (y.permute(0, 2, 3, 1) * self.gamma).permute(0, 3, 1, 2)
            return self.head(y.mean((2, 3)))

    model = seeded(Normalised)
    net = co.from_torch(model, X)
    torch.testing.assert_close(net.logits(X), model.double()(X.double())[0], rtol=1e-9, atol=1e-9)


def test_what_is_drawn_at_random_is_no_constant():
    class Noisy(Plain):
        def forward(self, x):
            return self.head(self.body(x + torch.rand(1)).mean((2, 3)))

    with pytest.raises(co.CorgiError):
        co.from_torch(seeded(Noisy), X)
