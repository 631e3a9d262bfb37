"""Program -> OnnxModule: what does not depend on the image is calculated, sizes included; the rest becomes steps.

Shapes are static once the batch is one image, so an exporter's arithmetic on them (Shape, Gather, Concat, Reshape) is
constant. Values that do depend on the image are followed on torch's meta device: shapes without values, no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.errors import InputError, UnsupportedOpError
from corgi_opt.network.onnx.limits import (
    COMPUTED_PER_STORED,
    MOST_COMPUTED,
    MOST_ON_A_MAP,
    MOST_VALUES,
    values_in,
)
from corgi_opt.network.onnx.module import OnnxModule, Origin, Step
from corgi_opt.network.onnx.node import Call, Node, Run, Value
from corgi_opt.network.onnx.operations import TABLE, TERMS
from corgi_opt.network.onnx.reading import Port, Program, malformed


def module(program: Program, output: str | None, fill: Sequence[int] | None) -> OnnxModule:
    """``output``: any value of the graph; ``fill`` (C, H, W): the sizes that the file leaves open.

    Raises InputError, UnsupportedOpError.
    """
    with malformed(program.name):
        return _Builder(program, output, fill).module()


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A node that depends on the image. ``signs``, ``inputs``, ``outputs``: as a Step has them."""

    node: Node
    run: Run
    signs: tuple[int, ...] | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str


class _Builder:
    def __init__(self, program: Program, output: str | None, fill: Sequence[int] | None) -> None:
        self.program = program
        self.by_output = _by_output(program.nodes)
        self.output = _output(program, self.by_output) if output is None else output
        if self.output not in self.by_output:
            last = ", ".join(map(repr, list(self.by_output)[-3:]))
            raise InputError(f"the ONNX graph of {program.name} has no value {self.output!r}; its last are {last}")
        self.nodes = self._needed()
        self.image, self.shape = self._image(fill)
        self.values = {self.image: Value(torch.empty(self.shape, dtype=torch.float64, device="meta"), False)}
        self.steps: list[_Prepared] = []
        self.held = self.computed = 0
        self.beside = COMPUTED_PER_STORED * program.stored

    def module(self) -> OnnxModule:
        for node in self.nodes:
            self._follow(node)
        if self.output not in self.values or self.values[self.output].known:
            raise UnsupportedOpError(
                self.output, "a model whose output does not depend on the image", "Name its class scores: output='...'."
            )
        made = OnnxModule(
            self.image,
            self.shape,
            self.output,
            _named(self._used(), self.output),
            Origin(self.program.name, self.program.version, False, ""),
        )
        read = {name for step in made.steps() for name in step.inputs}
        for name, value in self.values.items():
            if value.known and name in read:
                made.hold(name, _finite(name, value.tensor))
        return made

    def _needed(self) -> list[Node]:
        """The nodes that the output depends on, in the file's order."""
        pending, wanted = [self.output], set[int]()
        while pending:
            node = self.by_output.get(pending.pop())
            if node is not None and id(node) not in wanted:
                wanted.add(id(node))
                pending += [name for name in node.inputs if name]
        return [node for node in self.program.nodes if id(node) in wanted]

    def _image(self, fill: Sequence[int] | None) -> tuple[str, tuple[int, int, int, int]]:
        """The one input that the nodes read, and its shape."""
        read = {name for node in self.nodes for name in node.inputs} | {self.output}
        ports = [port for port in self.program.inputs if port.name in read]
        if len(ports) != 1:
            names = ", ".join(repr(p.name) for p in ports) or "none"
            raise InputError(f"{self.program.name} must have one input, the image; {self.output!r} depends on {names}")
        return ports[0].name, _bound(ports[0], fill, self.program.name)

    def _value(self, node: Node, name: str) -> Value:
        if name not in self.values and name in self.program.weights:
            tensor = self.program.weight(name)
            self._count(node, tensor, True)
            self.values[name] = Value(tensor, True)
        if name not in self.values:
            source = self.by_output.get(name)
            if source is None:
                raise InputError(f"the ONNX node {node.title} reads {name!r}, which nothing gives")
            place = source.outputs.index(name)
            if source in self.nodes[: self.nodes.index(node)]:
                raise UnsupportedOpError(
                    source.name, f"output {place} of ONNX {source.op}", "Only its first output is known."
                )
            raise InputError(f"the ONNX node {node.title} reads {name!r} before it is calculated")
        return self.values[name]

    def _follow(self, node: Node) -> None:
        """Calculates a node, or what can be known of it before there is an image."""
        operands = tuple(self._value(node, name) if name else None for name in node.inputs)
        call = Call(node, self.program.version, operands)
        with malformed(f"the ONNX node {node.title}"):
            run = TABLE[node.op](call)
            call.require_read()
            places = call.run_operands()
            given = [operands[at] for at in places]
            made = _called(run, [None if v is None else v.tensor.to("meta") for v in given])
            if node.op in ("Shape", "Size") or all(v is None or v.known for v in given):
                for tensor in made:  # sizes, before there are any values
                    self._count(node, tensor, True)
                values = [Value(t, True) for t in _called(run, [None if v is None else v.tensor for v in given])]
            else:
                values = [Value(tensor, False) for tensor in made]
                for tensor in made:
                    self._count(node, tensor, False)
                statics = {at: t.tolist() for at, t in call.statics.items()}
                inputs = tuple(node.inputs[at] for at in places)
                text = f"{node.op} {_plain(node)} {statics}"
                self.steps.append(
                    _Prepared(node, run, call.signs or TERMS.get(node.op), inputs, node.outputs[: len(made)], text)
                )
        for name, value in zip(node.outputs, values, strict=False):
            if name:
                self.values[name] = value

    def _count(self, node: Node, tensor: Tensor, known: bool) -> None:
        """Raises InputError where a model asks for more than we give."""
        size = values_in(tuple(tensor.shape), f"what the ONNX node {node.title} reads or makes")
        self.held += size if known else 0
        self.computed += size
        for count, most, what in (
            (self.held, MOST_VALUES, "constants come"),
            (self.computed, MOST_COMPUTED + self.beside, "all values of a run come"),
            (0 if known else size, MOST_ON_A_MAP + self.beside, "one map comes"),
        ):
            if count > most:
                raise InputError(
                    f"{self.program.name} needs too much memory: at the ONNX node {node.title} {what} to {count:,} "
                    f"numbers, and for a file that holds {self.program.stored:,} weights at most {most:,} are made"
                )

    def _used(self) -> Iterable[_Prepared]:
        """The steps that the output depends on; others only had shapes to give."""
        wanted, found = {self.output}, []
        for step in reversed(self.steps):
            if wanted.intersection(step.outputs):
                wanted.update(step.inputs)
                found.append(step)
        return reversed(found)


