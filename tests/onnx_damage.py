"""Damaged and hostile ONNX files: what a byte, a field or a name may be changed to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_models import node, proto, weights

from corgi_opt.network.onnx.table import TABLE

Model = onnx.ModelProto

SIZES = (-(2**63), -(2**31), -5, -1, 0, 1, 2, 3, 7, 1000, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
REALS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 0.5)


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def whole() -> Model:
    """A small net with most kinds of node: windows, shapes, a resize, constants, a dense head."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=1),
        node("BatchNormalization", ["a", "s", "t", "m", "v"], ["b"], epsilon=1e-3),
        node("Relu", ["b"], ["c"]),
        node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Resize", ["d", "", "scales"], ["e"], mode="nearest", nearest_mode="floor"),
        node("Pad", ["e", "pads", "value"], ["f"], mode="constant"),
        node("Slice", ["f", "starts", "ends", "axes", "steps"], ["g"]),
        node("Split", ["g", "sizes"], ["h1", "h2"], axis=1),
        node("Concat", ["h1", "h2"], ["h"], axis=1),
        node("Transpose", ["h"], ["i"], perm=[0, 1, 3, 2]),
        node("ConvTranspose", ["i", "w2"], ["j"], strides=[1, 1], pads=[0, 0, 0, 0]),
        node("AveragePool", ["j"], ["k"], kernel_shape=[2, 2], auto_pad="SAME_UPPER", count_include_pad=1),
        node("Clip", ["k", "low", "high"], ["l"]),
        node("Shape", ["l"], ["shape"]),
        node("Gather", ["shape", "first"], ["n"], axis=0),
        node("Concat", ["n", "rest"], ["wanted"], axis=0),
        node("GlobalAveragePool", ["l"], ["p"]),
        node("Reshape", ["p", "wanted"], ["q"]),
        node("ConstantOfShape", ["dense"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])),
        node("Mul", ["w3", "ones"], ["w4"]),
        node("Gemm", ["q", "w4", "b3"], ["y"], transB=1, alpha=1.0),
    ]
    held = weights(0, w1=(4, 2, 3, 3), b1=(4,), s=(4,), t=(4,), m=(4,), w2=(4, 3, 2, 2), w3=(5, 3), b3=(5,))
    held["v"] = np.full(4, 0.7, np.float32)
    held |= {"scales": np.array([1, 1, 2, 2], np.float32), "pads": ints(0, 0, 1, 1, 0, 0, 0, 1)}
    held |= {
        "value": np.float32(0),
        "starts": ints(0, 1),
        "ends": ints(6, 2**40),
        "axes": ints(2, 3),
        "steps": ints(1, 1),
    }
    held |= {"sizes": ints(1, 3), "low": np.float32(0), "high": np.float32(6), "first": ints(0), "rest": ints(-1)}
    held["dense"] = ints(5, 3)
    return proto(nodes, held, (1, 2, 5, 6), {"y": (1, 5)})


def _tensor(rng: random.Random, model: Model) -> None:
    t = rng.choice(model.graph.initializer)
    how = rng.randrange(6)
    if how == 0 and len(t.dims):
        t.dims[rng.randrange(len(t.dims))] = rng.choice(SIZES)
    elif how == 1:
        t.data_type = rng.randrange(30)
    elif how == 2:
        t.raw_data = t.raw_data[: rng.randrange(len(t.raw_data) + 1)]
    elif how == 3:
        t.dims.extend([rng.choice(SIZES)] * rng.choice((1, 1, 40)))
    elif how == 4:
        t.ClearField("raw_data")
        t.float_data.extend([rng.choice(REALS)] * rng.randrange(5))
    else:
        t.data_location = TensorProto.EXTERNAL
        entry = t.external_data.add()
        entry.key, entry.value = (
            "location",
            rng.choice(("../x", "/etc/passwd", "", ".", "a/../../x", "C:\\x", "\0", "y")),
        )
        if rng.random() < 0.5:
            entry = t.external_data.add()
            entry.key, entry.value = rng.choice(("offset", "length")), rng.choice(("-1", "1e9", str(2**70), "x", "4"))


