"""What is written for other verifiers says what is asked: read back and run by programs that are not ours."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import page_code
import pytest
import torch
import torch.nn.functional as F
from fuzz_nets import random_case
from missing import hidden
from nets import Deep, Everything, Plain, Pooled, Residual, image, seeded
from onnx.reference import ReferenceEvaluator
from patience import diagonal, mostly_slow
from torch import Tensor, nn
from vnnlib_files import F32, F64, OPERATORS, cut, expected, images, queries, run, same_values, well_formed

import corgi_opt as co
from corgi_opt.data import digits
from corgi_opt.data import gtsrb as signs


class Border(nn.Module):
    """Pools whose windows overhang the image, before a ReLU: border pixels have factors of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c2(self.mean(self.pool(self.c1(x))))).mean((2, 3)))


class Leaky(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.LeakyReLU(0.2)


class Factors(Plain):
    """Its first map times constants: one for every pixel of a corner, and 1 elsewhere."""

    factors: Tensor

    def __init__(self) -> None:
        super().__init__()
        factors = torch.ones(1, 16, 16)
        factors[:, :9, :9] = torch.rand(1, 9, 9) + 0.5
        self.register_buffer("factors", factors)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body[1:](self.body[0](x) * self.factors + self.factors / 7).mean((2, 3)))


class OneLogit(Plain):
    def __init__(self) -> None:
        super().__init__(classes=1)


MODELS: dict[str, Any] = {
    "plain": (lambda: seeded(Plain, 1), (1, 6, 6)),
    "leaky": (lambda: seeded(Leaky, 1), (1, 6, 7)),
    "pooled": (lambda: seeded(Pooled, 1), (1, 8, 8)),
    "pooled, overhanging": (lambda: seeded(Pooled, 1, kernel=3, stride=2, padding=1), (1, 9, 9)),
    "pooled, dilated": (lambda: seeded(Pooled, 1, kernel=2, stride=3, padding=1, dilation=2), (1, 9, 9)),
    "pooled, overlapping": (lambda: seeded(Pooled, 1, kernel=3, stride=1, padding=1), (1, 8, 8)),
    "residual": (lambda: seeded(Residual, 1), (1, 7, 7)),
    "deep": (lambda: seeded(Deep, 1), (1, 9, 9)),
    "border": (lambda: seeded(Border, 1), (1, 9, 10)),
    "everything": (lambda: seeded(Everything, 1), (3, 20, 22)),
    "digits": (digits.digits_model, (1, 8, 8)),
}
every_model = pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_slow(
        product(MODELS, (F64, F32)),
        [("pooled, overhanging", F64), ("border", F32), ("everything", F32), ("digits", F64)],
    ),
)


@pytest.fixture(scope="module")
def built():
    """Networks by name, built once."""
    return {}


def network(built: Any, name: str) -> Any:
    if name not in built:
        build, shape = MODELS[name]
        x = image(*shape, seed=3)
        built[name] = (co.from_torch(build(), x), x)
    return built[name]


# --- the network ------------------------------------------------------------------------------------------------


@every_model
def test_the_network_computes_what_the_model_does(built, tmp_path, name, dtype):
    net, x = network(built, name)
    c = int(net.logits(x).argmax())
    for keep_class in (False, True):
        found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2, keep_class=keep_class, dtype=dtype)
        model = well_formed(found, dtype)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert shape == list(x.shape) and found.window == (0, 0, *x.shape[2:])
        pixels = net.cam(x).numel()
        assert found.premises == 2 * (pixels - 2) and len(found.compared) - found.premises == keep_class * (
            net.classes - 1
        )
        same_values(net, x, found, c, 0.01, dtype)
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, property=co.KeepsClass(), dtype=dtype)
    well_formed(found, dtype)
    assert found.compared == tuple((c, t) for t in range(net.classes) if t != c)
    same_values(net, x, found, c, 0.01, dtype, logits_only=True)


