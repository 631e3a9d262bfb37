"""The graph so far, and where each value of the exported model stands in it.

A call that only moves values (a reshape, a transpose, a slice, a concatenation) adds nothing to the graph. Every entry
of every node has a number, and what such a call gives is known as the numbers of its entries, in its own shape: torch
itself moves the numbers as it would move the values. Only an operation that needs a map of its own makes one of them:
by nothing where a node already has these values in this order, by whole channels, by one tap of a window, or by any
values from anywhere (movement.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corgi_opt.network.exported import module_path
from corgi_opt.network.graph import GraphBuilder
from corgi_opt.network.movement import NOTHING, Channels, Move
from corgi_opt.network.ops import Combine, Op, Shape, Tap

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class NotCoveredError(Exception):
    """Raised by a builder: this use of the operation is not covered; says what to do."""


@dataclass(frozen=True, eq=False)
class Value:
    """What a call gives: the numbers of its entries, float64 in its shape (which torch moves like any values). Below
    zero stand literals: -1 - n is the n-th."""

    numbers: Tensor


class Translation:
    """``values``: what each fx node gives (a tuple of values for one that gives several). ``halves``: nodes that are
    sums or means over one axis of a map."""

    def __init__(self, constants: Mapping[Any, Any]) -> None:
        self.builder = GraphBuilder()
        self.constants = dict(constants)
        self.values: dict[Any, Value | tuple[Value, ...]] = {}
        self.halves: set[str] = set()
        self._starts: dict[str, int] = {}
        self._names: list[str] = []
        self._begins: list[int] = []  # the starts of these, rising
        self._total = 0
        self._literals: dict[float, int] = {0.0: 0}
        self._made: dict[tuple[Shape, bytes], str] = {}
        self._orders: dict[str, Tensor] = {}

    # --- what operands are ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Of a call: no node stands for an operand yet."""
        self._orders = {}

    def is_map(self, arg: Any) -> bool:
        """Whether an operand depends on the image."""
        try:
            return arg in self.values
        except TypeError:  # a list
            return False

    def numbers(self, arg: Any) -> Tensor:
        """The numbers of an operand's entries; those of a constant are literals."""
        if not self.is_map(arg):
            return self._literal(self.constant(arg))
        value = self.values[arg]
        if isinstance(value, tuple):
            raise NotCoveredError("It reads several tensors at once; choose one of them.")
        return value.numbers

    def value(self, arg: Any) -> str:
        """A node with the entries of an operand, whatever shape it has been given.

        Where a node has each of them once it is that one, in its own order, which its results inherit.
        """
        if not self.is_map(arg):
            raise NotCoveredError("One of its operands is a parameter or a constant where a feature map is expected.")
        numbers = self.numbers(arg)
        name = self._holder(numbers)
        if name is not None:
            order = numbers - self._starts[name]
            if name not in self._orders or torch.equal(self._orders[name], order):
                self._orders[name] = order
                return name
        return self._as_map(numbers, as_shape(tuple(numbers.shape)))

    def broadcast(self, fx: Any, *args: Any) -> list[str]:
        """Nodes with the entries of operands, each as large as the result of a call, all in the same order."""
        numbers = [self.numbers(arg).expand(shape_of(fx)) for arg in args]
        names = [self._holder(n) for n in numbers]
        orders = [None if name is None else n - self._starts[name] for n, name in zip(numbers, names, strict=True)]
        first = orders[0]
        shapes = {self.builder.nodes[name].shape for name in names if name is not None}
        if first is not None and len(shapes) == 1 and all(o is not None and torch.equal(o, first) for o in orders):
            held = [name for name in names if name is not None]
            self._orders.update(dict.fromkeys(held, first))
            return held
        shape = as_shape(tuple(numbers[0].shape))
        return [self._as_map(n, shape) for n in numbers]

    def map(self, arg: Any) -> str:
        """The node of an operand with its own rows and columns."""
        return self.map_of(self.numbers(arg))

    def order_of(self, name: str) -> Tensor | None:
        """The flat places of a node at which the entries of the operand that it stands for are; None: in its order."""
        order = self._orders.get(name)
        if order is None:
            return None
        flat = order.flatten().long()
        return None if bool((flat[1:] > flat[:-1]).all()) else flat

    def channels_first(self, numbers: Tensor) -> str:
        """The node of what has these numbers (1, C, ...), where all that matters of the other axes is their order."""
        name, flat = self._holder(numbers), numbers.flatten()
        if (
            name is not None
            and self.builder.nodes[name].shape[0] == numbers.shape[1]
            and bool((flat[1:] > flat[:-1]).all())
        ):
            return name
        return self._as_map(numbers.flatten(2), as_shape((1, numbers.shape[1], numbers[0, 0].numel())))

    def map_of(self, numbers: Tensor) -> str:
        """The node of what has these numbers, (1, C, H, W), (1, C, L) or (1, C)."""
        return self._as_map(numbers, as_shape(tuple(numbers.shape)))

    def constant(self, arg: Any) -> Tensor | None:
        """A weight or a literal, in float64."""
        if arg is None:
            return None
        if isinstance(arg, (bool, int, float)):
            return torch.tensor(float(arg), dtype=torch.float64)
        if isinstance(arg, Tensor):
            return arg.double()
        if arg not in self.constants or not isinstance(self.constants[arg], Tensor):
            raise NotCoveredError("A weight that depends on the input is not an affine layer.")
        weight: Tensor = self.constants[arg]
        return weight.double()

    def placed(self, values: Tensor, name: str) -> Tensor:
        """Values, one for each entry of an operand in its shape, in the order of its node: a coefficient (1 or C, 1 or
        H, 1 or W)."""
        shape = self.builder.nodes[name].shape
        if name in self._orders:
            full = torch.zeros(torch.Size(shape).numel(), dtype=torch.float64)
            full[self._orders[name].flatten().long()] = values.flatten()
        else:
            full = values.flatten()
        full = full.view(shape)
        if bool((full == full[:1, :1, :1]).all()):
            return full[:1, :1, :1].clone()
        per_channel = full[:, :1, :1]
        return (per_channel if bool((full == per_channel).all()) else full).clone()

    # --- what calls add ------------------------------------------------------------------------------------------

    def add(self, fx: Any, name: str, op: Op, inputs: tuple[str, ...], shape: Shape | None = None) -> str:
        """Adds a node; an elementwise one keeps its operand's shape and order (a flattened map stays a map)."""
        elementwise = bool(inputs) and op.elementwise
        shape = self.builder.nodes[inputs[0]].shape if elementwise else shape or as_shape(shape_of(fx))
        added = self.builder.add(name, op, inputs, shape, module_path(fx))
        self._number(added)
        if elementwise and inputs[0] in self._orders:
            self._orders[added] = self._orders[inputs[0]]
        return added

    def hold(self, fx: Any, made: str | Tensor | Value | tuple[Value, ...]) -> None:
        """What a call gives: a node (in the order of the operand that it stands for), numbers, or several values."""
        several = isinstance(fx.meta["val"], (tuple, list))  # of which the first is what was made
        if isinstance(made, str):
            order = self._orders.get(made)
            entries = self.entries(made) if order is None else order + self._starts[made]
            made = entries.reshape(shape_of(fx))
        made = Value(made) if isinstance(made, Tensor) else made
        self.keep(fx, (made,) if several and isinstance(made, Value) else made)

    def keep(self, fx: Any, made: Value | tuple[Value, ...]) -> None:
        """What a call gives. Where no entry is of a node (a piece of a border; an empty slice), it is a constant."""
        if isinstance(made, Value) and bool((made.numbers < 0).all()):
            held = torch.tensor(list(self._literals), dtype=torch.float64)
            self.constants[fx] = held[(-1 - made.numbers).long()]
        else:
            self.values[fx] = made

    def entries(self, name: str) -> Tensor:
        """The numbers of a node's entries, in its shape."""
        shape = self.builder.nodes[name].shape
        size = torch.Size(shape).numel()
        return (torch.arange(size, dtype=torch.float64) + self._starts[name]).view(shape)

    def node_of(self, fx: Any) -> tuple[str, Tensor] | None:
        """The node that has each entry of what a call gives once, and in which order (flat places of the node)."""
        value = self.values.get(fx)
        if not isinstance(value, Value):
            return None
        name = self._holder(value.numbers)
        return None if name is None else (name, (value.numbers - self._starts[name]).long().flatten())

    def plane_of(self, numbers: Tensor) -> tuple[str, int] | None:
        """The node and the channel whose plane these entries are, each once, in any order; None if they are none."""
        low = int(numbers.min())
        if low < 0:
            return None
        name = self._at(low)
        _, height, width = self.builder.nodes[name].shape
        channel, inside = divmod(low - self._starts[name], height * width)
        whole = inside == 0 and len(numbers) == height * width == int(numbers.max()) - low + 1
        return (name, channel) if whole and len(torch.unique(numbers)) == len(numbers) else None

    # --- how -----------------------------------------------------------------------------------------------------

    def _number(self, name: str) -> None:
        self._starts[name] = self._total
        self._names.append(name)
        self._begins.append(self._total)
        self._total += torch.Size(self.builder.nodes[name].shape).numel()

    def _literal(self, values: Tensor | None) -> Tensor:
        if values is None:
            raise NotCoveredError("It needs a constant operand.")
        distinct, place = torch.unique(values.flatten(), return_inverse=True)
        codes = [-1.0 - self._literals.setdefault(number, len(self._literals)) for number in distinct.tolist()]
        return torch.tensor(codes, dtype=torch.float64)[place].view(values.shape)

    def _holder(self, numbers: Tensor) -> str | None:
        """The node that has each of these entries once, and no other."""
        if not numbers.numel():
            return None
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high - low + 1 != numbers.numel():
            return None
        name = self._at(low)
        size = torch.Size(self.builder.nodes[name].shape).numel()
        if self._starts[name] != low or size != numbers.numel():
            return None
        flat = numbers.flatten()
        if bool((flat[1:] - flat[:-1] == 1).all()):
            return name
        return name if len(torch.unique(flat)) == size else None

    def _at(self, number: int) -> str:
        """The node that an entry is of."""
        return self._names[bisect_right(self._begins, number) - 1]

    def _as_map(self, numbers: Tensor, shape: Shape) -> str:
        """A node of this shape whose entries these are, in this order."""
        flat = numbers.flatten().long()
        name = self._holder(numbers)
        if name is not None and self.builder.nodes[name].shape == shape and bool((flat[1:] > flat[:-1]).all()):
            return name
        key = (shape, flat.numpy().tobytes())
        if key not in self._made:
            self._made[key] = self._assembled(flat.view(shape).numpy(), shape)
        return self._made[key]

    def _assembled(self, numbers: Numbers, shape: Shape) -> str:
        """Adds what makes this map of the nodes that there are."""
        moved = np.where(numbers < 0, NOTHING, numbers)
        made = self._of_channels(moved, shape) or self._of_values(moved, shape)
        if not (numbers < NOTHING).any():
            return made
        held = np.array(list(self._literals))[np.where(numbers < 0, -1 - numbers, 0)]
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        return self._grown("filled", Combine((one,), torch.from_numpy(held)), (made,), shape)

    def _of_channels(self, moved: Numbers, shape: Shape) -> str | None:
        """Of whole channels, each with rows and columns cut in one way; None where some are not."""
        places = [
            whole or _Plane.of(self, plane) for whole, plane in zip(self._whole_planes(moved), moved, strict=True)
        ]
        if any(place is None for place in places):
            return None
        sources: dict[tuple[str, Tap | None], str] = {}
        planes = [place for place in places if place is not None]
        for plane in planes:
            if plane.name and plane.key not in sources:
                sources[plane.key] = plane.name if plane.tap is None else self._tapped(plane.name, plane.tap)
        operands, index = list[str](), list[Tensor]()
        for key, name in sources.items():
            left = [plane.channel if plane.name and plane.key == key else NOTHING for plane in planes]
            while any(channel != NOTHING for channel in left):  # a channel that is wanted twice comes from two operands
                once = [c if c not in left[:at] else NOTHING for at, c in enumerate(left)]
                operands.append(name)
                index.append(torch.tensor(once))
                left = [NOTHING if a == b else a for a, b in zip(left, once, strict=True)]
        counts = tuple(self.builder.nodes[name].shape[0] for name in operands)
        if len(operands) == 1 and counts[0] == shape[0] and torch.equal(index[0], torch.arange(shape[0])):
            return operands[0]
        return self._grown("channels", Channels(tuple(index), counts), tuple(operands), shape)

    def _whole_planes(self, moved: Numbers) -> list[_Plane | None]:
        """Which planes are channels of nodes as they are; None: looked at more closely."""
        flat = moved.reshape(len(moved), -1)
        first = flat[:, 0]
        rising = (flat == first[:, None] + np.arange(flat.shape[1])).all(axis=1) & (first >= 0)
        found: list[_Plane | None] = []
        for number, so in zip(first.tolist(), rising.tolist(), strict=True):
            name = self._at(number)
            channel, inside = divmod(number - self._starts[name], flat.shape[1])
            whole = so and not inside and self.builder.nodes[name].shape[1:] == moved.shape[1:]
            found.append(_Plane(name, channel, None) if whole else None)
        return found

    def _tapped(self, name: str, tap: Tap) -> str:
        return self._grown("cut", tap, (name,), (self.builder.nodes[name].shape[0], *tap.size))

    def _of_values(self, moved: Numbers, shape: Shape) -> str:
        """Of any values."""
        starts = np.array(self._begins)
        owner = np.where(moved >= 0, np.searchsorted(starts, moved, side="right") - 1, -1)
        used = [int(at) for at in np.unique(owner) if at >= 0]
        index = [torch.from_numpy(np.where(owner == at, moved - starts[at], NOTHING)) for at in used]
        operands = tuple(self._names[at] for at in used)
        shapes = tuple(self.builder.nodes[name].shape for name in operands)
        return self._grown("moved", Move(tuple(index), shapes), operands, shape)

    def _grown(self, what: str, op: Op, inputs: tuple[str, ...], shape: Shape) -> str:
        module = self.builder.nodes[inputs[0]].module
        name = self.builder.add(f"{inputs[0]}.{what}", op, inputs, shape, module)
        self._number(name)
        return name


