"""Published graphs in ONNX, which the package onnx brings for its own tests: the architectures that frameworks exported
when ONNX was new, for 224x224 images.

Of the weights only the shapes are in the files: every one is the number 0.02, which the graph makes when it is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

import corgi_opt as co

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def names() -> list[str]:
    return sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx"))


@dataclass(frozen=True)
class Published:
    """One graph, as it is in the file."""

    name: str

    @property
    def path(self) -> Path:
        return FOLDER / f"light_{self.name}.onnx"

    def network(self, x: Tensor) -> co.CamNetwork:
        return co.from_onnx(self.path, x)

    def scores(self, x: Tensor) -> Tensor:
        """Class scores (classes,) of x (1, 3, 224, 224) in float64, before any softmax, by onnx's own reference, which
        knows nothing but numpy. (onnxruntime has no convolution in float64.)"""
        model = in_float64(onnx.load(self.path))
        last = model.graph.node[-1]
        output = last.input[0] if last.op_type == "Softmax" else last.output[0]
        image = next(i.name for i in model.graph.input if len(i.type.tensor_type.shape.dim) == 4)
        if output not in {o.name for o in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=output))
        run: Any = ReferenceEvaluator(model, new_ops=[BatchNormalization])
        (scores,) = run.run([output], {image: x.double().numpy()})
        return torch.from_numpy(scores).flatten()


class BatchNormalization(OpRun):
    """Of opset 9, with one output: with the means and variances that are given, as the standard has it (its case 2) and
    onnxruntime. The reference mixes those of the image in."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: Any = None, **_: Any) -> tuple[Any]:
        scale, bias, mean, var = (v.reshape(-1, 1, 1) for v in (scale, bias, mean, var))
        return (scale * (x - mean) / np.sqrt(var + epsilon) + bias,)


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the same numbers, in float64: its inputs and outputs, and the constants that it makes."""
    for port in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            port.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    made = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*model.graph.initializer, *made):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model
