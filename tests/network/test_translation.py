"""Networks of the usual kinds, each with its wiring: what is read is bounded, decided, proven and replayed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import image, seeded
from oracles import points_in
from patience import mostly_slow
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.regions import Regions
from corgi_opt.network.movement import Channels, Move


class Wired(nn.Module):
    """Some layers of a name, a wiring, and a head."""

    def __init__(self, channels: int, classes: int = 2) -> None:
        super().__init__()
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).mean((2, 3)))

    def maps(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Dense(Wired):
    """DenseNet: every layer reads all maps before it."""

    def __init__(self) -> None:
        super().__init__(6)
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 2, 3, padding=1)) for c in (2, 4)
        )

    def maps(self, x: Tensor) -> Tensor:
        maps = [self.first(x)]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return F.relu(torch.cat(maps, 1))


class Shuffled(Wired):
    """ShuffleNetV2: a half goes by, the other is worked on, then both are shuffled."""

    def __init__(self) -> None:
        super().__init__(4)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.unit = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Conv2d(2, 2, 1), nn.ReLU())

    def maps(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        for _ in range(2):
            left, right = y.chunk(2, dim=1)
            y = torch.cat([left, self.unit(right)], 1)
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return y


class UShaped(Wired):
    """U-Net: down, up again, and side by side with what was before."""

    def __init__(self) -> None:
        super().__init__(3)
        self.down, self.deep = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(2, 2, 2, stride=2), nn.Conv2d(6, 3, 1)

    def maps(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(wide, 2)))
        near = F.interpolate(deep, scale_factor=2, mode="bilinear")
        return self.last(torch.cat([wide, self.up(deep), near], 1))


class Mobile(Wired):
    """MobileNetV2: inverted residuals, depthwise, ReLU6."""

    def __init__(self) -> None:
        super().__init__(4)
        self.first = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6(), nn.Conv2d(4, 2, 1)
        )
        self.last = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6())

    def maps(self, x: Tensor) -> Tensor:
        y = self.first(20 * x)
        return self.last(y + self.block(y))


class OptionA(Wired):
    """ResNet-20 option A: every second pixel, and zeros for the channels that there were not."""

    def __init__(self) -> None:
        super().__init__(4)
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, stride=2, padding=1)

    def maps(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return F.relu(self.second(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))


class ChannelsLast(Wired):
    """Linear layers on the last axis, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__(3)
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.wide, self.narrow = nn.Linear(3, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def maps(self, x: Tensor) -> Tensor:
        y = self.first(x)
        rows = self.narrow(F.relu(self.wide(y.permute(0, 2, 3, 1)))) * self.scale
        return F.relu(y + rows.permute(0, 3, 1, 2))


class Maxout(Wired):
    """Maxout, reflected borders, and a product with its own sign."""

    def __init__(self) -> None:
        super().__init__(3)
        self.first = nn.Conv2d(1, 6, 3)

    def maps(self, x: Tensor) -> Tensor:
        y = self.first(F.pad(x, (1, 1, 1, 1), mode="reflect")).unflatten(1, (3, 2)).amax(2)
        return (y - 0.1).abs().clamp(max=0.7)


KINDS = (Dense, Shuffled, UShaped, Mobile, OptionA, ChannelsLast, Maxout)
MOVES_ONLY_CHANNELS = {Dense, Shuffled, OptionA}


@pytest.mark.parametrize("kind", mostly_slow(KINDS, [Dense, UShaped, Maxout]))
def test_what_is_read_is_bounded_decided_and_proven(kind, tmp_path):
    model, x = seeded(kind).eval(), image(1, 6, 6)
    net = co.from_torch(model, x)
    moved = {type(net.graph[n].op) for n in net.graph.order} & {Channels, Move}
    assert (moved == {Channels}) if kind in MOVES_ONLY_CHANNELS else True
    assert Channels in moved or kind not in MOVES_ONLY_CHANNELS
    r = co.radius(net, x, k=2, rtol=0.05, time_limit=60)
    assert 0 < r.lower <= r.upper and r.counterexample is not None
    cam = torch.einsum("c,nchw->nhw", model.double().head.weight[r.asked.class_idx], model.maps(r.counterexample.image))
    assert set(cam.flatten().topk(2).indices.tolist()) != set(net.cam(x).flatten().topk(2).indices.tolist())
    verdict = co.verify(net, x, eps=0.8 * r.lower, k=2, proof="checked", time_limit=60)
    assert (verdict.status, verdict.proof) == ("certified", "checked"), verdict.reason
    verdict.certificate.save(tmp_path / "a.cert")
    assert co.check_certificate(tmp_path / "a.cert", seeded(kind).eval()).margin > 0


BOUNDED = [(kind, norm) for kind in KINDS for norm in ("inf", "2")]


@pytest.mark.parametrize(("kind", "norm"), mostly_slow(BOUNDED, BOUNDED[::3]))
def test_every_node_is_within_its_bounds(kind, norm):
    x = image(1, 6, 6, seed=1).double()
    net = co.from_torch(seeded(kind).eval(), x.float())
    ball = co.Ball(x, 0.05 if norm == "inf" else 0.2, norm)
    regions = Regions.of([ball], torch.float64, torch.device("cpu"))
    images = [ball.project(p[None]) for p in points_in(ball.lower[0], ball.upper[0], 40, seed=0)]
    values = net.graph.values(torch.cat(images))
    for known in (interval_bounds(net.graph, regions), crown_pass(net.graph, regions).intervals):
        for name, (low, high) in known.items():
            assert bool((values[name] >= low - 1e-12).all() and (values[name] <= high + 1e-12).all()), name


def test_a_channel_that_is_wanted_twice_and_what_is_read_in_two_orders():
    class Twice(Wired):
        def __init__(self) -> None:
            super().__init__(4)
            self.first = nn.Conv2d(1, 2, 3)

        def maps(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            return torch.cat([y, y], 1)[:, [0, 2, 1, 0]] + torch.cat([y.transpose(2, 3), y.flip(1)], 1)

    model, x = seeded(Twice), image(1, 6, 6)
    net = co.from_torch(model, x)
    torch.testing.assert_close(
        net.cam(x, 1), torch.einsum("c,nchw->nhw", model.double().head.weight[1], model.maps(x.double()))[0]
    )


def test_a_line_is_a_map_of_one_row():
    class Spectrogram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv1d(5, 4, 3, padding=1),
                nn.BatchNorm1d(4),
                nn.ReLU(),
                nn.MaxPool1d(2),
                nn.Conv1d(4, 3, 3),
                nn.ReLU(),
            )
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.squeeze(1)).mean(2))

    model, x = seeded(Spectrogram).eval(), image(1, 5, 14)
    net = co.from_torch(model, x)
    assert net.map_shape == (1, 5)
    expected = torch.einsum("c,ncl->l", model.double().head.weight[1], model.body(x.double()[0]))
    torch.testing.assert_close(net.cam(x, 1)[0], expected, rtol=1e-9, atol=1e-12)
    r = co.radius(net, x, k=1, class_idx=1, rtol=0.05, time_limit=60)
    assert r.ratio <= 1.05
