"""The caller's model and tensors are what they were, whatever is called and however it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.modules.module as module_hooks
from awkward import AWKWARD, Base, Returns, Snapshot
from nets import image
from patience import mostly_slow
from torch import nn

import corgi_opt as co
from corgi_opt.network.standin import stand_in

X = image(1, 5, 5, seed=1)
ASKED: dict[str, Any] = {"eps": 0.004, "k": 3}


def refused(call: Callable[..., object], *given: object, **more: object) -> None:
    with pytest.raises(co.InputError):
        call(*given, **more)


CALLS: dict[str, Callable[[co.CamNetwork, nn.Module, torch.Tensor], object]] = {
    "from_torch": lambda net, model, x: co.from_torch(model, x),
    "check_model": lambda net, model, x: co.check_model(model, x),
    "verify": lambda net, model, x: co.verify(net, x, **ASKED),
    "verify, checked": lambda net, model, x: co.verify(net, x, proof="checked", **ASKED).certificate,
    "radius": lambda net, model, x: co.radius(net, x, k=3, rtol=0.2),
    "compare": lambda net, model, x: co.compare(net, x, k=3, eps=0.004, methods=["corgi", "lp"]),
    "attack": lambda net, model, x: co.attack(net, x, eps=0.1, k=3),
    "heat_map": lambda net, model, x: co.heat_map(net, x, **ASKED),
    "bounds": lambda net, model, x: co.bounds(net, co.Ball(x, 0.01)),
    "cams": lambda net, model, x: (net.cam(x), net.logits(x), net.model_cam(x, 0), net.model_logits(x), net.image(x)),
    "a refused image": lambda net, model, x: refused(co.verify, net, x[0], **ASKED),
    "a refused model": lambda net, model, x: refused(co.from_torch, model, x[0]),
}


ALIKE = (
    *("lock", "generator", "to half", "float16", "float64", "pruned", "spectral", "tuple", "dataclass"),
    *("relu on", "by a hook", "bound anew", "counts", "plain tensors", "open file", "casts", "holds itself"),
)
"""Words of models that are like another one here."""


@pytest.mark.parametrize("name", mostly_slow(AWKWARD, [n for n in AWKWARD if not any(word in n for word in ALIKE)]))
def test_nothing_of_the_callers_changes(name, tmp_path):
    model, x = AWKWARD[name]().eval(), X.clone()
    before = Snapshot.of(model, x)
    net = co.from_torch(model, x)
    assert Snapshot.of(model, x) == before
    for what, call in CALLS.items():
        call(net, model, x)
        assert Snapshot.of(model, x) == before, what
    brightest = net.cam(x).flatten().argsort(descending=True)
    co.export_mps(net, x, tmp_path / "pair.mps", pair=(int(brightest[2]), int(brightest[3])), **ASKED)
    co.export_vnnlib(net, x, tmp_path / "files", **ASKED)
    co.verify(net, x, **ASKED).prove().save(tmp_path / "a.cert")
    co.check_certificate(tmp_path / "a.cert", model)
    assert Snapshot.of(model, x) == before


def test_every_public_function_that_takes_a_model_or_an_image_is_called():
    functions = {name: f for name in co.__all__ if inspect.isfunction(f := getattr(co, name))}
    takes = {n for n, f in functions.items() if {"x", "model", "ball"} & {*inspect.signature(f).parameters}}
    called = {word for what in CALLS for word in (what, what.partition(",")[0])} | {
        "export_mps",
        "export_vnnlib",
        "check_certificate",
    }
    # the first is there to write to a model, the next takes a file or bytes, the last is called in tests/test_plots.py
    others = {"load_weights", "from_onnx", "plot_cam"}
    assert takes - called == others


@pytest.mark.parametrize("name", [n for n in AWKWARD if "returns" not in n and "casts" not in n])
def test_it_is_read_as_what_it_computes(name):
    model = AWKWARD[name]().eval()
    net = co.from_torch(model, X)
    with torch.no_grad():
        said = model(X.to(next(model.parameters()).dtype).clone())
    tolerance = 1e-2 if said.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(net.logits(X), said.flatten().double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(net.model_cam(X, 1), net.cam(X, 1), rtol=1e-12, atol=1e-14)


def test_casts_are_identities():
    net, plain = (co.from_torch(build().eval(), X) for build in (AWKWARD["casts to half"], Base))
    assert torch.equal(net.cam(X, 0), plain.cam(X, 0))
    assert torch.equal(net.model_cam(X, 0), plain.model_cam(X, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_on_moves_neither_bounds_nor_replay(dtype):
    model, x = Base().to(dtype).eval(), X.to(dtype)
    net = co.from_torch(model, x)
    before = (net.cam(x, 0), net.model_cam(x, 0), co.radius(net, x, k=3, class_idx=0).lower)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-0.5)
    after = (net.cam(x, 0), net.model_cam(x, 0), co.radius(net, x, k=3, class_idx=0).lower)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2] == after[2]


def test_an_image_that_is_changed_later_is_not_the_one_asked_about():
    net, x = co.from_torch(Base().eval(), X), X.double().clone()
    ball = co.Ball(x, 0.01)
    found = net.image(x)
    x.zero_()
    assert torch.equal(found, X.double()) and torch.equal(ball.center, X.double())


def test_a_model_that_writes_into_its_input_is_its_own_function():
    """The same verdicts as of the model that writes to a copy."""

    class Copies(Base):
        def forward(self, x):
            return super().forward((x - 0.25) * 1.5)

    writes, copies = (co.from_torch(build().eval(), X) for build in (AWKWARD["writes into its input"], Copies))
    for eps in (0.001, 0.02, 0.1):
        a, b = (co.verify(net, X, eps=eps, k=3, class_idx=0) for net in (writes, copies))
        assert a.status == b.status
        assert a.counterexample is None or a.counterexample.distance <= eps


CHANGING = {
    "another value": lambda m: m.register_forward_hook(lambda m, i, o: 2 * o),
    "none at this image": lambda m: m.register_forward_hook(lambda m, i, o: o.clamp(max=1e6)),
    "its input": lambda m: m[1].register_forward_hook(lambda m, i, o: i[0]),
    "in place": lambda m: m.register_forward_hook(lambda m, i, o: (o.clamp_(max=1e6), None)[1]),
    "of its inputs": lambda m: m.register_forward_pre_hook(lambda m, i: (i[0] * 1.0,)),
    "with keywords": lambda m: m.register_forward_hook(lambda m, i, k, o: o + 0, with_kwargs=True),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_hook_that_changes_values_is_refused_and_the_hint_helps(name):
    model = Base().eval()
    handle = CHANGING[name](model.body)
    with pytest.raises(co.InputError, match=r"hook on 'body(\.1)?' changes what the model computes"):
        co.from_torch(model, X)
    handle.remove()
    co.from_torch(model, X)


def test_hooks_that_give_back_what_they_got_only_look():
    model = Base().eval()
    model.body.register_forward_hook(lambda m, i, o: o)
    model.body.register_forward_pre_hook(lambda m, i: i)
    model.head.register_forward_hook(lambda m, i, k, o: None, with_kwargs=True)
    co.from_torch(model, X)


def test_hooks_on_all_modules_stay_silent():
    seen = []
    handle = module_hooks.register_module_forward_hook(lambda m, i, o: seen.append(o))
    try:
        net = co.from_torch(Base().eval(), X)
        co.verify(net, X, **ASKED)
    finally:
        handle.remove()
    assert not seen and not module_hooks._global_forward_hooks


def test_a_stand_in_keeps_what_is_shared_shared():
    model: Any = AWKWARD["one layer twice"]()
    copy: Any = stand_in(model, torch.float64)
    assert copy.again is copy.body[2] and copy.again.weight is copy.body[2].weight
    assert copy.again.weight.dtype == torch.float64 and model.again.weight.dtype == torch.float32
    assert copy.again.weight.data_ptr() != model.again.weight.data_ptr()
    itself: Any = stand_in(AWKWARD["holds itself"]())
    assert itself.me[0] is itself


def test_a_buffer_that_forward_reads_and_changes_is_refused():
    class Drifts(Base):
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.zeros(1))

        def forward(self, x):
            self.shift += 0.1
            return super().forward(x + self.shift)

    model = Drifts().eval()
    with pytest.raises(co.UnsupportedOpError, match="shift"):
        co.from_torch(model, X)
    assert float(model.shift) == 0


def test_what_is_returned_beside_the_logits_has_to_be_named():
    model = Returns(lambda logits, features: (logits, features)).eval()
    with pytest.raises(co.UnsupportedOpError, match=r"returns tuple of 2 tensors.*model\(x\)\[0\]"):
        co.from_torch(model, X)
    assert co.check_model(model, X)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[0]

    co.from_torch(Logits().eval(), X)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda y, f: None, "returns NoneType"),
        (lambda y, f: y[0], "flatten"),
        (lambda y, f: y.argmax(1, keepdim=True), "int64"),
        (lambda y, f: torch.ones(1, 2), "does not depend on the image"),
        (lambda y, f: (1, "text"), "returns tuple"),
    ],
)
def test_what_is_no_row_of_scores_is_refused(returned, message):
    with pytest.raises(co.UnsupportedOpError, match=message):
        co.from_torch(Returns(returned).eval(), X)


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (1, 1, 0, 5)])
def test_an_example_that_the_model_cannot_take_is_an_input_error(shape):
    with pytest.raises(co.InputError, match="shape"):
        co.from_torch(Base().eval(), torch.rand(shape))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of TorchScript
def test_compiled_models_are_read_as_what_was_compiled():
    expected = co.from_torch(Base().eval(), X).cam(X, 0)
    compiled_models: tuple[Any, ...] = (torch.compile(Base().eval()), nn.DataParallel(Base()).eval())
    for compiled in compiled_models:
        assert torch.equal(co.from_torch(compiled, X).cam(X, 0), expected)
    with pytest.raises(co.InputError, match="TorchScript"):
        co.from_torch(torch.jit.trace(Base().eval(), X), X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_inside_forward_change_nothing(mode):
    class Frozen(Base):
        def forward(self, x):
            with mode():
                features = self.body(x)
            return self.head(features.mean((2, 3)))

    expected = co.from_torch(Base().eval(), X)
    net = co.from_torch(Frozen().eval(), X)
    assert torch.equal(net.cam(X, 0), expected.cam(X, 0)) and torch.equal(net.model_cam(X, 0), expected.cam(X, 0))
    with mode():
        made = Base().eval()
    assert torch.equal(co.from_torch(made, X).cam(X, 0), expected.cam(X, 0))


def test_maps_of_scores_are_no_head():
    with pytest.raises(co.NoCamHeadError, match="ends in maps"):
        co.from_torch(Returns(lambda y, f: f).eval(), X)


def test_weights_without_values_are_refused_and_the_hints_help():
    lazy = nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)).eval()
    with pytest.raises(co.InputError, match=r"run model\(example\) once"):
        co.from_torch(lazy, X)
    lazy(X)
    co.from_torch(lazy, X)

    with torch.device("meta"):
        meta = Base().eval()
    with pytest.raises(co.InputError, match="meta device"):
        co.from_torch(meta, X)
    meta.to_empty(device="cpu").load_state_dict(Base().state_dict())
    co.from_torch(meta, X)

    class Extra(Base):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            pass

    co.from_torch(Extra().eval(), X)
    exported = torch.export.export(Base().eval(), (X,)).module()
    assert torch.allclose(co.from_torch(exported, X).cam(X, 0), co.from_torch(Base().eval(), X).cam(X, 0))
