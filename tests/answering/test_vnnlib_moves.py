"""Networks that choose, shuffle and move values are written for other verifiers too, as convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from nets import image, seeded
from patience import mostly_slow
from torch import Tensor, nn
from vnnlib_files import F32, F64, cut, expected, images, queries, run, same_values, well_formed

import corgi_opt as co
from corgi_opt.network.movement import Channels, Move
from corgi_opt.network.onnx.network import read_onnx
from corgi_opt.network.ops import Tap


class Moved(nn.Module):
    """Two convolutions, and between them what moves the first one's map, or the first two."""

    def __init__(self, move: Callable[..., Tensor], channels: int, pair: bool = False) -> None:
        super().__init__()
        self.move, self.pair = move, pair
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.last, self.head = nn.Conv2d(channels, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = self.move(y, self.second(x)) if self.pair else self.move(y)
        return self.head(F.relu(self.last(y)).mean((2, 3)))


def written(y: Tensor) -> Tensor:
    """Zeros, with a part of the map written among them upside down."""
    out = torch.zeros_like(y)
    out[:, 1:3, 1:, 2:] = y[:, :2, 1:, 2:].flip(2)
    return out


ONE: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "channels chosen": (lambda y: y[:, [2, 0]], 2),
    "channels again": (lambda y: y[:, [1, 1, 3]], 3),
    "shuffle": (lambda y: F.channel_shuffle(y, 2), 4),
    "rolled": (lambda y: torch.roll(y, (2, -1), (2, 3)), 4),
    "rolled channels and rows": (lambda y: torch.roll(y, (1, 2), (1, 2)), 4),
    "turned over": (lambda y: y.flip(3), 4),
    "turned round": (lambda y: y.flip((2, 3)), 4),
    "transposed": (lambda y: y.transpose(2, 3), 4),
    "a quarter turn": (lambda y: torch.rot90(y, 1, (2, 3)), 4),
    "cropped": (lambda y: y[:, :, 1:-1, 2:], 4),
    "every other": (lambda y: y[:, 1:, ::2, 1::2], 3),
    "zeros around": (lambda y: F.pad(y, (1, 2, 0, 1)), 4),
    "channels of zeros": (lambda y: F.pad(y, (0, 0, 0, 0, 1, 2)), 7),
    "mirrored": (lambda y: F.pad(y, (2, 1, 1, 2), mode="reflect"), 4),
    "border again": (lambda y: F.pad(y, (2, 1, 1, 2), mode="replicate"), 4),
    "round about": (lambda y: F.pad(y, (2, 1, 1, 2), mode="circular"), 4),
    "enlarged": (lambda y: F.interpolate(y, scale_factor=2), 4),
    "enlarged unevenly": (lambda y: F.interpolate(y, size=(11, 9)), 4),
    "pixels of channels": (lambda y: F.pixel_shuffle(y, 2), 1),
    "channels of pixels": (lambda y: F.pixel_unshuffle(y, 2), 16),
    "tiled": (lambda y: y.repeat(1, 1, 2, 1), 4),
    "written": (written, 4),
    "rows as channels": (lambda y: y.permute(0, 2, 1, 3), 6),
}
TWO: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "concatenated": (lambda y, z: torch.cat([y, z], 1), 8),
    "one on top of the other": (lambda y, z: torch.cat([y, z[:, :, 1:]], 2), 4),
    "interleaved": (lambda y, z: torch.stack([y, z], 4).flatten(3), 4),
    "turned and concatenated": (lambda y, z: torch.cat([y.flip(2), z.flip(3)], 3), 4),
}
X = image(2, 6, 8, seed=4)


@pytest.fixture(scope="module")
def built():
    """Networks by name, built once."""
    return {}


def network(built: dict[str, co.CamNetwork], name: str) -> co.CamNetwork:
    if name not in built:
        move, channels = (ONE | TWO)[name]
        x = X if name != "rows as channels" else X[:, :, :, :6]
        built[name] = co.from_torch(seeded(Moved, 3, move=move, channels=channels, pair=name in TWO), x)
    return built[name]


