"""Convolutions, dense layers, batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.errors import InputError
from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import onnx_op

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

MOST_UNFOLDED = 2**30
"""Most values of a convolution's windows written out side by side, as torch does it in float64."""


@dataclass(frozen=True)
class Windows:
    """How windows lie on an axis each: lists of one number for each spatial axis. ``before``, ``after``: padding."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def symmetric(self) -> bool:
        return self.before == self.after

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + b + a for n, b, a in zip(self.size, self.before, self.after, strict=True))

    def counts(self, ceil: bool = False) -> tuple[int, ...]:
        """How many windows there are. ``ceil``: also those that overhang at the end, but start before the padding."""
        found = []
        rows = zip(self.padded, self.extent, self.stride, self.size, self.before, strict=True)
        for padded, extent, stride, size, before in rows:
            room = padded - extent
            count = (-(-room // stride) if ceil else room // stride) + 1
            if ceil and (count - 1) * stride >= size + before:
                count -= 1
            found.append(count)
        return tuple(found)


def windows(call: Call, kernel: Sequence[int] | None = None) -> Windows:
    """Of the first operand's spatial axes, by the attributes that all operations with windows share."""
    size = call.shape()[2:]
    if not 1 <= len(size) <= 3:
        raise call.refused(f"it reads a value of shape {call.shape()}; maps of one to three spatial axes are known")
    given = call.integers("kernel_shape", None)
    kernel = given if kernel is None else list(kernel)
    if kernel is None or (given is not None and given != kernel):
        raise call.wrong(f"its attribute kernel_shape is {given}, its weight's {kernel}")
    stride = _each(call, "strides", len(size), 1)
    dilation = _each(call, "dilations", len(size), 1)
    if len(kernel) != len(size) or any(k < 1 for k in kernel):
        raise call.wrong(f"it has a kernel {kernel} on {len(size)} spatial axes")
    plain = Windows(size, tuple(kernel), stride, dilation, (0,) * len(size), (0,) * len(size))
    pads = call.integers("pads", None)
    auto = call.text("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = [0] * (2 * len(size)) if pads is None else pads
        if len(pads) != 2 * len(size) or any(p < 0 for p in pads):
            raise call.wrong(f"it has pads {pads} on {len(size)} spatial axes")
        return _padded(plain, pads[: len(size)], pads[len(size) :])
    if pads is not None and any(pads):
        raise call.wrong(f"it has both auto_pad={auto} and pads")
    if auto == "VALID":
        return plain
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.wrong(f"its auto_pad is {auto!r}")
    totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, plain.stride, plain.extent, strict=True)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return _padded(plain, *((less, more) if auto == "SAME_UPPER" else (more, less)))


def _padded(w: Windows, before: Sequence[int], after: Sequence[int]) -> Windows:
    return Windows(w.size, w.kernel, w.stride, w.dilation, tuple(before), tuple(after))


def _each(call: Call, name: str, axes: int, default: int, least: int = 1) -> tuple[int, ...]:
    found = call.integers(name, [default] * axes)
    if len(found) != axes or any(v < least for v in found):
        raise call.wrong(f"its attribute {name} is {found} on {axes} spatial axes")
    return tuple(found)


