"""Every bad input raises the right typed error, whose message says what is wrong, where, and what to do."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import Plain, image, seeded
from patience import mostly_slow
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.data import gtsrb

K = 3
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 2), image(1, 6, 6))


@pytest.fixture(scope="module")
def tied_net():
    """Its class weights are zero, so every CAM pixel is."""
    model = seeded(Plain, 2)
    nn.init.zeros_(model.head.weight)
    return co.from_torch(model, image(1, 6, 6))


CALLS: dict[str, Callable[..., Any]] = {
    "verify": lambda net, x, **kw: co.verify(net, x, **{"eps": 0.01, "k": K, **kw}),
    "attack": lambda net, x, **kw: co.attack(net, x, **{"eps": 0.01, "k": K, **kw}),
    "radius": lambda net, x, **kw: co.radius(net, x, **{"k": K, **kw}),
    "compare": lambda net, x, **kw: co.compare(net, x, **{"k": K, **kw}),
}
everywhere = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
with_eps = pytest.mark.parametrize("call", [CALLS["verify"], CALLS["attack"]], ids=["verify", "attack"])


def refuses(error: type[co.CorgiError], *words: str):
    """The message holds all of the words, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(w) for w in words))


def with_nan() -> Tensor:
    x = image(1, 6, 6)
    x[0, 0, 2, 3] = NAN
    return x


# --- the question: verify, attack, radius, compare -------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (image(1, 6, 7), ["x must have shape (1, 1, 6, 6)", "got (1, 1, 6, 7)"]),
        (image(3, 6, 6), ["x must have shape (1, 1, 6, 6)", "got (1, 3, 6, 6)"]),
        (image(1, 6, 6)[0], ["x has shape (1, 6, 6)", "batch dimension is missing", "pass x[None]"]),
        ("x.png", ["x must be a torch tensor or a numpy array of floats of shape (1, 1, 6, 6)", "got str"]),
        (np.ma.masked_array(image(1, 6, 6).numpy()), ["x must be a torch tensor or", "got MaskedArray"]),
        (np.full((1, 1, 6, 6), "a"), ["x must be a torch tensor or a numpy array of floats", "got ndarray"]),
        (image(1, 6, 6)[0].numpy(), ["x has shape (1, 6, 6)", "batch dimension is missing", "pass x[None]"]),
        (np.ones((1, 1, 6, 6), dtype=np.uint8), ["x must be a dense floating-point tensor, got torch.uint8"]),
        (with_nan(), ["x holds NaN or infinite values", "clean"]),
        (image(1, 6, 6) / 0, ["x holds NaN or infinite values"]),
    ],
    ids=["width", "channels", "no batch", "text", "masked", "words", "array without batch", "bytes", "nan", "inf"],
)
def test_bad_image(net, call, x, words):
    with refuses(co.InputError, *words):
        call(net, x)


@pytest.mark.parametrize("name", mostly_slow(["verify", "attack", "radius"], ["attack"]))
def test_of_several_images_a_bad_one_is_refused_like_one(net, name):
    x = image(1, 6, 6).repeat(2, 1, 1, 1)
    assert len(CALLS[name](net, x)) == len(co.compare(net, x, k=K, methods=["corgi"]).questions) == 2
    with refuses(co.InputError, "x must have shape (1, 1, 6, 6)", "got (1, 1, 6, 5)"):
        CALLS[name](net, x[..., :5])


@everywhere
@pytest.mark.parametrize("k", [0, -1, 36, 37, 3.0, "3", True])
def test_bad_k(net, call, k):
    with refuses(co.InputError, "k must be an int in 1..35 (the CAM has 36 pixels)", f"got {k!r}"):
        call(net, image(1, 6, 6), k=k)


@everywhere
@pytest.mark.parametrize("class_idx", [3, -1, 1.0, True])
def test_bad_class(net, call, class_idx):
    with refuses(co.InputError, "class_idx must be an int in 0..2", f"got {class_idx!r}"):
        call(net, image(1, 6, 6), class_idx=class_idx)


