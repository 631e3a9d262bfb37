"""The affine operations: windows and adjoints against autograd on whole maps."""

from __future__ import annotations

import pytest
import torch

from corgi_opt.network.ops import Combine, Conv2d, Geometry, MaxPool2d, Places, Tap, Window, crop, gather, inside


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPS = {
    "conv": (Conv2d(random(4, 3, 3, 3), random(4), padding=(1, 1)), [(3, 7, 8)]),
    "strided": (Conv2d(random(4, 3, 3, 2), random(4), (2, 3), (1, 0)), [(3, 9, 8)]),
    "dilated": (Conv2d(random(4, 3, 3, 3), None, (1, 1), (2, 2), (2, 2)), [(3, 7, 8)]),
    "grouped": (Conv2d(random(4, 2, 3, 3), random(4), (1, 2), (1, 1), (1, 1), 2), [(4, 7, 8)]),
    "tap": (Tap((2, 3), (-1, 1), (4, 3)), [(3, 7, 8)]),
    "combine": (Combine((random(3, 1, 1), random(1, 7, 8)), random(3, 7, 8)), [(3, 7, 8), (3, 7, 8)]),
}


@pytest.mark.parametrize("name", OPS)
def test_adjoint_and_constant_are_the_transpose(name):
    """For lambda on any window, lambda' op(x) = sum adjoint' x + constant, wherever the window lies."""
    op, shapes = OPS[name]
    xs = [random(1, *s, seed=n) for n, s in enumerate(shapes)]
    out = op.apply(xs)
    _, *size = out.shape
    shape = (size[0], size[1], size[2])
    for seed, (y, x) in enumerate([(0, 0), (1, 1), (-2, -1), (shape[1] - 1, shape[2] - 2)]):
        lam, origin = random(1, shape[0], 3, 2, seed=seed), Places.of(torch.tensor([[y, x]]))
        mask = inside(shape, origin, 3, 2)
        lam = lam if mask is None else lam * mask
        expected = float((crop(out, Window(y, x, 3, 2)) * lam).sum())
        below = op.geometry.window(Window(y, x, 3, 2))
        assert op.geometry.below(origin).corners.tolist() == [[below.y, below.x]]
        parts = op.adjoint(lam, origin, shape)
        total = sum(float((crop(v, below) * p).sum()) for v, p in zip(xs, parts, strict=True))
        constant = op.constant(lam, origin, shape)
        assert total + (0.0 if constant is None else float(constant)) == pytest.approx(expected, abs=1e-9)


def test_gather_is_crop_row_by_row():
    values = random(2, 3, 5, 6)
    origins = torch.tensor([[0, 0], [-2, 3], [4, 5], [-9, -9], [2, 20]])
    case = torch.tensor([0, 1, 1, 0, 1])
    for h, w in ((1, 1), (2, 3), (7, 8)):
        for maps, of in ((values, case), (values[:1], None)):
            which = [0] * 5 if of is None else of.tolist()
            windows = [crop(maps[c], Window(y, x, h, w)) for c, (y, x) in zip(which, origins.tolist(), strict=True)]
            assert torch.equal(gather(maps, Places.of(origins, of), h, w), torch.stack(windows))


def test_gather_of_whole_maps_broadcasts():
    values, origins = random(1, 3, 5, 6), torch.zeros(4, 2, dtype=torch.long)
    assert torch.equal(gather(values, Places.of(origins), 5, 6), values)
    assert gather(values, Places.of(origins + 1), 5, 6).shape == (4, 3, 5, 6)


def test_windows():
    a, b = Window(0, 0, 2, 3), Window(1, 2, 4, 1)
    assert a.intersects(b)
    assert not a.intersects(Window(2, 0, 1, 1))
    assert Geometry((2, 1), (-1, 0), (3, 2)).window(Window(1, 1, 2, 2)) == Window(1, 1, 5, 3)
    pool = MaxPool2d((3, 2), (2, 2), (1, 0), (1, 1))
    assert pool.geometry == Geometry((2, 2), (-1, 0), (3, 2))


def test_precision_and_device_move_every_tensor():
    conv = OPS["conv"][0].to(torch.float32, torch.device("cpu"))
    assert isinstance(conv, Conv2d) and conv.bias is not None
    assert conv.weight.dtype == conv.bias.dtype == torch.float32
    combine = OPS["combine"][0].to(torch.float32, torch.device("cpu"))
    assert isinstance(combine, Combine) and combine.shift is not None
    assert {c.dtype for c in (*combine.coefs, combine.shift)} == {torch.float32}
