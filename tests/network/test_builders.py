"""Every argument of every operation that is read is read, or refused by its name."""

from __future__ import annotations

import math
import operator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, image, seeded

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
    assert operator.getitem not in BUILDERS and all("." in name for name in BUILDERS)


def ramp(y: torch.Tensor, *shape: int) -> torch.Tensor:
    """Numbers from -1 to 1, in the precision of a map."""
    return torch.linspace(-1, 1, math.prod(shape)).to(y).view(shape)


class Asked(Plain):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.head(self.change(self.body(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: torch.div(y, 0.25, rounding_mode="floor"), "rounding_mode='floor' rounds"),
        (lambda y: torch.div(y, 0.25, rounding_mode="trunc"), "rounding_mode='trunc' rounds"),
        (lambda y: y.to(torch.int64).float(), r"rounds to torch\.int64"),
        (lambda y: F.dropout(y, 0.5), r"training=self\.training"),
        (lambda y: F.max_pool2d(y, 2, return_indices=True)[1].to(y), "output 1 of max_pool2d_with_indices"),
        (lambda y: y / (y + 1), "quotient by a feature map"),
        (lambda y: y * y, "product of two feature maps"),
        (lambda y: y @ y, "product of two feature maps"),
        (lambda y: ramp(y, 6, 6) @ y, r"transpose both for w @ x"),
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


@pytest.mark.parametrize(
    "change",
    [
        lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
        lambda y: F.avg_pool2d(y, (2, 3), divisor_override=5),
        lambda y: F.avg_pool2d(y, 2, ceil_mode=True),  # 6 / 2: nothing overhangs
        lambda y: F.max_pool2d(y, (3, 2), (2, 1), (1, 0), ceil_mode=True),
        lambda y: F.max_pool2d(y, 2, dilation=2),
        lambda y: torch.sub(y, 0.5 * y, alpha=-2.0),
        lambda y: torch.rsub(y, 2 * y, alpha=3.0),
        lambda y: torch.rsub(y, 0.3, alpha=3.0),
        lambda y: 0.3 - y / -0.7,
        lambda y: y.div(2, rounding_mode=None),
        lambda y: F.leaky_relu(-y, -0.5),
        lambda y: F.relu(y - 0.1).flatten(1).mul(2.0).view(1, 2, 6, 6),
        lambda y: y.flatten(2).unflatten(2, (6, 6)),
        lambda y: y.squeeze(0).unsqueeze(0),
        lambda y: F.dropout(y, 0.0),
        lambda y: y + torch.arange(6.0),
        lambda y: y * torch.tensor([[[0.5]], [[-1.5]]]).clone(),
        lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
        lambda y: F.avg_pool2d(y, (3, 4), (2, 3), (1, 1), ceil_mode=True, count_include_pad=False),
        lambda y: F.avg_pool2d(y, 5, 3, 2, ceil_mode=True, divisor_override=7),
        lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
        lambda y: y + ramp(y, 1, 2, 6, 6)[:, :, :1] * y.mean(),
        lambda y: y.mean((2, 3), keepdim=True) + torch.arange(72.0).view(1, 2, 6, 6),
        lambda y: y.view(1, 2, 12, 3),
        lambda y: y.transpose(2, 3) + y,
        lambda y: F.adaptive_avg_pool2d(y, (3, 2)),
        lambda y: F.adaptive_avg_pool2d(y, (4, 5)),
        lambda y: F.adaptive_max_pool2d(y, (3, 1)),
        lambda y: F.adaptive_max_pool2d(y, (4, 5)),
        lambda y: torch.cat([y, -y, 2 * y[:, :1]], 1)[:, [0, 2]] + torch.cat([y[:, 1:], y[:, :1] * 3], 1),
        lambda y: torch.cat([y[..., :3], y[..., 3:].flip(3)], 3),
        lambda y: torch.stack([y[:, 0], y[:, 1] - 1], 1),
        lambda y: y[:, :, ::2, 1:5],
        lambda y: F.pad(y, (1, 2, 0, 1)),
        lambda y: F.pad(y, (1, 0, 0, 1), value=0.7),
        lambda y: F.pad(y, (-1, 0, 2, -2), value=-0.3),
        lambda y: F.pad(y, (2, 1, 1, 2), mode="reflect"),
        lambda y: F.pad(y, (2, 1, 1, 2), mode="replicate"),
        lambda y: F.pad(y, (2, 1, 1, 2), mode="circular"),
        lambda y: F.pad(y, (0, 0, 0, 0, 1, 1))[:, 1:3],
        lambda y: y.roll(2, 3).flip(2),
        lambda y: F.pixel_shuffle(torch.cat([y, -y, y + 1, 2 * y], 1), 2)[:, :, ::2],
        lambda y: F.pixel_unshuffle(y, 2)[:, 3:5],
        lambda y: F.channel_shuffle(torch.cat([y, -y], 1), 2)[:, 1:3],
        lambda y: F.interpolate(y, scale_factor=2),
        lambda y: F.interpolate(y, size=(9, 4), mode="nearest-exact"),
        lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
        lambda y: F.interpolate(y, size=(11, 4), mode="bilinear", align_corners=True),
        lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear", recompute_scale_factor=False),
        lambda y: F.conv_transpose2d(y, ramp(y, 2, 3, 3, 3))[:, :2],
        lambda y: F.conv_transpose2d(y, ramp(y, 2, 2, 3, 3), ramp(y, 2), 2, 1, 1),
        lambda y: F.conv_transpose2d(y, ramp(y, 2, 1, 3, 4), None, (2, 3), (1, 4), 0, 2, (2, 1)),
        lambda y: F.conv2d(y, ramp(y, 2, 2, 2, 4), padding="same"),
        lambda y: F.conv2d(y, ramp(y, 2, 1, 4, 3), padding="same", dilation=(1, 2), groups=2),
        lambda y: F.relu6(20 * y - 3),
        lambda y: F.hardtanh(4 * y - 1, -0.7, 0.9),
        lambda y: (3 * y - 1).clamp(-0.5, 0.5),
        lambda y: (3 * y - 1).clamp(min=0.2) - (y - 0.4).clamp(max=0.1),
        lambda y: y.clamp(torch.tensor(0.1), torch.tensor([[[0.5]], [[0.3]]])),
        lambda y: F.hardsigmoid(9 * y - 4),
        lambda y: F.prelu(y - 0.3, ramp(y, 2)),
        lambda y: F.prelu(y - 0.3, ramp(y, 1)),
        lambda y: F.rrelu(y - 0.3, 0.1, 0.3),
        lambda y: F.threshold(y, 0.4, 0.4),
        lambda y: (y - 0.4).abs(),
        lambda y: torch.maximum(y, y.flip(2)) - torch.minimum(2 * y, y.flip(3)),
        lambda y: torch.maximum(y, torch.tensor([[[0.5]], [[0.2]]])) + torch.minimum(torch.tensor(0.3), y),
        lambda y: torch.cat([y, 1 - y], 1).unflatten(1, (2, 2)).amax(2),
        lambda y: torch.cat([y, 1 - y], 1).unflatten(1, (2, 2)).min(1).values,
        lambda y: y.amax((2, 3), keepdim=True) + y,
        lambda y: y.sum((2, 3), keepdim=True) - y.sum(1, keepdim=True) + y.mean(3, keepdim=True) * 2,
        lambda y: y.flatten(2).mean(2)[..., None, None] + y.permute(0, 2, 3, 1).mean(2).permute(0, 2, 1)[..., None],
        lambda y: y.unflatten(1, (2, 1)).sum(1) - 0.2 * y,
        lambda y: F.linear(y.permute(0, 2, 3, 1), ramp(y, 2, 2), ramp(y, 2)).relu().permute(0, 3, 1, 2),
        lambda y: (y.flatten(2).transpose(1, 2) @ ramp(y, 2, 2)).transpose(1, 2).view_as(y),
        lambda y: F.linear(y.transpose(2, 3).flatten(1), ramp(y, 72, 72)).view(1, 2, 6, 6),
        lambda y: F.conv1d(y.flatten(2), ramp(y, 2, 2, 3), padding=1).unflatten(2, (6, 6)),
        lambda y: F.max_pool1d(y.flatten(2), 3, 2, 1)[..., None],
        lambda y: F.batch_norm(y.flatten(2), ramp(y, 2), ramp(y, 2) + 3, training=False).relu().view(1, 2, 6, 6),
        lambda y: (
            F.batch_norm(y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2), ramp(y, 2), ramp(y, 2) + 3)
            .relu()
            .unflatten(2, (6, 6))
        ),
        lambda y: y.repeat(1, 1, 2, 1) + y.repeat_interleave(2, 2),
        lambda y: torch.addcmul(y, y.flip(3), torch.tensor(0.5), value=3),
        lambda y: torch.cat([y[:, :1], ramp(y, 1, 1, 6, 6)], 1) - y,
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own, of the caller's model
def test_what_is_read_is_read_with_its_arguments(change):
    model = seeded(Asked, change=change)
    net = co.from_torch(model, X)
    double = model.double()
    for seed in range(3):
        x = 2 * torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(net.logits(x), double(x)[0], rtol=1e-6, atol=1e-7)


def test_what_depends_on_weights_alone_is_calculated():
    class Standardised(Plain):
        def forward(self, x):
            w = self.body[0].weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
            y = F.relu(F.conv2d(x, w, self.body[0].bias, padding=1)) * torch.sigmoid(self.head.weight.mean())
            return self.head(self.body[2:](y).mean((2, 3)))

    model = seeded(Standardised)
    net = co.from_torch(model, X)
    torch.testing.assert_close(net.logits(X), model.double()(X.double())[0], rtol=1e-12, atol=1e-12)


def test_what_is_drawn_at_random_is_no_constant():
    class Noisy(Plain):
        def forward(self, x):
            return self.head(self.body(x + torch.rand(1)).mean((2, 3)))

    with pytest.raises(co.CorgiError):
        co.from_torch(seeded(Noisy), X)