def _values(rng: random.Random, model: Model) -> None:
    """The numbers in a tensor of integers, or of floats."""
    t = rng.choice(model.graph.initializer)
    kind = {TensorProto.INT64: np.int64, TensorProto.FLOAT: np.float32}.get(t.data_type)
    if kind is None or not t.raw_data:
        return
    array = np.frombuffer(t.raw_data[: len(t.raw_data) // 8 * 8], dtype=kind).copy()
    if not len(array):
        return
    array[rng.randrange(len(array))] = rng.choice(SIZES if kind is np.int64 else REALS)
    t.raw_data = array.tobytes()


def _attribute(rng: random.Random, model: Model) -> None:
    n = rng.choice([n for n in model.graph.node if n.attribute])
    a = rng.choice(n.attribute)
    how = rng.randrange(7)
    if how == 0 and a.ints:
        a.ints[rng.randrange(len(a.ints))] = rng.choice(SIZES)
    elif how == 1 and a.ints:
        del a.ints[rng.randrange(len(a.ints)) :]
    elif how == 2:
        a.ints.append(rng.choice(SIZES))
    elif how == 3:
        a.i = rng.choice(SIZES)
    elif how == 4:
        a.f = rng.choice(REALS)
    elif how == 5:
        a.type = rng.randrange(15)
    else:
        a.name = rng.choice(("axis", "pads", "mode", "group", "no_such", ""))


def _wiring(rng: random.Random, model: Model) -> None:
    names = [n for each in model.graph.node for n in (*each.input, *each.output)] + ["", "nothing"]
    n = rng.choice(model.graph.node)
    ends = rng.choice((n.input, n.output))
    if rng.random() < 0.2:
        ends.append(rng.choice(names))
    elif len(ends):
        ends[rng.randrange(len(ends))] = rng.choice(names)


def _order(rng: random.Random, model: Model) -> None:
    nodes = [n for n in model.graph.node if rng.random() > 0.05]
    if rng.random() < 0.5:
        rng.shuffle(nodes)
    if rng.random() < 0.3 and nodes:
        nodes.append(rng.choice(nodes))
    kept = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _operation(rng: random.Random, model: Model) -> None:
    n = rng.choice(model.graph.node)
    n.op_type = rng.choice([*TABLE, "If", "Loop", "LSTM", "Scan", ""])
    if rng.random() < 0.5:
        del n.attribute[:]
    if rng.random() < 0.1:
        n.domain = "elsewhere"


def _ports(rng: random.Random, model: Model) -> None:
    port = rng.choice([*model.graph.input, *model.graph.output])
    shape = port.type.tensor_type.shape
    how = rng.randrange(5)
    if how == 0 and len(shape.dim):
        shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice(SIZES)
    elif how == 1:
        shape.dim.add().dim_param = "n"
    elif how == 2:
        port.type.tensor_type.elem_type = rng.randrange(30)
    elif how == 3:
        port.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        port.name = rng.choice(("", "x", "y", "a", "w1"))


def _model(rng: random.Random, model: Model) -> None:
    how = rng.randrange(4)
    if how == 0:
        model.opset_import[0].version = rng.choice((*SIZES, 9, 10, 11, 13, 18, 23))
    elif how == 1:
        model.ir_version = rng.choice(SIZES)
    elif how == 2:
        model.opset_import[0].domain = "ai.onnx.ml"
    else:
        model.graph.ClearField(rng.choice(("node", "input", "output", "initializer")))


CHANGES: tuple[Callable[[random.Random, Model], None], ...] = (
    *(_tensor, _values, _attribute, _wiring, _order, _operation, _ports, _model),
    *(_values, _attribute, _operation),
)


def damaged_model(rng: random.Random, model: Model) -> Model:
    """One to three changes of a field."""
    made = Model()
    made.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if made.graph.node and made.graph.initializer:
            rng.choice(CHANGES)(rng, made)
    return made