@everywhere
def test_image_outside_the_clip_box(net, call):
    x = 2 * image(1, 6, 6)
    with refuses(co.InputError, f"{float(x.max()):.6g}", "outside the clip box [0.0, 1.0]", "pass clip=None"):
        call(net, x)


def test_clip_none_is_the_way_out_that_the_message_names(net):
    v = co.verify(net, 2 * image(1, 6, 6), eps=1e-7, k=K, clip=None)
    assert v.status == "certified"


@everywhere
@pytest.mark.parametrize("clip", [(1.0, 0.0), (0.5, 0.5), (NAN, 1.0), (0.0, NAN)])
def test_bad_clip(net, call, clip):
    with refuses(co.InputError, "clip must be (low, high) with low < high or None", f"got {clip}"):
        call(net, image(1, 6, 6), clip=clip)


@everywhere
@pytest.mark.parametrize("norm", ["l3", 3, True, "INFINITY", None])
def test_bad_norm(net, call, norm):
    with refuses(co.InputError, "norm must be 'inf', '2' or '1'", f"got {norm!r}"):
        call(net, image(1, 6, 6), norm=norm)


@everywhere
@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_bad_device(net, call, device):
    with refuses(co.InputError, f"device {device!r} is not usable here", "use 'auto' or 'cpu'"):
        call(net, image(1, 6, 6), device=device)


@everywhere
def test_a_torch_model_in_place_of_its_network(call):
    with refuses(co.InputError, "net must be a CamNetwork", "from_torch(model, example)", "got Plain"):
        call(seeded(Plain, 2), image(1, 6, 6))


@with_eps
@pytest.mark.parametrize(
    ("eps", "words"),
    [
        (-0.1, "eps must be >= 0, got -0.1"),
        (NAN, "eps must be a finite number in the units of the input, got nan"),
        (INF, "eps must be a finite number in the units of the input, got inf"),
        ("0.1", "eps must be a finite number in the units of the input, got '0.1'"),
        (True, "eps must be a finite number in the units of the input, got True"),
        (None, "eps must be a finite number in the units of the input, got None"),
    ],
)
def test_bad_eps(net, call, eps, words):
    with refuses(co.InputError, words):
        call(net, image(1, 6, 6), eps=eps)


@pytest.mark.parametrize(
    "call", [CALLS["verify"], CALLS["radius"], CALLS["compare"]], ids=["verify", "radius", "compare"]
)
@pytest.mark.parametrize("seconds", [0, -1.0, NAN, "10", True, None])
def test_bad_time_limit(net, call, seconds):
    with refuses(co.InputError, "time_limit must be a positive number of seconds", f"got {seconds!r}"):
        call(net, image(1, 6, 6), time_limit=seconds)


@pytest.mark.parametrize("call", [CALLS["radius"], CALLS["compare"]], ids=["radius", "compare"])
@pytest.mark.parametrize("rtol", [0, 1, -0.1, NAN, "0.1", True])
def test_bad_rtol(net, call, rtol):
    with refuses(co.InputError, "rtol must be a number between 0 and 1", f"got {rtol!r}"):
        call(net, image(1, 6, 6), rtol=rtol)


# --- methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verify", "radius"])
@pytest.mark.parametrize("method", ["gurobi", "MILP", "", None])
def test_unknown_method(net, name, method):
    with refuses(co.UnknownMethodError, f"unknown method {method!r}", "choose one of", "'corgi'", "'milp'") as caught:
        CALLS[name](net, image(1, 6, 6), method=method)
    assert "corgi" in caught.value.known


def test_unknown_methods_of_a_comparison(net):
    with refuses(co.UnknownMethodError, "unknown method 'gurobi'", "choose one of", "'milp'"):
        co.compare(net, image(1, 6, 6), k=K, methods=["corgi", "gurobi"])


