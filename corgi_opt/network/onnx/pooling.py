"""Pooling windows, global pooling, reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.network.onnx.layers import CONV, Windows, flat_pads, windows
from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import onnx_op

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pooled(call: Call) -> tuple[Windows, bool, tuple[int, ...]]:
    """The windows, ceil_mode, and how many windows there are."""
    w, ceil = windows(call), call.flag("ceil_mode")
    if any(p >= e for pads in (w.before, w.after) for p, e in zip(pads, w.extent, strict=True)):
        raise call.refused(f"its padding {(w.before, w.after)} holds whole windows")
    auto = call.text("auto_pad", "NOTSET")
    if auto.startswith("SAME") and _is_unclear(w):
        raise call.refused(
            f"auto_pad={auto} with strides {w.stride} and dilations {w.dilation} means different things to different "
            "readers; write the pads out"
        )
    counts = w.counts(ceil and auto == "NOTSET")
    if min(counts) < 1:
        raise call.wrong(f"its kernel {w.kernel} is larger than the padded map {w.padded}")
    call.sized((*call.shape()[:2], *w.padded))
    return w, ceil and auto == "NOTSET", counts


def _is_unclear(w: Windows) -> bool:
    """Whether automatic padding would have to be negative somewhere, or to know whether dilation counts."""
    rows = zip(w.size, w.stride, w.extent, strict=True)
    return max(w.dilation) > 1 or any((-(-n // s) - 1) * s + e < n for n, s, e in rows)


@onnx_op("MaxPool")
def _max_pool(call: Call) -> Run:
    """Windows start where the padding before says; past the end of the map nothing counts, however far."""
    call.integer("storage_order", 0)  # of the places, which nobody reads
    w, _, counts = _pooled(call)
    if all(b <= k // 2 for b, k in zip(w.before, w.kernel, strict=True)):
        alike = Windows(w.size, w.kernel, w.stride, w.dilation, w.before, w.before)
        for ceil in (False, True):
            found = alike.counts(ceil)
            if all(f >= c for f, c in zip(found, counts, strict=True)):
                return _cropped(_max_of(alike, ceil), found, counts)
    pads = flat_pads(w.before, _reached(w, counts))
    of = _max_of(Windows(w.size, w.kernel, w.stride, w.dilation, (0,) * len(w.size), (0,) * len(w.size)), False)
    return lambda x: of(F.pad(x, pads, value=-math.inf))


def _max_of(w: Windows, ceil: bool) -> Callable[[Tensor], Tensor]:
    of, kernel, stride, pads, dilation = _MAX[len(w.size)], w.kernel, w.stride, w.before, w.dilation
    return lambda x: of(x, kernel, stride, pads, dilation, ceil)


def _reached(w: Windows, counts: tuple[int, ...]) -> list[int]:
    """The padding after that the last windows reach to, exactly."""
    rows = zip(counts, w.stride, w.extent, w.size, w.before, strict=True)
    return [(c - 1) * s + e - n - b for c, s, e, n, b in rows]


def _cropped(of: Callable[[Tensor], Tensor], found: tuple[int, ...], counts: tuple[int, ...]) -> Run:
    """The first windows of each axis."""
    axes = [(at + 2, c) for at, (f, c) in enumerate(zip(found, counts, strict=True)) if f != c]

    def run(x: Tensor) -> Tensor:
        made = of(x)
        for axis, count in axes:
            made = made.narrow(axis, 0, count)
        return made

    return run if axes else of


@onnx_op("AveragePool", signs=(1,))
def _average_pool(call: Call) -> Run:
    """``count_include_pad``: padding counts, but not what windows overhang it by."""
    include = call.flag("count_include_pad")
    w, ceil, counts = _pooled(call)
    of, kernel, stride = _AVERAGE[len(w.size)], w.kernel, w.stride
    dilated = any(d != 1 for d in w.dilation)
    if w.symmetric and not dilated and all(2 * p <= k for p, k in zip(w.before, kernel, strict=True)):
        own = w.before
        return lambda x: of(x, kernel, stride, own, ceil, include)
    if not any(w.before) and not any(w.after) and not ceil and not dilated:
        return lambda x: of(x, kernel, stride)
    # the sum of the values in each window, over how many count
    channels, over = call.shape()[1], _reached(w, counts)
    ones = torch.ones(1, 1, *kernel, dtype=torch.float64, device="cpu")
    conv, dilation = CONV[len(w.size)], w.dilation
    pads = flat_pads(w.before, over)
    call.sized((*call.shape()[:2], *(n + b + a for n, b, a in zip(w.size, w.before, over, strict=True))))
    counted = torch.ones(1, 1, *w.size, dtype=torch.float64, device="cpu")
    counted = F.pad(counted, flat_pads(w.before, w.after), value=float(include))
    counted = F.pad(counted, flat_pads([0] * len(over), [o - a for o, a in zip(over, w.after, strict=True)]))
    number = conv(counted, ones, None, stride, 0, dilation)
    if dilated:
        weight = ones.expand(channels, 1, *kernel).contiguous()
        return lambda x: (
            conv(F.pad(x, pads), weight.to(x.device), None, stride, 0, dilation, channels) / number.to(x.device)
        )
    if bool((number == math.prod(kernel)).all()):
        return lambda x: of(F.pad(x, pads), kernel, stride)
    scale = math.prod(kernel) / number
    return lambda x: of(F.pad(x, pads), kernel, stride) * scale.to(x.device)


@onnx_op("GlobalAveragePool", signs=(1,))
def _global_average(call: Call) -> Run:
    if call.rank() == 4:
        return lambda x: F.adaptive_avg_pool2d(x, 1)
    axes = _spatial(call)
    return lambda x: x.mean(axes, keepdim=True)


@onnx_op("GlobalMaxPool")
def _global_max(call: Call) -> Run:
    axes, size = _spatial(call), call.shape()[2:]
    if call.rank() == 4:
        return lambda x: F.max_pool2d(x, size)
    return lambda x: x.amax(axes, keepdim=True)


def _spatial(call: Call) -> list[int]:
    if call.rank() < 3 or 0 in call.shape():
        raise call.wrong(f"it reads a value of shape {call.shape()}")
    return list(range(2, call.rank()))


def _reduction(name: str, since: int, of: Run, signs: tuple[int, ...] | None = None) -> None:
    """``since``: the opset from which on the axes are an operand."""

    @onnx_op(name, signs=signs)
    def prepare(call: Call) -> Run:
        keep = call.flag("keepdims", 1)
        nothing = call.flag("noop_with_empty_axes")
        axes = sorted(call.axes(call.listed("axes", 1, since) or []))
        if not axes and nothing:
            return lambda x: x
        axes = axes or list(range(call.rank()))
        if not axes:
            return lambda x: x
        return lambda x: of(x, axes, keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


_reduction("ReduceMean", 18, lambda x, axes, keep: x.mean(axes, keepdim=keep), signs=(1,))
_reduction("ReduceSum", 13, lambda x, axes, keep: x.sum(axes, keepdim=keep), signs=(1,))
_reduction("ReduceMax", 18, lambda x, axes, keep: x.amax(axes, keepdim=keep))
_reduction("ReduceMin", 18, lambda x, axes, keep: x.amin(axes, keepdim=keep))
_reduction("ReduceProd", 18, _product)
