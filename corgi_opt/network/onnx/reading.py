"""An ONNX file -> :class:`Program`: nodes, weights, the image and the class scores, by name. No code of a file is run.

What is read is checked before it is believed: sizes before anything is allocated, names before they are followed,
external data before it is opened, and the whole by ``onnx.checker``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from corgi_opt.errors import CorgiError, InputError, UnsupportedOpError
from corgi_opt.network.onnx import tensors
from corgi_opt.network.onnx.limits import MOST_AXES, MOST_BYTES, MOST_NODES
from corgi_opt.network.onnx.node import Node, Opaque
from corgi_opt.network.onnx.operations import TABLE, advice
from corgi_opt.network.onnx.package import onnx_package

OLDEST = 9
"""First operator set that is read."""

OWN_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Port:
    """What goes in or comes out, by name. ``dims``: its shape, None where the file leaves a size open; None in whole
    where it says nothing. ``element``: ONNX's number of its type."""

    name: str
    dims: tuple[int | None, ...] | None
    element: int


@dataclass(frozen=True, eq=False)
class Program:
    """``nodes`` in order; ``weights`` by name; ``inputs`` without weights; ``proto``: the file, its data inside."""

    name: str
    version: int
    nodes: tuple[Node, ...]
    weights: Mapping[str, Any]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    proto: Any

    @property
    def stored(self) -> int:
        """How many values the file holds."""
        return sum(math.prod(t.dims) for t in self.weights.values())

    def weight(self, name: str) -> Tensor:
        return tensors.tensor(self.weights[name], f"the ONNX tensor {name!r}")


@contextmanager
def malformed(what: str) -> Iterator[None]:
    """Errors that are not ours become InputErrors: nothing that a file holds may raise anything else."""
    try:
        yield
    except CorgiError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise InputError(f"{what} is malformed: {type(error).__name__}: {said}") from error


def program(source: Any) -> Program:
    """Reads a path or a ModelProto, which is not written to. Raises InputError, UnsupportedOpError,
    MissingPackageError."""
    onnx = onnx_package()
    if isinstance(source, onnx.ModelProto):
        name, folder, proto = "the ONNX model", None, onnx.ModelProto()
        with malformed(name):
            if source.ByteSize() > MOST_BYTES:
                raise InputError(f"{name} holds more than {MOST_BYTES:,} bytes, which are not read")
            proto.CopyFrom(source)
    elif isinstance(source, str | Path):
        name, folder = str(source), Path(source).parent
        proto = _parsed(onnx, Path(source))
    else:
        raise InputError(f"model must be the path of an ONNX file or an onnx.ModelProto, got {type(source).__name__}")
    with malformed(name):
        return _program(onnx, proto, name, folder)


def _parsed(onnx: Any, path: Path) -> Any:
    try:
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} holds {path.stat().st_size:,} bytes; more than {MOST_BYTES:,} are not read")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {str(path)!r}: {error}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # of whichever protobuf implementation there is
        raise InputError(f"{path} is no ONNX file, or a damaged one: {error}") from error
    return proto


def _program(onnx: Any, proto: Any, name: str, folder: Path | None) -> Program:
    graph, version = proto.graph, _version(onnx, proto, name)
    if not graph.node:
        raise InputError(f"{name} is no ONNX model, or an empty one: its graph has no node")
    if len(graph.node) > MOST_NODES:
        raise InputError(f"{name} has {len(graph.node):,} nodes; more than {MOST_NODES:,} are not read")
    _check_operations(graph)
    _gather_data(graph, folder)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise InputError(f"{name} is no valid ONNX model: {said}") from error
    if graph.sparse_initializer:
        raise UnsupportedOpError(graph.sparse_initializer[0].values.name, "a sparse tensor", "Write it as a dense one.")
    weights = {t.name: t for t in graph.initializer}
    if len(weights) != len(graph.initializer):
        raise InputError(f"{name} has two tensors of one name")
    inputs = tuple(_port(v) for v in graph.input if v.name not in weights)
    outputs = tuple(_port(v) for v in graph.output)
    return Program(name, version, _nodes(graph), weights, inputs, outputs, proto)


def _version(onnx: Any, proto: Any, name: str) -> int:
    found = {o.version for o in proto.opset_import if o.domain in OWN_DOMAINS}
    newest = onnx.defs.onnx_opset_version()
    if len(found) != 1:
        raise InputError(f"{name} is no ONNX model: it names {len(found)} versions of the operator set")
    (version,) = found
    if not OLDEST <= version <= newest:
        raise InputError(
            f"{name} is of opset {version}; {OLDEST} to {newest} are read (onnx.version_converter changes it)"
        )
    return int(version)


def _check_operations(graph: Any) -> None:
    """Raises UnsupportedOpError that names every operation that is not in the table."""
    found: dict[str, tuple[str, str]] = {}
    for at, node in enumerate(graph.node):
        own = node.domain in OWN_DOMAINS
        title = node.op_type if own else f"{node.domain}.{node.op_type}"
        if not own or node.op_type not in TABLE:
            found.setdefault(title, (node.name or f"node {at}", advice(node.op_type)))
    if not found:
        return
    (first, (where, hint)), *others = found.items()
    if others:
        hint += f" Also unsupported: {'; '.join(f'{title} ({at})' for title, (at, _) in others[:20])}."
    raise UnsupportedOpError(where, f"ONNX {first}", hint)


def _gather_data(graph: Any, folder: Path | None) -> None:
    """Puts data from beside the file inside the model, when all of it together is no more than we take."""
    own = [(t, f"the ONNX tensor {t.name!r}") for t in graph.initializer]
    for node in graph.node:
        own += [
            (a.t, f"the attribute {a.name} of {node.name or node.op_type!r}") for a in node.attribute if a.HasField("t")
        ]
    total = 0
    for tensor, what in own:
        total += tensors.declared_bytes(tensor, what)
        if total > MOST_BYTES:
            raise InputError(f"the model's tensors take more than {MOST_BYTES:,} bytes, which are not read")
    for tensor, what in own:
        if tensor.data_location == 1:
            data = tensors.outside(tensor, what, folder)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data


def _port(info: Any) -> Port:
    """Raises InputError for what is no tensor."""
    if not info.type.HasField("tensor_type"):
        raise InputError(f"the ONNX value {info.name!r} is no tensor")
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return Port(info.name, None, kind.elem_type)
    if len(kind.shape.dim) > MOST_AXES:
        raise InputError(f"the ONNX value {info.name!r} has {len(kind.shape.dim)} axes")
    dims = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in kind.shape.dim)
    return Port(info.name, dims, kind.elem_type)


def _nodes(graph: Any) -> tuple[Node, ...]:
    made = []
    for at, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{at}"
        attributes = {a.name: _attribute(a, name) for a in node.attribute}
        made.append(Node(name, node.op_type, node.domain, attributes, tuple(node.input), tuple(node.output)))
    return tuple(made)


def _attribute(proto: Any, node: str) -> Any:
    """A number, a text, a list of numbers, a tensor; Opaque for what nothing here takes."""
    kind = proto.type
    if kind == 1:
        return float(proto.f)
    if kind == 2:
        return int(proto.i)
    if kind == 3:
        return proto.s.decode()
    if kind == 4:
        return tensors.tensor(proto.t, f"the attribute {proto.name} of {node!r}")
    if kind == 6:
        return [float(v) for v in proto.floats]
    if kind == 7:
        return [int(v) for v in proto.ints]
    return Opaque(f"type number {kind}")
