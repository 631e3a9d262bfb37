"""What an exported question must be, whatever it was made of: what is in its files, and what these compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import vnnlib_text
from onnx.reference import ReferenceEvaluator
from torch import Tensor

import corgi_opt as co

OPERATORS = {"Conv", "Relu", "Add", "Flatten", "Gemm"}
F32, F64 = torch.float32, torch.float64


def images(ball: co.Ball, count: int, seed: int = 0) -> list[Tensor]:
    """Images (1, C, H, W) anywhere in a ball, half of them at corners of it."""
    generator, low, high = torch.Generator().manual_seed(seed), ball.lower, ball.upper
    share = [torch.rand(low.shape, dtype=F64, generator=generator) for _ in range(count)]
    share = [s.round() if n % 2 else s for n, s in enumerate(share)]
    return [ball.project((low + s * (high - low))[None]) for s in share]


def expected(net: co.CamNetwork, class_idx: int, compared: Any, premises: int, x: Tensor) -> Tensor:
    """Differences of CAM pixels and, from ``premises`` on, of logits, of the user's own model at one image."""
    cam, logits = net.model_cam(x, class_idx).flatten(), net.model_logits(x)
    if len(logits) == 1:
        logits = torch.cat([torch.zeros(1, dtype=F64), logits])  # class 0 is a logit that is always zero
    sources = [cam] * premises + [logits] * (len(compared) - premises)
    return torch.stack([source[a] - source[b] for source, (a, b) in zip(sources, compared, strict=True)])


def cut(x: Tensor, window: tuple[int, int, int, int]) -> np.ndarray:
    y, left, h, w = window
    return x[:, :, y : y + h, left : left + w].numpy()


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """float64 by onnx's own reference, which knows nothing but numpy; float32 by onnxruntime, which has no other."""
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
        reference: Any = ReferenceEvaluator(model)
        return reference.run(None, {"X": x})[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"X": x.astype(np.float32)})[0]


def same_values(
    net: Any, x: Tensor, found: Any, class_idx: Any, eps: float, dtype: Any, count: int = 3, logits_only: bool = False
) -> None:
    """The file computes what the user's model does, at images of the box and at ones far beyond."""
    model = onnx.load(found.network)
    premises = 0 if logits_only else found.premises
    balls = [(co.Ball(x, eps), count), (co.Ball(x, 0.3), count)]
    for ball, many in balls:
        for z in images(ball, many):
            y = run(model, cut(z, found.window))
            assert y.shape == (1, len(found.compared))
            true = expected(net, class_idx, found.compared, premises, z)
            size = float(net.model_cam(z, class_idx).abs().max()) + float(net.model_logits(z).abs().max())
            np.testing.assert_allclose(y[0], true.numpy(), rtol=0, atol=(1e-9 if dtype == F64 else 1e-4) * size)


def well_formed(found: Any, dtype: Any) -> Any:
    """The checker of onnx passes it, and it has what every reader takes and no more."""
    model = onnx.load(found.network)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)] and model.ir_version <= 8
    kind = onnx.TensorProto.FLOAT if dtype == F32 else onnx.TensorProto.DOUBLE
    assert {w.data_type for w in model.graph.initializer} == {kind}
    assert [i.name for i in model.graph.input] == ["X"] and [o.name for o in model.graph.output] == ["Y"]
    for node in model.graph.node:
        if node.op_type == "Conv":
            said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert said["group"] == 1 and said["dilations"] == [1, 1] and len(set(said["pads"])) == 1
            assert said["strides"][0] == said["strides"][1], "none of these models has another"
    return model


def queries(found: Any) -> Any:
    """Both versions, read back; they say the same."""
    first, second = (vnnlib_text.read(path.read_text()) for path in (found.vnnlib, found.vnnlib2))
    assert (first.low, first.high, first.outputs, first.ways) == (second.low, second.high, second.outputs, second.ways)
    assert first.outputs == len(found.compared) and second.shapes["Y"] == (1, first.outputs)
    return first, second