@every_model
def test_a_pair_is_its_cone_alone(built, tmp_path, name, dtype):
    """Every kind of pair: neighbours and far apart, in the middle and at the border."""
    net, x = network(built, name)
    cam = net.cam(x, 1)
    width = cam.shape[1]
    ordered, order = cam.flatten().sort(descending=True)
    k = 2 + int((ordered[1:-2] - ordered[2:-1]).argmax())  # no tie there
    top, rest = order[:k].tolist(), order[k:].tolist()
    near = sorted(
        ((i, j) for i in top for j in rest), key=lambda p: abs(p[0] // width - p[1] // width) + abs(p[0] - p[1]) % width
    )
    smaller = 0
    for pair in dict.fromkeys([near[0], near[1], near[-1], near[len(near) // 2], (top[0], rest[-1])]):
        found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, class_idx=1, pair=pair, dtype=dtype)
        model = well_formed(found, dtype)
        assert found.pair == pair and found.compared == (pair,) and found.premises == 1
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert shape == [1, x.shape[1], *found.window[2:]]
        same_values(net, x, found, 1, 0.01, dtype, count=2)
        smaller += found.window[2:] != tuple(x.shape[2:])
        # what is outside of the window changes nothing
        other = found.image(1 - x, torch.from_numpy(cut(x.double(), found.window)))
        a, b = (net.model_cam(z, 1).flatten()[list(pair)] for z in (x.double(), other))
        assert float(a[0] - a[1]) == pytest.approx(float(b[0] - b[1]), rel=1e-9, abs=1e-12)
    assert smaller or name in ("deep", "border", "pooled, overhanging"), "these see the whole image from any pair"


def test_names_of_the_model_do_not_get_in_the_way(tmp_path):
    """Input and output are X and Y, whatever layers are called."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.X, self.Y, self.row = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.row(self.Y(self.X(x)).mean((2, 3)))

    x = image(1, 6, 6)
    net = co.from_torch(seeded(Named, 1), x)
    assert {"X", "Y", "row"} <= set(net.graph.order)
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=1)
    well_formed(found, F32)
    same_values(net, x, found, int(net.logits(x).argmax()), 0.01, F32)


def test_a_cone_away_from_the_border_has_no_padding(tmp_path):
    x = image(1, 20, 20, seed=1)
    net = co.from_torch(seeded(Plain, 1), x)
    cam = net.cam(x)
    inner = cam[8:10, 8:10].flatten()
    pixels = [8 * 20 + 8, 8 * 20 + 9, 9 * 20 + 8, 9 * 20 + 9]
    i, j = pixels[int(inner.argmax())], pixels[int(inner.argmin())]
    k = int((cam.flatten() >= cam.flatten()[i]).sum())
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, pair=(i, j))
    rows, columns = sorted((i // 20, j // 20)), sorted((i % 20, j % 20))
    size = rows[1] - rows[0] + 5, columns[1] - columns[0] + 5  # two 3x3 convolutions
    assert found.window == (rows[0] - 2, columns[0] - 2, *size)
    convs = [n for n in well_formed(found, F32).graph.node if n.op_type == "Conv"]
    assert all(a.ints == [0] * 4 for n in convs for a in n.attribute if a.name == "pads")


@pytest.mark.parametrize(
    "seeds",
    [
        range(6),
        pytest.param(range(6, 15), marks=pytest.mark.slow),
        pytest.param(range(1000, 1200), marks=pytest.mark.slow),
    ],
)
def test_random_networks(tmp_path, seeds):
    """Of every operation that the reader knows: what is written computes what the model does, whole and of a pair."""
    written = refused = 0
    for seed in seeds:
        case = random_case(seed)
        try:
            net = co.from_torch(case.model, case.x)
            cam = net.cam(case.x)
            ordered, order = cam.flatten().sort(descending=True)
            k = 1 + int((ordered[:-1] - ordered[1:]).argmax())
            pair = (int(order[k - 1]), int(order[k]))
            found = [
                co.export_vnnlib(net, case.x, tmp_path / str(n), eps=1e-3, k=k, clip=None, pair=p, dtype=F64)
                for n, p in enumerate((None, pair))
            ]
        except (co.UnsupportedOpError, co.NoCamHeadError, co.TieError, co.ParityError, co.InputError):
            refused += 1
            continue
        c = int(net.logits(case.x).argmax())
        for export in found:
            model = onnx.load(export.network)
            assert {node.op_type for node in model.graph.node} <= OPERATORS
            for z in (case.x.double(), case.x.double() * 0.7 + 0.1 * float(case.x.abs().max())):
                true = expected(net, c, export.compared, export.premises, z).numpy()
                scale = float(net.model_cam(z, c).abs().max()) + float(cam.abs().max())
                y = run(model, cut(z, export.window))[0]
                np.testing.assert_allclose(y, true, rtol=0, atol=1e-8 * scale, err_msg=f"seed {seed}")
        written += 1
    assert written >= len(seeds) // 2 and written + refused == len(seeds)


@pytest.mark.gtsrb
def test_the_papers_network(gtsrb, tmp_path):
    paper = signs.load_paper_image_496(gtsrb)
    x = signs.load_split(gtsrb, "train").find(paper.image).image()
    net = co.from_torch(signs.load_paper_model(gtsrb / paper.model), x)
    found = co.export_vnnlib(net, x, tmp_path, eps=1.2e-3, k=15, class_idx=paper.class_idx)
    assert len(found.compared) == 15 * (24 * 24 - 15)
    well_formed(found, F32)
    same_values(net, x, found, paper.class_idx, 1.2e-3, F32, count=1)
    for dtype in (F32, F64):
        found = co.export_vnnlib(
            net, x, tmp_path, eps=1.2e-3, k=15, class_idx=paper.class_idx, pair=(324, 330), dtype=dtype
        )
        well_formed(found, dtype)
        assert found.window == (20, 18, 14, 26)
        same_values(net, x, found, paper.class_idx, 1.2e-3, dtype, count=1)


@pytest.mark.zoo
@pytest.mark.parametrize("name", mostly_slow(["plain", "strided", "resnet8"], ["strided"]))
def test_trained_networks(zoo, tmp_path, name):
    x = zoo.image(0)
    net = co.from_torch(zoo.model(name), x)
    c = int(net.logits(x).argmax())
    found = co.export_vnnlib(net, x, tmp_path, eps=1e-3, k=5)
    well_formed(found, F32)
    same_values(net, x, found, c, 1e-3, F32, count=1)
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    found = co.export_vnnlib(net, x, tmp_path, eps=1e-3, k=5, pair=(order[4], order[5]))
    well_formed(found, F32)
    same_values(net, x, found, c, 1e-3, F32, count=1)


# --- the statement ----------------------------------------------------------------------------------------------


def nearest(number: Fraction, kind: Any) -> Fraction:
    return Fraction(float(kind(float(number))))


BOXES: list[list[Any]] = [[F64, F32], [(0.0, 1.0), (-0.1, 1.1), None], [0.0, 1e-9, 0.1, 0.3]]


@pytest.mark.parametrize(("dtype", "clip", "eps"), mostly_slow(product(*BOXES), diagonal(*BOXES)))
def test_the_box_is_the_smallest_that_holds_the_region(tmp_path, dtype, clip, eps):
    """In exact arithmetic: the region of real numbers, the text of the file, and what a reader makes of that."""
    x = image(2, 3, 4, seed=5).double() * (1 - 1e-3)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.1, 1e-300])
    body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    net = co.from_torch(body.eval(), x)
    found = co.export_vnnlib(net, x, tmp_path, eps=eps, property=co.KeepsClass(), clip=clip, dtype=dtype)
    query, second = queries(found)
    assert second.shapes["X"] == tuple(x.shape)
    kind = np.float32 if dtype == F32 else np.float64
    for low, high, at in zip(query.low, query.high, x.flatten().tolist(), strict=True):
        ends = [Fraction(at) - Fraction(eps), Fraction(at) + Fraction(eps)]
        if clip is not None:
            ends = [max(ends[0], Fraction(clip[0])), min(ends[1], Fraction(clip[1]))]
        assert low <= ends[0] and ends[1] <= high  # as it is written
        low, high = nearest(low, kind), nearest(high, kind)
        assert low <= ends[0] and ends[1] <= high  # as it is read
        inner = np.nextafter(kind(float(low)), kind(np.inf)), np.nextafter(kind(float(high)), kind(-np.inf))
        assert Fraction(float(inner[0])) > ends[0] and Fraction(float(inner[1])) < ends[1]  # no smaller one would do


def test_a_window_has_the_bounds_of_its_inputs(built, tmp_path):
    net, x = network(built, "everything")
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2, pair=(order[0], order[2]), dtype=F64)
    ball, (query, second) = co.Ball(x, 0.01), queries(found)
    for said, true in ((query.low, ball.lower), (query.high, ball.upper)):
        np.testing.assert_allclose([float(v) for v in said], cut(true[None], found.window).ravel(), atol=1e-15)
    assert second.shapes["X"] == (1, 3, *found.window[2:])


def ranks_fail(cam: Tensor, top: list[int], rank: int) -> bool:
    """Whether one of these pixels is not among the ``rank`` brightest; who ties with it counts as brighter."""
    return any(int((cam >= cam[i]).sum()) - 1 >= rank for i in top)


QUESTIONS: dict[str, dict[str, Any]] = {
    "top 2": {"k": 2},
    "top 2 within 4": {"k": 2, "within": 4},
    "not the last": {"k": 1, "within": 15},
    "top 3, keeping the class": {"k": 3, "keep_class": True},
    "within, keeping the class": {"k": 1, "within": 3, "keep_class": True},
    "the class": {"property": co.KeepsClass()},
}


ASKED: list[list[Any]] = [[*QUESTIONS], [OneLogit, Plain]]


@pytest.mark.parametrize(("question", "model"), mostly_slow(product(*ASKED), diagonal(*ASKED)))
def test_the_condition_is_that_the_property_fails(tmp_path, question, model):
    """Held against the definitions, at images of a wide box: some fail and some do not."""
    asked = QUESTIONS[question]
    x = image(1, 4, 4, seed=2)
    model = seeded(model, 2)
    with torch.no_grad():  # classes near each other, so that some images change them
        model.head.bias -= 0.9 * model(x)[0]
    net = co.from_torch(model, x)
    c = int(net.logits(x).argmax())
    found = co.export_vnnlib(net, x, tmp_path, eps=8.0, clip=None, dtype=F64, **asked)
    query, _ = queries(found)
    top = net.cam(x).flatten().argsort(descending=True)[: asked.get("k", 0)].tolist()
    rank = asked.get("within", asked.get("k"))

    def given(z: Tensor) -> int:
        logits = net.model_logits(z)
        return int(logits > 0) if len(logits) == 1 else int(logits.argmax())

    evaluator, seen = ReferenceEvaluator(onnx.load(found.network)), []
    broken = co.attack(net, x, eps=8.0, clip=None, **asked)
    assert broken is not None
    for z in [*images(co.Ball(x, 0.001), 10), *images(co.Ball(x, 8.0, clip=None), 60, seed=1), broken.image]:
        fails = given(z) != given(x) if rank is None else ranks_fail(net.model_cam(z, c).flatten(), top, rank)
        if asked.get("keep_class"):
            fails = fails and given(z) == given(x)
        outputs: Any = evaluator.run(None, {"X": z.numpy()})
        assert query.holds(outputs[0][0]) == fails
        seen.append(fails)
    assert any(seen) and not all(seen)


def test_a_tie_is_a_counterexample(tmp_path):
    """A difference of exactly 0 fails the property, and the condition holds there."""
    model: Any = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[4].weight.copy_(torch.tensor([[1.0], [0.5]]))
    x = torch.tensor([[[[0.25, 0.75]]]])
    net = co.from_torch(model.eval(), x)
    found = co.export_vnnlib(net, x, tmp_path, eps=0.25, k=1, class_idx=0)
    query, _ = queries(found)
    y = run(onnx.load(found.network), np.full((1, 1, 1, 2), 0.5))
    assert y.tolist() == [[0.0]] and query.holds(y[0])
    assert co.verify(net, x, eps=0.25, k=1, class_idx=0).status == "falsified"
    assert co.verify(net, x, eps=0.2499, k=1, class_idx=0).status == "certified"


def test_a_counterexample_of_ours_is_one_of_the_files(built, tmp_path):
    net, x = network(built, "digits")
    v = co.verify(net, x, eps=0.1, k=3)
    assert v.status == "falsified"
    found = co.export_vnnlib(net, x, tmp_path, eps=0.1, k=3, dtype=F64)
    query, _ = queries(found)
    assert v.counterexample is not None
    z = v.counterexample.image
    assert all(
        low <= Fraction(v) <= high for low, v, high in zip(query.low, z.flatten().tolist(), query.high, strict=True)
    )
    assert query.holds(run(onnx.load(found.network), z.numpy())[0])


def test_what_answers_mean_is_said_in_words_and_in_the_files(built, tmp_path):
    net, x = network(built, "pooled")
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    pair = (order[1], order[2])
    found = co.export_vnnlib(net, x, tmp_path / "new" / "folder", eps=0.01, k=2, pair=pair, keep_class=True)
    assert f"pixel {pair[0]} is ahead of pixel {pair[1]} at every image" in found.unsat
    assert "at an image" in found.sat and "still given class" in found.sat
    for path in (found.vnnlib, found.vnnlib2):
        assert f"; unsat: {found.unsat}\n; sat: {found.sat}\n" in path.read_text()
    again = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2)
    assert "the property holds at every image" in again.unsat
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "network.onnx",
        "property-2.0.vnnlib",
        "property.vnnlib",
    ]


def test_the_standards_own_reader_takes_version_2(built, tmp_path):
    reader = pytest.importorskip("vnnlib")
    net, x = network(built, "plain")
    for asked in ({"k": 2}, {"k": 1, "within": 3, "keep_class": True}, {"property": co.KeepsClass()}):
        found = co.export_vnnlib(net, x, tmp_path, eps=0.3, clip=(-0.5, 1.0), **asked)
        query = reader.parse_query_file(str(found.vnnlib2))
        assert len(query.assertions) == 2 * 36 + 1  # one disjunction


def test_an_answer_becomes_an_image(built, tmp_path):
    net, x = network(built, "pooled")
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=1, pair=(order[0], order[-1]))
    y, left, h, w = found.window
    values = torch.arange(float(h * w))
    numbers: Any = values.tolist()
    z = found.image(x, numbers)
    assert z.dtype == F64 and z.shape == x.shape and cut(z, found.window).ravel().tolist() == values.tolist()
    z[:, :, y : y + h, left : left + w] = x[:, :, y : y + h, left : left + w].double()
    assert torch.equal(z, x.double())
    with pytest.raises(co.InputError, match=f"has {h * w} inputs, got {h * w + 1} values"):
        found.image(x, torch.zeros(h * w + 1))
    with pytest.raises(co.InputError, match="the image"):
        found.image(x[0], values)


def test_the_pages_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, names = Path(__file__).parents[2] / "docs" / "vnnlib.md", dict[str, Any]()
    first, second = page_code.blocks(page.read_text(encoding="utf-8"), "python")
    page_code.run(first, page, names)
    page_code.run(second, page, names)
    said = capsys.readouterr().out.splitlines()
    assert "holds at every image" in said[0] and "((51, 46),)" in said[1] and said[2] == "False"
    assert names["one"].pair == (51, 46) and (tmp_path / "digit7-pair" / "network.onnx").is_file()


# --- refusals ---------------------------------------------------------------------------------------------------


def refuses(error: type[co.CorgiError], *words: str):
    return pytest.raises(error, match="(?s)" + ".*".join(words))


@pytest.mark.parametrize("norm", ["1", "2", 2])
def test_a_region_that_is_no_box(built, tmp_path, norm):
    net, x = network(built, "plain")
    with refuses(co.InputError, "a box", "norm must be 'inf'", "co.export_mps takes norm '1'"):
        co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2, norm=norm)
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    assert co.export_mps(net, x, tmp_path / "a.mps", eps=0.1, k=2, norm="1", pair=(order[1], order[2])).path.is_file()


def test_more_ways_of_failing_than_a_file_can_list(built, tmp_path):
    net, x = network(built, "plain")
    with refuses(co.InputError, "fail at once in", "ways", r"name a pair=\(i, j\), or ask co.verify"):
        co.export_vnnlib(net, x, tmp_path, eps=0.001, k=3, within=12)
    assert not list(tmp_path.iterdir())
    order = net.cam(x).flatten().argsort(descending=True).tolist()
    assert co.export_vnnlib(net, x, tmp_path, eps=0.001, k=3, within=12, pair=(order[0], order[9])).pair
    assert co.verify(net, x, eps=0.001, k=3, within=12).status == "certified"


def test_a_factor_of_its_own_at_every_pixel(tmp_path):
    x = image(1, 16, 16, seed=1)
    net = co.from_torch(seeded(Factors, 1), x)
    with refuses(co.UnsupportedOpError, "factor of its own at every pixel", "name a pair", "co.export_mps") as caught:
        co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2)
    assert caught.value.hint and not (tmp_path / "network.onnx").exists()
    cam = net.cam(x).flatten()
    away = [16 * r + c for r in range(12, 15) for c in range(12, 15)]
    i, j = max(away, key=lambda p: cam[p]), min(away, key=lambda p: cam[p])
    k = int((cam >= cam[i]).sum())
    found = co.export_vnnlib(net, x, tmp_path, eps=0.01, k=k, pair=(i, j), dtype=F64)
    same_values(net, x, found, int(net.logits(x).argmax()), 0.01, F64)
    assert co.export_mps(net, x, tmp_path / "a.mps", eps=0.01, k=k, pair=(i, j)).path.is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dtype": torch.float16}, ["dtype must be torch.float32 or torch.float64", "got torch.float16"]),
        ({"pair": (0, 0)}, ["pair must be two pixels", r"got \(0, 0\)"]),
        ({"pair": [1, 2]}, ["pair must be two pixels"]),
        ({"pair": ("a", "b")}, ["pair must be two pixels"]),
        ({"eps": -1.0}, ["eps must be >= 0"]),
        ({"eps": 1e300, "clip": None}, ["does not fit torch.float32", "pass a clip box or a smaller eps"]),
        ({"k": None}, ["say what is asked"]),
        ({"keep_class": 1}, ["keep_class must be True or False"]),
        ({"folder": 7}, ["folder must be the path of a folder, got int"]),
        ({"norm": "l7"}, ["norm must be 'inf', '2' or '1'"]),
    ],
)
def test_bad_arguments(built, tmp_path, wrong, words):
    net, x = network(built, "plain")
    with refuses(co.InputError, *words):
        co.export_vnnlib(net, x, **{"folder": tmp_path, "eps": 0.01, "k": 2, **wrong})


def test_a_file_in_place_of_the_folder(built, tmp_path):
    net, x = network(built, "plain")
    (tmp_path / "file").write_text("mine")
    with refuses(co.InputError, "there can be no folder"):
        co.export_vnnlib(net, x, tmp_path / "file", eps=0.01, k=2)
    assert (tmp_path / "file").read_text() == "mine"


def test_without_onnx(built, tmp_path, monkeypatch):
    net, x = network(built, "plain")
    with hidden(monkeypatch, "onnx"), refuses(co.MissingPackageError, "'onnx'", r"pip install 'corgi_opt\[onnx\]'"):
        co.export_vnnlib(net, x, tmp_path, eps=0.01, k=2)