@dataclass(frozen=True, eq=False)
class _Plane:
    """A plane (H, W) as one channel of a node, cut by a tap (None: whole); no name: zeros."""

    name: str
    channel: int
    tap: Tap | None

    @property
    def key(self) -> tuple[str, Any]:
        tap = self.tap
        return self.name, None if tap is None else (tap.stride, tap.offset, tap.size)

    @classmethod
    def of(cls, t: Translation, plane: Numbers) -> _Plane | None:
        there = plane >= 0
        if not there.any():
            return cls("", NOTHING, None)
        name = t._at(int(plane[there].min()))
        channels, height, width = t.builder.nodes[name].shape
        flat = plane - t._starts[name]
        if int(flat[there].max()) >= channels * height * width:
            return None
        channel = flat // (height * width)
        if len(np.unique(channel[there])) > 1:
            return None
        inside = flat - channel[there][0] * (height * width)
        rows, columns = inside // width, inside % width
        found = []
        for axis, (places, length) in enumerate(((rows, height), (columns, width))):
            along = _line(places, there, axis, length)
            if along is None:
                return None
            found.append(along)
        (sy, oy, row_on), (sx, ox, column_on) = found
        if not np.array_equal(there, row_on[:, None] & column_on[None, :]):
            return None
        size = (plane.shape[0], plane.shape[1])
        whole = (sy, sx, oy, ox) == (1, 1, 0, 0) and size == (height, width)
        return cls(name, int(channel[there][0]), None if whole else Tap((sy, sx), (oy, ox), size))


