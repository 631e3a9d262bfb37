"""A layer graph, or a cone of it, as an ONNX network: Conv, Relu, Add, Flatten and Gemm, and nothing else.

Programs that read ONNX differ in what they take, and some pass over what they do not know: a dilation, groups, pads
that differ between the ends of an axis or between the axes. So every convolution is written out here: one group, no
dilation, the same pad P at all four ends. A kernel is filled up with zeros to say the rest. Along one axis of an
operand with L positions (outside of them it is zero), n outputs q = 0, 1, ... of which each reads the k positions from
``stride * q + first`` on are a convolution with, for any g in 1 .. stride,

    c = L - stride * n + g
    pad     P >= max(0, -first, first + k - c)
    kernel  K = c + 2 P numbers, of which first + P are zeros before the k.

It also cuts: a part of an operand is read by zeros before and after. Along any way from one map to another K - 2 P
comes to the same, if only g is the same for all who read a map with one stride; programs that follow patches of a map
along several ways and add them up (auto_LiRPA) rest on that.

* a tap of a pooling window is a kernel with a single one;
* ``sum_i coef_i * x_i`` is a 1x1 kernel for each operand and an Add; taps of one operand go into one kernel;
* channels that are chosen, concatenated or shuffled are a 1x1 kernel of ones and zeros for each operand, and an Add;
* values that are moved in other ways are in onnx_moves.py;
* a coefficient that differs from pixel to pixel (where a pooling window overhangs the image) is cut into rectangles in
  which it does not: each is read alone, and put back among the zeros that a convolution pads with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from corgi_opt.encode.onnx_moves import Anything, Piece, anything, pieces_of
from corgi_opt.errors import InputError, MissingPackageError, UnsupportedOpError
from corgi_opt.network.cone import windows_of
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.movement import NOTHING, Channels, Move
from corgi_opt.network.ops import Combine, Conv2d, Input, ReLU, Shape, Tap, Window, crop

OPSET, IR = 13, 7
"""What is written: any reader since 2020 knows it."""

INPUT, OUTPUT = "X", "Y"
"""Names of the two ends."""

MOST_RECTANGLES = 64
"""Into which a coefficient that differs from pixel to pixel may be cut."""

MOST_BYTES = 2**31 - 2**20
"""Of weights: an ONNX file has 2 GiB at most."""


@dataclass(frozen=True)
class Value:
    """One map of the network: its ``name``, its ``channels`` and the ``window`` of it that is calculated.

    Whoever reads outside of the window reads zero.
    """

    name: str
    channels: int
    window: Window


def onnx_package() -> Any:
    """The package onnx. Raises MissingPackageError."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingPackageError("onnx", "writing an ONNX network", "pip install 'corgi_opt[onnx]'") from error
    return onnx


