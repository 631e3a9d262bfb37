"""What does not depend on the image is calculated; what does becomes steps; the rest is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from nets import seeded
from onnx import TensorProto, helper
from onnx_models import Array, answered, node, proto, run, weights
from torch import nn

import corgi_opt as co
from corgi_opt.network.onnx import building, reading
from corgi_opt.network.onnx.module import OnnxModule
from corgi_opt.network.onnx.network import read_onnx

X = (1, 2, 4, 5)


def image(shape: tuple[int, ...] = X) -> Array:
    return np.random.default_rng(0).normal(0.2, 1.0, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def built(model: onnx.ModelProto, output: str | None = None, fill: tuple[int, ...] | None = None) -> OnnxModule:
    return building.module(reading.program(model), output, fill)


def constant(value: int) -> onnx.TensorProto:
    return helper.make_tensor("c", TensorProto.INT64, np.shape(value), np.ravel(value).tolist())


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (
            [  # flatten, as torch's exporter writes it where it does not know the batch
                node("Shape", ["x"], ["s"]),
                node("Constant", [], ["zero"], value=constant(0)),
                node("Gather", ["s", "zero"], ["n"], axis=0),
                node("Unsqueeze", ["n", "axis"], ["rows"]),
                node("Concat", ["rows", "rest"], ["wanted"], axis=0),
                node("Reshape", ["x", "wanted"], ["y"]),
            ],
            {"axis": ints(0), "rest": ints(-1)},
        ),
        (
            [  # x[:, :, h // 2:], by whole numbers
                node("Shape", ["x"], ["s"], start=2, end=3),
                node("Div", ["s", "two"], ["half"]),
                node("Slice", ["x", "half", "s", "axis"], ["y"]),
            ],
            {"two": ints(2), "axis": ints(2)},
        ),
        (
            [  # an expand that is guarded by Where, as exporters write -1
                node("ConstantOfShape", ["four"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
                node("Mul", ["ones", "minus"], ["alike"]),
                node("Equal", ["wanted", "alike"], ["open"]),
                node("Where", ["open", "ones", "wanted"], ["shape"]),
                node("Expand", ["x", "shape"], ["y"]),
            ],
            {"four": ints(4), "minus": ints(-1), "wanted": ints(-1, 2, -1, 5)},
        ),
        (
            [  # weights out of nothing
                node("ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.3])),
                node("Range", ["start", "end", "step"], ["r"]),
                node("Cast", ["r"], ["bias"], to=TensorProto.FLOAT),
                node("Conv", ["x", "w", "bias"], ["y"]),
            ],
            {"shape": ints(3, 2, 2, 2), "start": np.int64(1), "end": np.int64(7), "step": np.int64(2)},
        ),
        (
            [  # a batch norm by hand: sqrt, reciprocal and power of constants
                node("Add", ["v", "eps"], ["w"]),
                node("Sqrt", ["w"], ["deviation"]),
                node("Reciprocal", ["deviation"], ["scale"]),
                node("Pow", ["scale", "two"], ["square"]),
                node("Log", ["v"], ["log"]),
                node("Mul", ["x", "square"], ["z"]),
                node("Sub", ["z", "log"], ["y"]),
            ],
            {
                "v": np.array([[[0.5]], [[2.0]]], np.float32),
                "eps": np.float32(0.1),
                "two": np.float32(2),
            },
        ),
        (
            [  # truth values
                node("Greater", ["a", "b"], ["g"]),
                node("LessOrEqual", ["a", "b"], ["l"]),
                node("GreaterOrEqual", ["a", "b"], ["ge"]),
                node("Less", ["a", "b"], ["lt"]),
                node("Xor", ["g", "l"], ["xor"]),
                node("And", ["xor", "ge"], ["and"]),
                node("Or", ["and", "lt"], ["or"]),
                node("Not", ["or"], ["not"]),
                node("Where", ["not", "a", "b"], ["c"]),
                node("CastLike", ["c", "x"], ["d"]),
                node("Mod", ["e", "b"], ["f"]),
                node("Gather", ["d", "f"], ["h"]),
                node("Size", ["x"], ["size"]),
                node("Cast", ["size"], ["s"], to=TensorProto.FLOAT),
                node("Sum", ["x", "h", "s"], ["y"]),
            ],
            {"a": ints(1, 5, 3, 2, 2), "b": ints(2, 4, 3, 1, 9), "e": ints(-7, 9, 4, 0, 2)},
        ),
        (
            [node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), node("Cast", ["d"], ["y"], to=TensorProto.FLOAT)],
            {},
        ),
        (
            [
                node("Constant", [], ["a"], value_float=0.5),
                node("Constant", [], ["b"], value_floats=[0.5, 1, 2, 3, 4]),
                node("Constant", [], ["i"], value_int=1),
                node("Constant", [], ["j"], value_ints=[1, 0]),
                node("Gather", ["b", "i"], ["c"]),
                node("Gather", ["x", "j"], ["p"], axis=1),
                node("Sum", ["p", "a", "b", "c"], ["y"]),
            ],
            {},
        ),
    ],
    ids=["flatten", "half", "expand", "weights", "powers", "truth", "casts", "constants"],
)
def test_what_is_constant_is_calculated_as_onnxruntime_does(nodes, constants):
    x = image()
    model, wanted = answered(proto(nodes, constants, X, opset=18), x)
    module = built(model)
    found = module(torch.from_numpy(x).double()).numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert {step.op for step in module.steps()} <= {
        "Reshape",
        "Slice",
        "Expand",
        "Conv",
        "Mul",
        "Sub",
        "Sum",
        "Cast",
        "Gather",
    }


def two_heads(**given: Any) -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], ["features"]),
        node("GlobalAveragePool", ["features"], ["pooled"]),
        node("Flatten", ["pooled"], ["scores"]),
        node("Softmax", ["scores"], ["probabilities"]),
    ]
    return proto(nodes, weights(0, w=(3, 2, 2, 2)), **{"image": X, "output": {"scores": (1, 3)}, **given})


def test_the_class_scores_are_chosen_or_named():
    only = two_heads()
    assert built(only).output == "scores"
    several = two_heads(output={"features": (1, 3, 3, 4), "scores": ("N", 3)})
    assert built(several).output == "scores"
    assert built(several, "pooled").output == "pooled"
    doubtful = two_heads(output={"scores": (1, 3), "probabilities": (1, 3)})
    with pytest.raises(co.InputError, match=r"several outputs.*'scores', 'probabilities'"):
        built(doubtful)
    with pytest.raises(co.InputError, match="no value 'nothing'"):
        built(only, "nothing")
    softmax = two_heads(output={"probabilities": (1, 3)})
    assert built(softmax).output == "probabilities" and built(softmax, "scores").output == "scores"


def test_what_the_output_does_not_need_is_left_out():
    model = two_heads()
    assert [step.op for step in built(model).steps()] == ["Conv", "GlobalAveragePool", "Flatten"]
    assert [step.op for step in built(model, "features").steps()] == ["Conv"]


@pytest.mark.parametrize("dims", [("N", 2, "H", "W"), (None, 2, 4, None), ("N", "C", "H", "W")])
def test_open_sizes_are_those_of_the_image(dims):
    model = two_heads(image=dims)
    for shape in ((2, 4, 5), (1, 2, 4, 5)):
        assert read_onnx(model, shape).shape == X
    with pytest.raises(co.InputError, match=r"open sizes.*input_shape"):
        read_onnx(model)
    with pytest.raises(co.InputError, match="channels"):
        read_onnx(model, (3, 4, 5)) if dims[1] != 2 else read_onnx(two_heads(image=(1, 3, 4, 5)))
    wrongs: tuple[Any, ...] = ((4, 5), (2, 2, 4, 5), "abc", (2, 0, 5), (2, 4.5, 5))
    for wrong in wrongs:
        with pytest.raises(co.InputError, match="input_shape"):
            read_onnx(model, wrong)


def test_an_open_batch_is_one_image():
    assert read_onnx(two_heads(image=("N", *X[1:]))).shape == X
    with pytest.raises(co.InputError, match="batch of 8"):
        read_onnx(two_heads(image=(8, *X[1:])))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"image": (1, 2, 4)}, "3 axes"),
        ({"element": TensorProto.UINT8}, "images are floats"),
        ({"opset": 8}, "opset 8; 9 to"),
        ({"opset": 999}, "opset 999"),
    ],
)
def test_what_is_no_image_network_is_refused(given, why):
    with pytest.raises(co.InputError, match=why):
        built(two_heads(**given))


def test_the_image_is_one_input():
    model = two_heads()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, X))
    assert built(model).image == "x"  # nobody reads the other
    model.graph.node.insert(0, node("Add", ["x", "z"], ["sum"]))
    model.graph.node[1].input[0] = "sum"
    with pytest.raises(co.InputError, match=r"one input.*'x', 'z'"):
        built(model)


def test_unknown_operations_are_named_all_at_once():
    model = two_heads()
    model.graph.node.insert(1, node("LRN", ["features"], ["n"], size=3))
    model.graph.node[2].input[0] = "n"
    extra = node("Strange", ["x"], ["s"])
    extra.domain = "com.somebody"
    model.graph.node.append(extra)
    model.opset_import.append(helper.make_opsetid("com.somebody", 1))
    with pytest.raises(co.UnsupportedOpError, match=r"the_n: ONNX LRN.*batch norm.*com.somebody.Strange \(the_s\)"):
        built(model)


def test_a_second_output_of_a_pool_is_refused_by_name():
    nodes = [node("MaxPool", ["x"], ["p", "places"], kernel_shape=[2, 2]), node("Cast", ["places"], ["y"], to=1)]
    with pytest.raises(co.UnsupportedOpError, match="output 1 of ONNX MaxPool"):
        built(proto(nodes, {}, X, {"y": (1, 2, 3, 4)}))


def test_a_shape_that_depends_on_the_image_is_refused():
    nodes = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        node("Reshape", ["x", "i"], ["y"]),
    ]
    with pytest.raises(co.UnsupportedOpError, match="rounds"):
        built(proto(nodes, {}, X, {"y": (1, 3)}))
    nodes = [node("Clip", ["x", "x"], ["y"])]
    with pytest.raises(co.UnsupportedOpError, match="depends on the image"):
        built(proto(nodes, {}, X, {"y": (1, 3)}))
    nodes = [node("Identity", ["w"], ["y"])]
    with pytest.raises(co.InputError, match="one input"):
        built(proto(nodes, weights(0, w=(1, 3)), X, {"y": (1, 3)}))
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["y"], to=1)]
    with pytest.raises(co.UnsupportedOpError, match="does not depend on the image"):
        built(proto(nodes, {}, X, {"y": (4,)}))


def test_weights_that_are_no_numbers_are_refused():
    model = two_heads()
    bad = weights(0, w=(3, 2, 2, 2))
    bad["w"][0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(proto([], bad, X).graph.initializer[0])
    with pytest.raises(co.InputError, match="'w' holds NaN"):
        built(model)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_half_and_double_precision_are_read_as_they_are(kind):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    w = weights(0, w=(3, 2, 2, 2))["w"].astype(kind)
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[2, 3], keepdims=0)]
    model = proto(nodes, {"w": w}, X, {"y": (1, 3)}, element=element)
    module = read_onnx(model)
    x = image().astype(kind)
    exact = torch.conv2d(torch.from_numpy(x).double(), torch.from_numpy(w).double()).mean((2, 3))
    torch.testing.assert_close(module(torch.from_numpy(x).double()), exact, rtol=1e-12, atol=1e-12)
    assert next(module.parameters()).dtype == torch.float64


def test_bfloat16_weights_are_read_bit_by_bit():
    values = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    w = helper.make_tensor(
        "w", TensorProto.BFLOAT16, values.shape, values.view(torch.uint16).numpy().tobytes(), raw=True
    )
    nodes = [node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("Conv", ["x", "f"], ["y"])]
    model = proto(nodes, {}, X, {"y": (1, 3, 3, 4)})
    model.graph.initializer.append(w)
    held = built(model).constants()["f"]
    assert torch.equal(held, values.double())


def test_a_run_keeps_no_value_longer_than_it_is_read():
    nodes = [node("Relu", ["x"], ["a"]), node("Add", ["a", "x"], ["b"]), node("Relu", ["b"], ["y"])]
    steps = list(built(proto(nodes, {}, X, {"y": X})).steps())
    assert [step.last for step in steps] == [(), ("a", "x"), ("b",)]


def test_an_image_of_another_shape_is_refused():
    module = built(two_heads())
    with pytest.raises(co.InputError, match="takes an image of shape"):
        module(torch.zeros(1, 2, 5, 5, dtype=torch.float64))


def test_names_of_any_kind_are_kept_apart():
    nodes = [
        node("Relu", ["x"], ["a.b"]),
        node("Relu", ["a.b"], ["a/b"]),
        node("Relu", ["a/b"], ["forward"]),
        node("Conv", ["forward", "training"], ["y"]),
    ]
    for n, name in zip(nodes, ("r.1", "r.1", "forward", ""), strict=True):
        n.name = name
    model = proto(nodes, weights(0, training=(1, 2, 1, 1)), X, {"y": (1, 1, 4, 5)})
    x = image()
    found = built(model)(torch.from_numpy(x).double()).numpy()
    for n in model.graph.node:  # onnxruntime takes no name twice
        n.name = ""
    np.testing.assert_allclose(found, run(model, x)[0], atol=1e-5)


class Branches(nn.Module):
    """An exporter's arithmetic on sizes: a view by size, a chunk, an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.conv(x).chunk(2, 1)
        up = nn.functional.interpolate(torch.cat([a, b], 1), scale_factor=2.0)
        return self.fc(up.view(up.size(0), up.size(1), -1).mean(2))


def test_what_torch_writes_with_an_open_batch_is_read():
    from onnx_models import exported

    model, x = seeded(Branches), torch.rand(1, 1, 5, 6)
    for axes in (None, {"x": {0: "batch"}}, {"x": {0: "batch", 2: "h", 3: "w"}}):
        file = exported(model, x, input_names=["x"], dynamic_axes=axes)
        module = built(file, None, (1, 5, 6))
        torch.testing.assert_close(module(x.double()).float(), model(x).detach(), atol=1e-5, rtol=1e-5)