def flat_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As F.pad has them: last axis first, begin and end in turn."""
    return [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]


def padding(call: Call, w: Windows) -> tuple[tuple[int, ...], Callable[[Tensor], Tensor]]:
    """The padding that a torch layer does itself, and what is done before it."""
    if w.symmetric:
        return w.before, lambda x: x
    call.sized((*call.shape()[:2], *w.padded))
    pads = flat_pads(w.before, w.after)
    return (0,) * len(w.size), lambda x: F.pad(x, pads)


def _bias(call: Call, at: int, channels: int) -> None:
    if call.has(at) and call.shape(at) != (channels,):
        raise call.wrong(f"its bias has shape {call.shape(at)}, its output {channels} channels")


@onnx_op("Conv", signs=(1, 1))
def _conv(call: Call) -> Run:
    weight = call.shape(1)
    w, group = windows(call, weight[2:]), call.integer("group", 1)
    channels = call.shape()[1]
    if group < 1 or weight[1] * group != channels or weight[0] % group or not weight[0]:
        raise call.wrong(f"it has {group} groups, {channels} channels and a weight {weight}")
    _bias(call, 2, weight[0])
    counts = w.counts()
    if min(counts) < 1:
        raise call.wrong(f"its kernel {w.kernel} is larger than the padded map {w.padded}")
    if math.prod((weight[1], *w.kernel, *counts)) > MOST_UNFOLDED:
        raise InputError(f"the ONNX node {call.node.title} needs too much memory: its windows hold too many values")
    of, (pads, before) = CONV[len(w.size)], padding(call, w)
    stride, dilation = w.stride, w.dilation
    return lambda x, weight, bias=None: of(before(x), weight, bias, stride, pads, dilation, group)


@onnx_op("ConvTranspose", signs=(1, 1))
def _conv_transpose(call: Call) -> Run:
    """``out = stride (in - 1) + output_padding + extent - pads``, or what output_shape says, by its pads."""
    weight, axes = call.shape(1), call.rank() - 2
    wanted = call.integers("output_shape", None)
    extra = _each(call, "output_padding", axes, 0, least=0) if axes > 0 else ()
    auto, group = call.text("auto_pad", "NOTSET"), call.integer("group", 1)
    w = windows(call, weight[2:])
    channels = call.shape()[1]
    if group < 1 or weight[0] != channels or channels % group:
        raise call.wrong(f"it has {group} groups, {channels} channels and a weight {weight}")
    _bias(call, 2, weight[1] * group)
    rows = zip(w.stride, w.size, extra, w.extent, strict=True)
    full = [s * (n - 1) + more + e for s, n, more, e in rows]
    before, after = list(w.before), list(w.after)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(w.size, w.stride, strict=True)]
    if wanted is not None:
        if len(wanted) == axes + 2:
            wanted = wanted[2:]
        totals = [f - n for f, n in zip(full, wanted, strict=True)] if len(wanted) == axes else [-1]
        if min(totals) < 0:
            raise call.refused(f"its output_shape {wanted} is larger than what its windows reach, {full}")
        halves = [t // 2 for t in totals]
        rest = [t - t // 2 for t in totals]
        before, after = (halves, rest) if auto == "SAME_UPPER" else (rest, halves)
    size = [f - b - a for f, b, a in zip(full, before, after, strict=True)]
    if min(size) < 1:
        raise call.wrong(f"its output would have the size {size}")
    call.sized((1, weight[1] * group, *full))
    if math.prod((weight[1], *w.kernel, *w.size)) > MOST_UNFOLDED:
        raise InputError(f"the ONNX node {call.node.title} needs too much memory: its windows hold too many values")
    of, stride, dilation = CONV_TRANSPOSE[axes], w.stride, w.dilation
    fits = all(more < max(s, d) for more, s, d in zip(extra, stride, dilation, strict=True))
    reached = all(b <= e - 1 for b, e in zip(before, w.extent, strict=True))
    if before == after and fits and reached:
        return lambda x, weight, bias=None: of(x, weight, bias, stride, before, extra, group, dilation)
    crop = flat_pads([-b for b in before], [more - a for more, a in zip(extra, after, strict=True)])

    def cropped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made = F.pad(of(x, weight, None, stride, 0, 0, group, dilation), crop)
        return made if bias is None else made + bias.reshape(-1, *(1,) * axes)

    return cropped


@onnx_op("Gemm", signs=(1, 1))
def _gemm(call: Call) -> Run:
    """``alpha A' B' + beta C``: a linear layer where A is the map."""
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    left, right = call.flag("transA"), call.flag("transB")
    if call.rank(0) != 2 or call.rank(1) != 2:
        raise call.wrong(f"it multiplies values of shapes {call.shape(0)} and {call.shape(1)}")
    outs, rows = call.shape(1)[0 if right else 1], call.shape(0)[1 if left else 0]
    call.signs = (1, -1 if alpha < 0 else 1, -1 if beta < 0 else 1)
    added = call.shape(2) if call.has(2) else ()
    call.sized((rows, outs))
    bias = call.has(2) and len(added) <= 2 and math.prod(added) == outs and added[-1:] == (outs,)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.t() if left else a), (b if right else b.t())
        b = b if alpha == 1 else alpha * b
        c = c if c is None or beta == 1 else beta * c
        if c is None:
            return F.linear(a, b)
        return F.linear(a, b, c.reshape(-1)) if bias else F.linear(a, b) + c

    return gemm


@onnx_op("MatMul", signs=(1, 1))
def _matmul(call: Call) -> Run:
    a, b = call.shape(0), call.shape(1)
    if len(a) > 1 and len(b) > 1:
        call.sized((*(max(pair) for pair in zip(a[:-2], b[:-2], strict=False)), a[-2], b[-1]))
    if call.known(1) and len(b) == 2 and len(a) >= 2:
        return lambda x, w: F.linear(x, w.t())
    return torch.matmul


@onnx_op("BatchNormalization", signs=(1, 1, 1, -1, 1))
def _batch_norm(call: Call) -> Run:
    eps = call.real("epsilon", 1e-5)
    call.real("momentum", 0.9)  # of the statistics, which stand still
    if call.flag("training_mode"):
        raise call.refused("it is in training mode; export the model in eval mode")
    if call.integer("spatial", 1) != 1:
        raise call.refused("spatial=0 normalises value by value; normalise channels")
    shape = call.shape()
    if len(shape) < 2 or any(call.shape(at) != (shape[1],) for at in (1, 2, 3, 4)):
        raise call.wrong(f"its statistics are not of the {shape[1:2]} channels of {shape}")
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)