def clear(net: co.CamNetwork, x: Tensor) -> tuple[int, tuple[int, int]]:
    """A k without ties, and the pair of pixels at its border."""
    ordered, order = net.cam(x, 1).flatten().sort(descending=True)
    k = 1 + int((ordered[:-1] - ordered[1:]).argmax())
    return k, (int(order[k - 1]), int(order[k]))


@pytest.mark.parametrize("name", mostly_slow([*ONE, *TWO], [*[*ONE][::3], *[*TWO][::3]]))
def test_moved_values_are_written(built, tmp_path, name):
    """Whole and of a pair, in both precisions: run by programs that are not ours, and read back by our own reader."""
    net = network(built, name)
    assert any(isinstance(net.graph[n].op, Channels | Move | Tap) for n in net.graph.order)
    x = X[:, :, :, : net.input_shape[2]]
    k, pair = clear(net, x)
    for one in (None, pair):
        for dtype in (F64, F32):
            found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, class_idx=1, pair=one, dtype=dtype)
            well_formed(found, dtype)
            same_values(net, x, found, 1, 0.01, dtype, count=1)
            query, _ = queries(found)
            assert query.outputs == (len(found.compared) if one is None else 1)
            back = read_onnx(found.network)
            for z in images(co.Ball(x, 0.3), 2):
                own = expected(net, 1, found.compared, found.premises, z)
                size = float(net.model_cam(z, 1).abs().max())
                given = back(torch.from_numpy(cut(z, found.window)))[0]
                torch.testing.assert_close(given, own, rtol=0, atol=(1e-9 if dtype == F64 else 1e-4) * size)


def test_a_counterexample_of_ours_is_one_of_the_files(built, tmp_path):
    net = network(built, "mirrored")
    v = co.verify(net, X, eps=0.5, k=3)
    assert v.status == "falsified" and v.counterexample is not None
    found = co.export_vnnlib(net, X, tmp_path, eps=0.5, k=3, dtype=F64)
    query, _ = queries(found)
    assert query.holds(run(onnx.load(found.network), v.counterexample.image.numpy())[0])
    inside = run(onnx.load(found.network), X.double().numpy())[0]
    assert not query.holds(inside)


def numbers(found: Any) -> int:
    return sum(int(np.prod(w.dims)) for w in onnx.load(found.network).graph.initializer)


@pytest.mark.parametrize(("name", "most"), [("concatenated", 500), ("mirrored", 45_000), ("turned round", 70_000)])
def test_what_is_regular_takes_few_numbers(built, tmp_path, name, most):
    """Fewer than any move can be said in: 192 values are read, and 192 or more written, among zeros."""
    net = network(built, name)
    k, _ = clear(net, X)
    pixels = net.cam(X).numel()
    head = k * (pixels - k) * pixels
    assert numbers(co.export_vnnlib(net, X, tmp_path, eps=0.01, k=k, class_idx=1)) - head < most


def test_what_takes_too_many_numbers_is_refused_by_name(tmp_path):
    """And what the refusal advises does work."""
    size = 34
    x = image(2, size, size, seed=4)
    torch.manual_seed(0)
    net = co.from_torch(Moved(lambda y: y.transpose(2, 3), 4).eval(), x)
    k, far = clear(net, x)
    top = set(net.cam(x, 1).flatten().argsort(descending=True)[:k].tolist())
    near = next((i, i + 1) for i in sorted(top) if i % size < size - 1 and i + 1 not in top)
    for pair in (None, far):
        with pytest.raises(
            co.UnsupportedOpError, match=r"(?s)moves the values of a map.*near each other.*co\.export_mps"
        ):
            co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, class_idx=1, pair=pair)
    assert not list(tmp_path.iterdir())
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, class_idx=1, pair=near, dtype=F64)
    same_values(net, x, found, 1, 0.01, F64, count=1)
    assert co.export_mps(net, x, tmp_path / "a.mps", eps=1e-3, k=k, class_idx=1, pair=far).path.is_file()