@pytest.mark.parametrize("methods", [[], (), "milp"])
def test_a_comparison_of_nothing(net, methods):
    with refuses(co.InputError, "methods must be a non-empty sequence of names", f"got {methods!r}"):
        co.compare(net, image(1, 6, 6), k=K, methods=methods)


# --- ties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verify", "attack", "compare"])
def test_a_tie_has_no_top_set(tied_net, name):
    with refuses(co.TieError, "CAM pixels 3 and 4 differ by 0", "tie_tol", "choose another k"):
        CALLS[name](tied_net, image(1, 6, 6))


def test_a_tied_image_has_radius_zero(tied_net):
    r = co.radius(tied_net, image(1, 6, 6), k=K)
    assert (r.lower, r.upper, r.corgi, r.attack, r.counterexample, r.proof) == (0.0, 0.0, 0.0, 0.0, None, None)
    assert "CAM pixels 3 and 4 differ by 0" in r.reason


def test_tie_tol_decides_what_counts_as_a_tie(net):
    x = image(1, 6, 6)
    ordered = net.cam(x).flatten().sort(descending=True).values
    gap = float(ordered[K - 1] - ordered[K])
    with refuses(co.TieError, f"differ by {gap:.3g}", f"tie_tol {2 * gap:.3g}"):
        co.verify(net, x, eps=0.0, k=K, tie_tol=2 * gap)
    assert co.verify(net, x, eps=0.0, k=K, tie_tol=gap / 2).status == "certified"


# --- bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lp", "IBP", None])
def test_bounds_unknown_method(net, method):
    with refuses(co.UnknownMethodError, f"unknown method {method!r}", "'ibp', 'crown'"):
        co.bounds(net, co.Ball(image(1, 6, 6), 0.01), method=method)


def test_bounds_of_another_shape(net):
    with refuses(co.InputError, "the ball's centre must have shape (1, 1, 6, 6)", "got (1, 1, 5, 6)"):
        co.bounds(net, co.Ball(image(1, 5, 6), 0.01))


def test_bounds_in_another_precision(net):
    with refuses(co.InputError, "dtype must be torch.float32 or torch.float64", "got torch.float16"):
        co.bounds(net, co.Ball(image(1, 6, 6), 0.01), dtype=torch.float16)


def test_bounds_on_another_device(net):
    with refuses(co.InputError, "device 'gpu' is not usable here", "use 'auto' or 'cpu'"):
        co.bounds(net, co.Ball(image(1, 6, 6), 0.01), device="gpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": -1.0}, ["eps must be >= 0"]),
        ({"eps": NAN}, ["eps must be a finite number"]),
        ({"norm": "l7"}, ["norm must be 'inf'", "got 'l7'"]),
        ({"clip": (1.0, 0.0)}, ["clip must be (low, high) with low < high or None"]),
        ({"center": 2 * image(1, 6, 6)}, ["outside the clip box", "pass clip=None"]),
        ({"center": image(1, 6, 6)[0]}, ["the centre must have shape (1, C, H, W)", "got (1, 6, 6)"]),
        ({"center": with_nan()}, ["the centre holds NaN"]),
    ],
)
def test_bad_ball(arguments, words):
    with refuses(co.InputError, *words):
        co.Ball(**{"center": image(1, 6, 6), "eps": 0.01, **arguments})