class OnnxWriter:
    """Collects operations and weights; ``model`` is the ONNX file of them. ``dtype`` is that of all its numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._onnx, self.dtype = onnx_package(), dtype
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._names = {INPUT, OUTPUT}
        self._bytes = 0

    def conv(
        self,
        name: str,
        source: Value,
        weight: Tensor,
        bias: Tensor | None,
        out: Window,
        stride: tuple[int, int] = (1, 1),
        offset: tuple[int, int] = (0, 0),
        fits: tuple[int, int] = (1, 1),
    ) -> Value:
        """``out`` of the convolution with weight (C_out, C, kh, kw), bias (C_out,): position r of it reads positions
        ``stride * r + offset`` and on (per axis) of the map that ``source`` is a window of. ``fits``: g of each axis.
        """
        read = [_Line.of(source.window, out, stride, offset, weight.shape[2:], axis) for axis in (0, 1)]
        pad = max(line.pad(g) for line, g in zip(read, fits, strict=True))
        sizes = [line.size(g, pad) for line, g in zip(read, fits, strict=True)]
        y, x = (line.first + pad for line in read)
        kernel = weight.new_zeros(*weight.shape[:2], *sizes)
        kernel[:, :, y : y + weight.shape[2], x : x + weight.shape[3]] = weight
        inputs = [source.name, self._weight(f"{name}.weight", kernel)]
        if bias is not None:
            inputs.append(self._weight(f"{name}.bias", bias))
        said = {"kernel_shape": sizes, "strides": stride, "pads": [pad] * 4, "dilations": (1, 1), "group": 1}
        return Value(self._node("Conv", name, inputs, **said), len(weight), out)

    def relu(self, name: str, source: Value) -> Value:
        return Value(self._node("Relu", name, [source.name]), source.channels, source.window)

    def add(self, name: str, first: Value, second: Value | Tensor) -> Value:
        """The sum of two maps on one window, or of a map and a constant (C, h, w)."""
        other = self._weight(f"{name}.constant", second[None]) if isinstance(second, Tensor) else second.name
        return Value(self._node("Add", name, [first.name, other]), first.channels, first.window)

    def flatten(self, name: str, source: Value) -> str:
        """A map as one row (1, C*h*w)."""
        return self._node("Flatten", name, [source.name], axis=1)

    def gemm(self, name: str, row: str, weight: Tensor, bias: Tensor) -> str:
        """``weight @ row + bias`` of a row (1, m), with weight (n, m) and bias (n,): a row (1, n)."""
        inputs = [row, self._weight(f"{name}.weight", weight), self._weight(f"{name}.bias", bias)]
        return self._node("Gemm", name, inputs, alpha=1.0, beta=1.0, transA=0, transB=1)

    def model(self, channels: int, window: Window, length: int, said: str) -> Any:
        """The ModelProto whose input is the window of an image and whose output, the last row (1, ``length``) that was
        written; ``said``: what it is, for whoever opens it."""
        helper, kind = self._onnx.helper, self._kind
        self._nodes[-1].output[0] = OUTPUT
        ends = ((INPUT, [1, channels, window.h, window.w]), (OUTPUT, [1, length]))
        infos = [[helper.make_tensor_value_info(name, kind, shape)] for name, shape in ends]
        graph = helper.make_graph(self._nodes, "corgi_opt", *infos, self._weights)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR, producer_name="corgi_opt", doc_string=said)

    @property
    def _kind(self) -> Any:
        kinds = self._onnx.TensorProto
        return kinds.FLOAT if self.dtype == torch.float32 else kinds.DOUBLE

    def _node(self, kind: str, name: str, inputs: list[str], **said: Any) -> str:
        unique = self._unique(name)
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [unique], name=unique, **said))
        return unique

    def _weight(self, name: str, values: Tensor) -> str:
        unique, values = self._unique(name), values.detach().to("cpu", self.dtype).contiguous()
        self._bytes += values.numel() * values.element_size()
        if self._bytes > MOST_BYTES:
            raise InputError("the network has more than 2 GiB of weights, which an ONNX file cannot hold; name a pair")
        self._weights.append(self._onnx.numpy_helper.from_array(values.numpy(), unique))
        return unique

    def _unique(self, name: str) -> str:
        found, n = name, 1
        while found in self._names:
            n += 1
            found = f"{name}_{n}"
        self._names.add(found)
        return found


class _Line(NamedTuple):
    """What a convolution reads along one axis; letters as above."""

    length: int
    outputs: int
    stride: int
    first: int
    kernel: int

    @classmethod
    def of(
        cls,
        source: Window,
        out: Window,
        stride: tuple[int, int],
        offset: tuple[int, int],
        kernel: Sequence[int],
        axis: int,
    ) -> _Line:
        first = stride[axis] * out[axis] + offset[axis] - source[axis]
        return cls(source[2 + axis], out[2 + axis], stride[axis], first, kernel[axis])

    def pad(self, g: int) -> int:
        """The least that does."""
        return max(0, -self.first, self.first + self.kernel - self.size(g, 0))

    def size(self, g: int, pad: int) -> int:
        return self.length - self.stride * self.outputs + g + 2 * pad


def windows_on_image(graph: LayerGraph, until: str, window: Window | None) -> dict[str, Window]:
    """The part of every node, up to ``until``, that a window of it depends on; None: all of every node."""
    if window is None:
        return {name: Window(0, 0, *graph[name].shape[1:]) for name in graph.ancestors(until)}
    return {name: _on_image(found, graph[name].shape) for name, found in windows_of(graph, until, window).items()}


def _on_image(window: Window, shape: Shape) -> Window:
    """The part of a window that is on a map (C, H, W); of one that is beside it, the nearest row or column."""
    ends = []
    for axis in (0, 1):
        edges = torch.tensor([window[axis], window[axis] + window[2 + axis] - 1])
        ends.append(edges.clamp(0, shape[1 + axis] - 1).tolist())
    (top, bottom), (left, right) = ends
    return Window(top, left, bottom - top + 1, right - left + 1)


def write_maps(writer: OnnxWriter, graph: LayerGraph, until: str, windows: Mapping[str, Window]) -> Value:
    """Writes a graph up to the node ``until``, of each node the window that :func:`windows_on_image` gives.

    Returns the last map. Raises UnsupportedOpError for what no Conv can say.
    """
    image = Value(INPUT, graph[graph.input].shape[0], windows[graph.input])
    maps = _Maps(writer, graph, windows, {graph.input: image})
    for name in graph.ancestors(until):
        if not isinstance(graph[name].op, Input | Tap):  # a tap is read through by whoever adds it up
            maps.values[name] = maps.written(graph[name])
    return maps.value(until)


class _Kernel(NamedTuple):
    """What a rectangle of a sum reads of one operand: its positions ``stride * r + offset``, for several offsets."""

    rectangle: Window
    source: str
    stride: tuple[int, int]


class _Tap(NamedTuple):
    """One of these offsets (y, x), and what is read there is multiplied by, (C,)."""

    offset: tuple[int, int]
    values: Tensor


@dataclass(frozen=True, eq=False)
class _Maps:
    writer: OnnxWriter
    graph: LayerGraph
    windows: Mapping[str, Window]
    values: dict[str, Value]
    fits: dict[tuple[str, tuple[int, int]], tuple[int, int]] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        """The value of a node. A tap is written when somebody needs it as a map of its own."""
        if name not in self.values:
            one = torch.ones(1, 1, 1, dtype=torch.float64)
            self.values[name] = self._sum(self.graph[name], [(name, one)], None)
        return self.values[name]

    def written(self, node: Node) -> Value:
        match node.op:
            case ReLU():
                return self.writer.relu(node.name, self.value(node.inputs[0]))
            case Conv2d() as op:
                source, out = self.value(node.inputs[0]), self.windows[node.name]
                fits = self._fits(node.inputs[0], op.stride)
                offset = op.geometry.offset
                return self.writer.conv(node.name, source, _dense(op), op.bias, out, op.stride, offset, fits)
            case Combine() as op:
                return self._sum(node, list(zip(node.inputs, op.coefs, strict=True)), op.shift)
            case Channels() as op:
                out = self.windows[node.name]
                return self._of_pieces(node, [_chosen(*one, out) for one in zip(op.index, op.counts, strict=True)])
            case Move() as op:
                return self._of_pieces(node, [self._moved(node, at) for at in range(len(op.index))])
        raise UnsupportedOpError(
            node.module or node.name,
            type(node.op).__name__,
            "An ONNX file for other verifiers is written of convolutions, sums and ReLUs; co.export_mps writes others.",
        )

    def _sum(self, node: Node, terms: list[tuple[str, Tensor]], shift: Tensor | None) -> Value:
        """The value of a node that is ``sum of coef * operand``, and a shift."""
        out, channels = self.windows[node.name], node.shape[0]
        kernels: dict[_Kernel, list[_Tap]] = {}
        for operand, coef in terms:
            source, stride, offset = self._through(operand)
            for rectangle, values in _rectangles(node, coef, out):
                kernels.setdefault(_Kernel(rectangle, source, stride), []).append(_Tap(offset, values))
        if not kernels:  # every coefficient is zero
            source, stride, offset = self._through(terms[0][0])
            kernels[_Kernel(out, source, stride)] = [_Tap(offset, torch.zeros(channels, dtype=torch.float64))]
        constant = None if shift is None else crop(shift.expand(node.shape), out)
        parts: list[Value] = []
        for (rectangle, source, stride), taps in kernels.items():
            read, whole = self.value(source), rectangle == out
            if whole and read.window == out and stride == (1, 1) and _changes_nothing(taps):
                parts.append(read)
                continue
            bias = None
            if whole and constant is not None and bool((constant == constant[:, :1, :1]).all()):
                bias, constant = constant[:, 0, 0], None
            weight, offset = _of_taps(taps)
            fits = self._fits(source, stride)
            part = self.writer.conv(node.name, read, weight, bias, rectangle, stride, offset, fits)
            parts.append(self._placed(node, part))
        total = self._added(node, parts)
        return total if constant is None else self.writer.add(f"{node.name}.shift", total, constant)

    def _placed(self, node: Node, part: Value) -> Value:
        """A rectangle of a node's value, and zeros around it."""
        out = self.windows[node.name]
        if part.window == out:
            return part
        return self.writer.conv(f"{node.name}.placed", part, _eye(part.channels), None, out)

    def _added(self, node: Node, parts: list[Value]) -> Value:
        total = parts[0]
        for part in parts[1:]:
            total = self.writer.add(f"{node.name}.sum", total, part)
        return total

    def _of_pieces(self, node: Node, pieces: list[list[Piece] | Anything]) -> Value:
        """The value of a node that moves values: what it has of each operand, added up."""
        out, parts = self.windows[node.name], list[Value]()
        for operand, found in zip(node.inputs, pieces, strict=True):
            read = self.value(operand)
            if isinstance(found, Anything):
                row = self.writer.conv(f"{node.name}.values", read, found.values, None, Window(0, 0, 1, 1))
                corner = (1 - out.y - out.h, 1 - out.x - out.w)
                parts.append(self.writer.conv(node.name, row, found.placed, None, out, offset=corner))
                continue
            for rectangle, weight, stride, offset in found:
                fits = self._fits(operand, stride)
                part = self.writer.conv(node.name, read, weight, None, rectangle, stride, offset, fits)
                parts.append(self._placed(node, part))
        if not parts:  # zeros alone
            nothing = torch.zeros(node.shape[0], self.value(node.inputs[0]).channels, 1, 1, dtype=torch.float64)
            parts.append(self.writer.conv(node.name, self.value(node.inputs[0]), nothing, None, out))
        return self._added(node, parts)

    def _moved(self, node: Node, at: int) -> list[Piece] | Anything:
        """What a node that moves values has of one operand. Raises UnsupportedOpError where that takes too much."""
        assert isinstance(node.op, Move)
        out, shape = self.windows[node.name], node.op.shapes[at]
        index = node.op.index[at][:, out.y : out.y + out.h, out.x : out.x + out.w]
        pieces = pieces_of(index, shape, out)
        found = anything(index, shape) if pieces is None else pieces
        if found is None:
            raise UnsupportedOpError(
                node.module or node.name,
                f"an operation that moves the values of a map {out.h}x{out.w} from place to place",
                "No convolutions of a reasonable size say it in an ONNX file for other verifiers; name a pair of "
                "pixels near each other, which needs a smaller part of the map, or use co.export_mps.",
            )
        return found

    def _fits(self, source: str, stride: tuple[int, int]) -> tuple[int, int]:
        """The g of all who read a map with one stride: that of the smallest kernels."""
        if (source, stride) not in self.fits:
            self.fits[source, stride] = (self._fit(source, stride, 0), self._fit(source, stride, 1))
        return self.fits[source, stride]

    def _fit(self, source: str, stride: tuple[int, int], axis: int) -> int:
        window, read = self.value(source).window, []
        for name in self.graph.consumers(source):
            op = self.graph[name].op
            if name in self.windows and isinstance(op, Conv2d | Tap) and op.stride == stride:
                geometry = op.geometry
                read.append(_Line.of(window, self.windows[name], stride, geometry.offset, geometry.extent, axis))

        def sizes(g: int) -> tuple[int, int]:
            found = [line.size(g, line.pad(g)) for line in read]
            return max(found, default=0), sum(found)

        return min(range(1, stride[axis] + 1), key=sizes)

    def _through(self, name: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """What a reader of a node reads: position r of it is ``stride * r + offset`` of a source."""
        op = self.graph[name].op
        if isinstance(op, Tap):
            return self.graph[name].inputs[0], op.stride, op.offset
        return name, (1, 1), (0, 0)


def _dense(op: Conv2d) -> Tensor:
    """The weight (C_out, C_in, kh, kw) of a convolution without groups and dilation."""
    out, per, kh, kw = op.weight.shape
    dy, dx = op.dilation
    dense = op.weight.new_zeros(out, per * op.groups, dy * (kh - 1) + 1, dx * (kw - 1) + 1)
    each = out // op.groups
    for group in range(op.groups):
        mine = slice(group * each, (group + 1) * each)
        dense[mine, group * per : (group + 1) * per, ::dy, ::dx] = op.weight[mine]
    return dense


def _eye(channels: int) -> Tensor:
    """The 1x1 kernel that changes nothing."""
    return torch.eye(channels, dtype=torch.float64)[:, :, None, None]


def _of_taps(taps: list[_Tap]) -> tuple[Tensor, tuple[int, int]]:
    """The kernel (C, C, kh, kw) that reads each channel at offsets (y, x), times values (C,); and its own offset."""
    places = torch.tensor([tap.offset for tap in taps])
    low = places.amin(dim=0)
    channels, size = len(taps[0].values), (places.amax(dim=0) - low + 1).tolist()
    weight, each = torch.zeros(channels, channels, *size, dtype=torch.float64), torch.arange(channels)
    for (y, x), tap in zip((places - low).tolist(), taps, strict=True):
        weight[each, each, y, x] += tap.values
    return weight, (int(low[0]), int(low[1]))


def _chosen(index: Tensor, count: int, out: Window) -> list[Piece]:
    """The channels that are taken of an operand of ``count`` channels: ``index`` (C_out,), or NOTHING."""
    used = torch.nonzero(index != NOTHING).flatten()
    if not len(used):
        return []
    weight = torch.zeros(len(index), count, 1, 1, dtype=torch.float64)
    weight[used, index[used]] = 1.0
    return [Piece(out, weight, (1, 1), (0, 0))]


def _changes_nothing(taps: list[_Tap]) -> bool:
    return len(taps) == 1 and taps[0].offset == (0, 0) and bool((taps[0].values == 1).all())


def _rectangles(node: Node, coef: Tensor, out: Window) -> list[tuple[Window, Tensor]]:
    """Rectangles of a window in which a coefficient (C or 1, H or 1, W or 1) is the same all over, and its values (C,).

    Left out where it is zero. Raises UnsupportedOpError for too many.
    """
    values = crop(coef.expand(node.shape), out)
    rows, columns = (_runs(values, axis) for axis in (1, 2))
    if len(rows) * len(columns) > MOST_RECTANGLES:
        raise UnsupportedOpError(
            node.module or node.name,
            "a product with a factor of its own at every pixel",
            "No convolution says it in an ONNX file for other verifiers; name a pair whose cone is away from it, or "
            "use co.export_mps.",
        )
    found = []
    for y, h in rows:
        for x, w in columns:
            at = values[:, y, x]
            if bool((at != 0).any()):
                found.append((Window(out.y + y, out.x + x, h, w), at))
    return found


def _runs(values: Tensor, axis: int) -> list[tuple[int, int]]:
    """Where rows (or columns) that are all the same begin, and how many they are."""
    lines = values.movedim(axis, 0).flatten(1)
    changed = (lines[1:] != lines[:-1]).any(dim=1)
    starts = [0, *(torch.nonzero(changed).flatten() + 1).tolist()]
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]
