"""Operations that move values: shapes, axes, slices, concatenation, padding; and those that make shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.network.onnx.layers import flat_pads
from corgi_opt.network.onnx.limits import MOST_VALUES
from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import onnx_op


@onnx_op("Shape")
def _shape(call: Call) -> Run:
    shape = call.shape()
    start, end = call.integer("start", 0), call.integer("end", len(shape))
    part = list(shape[slice(start, end)])
    return lambda x: torch.tensor(part, dtype=torch.int64, device="cpu")


@onnx_op("Size")
def _size(call: Call) -> Run:
    size = math.prod(call.shape())
    return lambda x: torch.tensor(size, dtype=torch.int64, device="cpu")


@onnx_op("Constant")
def _constant(call: Call) -> Run:
    found = {name: call.attribute(name) for name in call.node.attributes}
    if len(found) != 1:
        raise call.wrong(f"it has {len(found)} values")
    ((name, value),) = found.items()
    if name == "value" and isinstance(value, Tensor):
        return lambda: value
    kinds = {"value_int": int, "value_float": float, "value_ints": int, "value_floats": float}
    listed = value if isinstance(value, list) else [value]
    if name not in kinds or isinstance(value, list) != name.endswith("s"):
        raise call.refused(f"a constant of kind {name} is not read")
    if not all(type(v) is kinds[name] for v in listed):
        raise call.wrong(f"its {name} is {str(value)[:80]}")
    dtype = torch.float64 if kinds[name] is float else torch.int64
    return lambda: torch.tensor(value, dtype=dtype, device="cpu")


@onnx_op("ConstantOfShape")
def _constant_of_shape(call: Call) -> Run:
    shape, value = call.sized(call.numbers(0)), call.attribute("value")
    value = torch.zeros(1, dtype=torch.float64, device="cpu") if value is None else value
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise call.wrong("its value is not one number")
    return lambda: value.reshape(()).expand(shape).clone()


@onnx_op("Range")
def _range(call: Call) -> Run:
    start, limit, step = (call.number(at) for at in range(3))
    if step == 0 or not all(math.isfinite(v) for v in (start, limit, step)):
        raise call.wrong(f"it goes from {start} to {limit} in steps of {step}")
    count = max(0, math.ceil((limit - start) / step))
    call.sized((min(count, MOST_VALUES + 1),))
    dtype = torch.float64 if call.floating() else torch.int64
    return lambda: start + step * torch.arange(count, dtype=dtype, device="cpu")


@onnx_op("Reshape")
def _reshape(call: Call) -> Run:
    shape, allow_zero = call.shape(), call.flag("allowzero")
    wanted = call.numbers(1)
    for at, size in enumerate(wanted):
        if size == 0 and not allow_zero:
            if at >= len(shape):
                raise call.wrong(f"it makes {wanted} of {shape}")
            wanted[at] = shape[at]
    if -1 in wanted:
        at = wanted.index(-1)
        rest = math.prod(wanted[:at]) * math.prod(wanted[at + 1 :])
        wanted[at] = math.prod(shape) // rest if rest > 0 else -1
    if min(wanted, default=0) < 0 or math.prod(wanted) != math.prod(shape):
        raise call.wrong(f"it makes {wanted} of {shape}")
    return lambda x: x.reshape(wanted)


@onnx_op("Flatten")
def _flatten(call: Call) -> Run:
    """As a matrix: the axes before ``axis``, and the others."""
    shape, axis = call.shape(), call.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise call.wrong(f"axis {axis} of {shape}")
    axis += len(shape) if axis < 0 else 0
    rows = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    return (lambda x: x.flatten(1)) if axis == 1 and len(shape) > 1 else lambda x: x.reshape(rows)


@onnx_op("Squeeze")
def _squeeze(call: Call) -> Run:
    shape = call.shape()
    listed = call.listed("axes", 1, 13)
    axes = [at for at, s in enumerate(shape) if s == 1] if listed is None else call.axes(listed)
    if any(shape[at] != 1 for at in axes):
        raise call.wrong(f"it takes axes {axes} of {shape} away")
    left = [s for at, s in enumerate(shape) if at not in axes]
    return lambda x: x.reshape(left)


@onnx_op("Unsqueeze")
def _unsqueeze(call: Call) -> Run:
    listed = call.listed("axes", 1, 13)
    if listed is None or len(listed) > 8:
        raise call.wrong(f"its axes are {listed}")
    made = list(call.shape())
    for axis in sorted(call.axes(listed, len(made) + len(listed))):
        made.insert(axis, 1)
    return lambda x: x.reshape(made)


@onnx_op("Transpose")
def _transpose(call: Call) -> Run:
    order = call.integers("perm", list(reversed(range(call.rank()))))
    if sorted(order) != list(range(call.rank())):
        raise call.wrong(f"its order of axes is {order}")
    return lambda x: x.permute(order)


@onnx_op("Concat")
def _concat(call: Call) -> Run:
    axis = call.axis(call.integer("axis"))
    shapes = [call.shape(at) for at in range(len(call.operands))]
    if len({(len(s), s[:axis], s[axis + 1 :]) for s in shapes}) != 1:
        raise call.wrong(f"it joins {shapes} along axis {axis}")
    call.sized((*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]))
    return lambda *x: torch.cat(x, axis)


@onnx_op("Split")
def _split(call: Call) -> Run:
    axis, outputs = call.axis(call.integer("axis", 0)), len(call.node.outputs)
    size, sizes = call.shape()[axis], call.listed("split", 1, 13)
    number = call.integer("num_outputs", outputs)
    if sizes is None:
        each = -(-size // outputs) if outputs else 0
        sizes = [max(0, min(each, size - at * each)) for at in range(outputs)]
    if number != outputs or len(sizes) != outputs or sum(sizes) != size or min(sizes, default=0) < 0:
        raise call.wrong(f"it splits {size} in {sizes} for {outputs} outputs")
    starts = [sum(sizes[:at]) for at in range(outputs)]
    parts = list(zip(starts, sizes, strict=True))
    return lambda x: tuple(x.narrow(axis, start, length) for start, length in parts)


@onnx_op("Slice")
def _slice(call: Call) -> Run:
    if call.version < 10:
        starts, ends = call.integers("starts"), call.integers("ends")
        axes, steps = call.integers("axes", None), None
    else:
        starts, ends = call.numbers(1), call.numbers(2)
        axes = call.numbers(3) if call.has(3) else None
        steps = call.numbers(4) if call.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise call.wrong(f"it goes from {starts} to {ends} in steps of {steps} on axes {axes}")
    taken = []
    for axis, start, end, step in zip(call.axes(axes), starts, ends, steps, strict=True):
        found = range(*slice(start, end, step).indices(call.shape()[axis]))
        if len(found) == call.shape()[axis] and step == 1:
            continue
        taken.append((axis, found))
    return _picked(taken)


def _picked(taken: Sequence[tuple[int, range]]) -> Run:
    """The values at these places of an axis each."""

    def run(x: Tensor) -> Tensor:
        for axis, places in taken:
            if not len(places):
                x = x.narrow(axis, 0, 0)
            elif len(places) == 1 or places.step == 1:
                x = x.narrow(axis, places[0], len(places))
            elif places.step > 0:
                every = (slice(None),) * axis
                x = x[(*every, slice(places[0], places[-1] + 1, places.step))]
            else:
                x = x.index_select(axis, torch.tensor(list(places), device=x.device))
        return x

    return run


@onnx_op("Gather")
def _gather(call: Call) -> Run:
    axis = call.axis(call.integer("axis", 0))
    if not call.rank():
        raise call.wrong("it takes values of a number")
    index, size = call.static(1), call.shape()[axis]
    if index.dtype != torch.int64:
        raise call.wrong("its places are no integers")
    if index.numel() and not -size <= int(index.min()) <= int(index.max()) < size:
        raise call.wrong(f"it takes places {int(index.min())} to {int(index.max())} of {size}")
    index = torch.where(index < 0, index + size, index)
    call.sized((*call.shape()[:axis], *index.shape, *call.shape()[axis + 1 :]))
    if index.ndim == 0:
        place = int(index)
        return lambda x: x.select(axis, place)
    flat, shape = index.reshape(-1), (*call.shape()[:axis], *index.shape, *call.shape()[axis + 1 :])
    first, count = (int(flat[0]) if len(flat) else 0), len(flat)
    if bool((flat == first + torch.arange(count)).all()):
        return lambda x: x.narrow(axis, first, count).reshape(shape)
    return lambda x: x.index_select(axis, flat.to(x.device)).reshape(shape)


@onnx_op("Expand")
def _expand(call: Call) -> Run:
    shape, wanted = list(call.shape()), call.numbers(1)
    rank = max(len(shape), len(wanted))
    shape, wanted = ([1] * (rank - len(s)) + s for s in (shape, wanted))
    if any(a != b and 1 not in (a, b) for a, b in zip(shape, wanted, strict=True)):
        raise call.wrong(f"it makes {wanted} of {shape}")
    made = call.sized([b if a == 1 else a for a, b in zip(shape, wanted, strict=True)])
    return (lambda x: x) if made == call.shape() else lambda x: x.expand(made)


@onnx_op("Tile")
def _tile(call: Call) -> Run:
    times = call.numbers(1)
    if len(times) != call.rank() or min(times, default=0) < 0:
        raise call.wrong(f"it repeats {call.shape()} {times} times")
    call.sized([s * t for s, t in zip(call.shape(), times, strict=True)])
    return (lambda x: x) if all(t == 1 for t in times) else lambda x: x.repeat(times)


@onnx_op("Pad")
def _pad(call: Call) -> Run:
    mode, rank = call.text("mode", "constant"), call.rank()
    value = 0.0
    if call.version < 11:
        pads, value = call.integers("pads"), call.real("value", 0.0)
    else:
        pads = call.numbers(1)
        value = call.number(2) if call.has(2) else 0.0
    axes = call.axes(call.numbers(3)) if call.version >= 18 and call.has(3) else list(range(rank))
    if len(pads) != 2 * len(axes) or mode not in ("constant", "reflect", "edge", "wrap"):
        raise call.wrong(f"it pads {call.shape()} by {pads}, mode {mode!r}")
    before, after = [0] * rank, [0] * rank
    for axis, b, a in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[axis], after[axis] = b, a
    made = [n + b + a for n, b, a in zip(call.shape(), before, after, strict=True)]
    if min(made, default=0) < 0 or any(
        n + min(b, 0) + min(a, 0) < 0 for n, b, a in zip(call.shape(), before, after, strict=True)
    ):
        raise call.wrong(f"it pads {call.shape()} by {pads}")
    call.sized(made)
    if not any(before) and not any(after):
        return lambda x: x
    if mode == "constant":
        flat = flat_pads(before, after)
        while flat[-2:] == [0, 0]:  # the first axes
            flat = flat[:-2]
        return lambda x: F.pad(x, flat, value=value)
    return _mirrored(call, mode, before, after)


def _mirrored(call: Call, mode: str, before: list[int], after: list[int]) -> Run:
    """Padding by values of the map itself."""
    shape = call.shape()
    rows = list(zip(shape, before, after, strict=True))
    least = {"reflect": 1, "edge": -MOST_VALUES, "wrap": 0}[mode]
    if any(max(b, a) > n - least or (n == 0 and (b or a)) for n, b, a in rows):
        raise call.wrong(f"it pads {shape} by {before} and {after}, mode {mode!r}")
    if len(shape) in (3, 4) and not any(before[:2]) and not any(after[:2]) and min(*before, *after) >= 0:
        flat = flat_pads(before[2:], after[2:])
        named = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
        return lambda x: F.pad(x, flat, mode=named)
    places = []
    for axis, (n, b, a) in enumerate(rows):
        if b or a:
            at = torch.arange(-b, n + a, dtype=torch.int64, device="cpu")
            if mode == "wrap":
                at = at % n
            elif mode == "reflect":
                at = (n - 1) - ((n - 1) - at.abs()).abs()
            places.append((axis, at.clamp(0, n - 1)))

    def run(x: Tensor) -> Tensor:
        for axis, at in places:
            x = x.index_select(axis, at.to(x.device))
        return x

    return run


@onnx_op("DepthToSpace")
def _depth_to_space(call: Call) -> Run:
    block, mode = call.integer("blocksize"), call.text("mode", "DCR")
    if call.rank() != 4 or block < 1 or call.shape()[1] % (block * block) or mode not in ("DCR", "CRD"):
        raise call.wrong(f"it makes blocks of {block} of {call.shape()}, mode {mode!r}")
    if mode == "CRD":
        return lambda x: F.pixel_shuffle(x, block)
    order = _depth_order(call.shape()[1], block).argsort()
    return lambda x: F.pixel_shuffle(x.index_select(1, order.to(x.device)), block)


@onnx_op("SpaceToDepth")
def _space_to_depth(call: Call) -> Run:
    block, shape = call.integer("blocksize"), call.shape()
    if len(shape) != 4 or block < 1 or shape[2] % block or shape[3] % block:
        raise call.wrong(f"it takes blocks of {block} of {shape}")
    order = _depth_order(shape[1] * block * block, block)
    return lambda x: F.pixel_unshuffle(x, block).index_select(1, order.to(x.device))


def _depth_order(channels: int, block: int) -> Tensor:
    """Where a block's channel, as ONNX counts it (position first), is as torch counts it (channel first)."""
    depth = channels // (block * block)
    return torch.arange(channels, dtype=torch.int64, device="cpu").reshape(depth, block * block).t().reshape(-1)
