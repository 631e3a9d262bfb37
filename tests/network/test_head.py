"""A head is proven on the model, whatever it was taken for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, bias_of, image, seeded
from patience import mostly_slow
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network import cam, head, parity
from corgi_opt.network.head import find_head

X = image(1, 6, 6)


class Headed(Plain):
    """The body of Plain with four channels, and a head of one's own."""

    def __init__(self, tail, layer: nn.Module | None = None) -> None:
        super().__init__(channels=4)
        self.tail, self.layer = tail, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, self.body(x))


def by_hand(model: Plain, weight: Tensor, x: Tensor) -> Tensor:
    """CAMs (classes, H, W) of float64 features and a matrix (classes, C)."""
    return torch.einsum("kc,chw->khw", weight.double(), model.double().body(x.double())[0])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_head_reads_the_channels_of_its_own(groups):
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 4, 1, groups=groups)
    model = seeded(Headed, tail=lambda m, y: m.layer(y.mean((2, 3), keepdim=True)).flatten(1), layer=layer)
    net = co.from_torch(model, X)
    dense = torch.zeros(4, 4)
    for k in range(4):
        for c in range(4 // groups):
            dense[k, k // (4 // groups) * (4 // groups) + c] = layer.weight[k, c, 0, 0].detach()
    for k in range(4):
        torch.testing.assert_close(net.cam(X, k), by_hand(model, dense, X)[k], rtol=1e-6, atol=1e-9)


def test_a_kernel_that_reaches_over_the_one_pixel_is_read_by_its_middle():
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 3, 3, padding=1)
    model = seeded(Headed, tail=lambda m, y: m.layer(y.mean((2, 3), keepdim=True)).flatten(1), layer=layer)
    net = co.from_torch(model, X)
    expected = by_hand(model, layer.weight[:, :, 1, 1].detach(), X)
    for k in range(3):
        torch.testing.assert_close(net.cam(X, k), expected[k], rtol=1e-6, atol=1e-9)


NO_HEADS = {
    "an average of a part": lambda m, y: m.head(F.avg_pool2d(y, 6, stride=13, padding=3).flatten(1)),
    "an average of the inside": lambda m, y: m.head(F.avg_pool2d(y, 5, stride=7).flatten(1)),
    "a maximum": lambda m, y: m.head(F.max_pool2d(y, 6).flatten(1)),
    "a ReLU on the average": lambda m, y: m.head(F.relu(y.mean((2, 3)) - 0.1)),
    "a second path": lambda m, y: m.head(y.mean((2, 3))) + m.head(F.max_pool2d(y, 6).flatten(1)),
    "all pixels in a dense layer": lambda m, y: m.layer(y.flatten(1)),
    "a weighted average": lambda m, y: m.head(F.conv2d(y, m.depthwise, groups=4).flatten(1)),
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_is_no_head_is_refused(name):
    model = seeded(Headed, tail=NO_HEADS[name], layer=nn.Linear(144, 3))
    model.register_buffer("depthwise", torch.linspace(0, 1, 144).view(4, 1, 6, 6) / 18)
    with pytest.raises((co.NoCamHeadError, co.UnsupportedOpError)) as refused:
        co.from_torch(model, X)
    if isinstance(refused.value, co.UnsupportedOpError):
        assert co.check_model(model, X)
    else:
        with pytest.raises(co.NoCamHeadError):
            co.check_model(model, X)


@pytest.mark.parametrize("change", ["weight", "swapped", "pixels", "features", "bias"])
def test_a_head_that_is_taken_for_another_is_never_a_net(monkeypatch, change):
    """Whatever finds the head, and however it errs: the model itself does not agree."""
    model = seeded(Headed, tail=lambda m, y: m.head(y.sum((2, 3))))

    def misled(graph, *given):
        right = find_head(graph, *given)
        changes = {
            "weight": {"weight": right.weight * torch.linspace(1, 1.001, 4, dtype=torch.float64)},
            "swapped": {"weight": right.weight[:, [1, 0, 2, 3]]},
            "pixels": {"weight": 2 * right.weight},
            "bias": {"bias": right.bias + 1e-6},
            "features": {"features": graph[right.features].inputs[0]},
        }
        return dataclasses.replace(right, **changes[change])

    monkeypatch.setattr(cam, "find_head", misled)
    with pytest.raises((co.NoCamHeadError, co.ParityError)):
        co.from_torch(model, X)


def test_the_finder_does_not_prove_and_the_proof_does_not_find(monkeypatch):
    """With a finder that takes any slopes for uniform ones, the model's own derivative refuses the head."""
    monkeypatch.setattr(head, "_is_uniform", lambda *_: True)
    for name in ("an average of a part", "an average of the inside", "a weighted average"):
        model = seeded(Headed, tail=NO_HEADS[name])
        model.register_buffer("depthwise", torch.linspace(0, 1, 144).view(4, 1, 6, 6) / 18)
        with pytest.raises(co.NoCamHeadError, match="no CAM head: the class scores"):
            co.from_torch(model, X)


SPELT = {
    "mean": (lambda m, y: m.head(y.mean((2, 3))), 1.0),
    "a divisor of one's own": (lambda m, y: m.head(F.avg_pool2d(y, 6, divisor_override=7).flatten(1)), 36 / 7),
    "a sum": (lambda m, y: m.head(y.sum((2, 3))), 36.0),
    "a sum that is divided": (lambda m, y: m.head(y.sum((2, 3)) / 36), 1.0),
    "a mean that is multiplied": (lambda m, y: m.head(36 * y.mean((2, 3))), 36.0),
    "a mean over a view": (lambda m, y: m.head(y.view(1, 4, -1).mean(-1)), 1.0),
    "a mean of flattened pixels": (lambda m, y: m.head(y.flatten(2).mean(2)), 1.0),
    "two means": (lambda m, y: m.head(y.mean(3).mean(2)), 1.0),
    "two means the other way": (lambda m, y: m.head(y.mean(2).sum(2) / 6), 1.0),
    "channels last": (lambda m, y: m.head(y.permute(0, 2, 3, 1).mean((1, 2))), 1.0),
    "an adaptive pool": (lambda m, y: m.head(F.adaptive_avg_pool2d(y, 1).flatten(1)), 1.0),
    "a full-size pool": (lambda m, y: m.head(F.avg_pool2d(y, 6).squeeze(3).squeeze(2)), 1.0),
    "halves of the map": (lambda m, y: m.head(y[..., :3].mean((2, 3)) + y[..., 3:].mean((2, 3))), 2.0),
    "after the linear layer": (lambda m, y: m.head(y.permute(0, 2, 3, 1)).mean((1, 2)), None),
    "a 1x1 convolution": (lambda m, y: F.conv2d(y.mean((2, 3), True), m.head.weight[..., None, None]).flatten(1), 1.0),
    "a matrix": (lambda m, y: y.mean((2, 3)) @ m.head.weight.T, 1.0),
    "softmax": (lambda m, y: m.head(y.mean((2, 3))).softmax(1), 1.0),
    "log_softmax": (lambda m, y: F.log_softmax(m.head(y.mean((2, 3))), dim=-1), 1.0),
    "a sigmoid": (lambda m, y: torch.sigmoid(input=m.head(y.mean((2, 3)))), 1.0),
    "a softmax in no place": (lambda m, y: nn.Softmax(1)(m.head(y.mean((2, 3)))), 1.0),
}


ALIKE = (
    *("mean", "a sum", "a sum that is divided", "a mean of flattened pixels", "two means", "a full-size pool"),
    *("a matrix", "log_softmax", "a softmax in no place"),
)
"""Others are like them; the fuzzer draws them too."""


@pytest.mark.parametrize("name", mostly_slow(SPELT, SPELT.keys() - set(ALIKE)))
def test_a_head_is_what_it_computes(name):
    tail, times = SPELT[name]
    model = seeded(Headed, tail=tail)
    net = co.from_torch(model, X)
    assert co.check_model(model, X) == ()
    for k in range(3):
        expected = by_hand(model, model.head.weight, X)[k].detach() * (times or 1.0)
        if times is None:  # the map of class scores itself is the last one
            expected = expected + model.head.bias[k].detach()
        torch.testing.assert_close(net.cam(X, k), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(net.model_cam(X, k), expected, rtol=1e-9, atol=1e-12)
    assert bool(net.notes) == (("softmax" in name) or ("sigmoid" in name))
    r = co.radius(net, X, k=2, class_idx=1, rtol=0.1, time_limit=30)
    assert 0 < r.lower < r.upper


@pytest.mark.parametrize(
    "turned",
    [
        lambda y: F.relu(y.flip(3) - 0.1),
        lambda y: F.relu(y[:, :, 1:].transpose(2, 3) - 0.1),
        lambda y: 2 * y.roll(1, 2),
        lambda y: y.rot90(1, (2, 3)),
    ],
)
@pytest.mark.parametrize("mean", [lambda y: y.mean((2, 3)), lambda y: y.permute(0, 2, 3, 1).mean((1, 2))])
def test_the_map_lies_as_the_model_has_it(turned, mean):
    """Which pixel is which is the last map's word, though its values are another's that was turned."""
    model = seeded(Headed, tail=lambda m, y: m.head(mean(turned(y))))
    net = co.from_torch(model, X)
    double = model.double()
    expected = torch.einsum("c,chw->hw", double.head.weight[1], turned(double.body(X.double()))[0]).detach()
    for found in (net.cam(X, 1), net.model_cam(X, 1)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_linear_layers_without_anything_between_are_one():
    first, norm, last = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3)
    layer = nn.Sequential(first, norm, nn.Dropout(), last)
    model = seeded(Headed, tail=lambda m, y: m.layer(y.mean((2, 3))), layer=layer)
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(torch.linspace(-1, 1, 5))
        norm.running_var.copy_(torch.linspace(0.5, 2, 5))
        norm.weight.copy_(torch.linspace(-2, 1, 5))
    net = co.from_torch(model, X)
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = last.weight.double() @ (scale[:, None] * first.weight.double())
    for k in range(3):
        torch.testing.assert_close(net.cam(X, k), by_hand(model, weight, X)[k].detach(), rtol=1e-9, atol=1e-9)


def test_another_layer_may_be_the_one_whose_map_is_meant():
    """The average pool before the global average: its operand and its result are maps of which scores are linear."""
    model = seeded(Headed, tail=lambda m, y: m.head(m.layer(y).mean((2, 3))), layer=nn.AvgPool2d(2))
    body = model.double().body(X.double())[0].detach()
    weight = model.head.weight[1].detach()
    last = co.from_torch(model, X)
    assert last.map_shape == (3, 3)
    for target in ("body", model.body, "body.3", model.body[3]):
        net = co.from_torch(model, X, target_layer=target)
        torch.testing.assert_close(net.cam(X, 1), torch.einsum("c,chw->hw", weight, body), rtol=1e-9, atol=1e-12)
    assert torch.equal(co.from_torch(model, X, target_layer="layer").cam(X, 1), last.cam(X, 1))
    with pytest.raises(co.InputError, match="the last ones are"):
        co.from_torch(model, X, target_layer="bodies")
    with pytest.raises(co.NoCamHeadError, match="Leave target_layer out"):
        co.from_torch(model, X, target_layer="body.1")


BESIDE = {
    "an average that leads nowhere": lambda m, y: (m.head(y.mean((2, 3))), (2 * y).mean((2, 3)))[0],
    "one before": lambda m, y: ((3 * y).mean((2, 3)), m.head(y.mean((2, 3))))[1],
    "a norm of another map": lambda m, y: (m.head(y.mean((2, 3))), F.relu(y - 1).mean((2, 3)).norm())[0],
    "an average of the average": lambda m, y: m.head(F.adaptive_avg_pool2d(y.mean((2, 3), keepdim=True), 1).flatten(1)),
    "pooled once more": lambda m, y: m.head(F.avg_pool2d(F.adaptive_avg_pool2d(y, 1), 1).flatten(1)),
    "a write afterwards": lambda m, y: (m.head(y.mean((2, 3))), y.add_(1.0))[0],
    "a write before": lambda m, y: (y.mul_(2.0), m.head(y.mean((2, 3))))[1],
    "without gradients": lambda m, y: torch.no_grad()(lambda: m.head(y.detach().mean((2, 3))))(),
    "an item that is set": lambda m, y: (y.__setitem__((0, 1), y[0, 1] * 0.5), m.head(y.mean((2, 3))))[1],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_runs_beside_the_head_changes_nothing(name):
    model = seeded(Headed, tail=BESIDE[name])
    if name == "an item that is set":
        with pytest.raises(co.UnsupportedOpError):
            co.from_torch(model, X)
        return
    net = co.from_torch(model, X)
    scale = 2.0 if name == "a write before" else 1.0
    for k in range(3):
        expected = scale * by_hand(model, model.head.weight, X)[k].detach()
        torch.testing.assert_close(net.cam(X, k), expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(net.model_cam(X, k), expected, rtol=1e-6, atol=1e-9)


def test_the_map_behind_a_relu_that_is_always_on_when_it_is_read():
    """At all images that the reading is checked on, the maps before and behind it are the same."""
    model = seeded(Headed, tail=lambda m, y: m.head(y.mean((2, 3))))
    with torch.no_grad():
        bias_of(model.body[2]).fill_(50.0)
    net = co.from_torch(model, X)
    far = torch.full((1, 1, 6, 6), 1e3).double() * torch.linspace(-1, 1, 36).view(1, 1, 6, 6)
    expected = by_hand(model, model.head.weight, far)
    assert bool((model.body(far) == 0).any())
    for k in range(3):
        torch.testing.assert_close(net.model_cam(far, k), expected[k].detach(), rtol=1e-6, atol=1e-9)


def test_a_replay_that_sees_another_map_is_refused():
    model = seeded(Headed, tail=lambda m, y: m.head(y.mean((2, 3))))
    net = co.from_torch(model, X)
    for place in range(net.replay.count):
        wrong = dataclasses.replace(net.replay, place=place)
        if place == net.replay.place:
            wrong.run(X)
        else:
            with pytest.raises(co.ParityError):
                wrong.run(X)


LAST_POOLS: list[Callable[[Tensor], Tensor]] = [
    lambda y: F.max_pool2d(y - 0.1, 2),
    lambda y: F.max_pool2d(F.leaky_relu(y - 0.1, 0.1), 3, 2, 1),
    lambda y: F.max_pool2d(F.avg_pool2d(y, 2), 2, 1),
    lambda y: F.max_pool2d(-y, (1, 3)),
    lambda y: F.max_pool2d(-y, (2, 1), ceil_mode=True),
    lambda y: F.max_pool2d(y - 0.1, 1, stride=2),
    lambda y: F.max_pool2d(y - 0.1, 1),
    lambda y: F.max_pool2d(F.max_pool2d(y - 0.1, 2, 1), 2),
    lambda y: F.max_pool2d(y, 2),
]


@pytest.mark.parametrize("last", mostly_slow(LAST_POOLS, LAST_POOLS[1::3]))
def test_a_max_pool_may_come_last(last):
    model = seeded(Headed, tail=lambda m, y: m.head(last(y).mean((2, 3))))
    assert co.check_model(model, X) == ()
    net = co.from_torch(model, X)
    double = model.double()
    expected = torch.einsum("c,chw->hw", double.head.weight[1], last(double.body(X.double()))[0])
    for found in (net.cam(X, 1), net.model_cam(X, 1)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert co.radius(net, X, k=2, class_idx=1, rtol=0.1, time_limit=30).upper > 0


LAST_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels shuffled": lambda y: F.relu(F.channel_shuffle(y, 2) - 0.1),
    "channels turned round": lambda y: y.flip(1),
    "some channels": lambda y: y[:, [2, 0]].repeat(1, 2, 1, 1),
    "rows that become columns": lambda y: y.reshape(1, 4, 9, 4),
    "turned": lambda y: y.transpose(2, 3).flip(2),
    "bordered": lambda y: F.pad(y, (0, 2, 1, 0), value=-0.4),
    "bordered and cut": lambda y: F.pad(y, (-1, 0, 2, 0))[..., :4],
    "some columns": lambda y: y[..., [0, 2, 5]],
}


@pytest.mark.parametrize("name", LAST_MAPS)
def test_the_cam_lies_as_the_last_map_of_the_model(name):
    """Whatever moved its values or channels on the way, and whether or not it is flattened before the average."""

    class Moved(Plain):
        def forward(self, x: Tensor) -> Tensor:
            self.last = LAST_MAPS[name](self.body(x))
            return self.head(self.pooled(self.last))

        def pooled(self, y: Tensor) -> Tensor:
            return y.mean((2, 3))

    class Flattened(Moved):
        def pooled(self, y: Tensor) -> Tensor:
            return F.adaptive_avg_pool1d(y.flatten(2), 1)[..., 0]

    class Listed(Moved):
        def pooled(self, y: Tensor) -> Tensor:
            return y.flatten(2).transpose(1, 2).mean(1)

    for kind in (Moved, Flattened, Listed):
        model, x = seeded(kind, 3, channels=4), image(1, 6, 6)
        net, double = co.from_torch(model, x), seeded(kind, 3, channels=4).double()
        for seed in range(3):
            at = image(1, 6, 6, seed=seed).double()
            double(at)
            for class_idx in range(3):
                cam = torch.einsum("c,chw->hw", double.head.weight[class_idx], double.last[0])
                torch.testing.assert_close(net.cam(at, class_idx), cam.detach())


@pytest.mark.parametrize("given", [{}, {"stride": 2}, {"padding": 1, "stride": 3}, {"padding": 1, "stride": 2}])
def test_a_convolution_behind_the_average_reads_with_its_padding(given):
    """Padding may leave it nothing of the average to read: then scores are constant, and so are CAMs."""

    class Behind(Plain):
        def __init__(self) -> None:
            super().__init__(channels=4)
            self.last = nn.Conv2d(4, 3, 1, **given)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x).mean((2, 3), keepdim=True)).flatten(1)[:, :3]

    model, x = seeded(Behind, 1), image(1, 6, 6)
    net, double = co.from_torch(model, x), seeded(Behind, 1).double()
    at = image(1, 6, 6, seed=4).double()
    torch.testing.assert_close(net.logits(at), double(at)[0])
    assert bool((net.weight == 0).all()) == ("padding" in given)


@pytest.mark.parametrize("at_once", [1, 200, 1 << 26])
def test_a_map_that_differs_at_one_of_the_images_alone_is_seen_however_many_are_gone_through_at_once(
    monkeypatch, at_once
):
    monkeypatch.setattr(parity, "AT_ONCE", at_once)
    images = [image(1, 6, 6, seed=seed).double() for seed in range(5)]
    net = co.from_torch(seeded(Plain), X)
    head.find_in_model(net.model, net.graph, net.features, net.weight, images)
    for odd in images:

        class Other(Plain):
            marked: Tensor = odd

            def forward(self, x: Tensor) -> Tensor:
                y = self.body(x)
                return self.head((y + 1 if torch.equal(x, self.marked) else y).mean((2, 3)))

        other = seeded(Other).double()
        with pytest.raises((co.ParityError, co.NoCamHeadError)):
            head.find_in_model(other, net.graph, net.features, net.weight, images)