def _by_output(nodes: Iterable[Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for node in nodes:
        for name in node.outputs:
            if name in found:
                raise InputError(f"two ONNX nodes give {name!r}: {found[name].title} and {node.title}")
            if name:
                found[name] = node
    return found


def _output(program: Program, by_output: dict[str, Node]) -> str:
    """The class scores, where there is no doubt which value they are."""
    ports = [p for p in program.outputs if p.name in by_output]
    rows = [p for p in ports if p.element in (0, 1, 10, 11, 16) and (p.dims is None or _is_row(p.dims))]
    chosen = ports if len(ports) == 1 else rows
    if len(chosen) != 1:
        names = ", ".join(repr(p.name) for p in ports) or "none"
        raise InputError(f"{program.name} has several outputs or none ({names}); name its class scores: output='...'")
    return chosen[0].name


def _is_row(dims: Sequence[int | None]) -> bool:
    return len(dims) == 2 and dims[0] in (1, None)


def _bound(port: Port, fill: Sequence[int] | None, name: str) -> tuple[int, int, int, int]:
    """The image's shape, with one image in a batch."""
    if port.element not in (1, 10, 11, 16):
        raise InputError(f"the input {port.name!r} of {name} is of type number {port.element}; images are floats")
    dims = port.dims or (None,) * 4
    if len(dims) != 4:
        raise InputError(f"the input {port.name!r} of {name} has {len(dims)} axes; an image is (1, C, H, W)")
    if dims[0] not in (1, None):
        raise InputError(f"the input {port.name!r} of {name} is a batch of {dims[0]}; export the model for one image")
    if None in dims[1:] and fill is None:
        raise InputError(
            f"the input {port.name!r} of {name} has open sizes {tuple('?' if d is None else d for d in dims)}; "
            "pass input_shape=(C, H, W) or an example"
        )
    sizes = [d if d is not None else int(fill[at]) for at, d in enumerate(dims[1:])] if fill else list(dims[1:])
    values_in(sizes, f"the input {port.name!r} of {name}")  # type: ignore[arg-type]
    if 0 in sizes:
        raise InputError(f"the input {port.name!r} of {name} has the size {tuple(sizes)}")
    channels, height, width = sizes
    return (1, channels, height, width)  # type: ignore[return-value]


def _called(run: Run, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        made = run(*operands)
    return made if isinstance(made, tuple) else (made,)


def _plain(node: Node) -> dict[str, object]:
    return {n: v.tolist() if isinstance(v, Tensor) else v for n, v in sorted(node.attributes.items())}


def _finite(name: str, value: Tensor) -> Tensor:
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"the ONNX value {name!r} holds NaN or infinite values; save working weights first")
    return value.clone()


def _named(prepared: Iterable[_Prepared], output: str) -> dict[str, Step]:
    """Steps by name, each with the values that nobody reads after it."""
    listed = list(prepared)
    last: dict[str, int] = {}
    for at, step in enumerate(listed):
        last.update(dict.fromkeys(step.inputs, at))
    made: dict[str, Step] = {}
    for at, p in enumerate(listed):
        name = p.node.name
        while name in made:
            name += "_"
        outputs = tuple(n if n in last or n == output else "" for n in p.outputs)
        done = tuple(sorted(n for n, place in last.items() if place == at and n and n != output))
        made[name] = Step(p.node.op, p.run, p.signs, p.inputs, outputs, done, p.text)
    return made