# --- from_torch ------------------------------------------------------------------------------------------------


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Bent(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body[3] = Erf()


class Branching(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Dense(nn.Module):
    """No global average: the classifier sees every position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TwoLayerHead(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))  # type: ignore[assignment]


class MapsOnly(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("build", [co.from_torch, co.check_model])
def test_training_mode(build):
    with refuses(co.ModelModeError, "training mode", "Plain", "call model.eval() first"):
        build(seeded(Plain, 2).train(), image(1, 6, 6))


@pytest.mark.parametrize("build", [co.from_torch, co.check_model])
def test_one_submodule_in_training_mode_is_named(build):
    model = seeded(Plain, 2)
    model.body[1].train()
    with refuses(co.ModelModeError, "body.1", "call model.eval() first"):
        build(model, image(1, 6, 6))


@pytest.mark.parametrize("model", [Dense, TwoLayerHead, MapsOnly])
@pytest.mark.parametrize("build", [co.from_torch, co.check_model])
def test_no_cam_head(build, model):
    with refuses(co.NoCamHeadError, "no CAM head", "features -> global average -> linear", "It ends in"):
        build(seeded(model), image(1, 6, 6))


def test_unsupported_operation():
    with refuses(co.UnsupportedOpError, "body.3", "erf is not supported", "retrain with one of them") as caught:
        co.from_torch(seeded(Bent), image(1, 6, 6))
    assert (caught.value.op, "body.3" in caught.value.node) == ("erf", True)
    assert [p.op for p in co.check_model(seeded(Bent), image(1, 6, 6))] == ["erf"]


def test_a_forward_that_branches_on_data():
    with refuses(co.UnsupportedOpError, "Branching", "no branch on data", "torch said"):
        co.from_torch(seeded(Branching, 2), image(1, 6, 6))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (image(1, 6, 6)[0], ["example has shape (1, 6, 6)", "batch dimension is missing", "pass example[None]"]),
        (image(1, 6, 6).repeat(2, 1, 1, 1), ["example must have shape (1, C, H, W)", "got (2, 1, 6, 6)"]),
        (image(1, 6, 6)[0, 0], ["example must have shape (1, C, H, W)", "got (6, 6)"]),
        (torch.ones(1, 1, 6, 6, dtype=torch.uint8), ["example must be a floating-point torch tensor"]),
        (image(1, 6, 6).tolist(), ["example must be a floating-point torch tensor of shape (1, C, H, W)"]),
        (with_nan(), ["example holds NaN or infinite values"]),
    ],
    ids=["no batch", "batch of two", "no channel", "integers", "lists", "nan"],
)
def test_bad_example(example, words):
    with refuses(co.InputError, *words):
        co.from_torch(seeded(Plain, 2), example)


def test_an_example_that_the_model_does_not_take():
    with refuses(co.InputError, "does not run on an example of shape (1, 3, 6, 6)", "Python said", "channels"):
        co.from_torch(seeded(Plain, 2), image(3, 6, 6))


def test_not_a_model():
    with refuses(co.InputError, "model must be a torch.nn.Module", "got function"):
        co.from_torch(lambda x: x, image(1, 6, 6))  # type: ignore[arg-type]


# --- errors as a family ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (co.InputError, ValueError),
        (co.UnknownMethodError, ValueError),
        (co.TieError, ValueError),
        (co.ModelModeError, ValueError),
        (co.NoCamHeadError, ValueError),
        (co.UnsupportedOpError, NotImplementedError),
        (co.MissingPackageError, ImportError),
        (co.ParityError, RuntimeError),
        (co.BoundOrderError, RuntimeError),
    ],
)
def test_every_error_is_ours_and_a_builtin_one(error, builtin):
    assert issubclass(error, co.CorgiError)
    assert issubclass(error, builtin)


@pytest.mark.parametrize(
    ("module", "package", "needs_it"),
    [
        ("h5py", "h5py", lambda: gtsrb.load_paper_model("model.h5")),
        ("skimage.color", "scikit-image", lambda: gtsrb.preprocess(np.zeros((8, 8, 3), dtype=np.uint8))),
    ],
    ids=["h5py", "skimage"],
)
def test_a_missing_optional_package_names_the_pip_command(monkeypatch, module, package, needs_it):
    monkeypatch.setitem(sys.modules, module, None)
    with refuses(co.MissingPackageError, f"{package!r}", "not installed", "pip install 'corgi_opt[gtsrb]'") as caught:
        needs_it()
    assert (caught.value.package, caught.value.pip) == (package, "pip install 'corgi_opt[gtsrb]'")


# --- found by hand: each of these once got past the entrance ---------------------------------------------------


@everywhere
@pytest.mark.parametrize("tie_tol", [-1.0, NAN, "0"])
def test_bad_tie_tol(net, call, tie_tol):
    """A negative tolerance let a tied image through, and the attack's search then never ended."""
    with refuses(co.InputError, "tie_tol must be"):
        call(net, image(1, 6, 6), tie_tol=tie_tol)


@pytest.mark.parametrize("clip", [5, (0, 1, 2), ("0", "1"), (0.0, NAN)])
def test_malformed_clip(net, clip):
    with refuses(co.InputError, "clip"):
        co.verify(net, image(1, 6, 6), eps=0.01, k=K, clip=clip)


@everywhere
@pytest.mark.parametrize("device", [None, "meta", 3.5])
def test_device_that_holds_no_values(net, call, device):
    with refuses(co.InputError, "is not usable here"):
        call(net, image(1, 6, 6), device=device)


@everywhere
@pytest.mark.parametrize(
    "x",
    [
        image(1, 6, 6) + 1j,
        (255 * image(1, 6, 6)).to(torch.uint8),
        image(1, 6, 6).to("meta"),
        image(1, 6, 6).to_sparse(),
    ],
)
def test_image_that_is_not_dense_and_real(net, call, x):
    with refuses(co.InputError, "x must be a dense floating-point tensor"):
        call(net, x)


def test_wrong_types_of_methods_options_and_seeds(net):
    x = image(1, 6, 6)
    with refuses(co.InputError, "methods must be a non-empty sequence"):
        co.compare(net, x, k=K, methods=5)  # type: ignore[arg-type]
    with refuses(co.InputError, "takes a CamNetwork and a Ball", "got CamNetwork and Tensor"):
        co.bounds(net, x)  # type: ignore[arg-type]
    with refuses(co.UnknownMethodError, "unknown method ['crown']"):
        co.bounds(net, co.Ball(x, 0.1), method=["crown"])  # type: ignore[arg-type]
    with refuses(co.InputError, "options must be a co.PgdOptions"):
        co.attack(net, x, eps=0.1, k=K, options=5)  # type: ignore[arg-type]
    for seed in ("a", -1, 2**70):
        with refuses(co.InputError, "seed must be an int in 0..", f"got {seed!r}"):
            co.radius(net, x, k=K, seed=seed)  # type: ignore[arg-type]


def test_numpy_scalars_are_numbers(net):
    x = image(1, 6, 6)
    numbers: dict[str, Any] = {"eps": np.float32(0.001), "k": np.int64(K), "class_idx": np.int64(1)}
    v = co.verify(net, x, method="crown", **numbers)
    assert (v.asked.property, v.asked.class_idx) == (co.TopK(K), 1)
    assert isinstance(v.asked.property, co.TopK) and type(v.asked.property.k) is int


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "numpy": np.float64,
    "tensors": lambda value: torch.tensor(value, dtype=torch.float64),
    "arrays": np.array,
}
WHOLE: dict[str, Callable[[Any], Any]] = {"numpy": np.int64, "tensors": torch.tensor, "arrays": np.array}


@pytest.mark.parametrize("kind", mostly_slow(NUMBERS, ["numpy"]))
def test_numpy_images_and_numbers_without_axes_are_taken_everywhere(net, kind, tmp_path):
    """The answers are those for tensors and Python's numbers."""
    number, whole, tensor = NUMBERS[kind], WHOLE[kind], image(1, 6, 6, seed=3)
    x: Any = tensor.numpy()
    plain: dict[str, Any] = {"eps": 0.01, "k": K, "class_idx": 1}
    other: dict[str, Any] = {"eps": number(0.01), "k": whole(K), "class_idx": whole(1)}
    limit = {"time_limit": number(60.0), "seed": whole(3)}
    assert repr(co.verify(net, x, **other, **limit)) == repr(co.verify(net, tensor, **plain, seed=3))
    del other["eps"], plain["eps"]
    search: dict[str, Any] = {"method": "crown", "seed": 3}
    r = co.radius(net, x, **other, rtol=number(0.1), method="crown", **limit)
    assert repr(r) == repr(co.radius(net, tensor, **plain, rtol=0.1, **search))
    c = co.compare(net, x, **other, rtol=number(0.1), methods=["corgi"], **limit)
    assert repr(c) == repr(co.compare(net, tensor, **plain, rtol=0.1, methods=["corgi"], seed=3))
    other["eps"], plain["eps"] = number(0.3), 0.3
    c = co.compare(net, x, **other, methods=["corgi"], **limit)
    assert repr(c) == repr(co.compare(net, tensor, **plain, methods=["corgi"], seed=3))
    found, expected = co.attack(net, x, **other), co.attack(net, tensor, **plain)
    assert found is not None and expected is not None and torch.equal(found.image, expected.image)
    assert repr(co.heat_map(net, x, **other)) == repr(co.heat_map(net, tensor, **plain))
    ours = [co.bounds(net, co.Ball(x, number(0.3))), co.bounds(net, co.Ball(tensor, 0.3))]
    assert all(torch.equal(a.lower, ours[1][name].lower) for name, a in ours[0].items())
    written = [
        co.export_mps(net, x, tmp_path / "a.mps", **other, pair=None).path,
        co.export_mps(net, tensor, tmp_path / "b.mps", **plain).path,
    ]
    assert written[0].read_text() == written[1].read_text()
    if importlib.util.find_spec("onnx"):
        pair = co.export_vnnlib(net, x, tmp_path / "a", **other).vnnlib.read_text()
        assert pair == co.export_vnnlib(net, tensor, tmp_path / "b", **plain).vnnlib.read_text()


def test_arrays_of_any_order_and_layout_and_lists_of_them_are_images(net):
    tensor = image(1, 6, 6, seed=3).double()
    expected = repr(co.verify(net, tensor, eps=0.01, k=K, method="crown"))
    native: Any = tensor.numpy()
    frozen = native.copy()
    frozen.flags.writeable = False
    other: Any
    for other in (native.astype(">f8"), native[..., ::-1].copy()[..., ::-1], np.asfortranarray(native), frozen):
        assert repr(co.verify(net, other, eps=0.01, k=K, method="crown")) == expected
    several: Any = np.concatenate([native, native])
    batch: Any
    for batch in (several, [native, native], (native, tensor)):
        answers: Any = co.verify(net, batch, eps=0.01, k=K, method="crown")
        assert [repr(v) for v in answers] == [expected, expected]
    sizes: Any = np.array([0.01, 0.02])
    assert [q.eps for q in co.compare(net, native, k=K, eps=sizes, methods=["corgi"]).questions] == [0.01, 0.02]
    assert co.from_torch(seeded(Plain, 2), native).input_shape == (1, 6, 6)
    assert torch.equal(net.cam(native), net.cam(tensor))


def test_an_array_is_not_written(net):
    x: Any = image(1, 6, 6, seed=3).numpy()
    before = x.copy()
    co.radius(net, x, k=K, method="crown")
    assert (x == before).all()


def test_a_cam_of_one_pixel_has_no_topk():
    one = co.from_torch(seeded(Plain), image(1, 1, 1))
    with refuses(co.InputError, "a single pixel"):
        co.verify(one, image(1, 1, 1), eps=0.1, k=1)


def test_nan_weights_are_the_models_fault():
    model = seeded(Plain)
    with torch.no_grad():
        model.head.weight[0, 0] = NAN
    with refuses(co.InputError, "'head.weight' holds NaN"):
        co.from_torch(model, image(1, 6, 6))
