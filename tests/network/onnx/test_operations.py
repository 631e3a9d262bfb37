"""Every operation of the table against onnxruntime: random attributes, in every form that operator sets gave them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_models import Array, answered, node, proto

import corgi_opt as co
from corgi_opt.network.onnx import building, reading
from corgi_opt.network.onnx.table import TABLE

Rng = np.random.Generator


@dataclass
class Case:
    """One node that reads ``x`` of this shape, and constants after it. ``scale``: of the values of x."""

    op: str
    x: tuple[int, ...]
    constants: list[Any] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    before: tuple[int, ...] | None = None  # x is reshaped to this first

    def model(self) -> onnx.ModelProto:
        names = ["" if c is None else f"c{at}" for at, c in enumerate(self.constants)]
        weights = {n: c for n, c in zip(names, self.constants, strict=True) if n}
        first, nodes = "x", []
        if self.before is not None:
            nodes.append(node("Reshape", ["x", "before"], ["r"]))
            weights["before"], first = np.array(self.before, dtype=np.int64), "r"
        outputs = [f"y{at}" if at else "y" for at in range(self.outputs)]
        nodes.append(node(self.op, [first, *names], outputs, **self.attributes))
        return proto(nodes, weights, self.x, dict.fromkeys(outputs), self.opset)


def normal(rng: Rng, *shape: int) -> Array:
    return rng.normal(0.2, 1.0, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def pick(rng: Rng, *of: Any) -> Any:
    return of[int(rng.integers(len(of)))]


def image(rng: Rng, least: int = 3) -> tuple[int, int, int, int]:
    return (1, int(rng.integers(1, 5)), int(rng.integers(least, 10)), int(rng.integers(least, 10)))


def windows(rng: Rng, kernel: list[int], pads: bool = True, dilated: bool = True) -> dict[str, Any]:
    """Attributes of windows on two axes."""
    found: dict[str, Any] = {"strides": [int(v) for v in rng.integers(1, 4, 2)]}
    if dilated and rng.random() < 0.3:
        found["dilations"] = [int(v) for v in rng.integers(1, 3, 2)]
    how = pick(rng, "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "none")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, found.get("dilations", [1, 1]), strict=True)]
    if how == "pads" and pads:
        found["pads"] = [int(rng.integers(0, e)) for e in (*extent, *extent)]
        if rng.random() < 0.4:
            found["pads"] = [int(rng.integers(0, e // 2 + 1)) for e in extent] * 2
    elif how.isupper():
        found["auto_pad"] = how
    return found


def clear(attributes: dict[str, Any]) -> dict[str, Any]:
    """Of a pool: without what is refused where padding is automatic."""
    if attributes.get("auto_pad", "").startswith("SAME"):
        attributes.pop("dilations", None)
        rows = zip(attributes["kernel_shape"], attributes["strides"], strict=True)
        attributes["strides"] = [min(k, s) for k, s in rows]
    return attributes


def conv(rng: Rng) -> Case:
    group = pick(rng, 1, 1, 2, 3)
    channels, outs = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(1, 4, 2)]
    w = normal(rng, outs, channels // group, *kernel)
    attributes = windows(rng, kernel) | {"group": group} | pick(rng, {}, {"kernel_shape": kernel})
    return Case("Conv", (1, channels, *image(rng, 6)[2:]), [w, *pick(rng, [], [normal(rng, outs)])], attributes)


def conv_1d(rng: Rng) -> Case:
    pads = pick(rng, {}, {"pads": [2, 1]}, {"auto_pad": "SAME_UPPER"}, {"pads": [1, 1], "dilations": [2]})
    w = [normal(rng, 4, 3, 3), normal(rng, 4)]
    return Case("Conv", (1, 3, 4, 3), w, pads | {"strides": [pick(rng, 1, 2)]}, before=(1, 3, 12))


def conv_transpose(rng: Rng) -> Case:
    group = pick(rng, 1, 1, 2)
    channels, outs = group * int(rng.integers(1, 3)), int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(1, 4, 2)]
    strides, dilations = ([int(v) for v in rng.integers(1, 4, 2)] for _ in range(2))
    attributes: dict[str, Any] = {"group": group, "strides": strides}
    if rng.random() < 0.3:
        attributes["dilations"] = dilations
    how = pick(rng, "pads", "pads", "extra", "auto", "none")
    if how in ("pads", "extra"):
        attributes["pads"] = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
    if how == "extra":
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    if how == "auto":
        attributes["auto_pad"] = pick(rng, "SAME_UPPER", "SAME_LOWER")
        attributes["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    w = normal(rng, channels, outs, *kernel)
    constants = [w, *pick(rng, [], [normal(rng, outs * group)])]
    return Case("ConvTranspose", (1, channels, *image(rng)[2:]), constants, attributes)


def gemm(rng: Rng) -> Case:
    n, k = int(rng.integers(1, 5)), 12
    transposed = pick(rng, 0, 1)
    w = normal(rng, *((n, k) if transposed else (k, n)))
    c = pick(rng, [], [normal(rng, n)], [normal(rng, 1, n)], [normal(rng, 1)], [normal(rng)])
    scales = pick(rng, {}, {"alpha": 0.5, "beta": 2.0})
    return Case("Gemm", (1, 3, 2, 2), [w, *c], {"transB": transposed, **scales}, before=(1, k))


def matmul(rng: Rng) -> Case:
    shape = pick(rng, (1, 12), (1, 3, 4), (1, 1, 3, 4))
    return Case("MatMul", (1, 3, 2, 2), [normal(rng, *pick(rng, (shape[-1], 5), (shape[-1],)))], before=shape)


def batch_norm(rng: Rng) -> Case:
    x = image(rng)
    statistics = [normal(rng, x[1]) for _ in range(3)] + [rng.uniform(0.3, 2.0, x[1]).astype(np.float32)]
    attributes = pick(rng, {}, {"epsilon": 0.01, "momentum": 0.5})
    return Case("BatchNormalization", x, statistics, attributes, opset=pick(rng, 9, 14, 17))


def max_pool(rng: Rng) -> Case:
    kernel = [int(v) for v in rng.integers(1, 4, 2)]
    attributes = clear(windows(rng, kernel) | {"kernel_shape": kernel})
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = pick(rng, 0, 1)
    return Case("MaxPool", image(rng, 6), [], attributes)


def average_pool(rng: Rng) -> Case:
    kernel = [int(v) for v in rng.integers(1, 4, 2)]
    opset = pick(rng, 11, 17, 19)
    attributes = windows(rng, kernel, dilated=opset >= 19) | {"kernel_shape": kernel}
    attributes = clear(attributes)
    attributes["count_include_pad"] = pick(rng, 0, 1)
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = pick(rng, 0, 0, 1)
    return Case("AveragePool", image(rng, 6), [], attributes, opset=opset)


def reduction(op: str, since: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        opset = pick(rng, 11, 13, 18)
        axes = pick(rng, [2, 3], [-1, -2], [1], [0, 1, 2, 3], None)
        attributes: dict[str, Any] = {"keepdims": pick(rng, 0, 1)}
        constants = []
        if axes is not None and opset < since:
            attributes["axes"] = axes
        elif axes is not None:
            constants.append(ints(*axes))
        elif opset >= since:
            attributes["noop_with_empty_axes"] = pick(rng, 0, 1)
        return Case(op, image(rng), constants, attributes, opset)

    return make


def elementwise(op: str) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        x = image(rng)
        c = normal(rng, *pick(rng, x, (x[1], 1, 1), (1, x[1], 1, 1), (1,), (), x[2:]))
        return Case(op, x, [c + np.sign(c) if op == "Div" else c], {}, pick(rng, 9, 13, 17))

    return make


def variadic(op: str) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        x = image(rng)
        return Case(op, x, [normal(rng, *x) for _ in range(int(rng.integers(0, 3)))])

    return make


def activation(op: str, *attributes: dict[str, Any], opset: int = 17) -> Callable[[Rng], Case]:
    return lambda rng: Case(op, image(rng), [], pick(rng, {}, *attributes), opset)


def prelu(rng: Rng) -> Case:
    x = image(rng)
    return Case("PRelu", x, [normal(rng, *pick(rng, (x[1], 1, 1), (1, x[1], 1, 1), (1,), x[1:], x[3:]))])


def clip(rng: Rng) -> Case:
    x, low, high = image(rng), np.float32(pick(rng, 0.0, -0.5)), np.float32(pick(rng, 0.4, 1.0))
    if rng.random() < 0.5:
        return Case("Clip", x, [], pick(rng, {}, {"min": 0.0}, {"max": 0.5}, {"min": -0.5, "max": 0.5}), 10)
    return Case("Clip", x, pick(rng, [], [low], [None, high], [low, high]))


def softmax(op: str) -> Callable[[Rng], Case]:
    return lambda rng: Case(op, image(rng), [], pick(rng, {}, *({"axis": at} for at in (1, 2, 3))), pick(rng, 11, 13))


def flatten(rng: Rng) -> Case:
    return Case("Flatten", image(rng), [], pick(rng, {}, {"axis": 0}, {"axis": 2}, {"axis": -1}, {"axis": 4}))


def reshape(rng: Rng) -> Case:
    wanted = pick(rng, (1, -1), (0, 0, -1), (1, 3, 2, 10), (-1,), (2, 5, 6), (0, 2, -1, 0))
    return Case("Reshape", (1, 6, 2, 5), [ints(*wanted)])


def squeezed(op: str) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        axes = pick(rng, [0], [2, 3], [-1, 0]) if op == "Squeeze" else pick(rng, [0], [1, 3], [-1], [-1, 0])
        if op == "Squeeze" and rng.random() < 0.2:
            return Case(op, (1, 3, 1, 1))
        if rng.random() < 0.5:
            return Case(op, (1, 3, 1, 1), [], {"axes": axes}, 11)
        return Case(op, (1, 3, 1, 1), [ints(*axes)])

    return make


def transpose(rng: Rng) -> Case:
    return Case("Transpose", image(rng), [], pick(rng, {}, {"perm": [0, 2, 3, 1]}, {"perm": [0, 1, 3, 2]}))


def concat(rng: Rng) -> Case:
    x, axis = image(rng), pick(rng, 1, 2, 3, -1, -3)
    other = list(x)
    other[axis] = int(rng.integers(1, 4))
    return Case("Concat", x, [normal(rng, *other), normal(rng, *x)], {"axis": axis})


def split(rng: Rng) -> Case:
    sizes = pick(rng, [2, 3, 1], [3, 3], [1, 5])
    how, axis = pick(rng, 11, 13, 18), pick(rng, 1, -3)
    if how == 11:
        return Case("Split", (1, 6, 3, 3), [], {"axis": axis, "split": sizes}, 11, len(sizes))
    if how == 18 and rng.random() < 0.5:
        return Case("Split", (1, 7, 3, 3), [], {"axis": axis, "num_outputs": 3}, 18, 3)
    if rng.random() < 0.3:
        return Case("Split", (1, 6, 3, 3), [], {"axis": axis}, 13, 3)
    return Case("Split", (1, 6, 3, 3), [ints(*sizes)], {"axis": axis}, pick(rng, 13, 17), len(sizes))


def slice_(rng: Rng) -> Case:
    axes = pick(rng, [2, 3], [1], [-1, -2])
    starts = [int(rng.integers(-4, 3)) for _ in axes]
    ends = [pick(rng, 3, 100, -1, 2**62, 5) for _ in axes]
    if rng.random() < 0.3:
        return Case("Slice", (1, 4, 6, 7), [], {"axes": axes, "starts": starts, "ends": ends}, 9)
    constants = [ints(*starts), ints(*ends), ints(*axes)]
    if rng.random() < 0.5:
        steps = [pick(rng, 1, 2, 3, -1, -2) for _ in axes]
        turned = [(e, s) if step < 0 else (s, e) for s, e, step in zip(starts, ends, steps, strict=True)]
        constants = [ints(*(s for s, _ in turned)), ints(*(e for _, e in turned)), ints(*axes), ints(*steps)]
    return Case("Slice", (1, 4, 6, 7), constants)


def gather(rng: Rng) -> Case:
    axis = pick(rng, 1, 2, -1)
    index = pick(rng, np.int64(1), ints(0, 2, 1), ints(1, 2), ints(-1), np.array([[0, 1], [2, -2]]))
    return Case("Gather", (1, 4, 5, 4), [np.asarray(index, dtype=np.int64)], {"axis": axis})


def pad(rng: Rng) -> Case:
    mode = pick(rng, "constant", "reflect", "edge", "wrap")
    opset = 19 if mode == "wrap" else pick(rng, 9, 13, 18)
    pads = [0, 0, *rng.integers(0, 3, 2).tolist(), 0, 0, *rng.integers(0, 3, 2).tolist()]
    if mode == "constant" and rng.random() < 0.4:
        pads[2], pads[1] = -1, 2
    if mode in ("edge", "reflect") and rng.random() < 0.3:
        pads[1] = 1
    if opset < 11:
        return Case("Pad", (1, 3, 4, 5), [], {"pads": pads, "mode": mode, "value": 0.5}, opset)
    if opset >= 18 and mode != "wrap" and rng.random() < 0.5:
        return Case("Pad", (1, 3, 4, 5), [ints(1, 2, 0, 1), np.float32(0.5), ints(-1, 2)], {"mode": mode}, opset)
    return Case("Pad", (1, 3, 4, 5), [ints(*pads), *pick(rng, [], [np.float32(0.5)])], {"mode": mode}, opset)


def depth_to_space(rng: Rng) -> Case:
    return Case("DepthToSpace", (1, 12, 2, 3), [], {"blocksize": 2, **pick(rng, {}, {"mode": "DCR"}, {"mode": "CRD"})})


def space_to_depth(rng: Rng) -> Case:
    return Case("SpaceToDepth", (1, 3, 4, 6), [], {"blocksize": 2})


def expand(rng: Rng) -> Case:
    return Case("Expand", (1, 3, 1, 4), [ints(*pick(rng, (1, 3, 5, 4), (2, 1, 1), (2, 1, 3, 3, 4), (1,)))])


def tile(rng: Rng) -> Case:
    return Case("Tile", (1, 2, 3, 2), [ints(*pick(rng, (1, 2, 1, 3), (1, 1, 1, 1), (1, 1, 2, 2)))])


def upsample(rng: Rng) -> Case:
    scales = np.array([1, 1, *pick(rng, (2, 2), (3, 2), (1.5, 2.5))], dtype=np.float32)
    return Case("Upsample", (1, 2, 4, 6), [scales], {"mode": pick(rng, "nearest", "linear")}, 9)


def resize(rng: Rng) -> Case:
    mode = pick(rng, "nearest", "linear")
    scales = np.array([1, 1, *pick(rng, (2, 2), (3, 2), (0.5, 0.5), (1.5, 2.5), (0.75, 1.25))], dtype=np.float32)
    if rng.random() < 0.2:
        return Case("Resize", (1, 2, 4, 6), [scales], {"mode": mode}, 10)
    hows = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    opset = pick(rng, 11, 13, 18, 19)
    how = pick(rng, *hows, *(["half_pixel_symmetric"] if opset >= 19 else []))
    attributes = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        attributes["nearest_mode"] = pick(rng, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    roi = np.zeros(0, dtype=np.float32)
    if rng.random() < 0.5:
        return Case("Resize", (1, 2, 4, 6), [roi, scales], attributes, opset)
    sizes = ints(1, 2, *pick(rng, (8, 12), (4, 12), (2, 3), (7, 9), (1, 1)))
    empty = np.zeros(0, dtype=np.float32) if opset == 11 else None
    return Case("Resize", (1, 2, 4, 6), [roi, empty, sizes], attributes, opset)


def dropout(rng: Rng) -> Case:
    if rng.random() < 0.5:
        return Case("Dropout", image(rng), [], {"ratio": 0.4}, 11)
    return Case("Dropout", image(rng), [np.float32(0.4), *pick(rng, [], [np.bool_(False)])], {}, 13)


def where(rng: Rng) -> Case:
    x = image(rng)
    return Case("Where", x, [rng.random(x) < 0.5, normal(rng, *x)])


SMOOTH = ("Sigmoid", "Tanh", "Exp", "Erf", "Softplus", "Softsign", "HardSwish", "Mish", "Sin", "Cos")
EXACT = ("Relu", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign", "Identity", "GlobalAveragePool", "GlobalMaxPool")

CASES: dict[str, Callable[[Rng], Case]] = {
    "Conv": conv,
    "Conv 1-D": conv_1d,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "ReduceMean": reduction("ReduceMean", 18),
    "ReduceSum": reduction("ReduceSum", 13),
    "ReduceMax": reduction("ReduceMax", 18),
    "ReduceMin": reduction("ReduceMin", 18),
    "ReduceProd": reduction("ReduceProd", 18),
    **{op: elementwise(op) for op in ("Add", "Sub", "Mul", "Div")},
    **{op: variadic(op) for op in ("Max", "Min", "Sum", "Mean")},
    **{op: activation(op) for op in EXACT},
    **{op: activation(op, opset=18) for op in SMOOTH},
    "LeakyRelu": activation("LeakyRelu", {"alpha": 0.3}),
    "HardSigmoid": activation("HardSigmoid", {"alpha": 0.5, "beta": 0.1}),
    "Elu": activation("Elu", {"alpha": 0.5}),
    "Selu": activation("Selu", {"alpha": 1.5, "gamma": 0.5}),
    "Celu": activation("Celu", {"alpha": 0.5}),
    "Gelu": activation("Gelu", {"approximate": "tanh"}, opset=20),
    "ThresholdedRelu": activation("ThresholdedRelu", {"alpha": 0.3}),
    "PRelu": prelu,
    "Clip": clip,
    "Softmax": softmax("Softmax"),
    "LogSoftmax": softmax("LogSoftmax"),
    "Flatten": flatten,
    "Reshape": reshape,
    "Squeeze": squeezed("Squeeze"),
    "Unsqueeze": squeezed("Unsqueeze"),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Expand": expand,
    "Tile": tile,
    "Upsample": upsample,
    "Resize": resize,
    "Dropout": dropout,
}
"""Operations that may read the image."""

ELSEWHERE = {
    *("And", "Or", "Xor", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Mod", "Pow"),
    *("Sqrt", "Log", "Reciprocal", "Cast", "CastLike", "Constant", "ConstantOfShape", "Range", "Shape", "Size"),
}
"""Operations of constants: test_building.py."""

TIMES = 24


def cases(name: str, times: int) -> Iterator[Case]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(times):
        yield CASES[name](rng)


def test_every_operation_of_the_table_is_tested():
    assert {name.split()[0] for name in CASES} | ELSEWHERE == set(TABLE)


def ours(model: onnx.ModelProto, x: Array) -> Array:
    module = building.module(reading.program(model), model.graph.output[0].name, None)
    return np.asarray(module(torch.from_numpy(x).double()).numpy())


def is_near(found: Array, wanted: Array) -> bool:
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    return found.shape == wanted.shape and bool((np.abs(found - wanted) <= 1e-5 * scale).all())


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_is_what_onnxruntime_calculates(name):
    """Where onnxruntime takes the node, we give the same, or refuse by name what we do not know."""
    rng, same = np.random.default_rng(5), 0
    for case in cases(name, TIMES):
        x = normal(rng, *case.x)
        try:
            model, wanted = answered(case.model(), x)
        except Exception:  # of onnxruntime's own: no such window, no such operation in this opset
            continue
        found = ours(model, x)
        assert is_near(found, wanted), f"{case} gives {found} of shape {found.shape}, onnxruntime {wanted}"
        same += 1
    assert same >= 6, "hardly ever was there anything to compare"


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.6, 0.7, 1.1, 1.7])
@pytest.mark.parametrize("opset", [10, 13, 19])
def test_a_map_is_resized_to_the_size_that_float32_gives(scale, opset):
    scales = np.array([1, 1, scale, scale], np.float32)
    for size in range(10, 31):
        constants = [scales] if opset == 10 else [None, scales]
        case = Case("Resize", (1, 1, size, 10), constants, {"mode": "linear"}, opset)
        x = normal(np.random.default_rng(size), *case.x)
        model, wanted = answered(case.model(), x)
        assert ours(model, x).shape == wanted.shape


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attributes", [{"strides": [4, 1]}, {"dilations": [1, 2]}])
def test_automatic_padding_of_pools_may_be_unclear(op, attributes):
    """onnxruntime itself goes by another rule than ONNX says, or than its own convolution."""
    case = Case(op, (1, 2, 7, 6), [], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", **attributes}, 19)
    model = case.model()
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    with pytest.raises(co.UnsupportedOpError, match="write the pads out"):
        ours(model, normal(np.random.default_rng(0), *case.x))


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("Dropout", (1, 2, 3, 3), [np.float32(0.5), np.bool_(True)]), "training mode"),
        (Case("BatchNormalization", (1, 2, 3, 3), [np.ones(2, np.float32)] * 4, {"training_mode": 1}), "training mode"),
        (Case("Cast", (1, 2, 3, 3), [], {"to": onnx.TensorProto.INT64}), "rounds"),
        (Case("Resize", (1, 2, 3, 3), [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "cubic"}), "cubic"),
        (Case("Pad", (1, 2, 3, 3), [], {"pads": [0] * 8, "value": 1.0}, 17), "no valid ONNX model"),
        (Case("MaxPool", (1, 2, 3, 3), [], {"kernel_shape": [2, 2], "p_norm": 3}), "p_norm"),
    ],
    ids=lambda v: v.op if isinstance(v, Case) else "",
)
def test_what_is_not_known_of_an_operation_is_refused_by_name(case, why):
    model = case.model()
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    with pytest.raises((co.UnsupportedOpError, co.InputError), match=why):
        ours(model, normal(np.random.default_rng(0), *case.x))


@pytest.mark.parametrize(
    "op", ["BatchNormalization", "LeakyRelu", "HardSigmoid", "Elu", "Selu", "Celu", "ThresholdedRelu"]
)
def test_an_attribute_that_is_left_out_is_the_number_that_the_standard_has(op):
    """To the last bit: written into the file, it gives the same."""
    said = onnx.defs.get_schema(op, 17).attributes
    written = {n: a.default_value.f for n, a in said.items() if a.default_value.type == onnx.AttributeProto.FLOAT}
    assert written
    constants = [normal(np.random.default_rng(1), 2) ** 2 for _ in range(4)] if op == "BatchNormalization" else []
    x = normal(np.random.default_rng(2), 1, 2, 3, 3)
    absent, there = (ours(answered(Case(op, x.shape, constants, each).model(), x)[0], x) for each in ({}, written))
    assert np.array_equal(absent, there)