def _line(places: Numbers, there: Mask, axis: int, length: int) -> tuple[int, int, Mask] | None:
    """``stride * position + offset`` along one axis of a plane, and which positions are on the map, if it is so."""
    on: Mask = np.asarray(there.any(axis=1 - axis))
    positions = np.flatnonzero(on)
    other = np.flatnonzero(there.any(axis=axis))[0]
    line = places[:, other] if axis == 0 else places[other]
    expected = line[:, None] if axis == 0 else line[None, :]
    if not np.array_equal(np.where(there, places, 0), np.where(there, expected, 0)):
        return None
    first = positions[0]
    stride = 1 if len(positions) == 1 else int(line[positions[1]] - line[first]) // int(positions[1] - first)
    if stride < 1:
        return None
    offset = int(line[first]) - stride * int(first)
    reads = np.arange(len(on)) * stride + offset
    if not np.array_equal(on, (reads >= 0) & (reads < length)) or not np.array_equal(reads[on], line[on]):
        return None
    return stride, offset, on


def shape_of(fx: Any) -> tuple[int, ...]:
    """The shape of what a call gives (of several tensors the first), as torch has it."""
    given = fx.meta["val"]
    first = given[0] if isinstance(given, (tuple, list)) else given
    return tuple(int(s) for s in first.shape)


def as_shape(size: tuple[int, ...]) -> Shape:
    """A result of this size as a map: of a vector one pixel, of a line one row."""
    if not size or size[0] != 1:
        raise NotCoveredError(f"Its result has shape {size}; the batch dimension must stay first and be 1.")
    rest = size[1:]
    while len(rest) > 3 and rest[-1] == 1:
        rest = rest[:-1]
    if len(rest) > 3:  # nobody reads rows and columns of it
        return torch.Size(rest).numel(), 1, 1
    if len(rest) == 2:
        return rest[0], 1, rest[1]
    padded = rest + (1,) * (3 - len(rest))
    return padded[0], padded[1], padded[2]
