"""Whether our reading of an ONNX model is the model: every operation against onnxruntime, in float32.

Each of our steps gets the values that onnxruntime gave to the same node, so what differs is one operation's rounding,
which is small beside the sum of the absolute terms that it adds up.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corgi_opt.errors import InputError, ParityError
from corgi_opt.network.onnx.module import OnnxModule, Origin, Step
from corgi_opt.network.onnx.package import PIP, onnx_package, onnxruntime_package
from corgi_opt.network.onnx.reading import Program
from corgi_opt.network.onnx.tensors import FLOATS, UNIT

ROUNDINGS = 256
"""How many roundings of its precision an operation may differ by, relative to the largest sum of absolute terms."""

UNDERFLOW = {"float64": 1e-290, "float32": 1e-30, "float16": 1e-5}
"""What may be lost where numbers are smaller than a precision has them in full."""


def compared(program: Program, module: OnnxModule) -> Origin:
    """What the reading was compared with, and that it is the same there. Raises ParityError, InputError."""
    runtime = onnxruntime_package()
    if runtime is None:
        note = f"onnxruntime is not installed, so the reading of the file was compared with nothing ({PIP})"
        return Origin(program.name, program.version, False, note)
    name = f"onnxruntime {runtime.__version__}"
    steps = list(module.steps())
    ours = {output for step in steps for output in step.outputs if output}
    try:
        session = _session(runtime, program, ours)
    except Exception as error:  # of its own kinds, one for each thing that it cannot do
        return Origin(program.name, program.version, False, _cannot(name, error))
    feed = next(i for i in session.get_inputs() if i.name == module.image)
    kind = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}.get(feed.type)
    if kind is None:
        return Origin(program.name, program.version, False, _cannot(name, TypeError(feed.type)))
    unit = max(UNIT[kind], _lowest(program))
    for image in _images(module.shape):
        array = image.numpy().astype(kind)
        try:
            theirs = session.run(sorted(ours), {module.image: array})
        except Exception as error:
            return Origin(program.name, program.version, False, _cannot(name, error))
        values = {**module.constants(), **dict(zip(sorted(ours), map(torch.from_numpy, theirs), strict=True))}
        values[module.image] = torch.from_numpy(array)
        for step in steps:
            _require_same(step, values, Allowed(unit * ROUNDINGS, UNDERFLOW[kind]), name)
    return Origin(program.name, program.version, True, f"every operation was compared with {name}")


@dataclass(frozen=True)
class Allowed:
    """How far values may be apart: a part of a sum of absolute terms, and something on top."""

    part: float
    least: float


def _cannot(name: str, error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:200]
    return f"{name} does not run the file, so its reading was compared with nothing: {type(error).__name__}: {said}"


def _session(runtime: Any, program: Program, outputs: set[str]) -> Any:
    """The model, node by node as it is written, with all these values among its outputs."""
    onnx = onnx_package()
    proto = onnx.ModelProto()
    proto.CopyFrom(program.proto)
    there = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(outputs - there))
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _lowest(program: Program) -> float:
    """One rounding of the lowest precision that the file keeps weights in or casts to."""
    kinds = [FLOATS.get(t.data_type) for t in program.weights.values()]
    kinds += [FLOATS.get(n.attributes["to"]) for n in program.nodes if n.op == "Cast" and "to" in n.attributes]
    return max((UNIT[k] for k in kinds if k is not None), default=0.0)


def _images(shape: tuple[int, ...]) -> list[Tensor]:
    """One of the default box [0, 1], one of its corners, one of no box."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [noise, (noise > 0.5).double(), normal]


def _require_same(step: Step, values: Mapping[str, Tensor], allowed: Allowed, runtime: str) -> None:
    operands = [_double(values.get(name)) for name in step.inputs]
    with torch.no_grad():
        given = step(*operands)
        size = _size(step, operands)
    given = given if isinstance(given, tuple) else (given,)
    for name, ours in zip(step.outputs, given, strict=False):
        if not name or not ours.is_floating_point():
            continue
        theirs = _double(values[name])
        assert theirs is not None  # it was among the outputs
        if ours.shape != theirs.shape:
            raise ParityError(
                f"{step.op} of the ONNX value {name!r} gives {tuple(ours.shape)}, in {runtime} {tuple(theirs.shape)}; "
                "please report the model: nothing was certified"
            )
        largest = size if size is not None else _largest([*operands, ours])
        gap = (ours - theirs).abs()
        if not bool((gap <= allowed.part * largest + allowed.least).all()):
            _refuse(step, name, ours, theirs, float(gap.nan_to_num(nan=torch.inf).max()), runtime)


def _double(value: Tensor | None) -> Tensor | None:
    """One at a time: all of a run in float64 would be twice its memory."""
    return value.double() if value is not None and value.is_floating_point() else value


def _refuse(step: Step, name: str, ours: Tensor, theirs: Tensor, gap: float, runtime: str) -> None:
    if not bool(ours.isfinite().all() and theirs.isfinite().all()):
        raise InputError(f"{step.op} of the ONNX value {name!r} gives numbers that are none (NaN, infinite)")
    raise ParityError(
        f"{step.op} of the ONNX value {name!r} differs from {runtime}'s by {gap:.3g} (scale "
        f"{float(theirs.abs().max()):.3g}); please report the model: nothing was certified"
    )


def _size(step: Step, operands: list[Tensor | None]) -> Tensor | None:
    """The sum of the absolute terms of every value, the largest on each map; None where values are not sums."""
    if step.signs is None:
        return None
    every = [*step.signs, *step.signs[-1:] * len(operands)]
    own = [o if o is None else s * o.abs() for s, o in zip(every, operands, strict=False)]
    size = step(*own)
    assert isinstance(size, Tensor)  # sums give one value
    return size.amax(tuple(range(2, size.ndim)), keepdim=True) if size.ndim > 2 else size


def _largest(values: list[Tensor | None]) -> Tensor:
    sizes = [v.abs().amax() for v in values if v is not None and v.is_floating_point() and v.numel()]
    return functools.reduce(torch.maximum, sizes, torch.zeros((), dtype=torch.float64))
