"""The door: an ONNX file as a torch module, or as a network that questions are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import integer
from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.network.names import checked_names
from corgi_opt.network.onnx import building, reading, runtime
from corgi_opt.network.onnx.module import OnnxModule


@pinned
def from_onnx(
    model: str | Path | Any,
    example: Tensor | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    output: str | None = None,
    classes: Sequence[str] | None = None,
) -> CamNetwork:
    """Builds the layer graph of an ONNX model with a CAM head, a path or an ``onnx.ModelProto``.

    ``example``: an image (1, C, H, W), any values; a random one without it. ``input_shape`` (C, H, W), where the file
    leaves sizes open and there is no example. ``output``: the value that holds the class scores before any softmax,
    where the file has several outputs or another one is meant; any value of the graph. ``classes``: names of the
    classes, as in :func:`from_torch`.

    Every operation is compared with onnxruntime's where it is installed: ``note`` of the network says whether.

    Raises InputError for a file that is missing, malformed or too large, UnsupportedOpError, MissingPackageError, and
    what :func:`from_torch` raises.
    """
    checked_names(classes)  # before any file is read
    if example is not None and (not isinstance(example, Tensor) or example.ndim != 4):
        raise InputError("example must be a floating-point torch tensor of shape (1, C, H, W)")
    fill = input_shape if input_shape is not None or example is None else tuple(example.shape)
    module = read_onnx(model, fill, output)
    if example is None:
        generator = torch.Generator().manual_seed(0)
        example = torch.rand(module.shape, generator=generator, dtype=torch.float64)
    if tuple(example.shape) != module.shape:
        raise InputError(
            f"the ONNX model takes an image of shape {module.shape}, the example has {tuple(example.shape)}"
        )
    return from_torch(module, example, classes=classes)


@pinned
def read_onnx(
    model: str | Path | Any, input_shape: Sequence[int] | None = None, output: str | None = None
) -> OnnxModule:
    """An ONNX model as a torch module in float64, compared with onnxruntime where it is installed.

    ``input_shape`` (C, H, W) or (1, C, H, W): the sizes that the file leaves open.

    Raises InputError, UnsupportedOpError, MissingPackageError, ParityError.
    """
    fill = None if input_shape is None else _sizes(input_shape)
    if output is not None and not isinstance(output, str):
        raise InputError(f"output must be the name of a value, got {type(output).__name__}")
    program = reading.program(model)
    module = building.module(program, output, fill)
    with reading.malformed(program.name):
        module.origin = runtime.compared(program, module)
    return module


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise InputError(f"input_shape must be (C, H, W), got {shape!r}")
    return tuple(integer("input_shape", s, 1, 2**31) for s in shape[-3:])
