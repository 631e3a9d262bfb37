"""What is read is compared with onnxruntime, operation by operation; what was not compared says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from missing import hidden
from onnx import TensorProto
from onnx_models import node, proto, weights
from torch import Tensor

import corgi_opt as co
from corgi_opt.network.onnx import building, layers, pooling, reading, runtime
from corgi_opt.network.onnx.module import OnnxModule
from corgi_opt.network.onnx.network import read_onnx
from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import TABLE, TERMS, Prepare

X = (1, 2, 6, 6)


def small(gemm: dict[str, Any] | None = None, **given: Any) -> onnx.ModelProto:
    gemm = gemm or {}
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], auto_pad="SAME_LOWER", strides=[2, 2]),
        node("BatchNormalization", ["a", "s", "t", "m", "v"], ["n"]),
        node("Sub", ["n", "s1"], ["u"]),
        node("Relu", ["u"], ["r"]),
        node("ReduceMean", ["r"], ["p"], axes=[2, 3], keepdims=0),
        node("Gemm", ["p", "g", "c"], ["y"], transB=1, **gemm),
    ]
    held = weights(0, w=(3, 2, 2, 2), b=(3,), s=(3,), t=(3,), m=(3,), g=(4, 3), c=(4,), s1=(3, 1, 1))
    held["v"], held["t"] = np.array([0.5, 1, 2], np.float32), np.array([-0.5, 0, 0.5], np.float32)
    return proto(nodes, held, X, **{"output": {"y": (1, 4)}, **given})


def test_what_was_compared_says_so():
    net = co.from_onnx(small())
    assert isinstance(net.model, OnnxModule) and net.model.origin.compared
    assert "compared with onnxruntime" in net.note and net.note in repr(net)


def test_a_network_of_torch_has_no_note():
    from nets import Plain, image, seeded

    net = co.from_torch(seeded(Plain), image(1, 6, 6))
    assert net.note == "" and repr(net).endswith("input (1, 6, 6))")


def test_without_onnxruntime_it_says_that(monkeypatch):
    with hidden(monkeypatch, "onnxruntime"):
        net = co.from_onnx(small())
    assert isinstance(net.model, OnnxModule) and not net.model.origin.compared
    assert "onnxruntime is not installed" in net.note and "compared with nothing" in repr(net)


def test_without_onnx_the_way_out_is_named(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    with hidden(monkeypatch, "onnx"), pytest.raises(co.MissingPackageError) as caught:
        co.from_onnx(path)
    assert (caught.value.package, caught.value.pip) == ("onnx", "pip install 'corgi_opt[onnx]'")


def test_what_onnxruntime_does_not_run_says_so():
    """It has no convolution in float64."""
    held = {"w": weights(0, w=(3, 2, 2, 2))["w"].astype(np.float64)}
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[2, 3], keepdims=0)]
    module = read_onnx(proto(nodes, held, X, {"y": (1, 3)}, element=TensorProto.DOUBLE))
    assert not module.origin.compared
    assert "does not run the file" in module.origin.note and "compared with nothing" in module.origin.note


def misread(op: str, change: Callable[[Tensor, Tensor], Tensor]) -> Prepare:
    """The operation as somebody might have read it: another function of what it gives and its first operand."""
    right = TABLE[op]

    def prepare(call: Call) -> Run:
        run: Any = right(call)
        return lambda *x: change(run(*x), x[0])

    return prepare


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("Conv", lambda y, x: y + 1e-3),
        ("Conv", lambda y, x: y.flip(2)),
        ("Conv", lambda y, x: y[:, :, 1:]),
        ("BatchNormalization", lambda y, x: y * 1.001),
        ("Relu", lambda y, x: x.abs()),
        ("Relu", lambda y, x: torch.nn.functional.leaky_relu(x, 1e-3)),
        ("ReduceMean", lambda y, x: 2 * y),
        ("Gemm", lambda y, x: y - 1e-3),
        ("Sub", lambda y, x: -y),
        ("Sub", lambda y, x: y * float("nan")),
    ],
)
def test_a_misread_operation_is_seen(monkeypatch, op, change):
    monkeypatch.setitem(TABLE, op, misread(op, change))
    with pytest.raises((co.ParityError, co.InputError), match=f"{op}.*differs|{op}.*gives|malformed"):
        read_onnx(small())


def swapped(w: layers.Windows) -> layers.Windows:
    return layers.Windows(w.size, w.kernel, w.stride, w.dilation, w.after, w.before)


def test_automatic_padding_on_the_other_side_is_seen(monkeypatch):
    nodes = [node("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], auto_pad="SAME_UPPER")]
    model = proto(nodes, {}, X, {"y": X})
    assert read_onnx(model).origin.compared
    own = layers.windows
    monkeypatch.setattr(pooling, "windows", lambda call: swapped(own(call)))
    with pytest.raises(co.ParityError, match=r"MaxPool.*differs from onnxruntime"):
        read_onnx(model)


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e6, 1e18])
def test_what_is_small_or_large_is_compared_as_well(monkeypatch, scale):
    """Rounding is relative to what an operation adds up, not to one."""
    held = weights(0, w=(3, 2, 2, 2))
    held["w"] *= np.float32(scale)
    model = proto([node("Conv", ["x", "w"], ["y"])], held, X, {"y": (1, 3, 5, 5)})
    assert read_onnx(model).origin.compared
    monkeypatch.setitem(TABLE, "Conv", misread("Conv", lambda y, x: y + 1e-3 * scale))
    with pytest.raises(co.ParityError, match="differs"):
        read_onnx(model)


@pytest.mark.parametrize(
    "gemm", [{}, {"alpha": -1.0}, {"beta": -2.0}, {"alpha": -0.5, "beta": -1.0}, {"alpha": 0.0, "beta": 0.0}]
)
def test_sizes_of_sums_are_at_least_the_sums(gemm):
    program = reading.program(small(gemm))
    module = building.module(program, None, None)
    x = torch.randn(X, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = {**module.constants(), module.image: x}
    seen = 0
    for step in module.steps():
        operands: list[Tensor | None] = [values[name] for name in step.inputs]
        values[step.outputs[0]] = made = step(*operands)
        size = runtime._size(step, operands)
        assert (size is None) == (step.op not in TERMS)
        if size is not None:
            assert bool((made.abs() <= size * (1 + 1e-12)).all())
            seen += 1
    assert seen == 5


def test_half_precision_is_compared_as_such():
    held = {name: w.astype(np.float16) for name, w in weights(0, w=(3, 2, 2, 2)).items()}
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    model = proto(nodes, held, X, {"y": (1, 3, 5, 5)}, element=TensorProto.FLOAT16)
    assert read_onnx(model).origin.compared
