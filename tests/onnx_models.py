"""ONNX graphs that tests build: one node, a whole net, or what torch's own exporter writes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Array = NDArray[Any]
Shape = Sequence[int | str | None]


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"the_{outputs[0]}", **attributes)


def proto(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any],
    image: Shape,
    output: str | Mapping[str, Shape | None] = "y",
    opset: int = 17,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A graph from ``x`` of this shape to ``output``."""
    outputs = {output: None} if isinstance(output, str) else output
    graph = helper.make_graph(
        list(nodes),
        "tested",
        [helper.make_tensor_value_info("x", element, image)],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    # the newest form of a file that every onnxruntime we take can read
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs, by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()  # whatever it is called
    return session.run(None, {port.name: x})


def answered(model: onnx.ModelProto, x: Array) -> tuple[onnx.ModelProto, Array]:
    """The model with the shapes of its outputs as onnxruntime has them, and the first output."""
    made, found = onnx.ModelProto(), run(model, x)
    made.CopyFrom(model)
    for value, array in zip(made.graph.output, found, strict=True):
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
    return made, found[0]


def exported(model: nn.Module, x: Tensor, opset: int = 17, **given: Any) -> onnx.ModelProto:
    """What torch's exporter that needs nothing beside torch writes."""
    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, opset_version=opset, dynamo=False, **given)
    return onnx.load_model_from_string(file.getvalue())


def weights(seed: int, **shapes: Sequence[int]) -> dict[str, Any]:
    """Random float32 weights by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.1, 0.8, tuple(shape)).astype(np.float32) for name, shape in shapes.items()}
