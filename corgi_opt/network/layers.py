"""Builders of convolutions, norms, pools and linear layers.

A vector is a map of one pixel, so global pooling and dense layers are convolutions like any other; a line is a map of
one row, so those of one dimension are too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from corgi_opt.network import lowering
from corgi_opt.network.arithmetic import summed
from corgi_opt.network.builders import covers, label, on_row, overload, pair
from corgi_opt.network.ops import Combine, Conv2d, MaxPool2d, Tap
from corgi_opt.network.pieces import largest
from corgi_opt.network.translation import NotCoveredError, Translation, Value, as_shape, shape_of

# --- convolutions ----------------------------------------------------------------------------------------------------


@covers("conv2d.default", "conv2d.padding")
def _conv2d(
    t: Translation, fx: Any, *, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> str:
    same = padding if isinstance(padding, str) else pair(padding)
    return _convolved(t, fx, t.map(x), weight, bias, (pair(stride), same, pair(dilation)), int(groups))


@covers("conv1d.default", "conv1d.padding")
def _conv1d(
    t: Translation, fx: Any, *, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> str:
    same = padding if isinstance(padding, str) else on_row(padding, 0)
    steps = (on_row(stride, 1), same, on_row(dilation, 1))
    return _convolved(t, fx, t.map(x), weight, bias, steps, int(groups))


@covers("convolution.default")
def _convolution(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    output_padding: Any,
    groups: Any,
) -> str:
    line = len(shape_of(x)) == 3
    strides, pads, steps = (
        on_row(v, other) if line else pair(v) for v, other in ((stride, 1), (padding, 0), (dilation, 1))
    )
    if transposed:
        more = on_row(output_padding, 0) if line else pair(output_padding)
        return _transposed(t, fx, x, weight, bias, strides, pads, more, int(groups), steps)
    return _convolved(t, fx, t.map(x), weight, bias, (strides, pads, steps), int(groups))


def _convolved(
    t: Translation, fx: Any, operand: str, weight: Any, bias: Any, steps: tuple[Any, Any, Any], groups: int
) -> str:
    """``steps``: stride, padding (or "same", "valid") and dilation."""
    w, b = _kernel(t, weight), t.constant(bias)
    stride, padding, dilation = steps
    if padding == "valid":
        padding = (0, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        if any(p % 2 for p in total):  # one side has more: torch pads the far one
            shape = t.builder.nodes[operand].shape
            size = (shape[1] + total[0], shape[2] + total[1])
            tap = Tap((1, 1), (-(total[0] // 2), -(total[1] // 2)), size)
            operand, total = t.add(fx, f"{label(fx)}.padded", tap, (operand,), (shape[0], *size)), [0, 0]
        padding = (total[0] // 2, total[1] // 2)
    return t.add(fx, label(fx), Conv2d(w, b, stride, padding, dilation, groups), (operand,))


def _kernel(t: Translation, weight: Any) -> Tensor:
    w = t.constant(weight)
    assert w is not None  # the schema requires a weight
    return w[:, :, None] if w.ndim == 3 else w


@covers("conv_transpose2d.input")
def _conv_transpose2d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> str:
    steps = (pair(stride), pair(padding), pair(output_padding))
    return _transposed(t, fx, x, weight, bias, *steps, int(groups), pair(dilation))


@covers("conv_transpose1d.default")
def _conv_transpose1d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> str:
    steps = (on_row(stride, 1), on_row(padding, 0), on_row(output_padding, 0))
    return _transposed(t, fx, x, weight, bias, *steps, int(groups), on_row(dilation, 1))


def _transposed(
    t: Translation,
    fx: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: tuple[int, int],
    padding: tuple[int, int],
    more: tuple[int, int],
    groups: int,
    dilation: tuple[int, int],
) -> str:
    """The convolution, with the kernel turned round, of the map with ``stride - 1`` zeros between its values, and as
    many around it as the kernel reaches beyond the padding (``more`` at the far end)."""
    w, b, operand = _kernel(t, weight), t.constant(bias), t.map(x)
    channels, *sizes = t.builder.nodes[operand].shape
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, w.shape[2:], padding, strict=True)]
    spans = [(n - 1) * s + 1 + 2 * r + o for n, s, r, o in zip(sizes, stride, reach, more, strict=True)]
    entries = t.entries(operand)
    spread = torch.full((channels, *spans), -1.0, dtype=torch.float64)
    places = [torch.arange(n) * s + r for n, s, r in zip(sizes, stride, reach, strict=True)]
    on = [(p >= 0) & (p < span) for p, span in zip(places, spans, strict=True)]
    rows, columns = (p[o] for p, o in zip(places, on, strict=True))
    spread[:, rows[:, None], columns[None, :]] = entries[:, on[0]][:, :, on[1]]
    turned = w.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return t.add(fx, label(fx), Conv2d(turned, b, (1, 1), (0, 0), dilation, groups), (t.map_of(spread[None]),))


# --- norms and linear layers -----------------------------------------------------------------------------------------


@covers(
    "batch_norm.default", "_native_batch_norm_legit_no_training.default", "_batch_norm_with_update_functional.default"
)
def _batch_norm(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,  # of the statistics, which stand still
    eps: Any,
    training: Any = False,
) -> str | Tensor:
    if training:
        raise NotCoveredError("Batch norm must be in eval mode with running statistics.")
    m, v = t.constant(running_mean), t.constant(running_var)
    if m is None or v is None:
        raise NotCoveredError("Batch norm without running statistics depends on the batch; track them and use eval().")
    scale, shift = lowering.batch_norm(t.constant(weight), t.constant(bias), m, v, float(eps))
    operand, size = t.value(x), shape_of(x)
    along = (1, -1, *(1 for _ in size[2:]))
    coef, constant = (t.placed(side.view(along).expand(size), operand) for side in (scale, shift))
    return t.add(fx, label(fx), Combine((coef,), constant), (operand,))


@covers("linear.default")
def _linear(t: Translation, fx: Any, *, x: Any, weight: Any, bias: Any) -> str | Tensor:
    w = t.constant(weight)
    assert w is not None  # the schema requires a weight
    return dense(t, fx, x, w, t.constant(bias))


@covers("addmm.default")
def _addmm(t: Translation, fx: Any, *, x: Any, mat1: Any, mat2: Any, beta: Any, alpha: Any) -> str | Tensor:
    bias, w = t.constant(x), t.constant(mat2)
    assert bias is not None and w is not None
    wide = (float(beta) * bias).expand(shape_of(fx))
    if not bool((wide == wide[:1]).all()):
        raise NotCoveredError("What it adds differs from row to row.")
    return dense(t, fx, mat1, float(alpha) * w.T, wide[0])


@covers("mm.default", "matmul.default", "bmm.default")
def _matmul(t: Translation, fx: Any, *, x: Any, mat2: Any = None, other: Any = None) -> str | Tensor:
    second = other if mat2 is None else mat2
    if t.is_map(x) and t.is_map(second):
        raise NotCoveredError("A product of two feature maps is not piecewise linear.")
    w = t.constant(second if t.is_map(x) else x)
    assert w is not None
    while w.ndim > 2 and w.shape[0] == 1:
        w = w[0]
    if w.ndim != 2:
        raise NotCoveredError(f"Only a constant matrix is known, not one of shape {tuple(w.shape)}.")
    if t.is_map(x):
        return dense(t, fx, x, w.T, None)
    numbers = t.numbers(second)
    if numbers.ndim < 3:
        raise NotCoveredError("It mixes the images of a batch.")
    return _on_last_axis(t, fx, numbers.mT, w, None).mT


def dense(t: Translation, fx: Any, x: Any, weight: Tensor, bias: Tensor | None) -> str | Tensor:
    """``x @ weight.T + bias`` on the last axis of x: a convolution of the whole of a map that is read as a vector, or
    of one pixel for each of the others."""
    numbers = t.numbers(x)
    if len(numbers) != 1:  # rows of the one image of the batch
        return _on_last_axis(t, fx, numbers[None], weight, bias)[0]
    if numbers.ndim == 2:
        operand = t.value(x)
        shape = t.builder.nodes[operand].shape
        order = t.order_of(operand)
        w = weight if order is None else torch.zeros_like(weight).index_copy(1, order, weight)
        return t.add(fx, label(fx), Conv2d(w.reshape(len(w), *shape), bias), (operand,), (len(w), 1, 1))
    return _on_last_axis(t, fx, numbers, weight, bias)


def _on_last_axis(t: Translation, fx: Any, numbers: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    first = numbers.movedim(-1, 1)
    operand = t.channels_first(first)
    height, width = t.builder.nodes[operand].shape[1:]
    shape = (len(weight), height, width)
    name = t.add(fx, label(fx), Conv2d(weight[:, :, None, None], bias), (operand,), shape)
    return t.entries(name).view(1, len(weight), *first.shape[2:]).movedim(1, -1)


# --- pools -----------------------------------------------------------------------------------------------------------


@covers("max_pool2d.default", "max_pool2d_with_indices.default")
def _max_pool2d(
    t: Translation, fx: Any, *, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> str:
    kernel = pair(kernel_size)
    op = MaxPool2d(kernel, pair(stride) if stride else kernel, pair(padding), pair(dilation), bool(ceil_mode))
    return t.add(fx, label(fx), op, (t.map(x),))


@covers("max_pool1d.default", "max_pool1d_with_indices.default")
def _max_pool1d(
    t: Translation, fx: Any, *, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> str:
    kernel = on_row(kernel_size, 1)
    steps = on_row(stride, 1) if stride else kernel
    op = MaxPool2d(kernel, steps, on_row(padding, 0), on_row(dilation, 1), bool(ceil_mode))
    return t.add(fx, label(fx), op, (t.map(x),))


@covers("avg_pool2d.default")
def _avg_pool2d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,  # shows in the size of the result
    count_include_pad: Any,
    divisor_override: Any,
) -> str:
    kernel = pair(kernel_size)
    steps = (kernel, pair(stride) if stride else kernel, pair(padding))
    divisor = None if divisor_override is None else int(divisor_override)
    return _averaged(t, fx, t.map(x), steps, bool(count_include_pad), divisor)


@covers("avg_pool1d.default")
def _avg_pool1d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
) -> str:
    kernel = on_row(kernel_size, 1)
    steps = (kernel, on_row(stride, 1) if stride else kernel, on_row(padding, 0))
    return _averaged(t, fx, t.map(x), steps, bool(count_include_pad), None)


def _averaged(
    t: Translation,
    fx: Any,
    operand: str,
    steps: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    count_include_pad: bool,
    divisor: int | None,
) -> str:
    """``steps``: kernel, stride and padding. A window that overhangs the padding reads zeros there."""
    kernel, stride, padding = steps
    shape, out = t.builder.nodes[operand].shape, as_shape(shape_of(fx))
    pool, scale = lowering.average_pool(shape, out, kernel, stride, padding, count_include_pad, divisor)
    over = [
        max(0, (n - 1) * s + k - before - 2 * p)
        for n, s, k, before, p in zip(out[1:], stride, kernel, shape[1:], padding, strict=True)
    ]
    if any(over):
        size = (shape[1] + over[0], shape[2] + over[1])
        operand = t.add(fx, f"{label(fx)}.padded", Tap((1, 1), (0, 0), size), (operand,), (shape[0], *size))
    if scale is None:
        return t.add(fx, label(fx), pool, (operand,))
    summed = t.add(fx, f"{label(fx)}.sum", pool, (operand,))
    return t.add(fx, label(fx), scale, (summed,))


@covers("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(t: Translation, fx: Any, *, x: Any, output_size: Any) -> str:
    return _adaptive_average(t, fx, t.map(x))


@covers("adaptive_avg_pool1d.default")
def _adaptive_avg_pool1d(t: Translation, fx: Any, *, x: Any, output_size: Any) -> str | Value:
    if shape_of(fx)[-1] == 1:  # of a flattened map too, which is then averaged as it lies
        return summed(t, fx, x, -1, mean=True)
    return _adaptive_average(t, fx, t.map(x))


def _adaptive_average(t: Translation, fx: Any, operand: str) -> str:
    shape, out = t.builder.nodes[operand].shape, as_shape(shape_of(fx))
    if all(n % m == 0 for n, m in zip(shape[1:], out[1:], strict=True)):
        kernel = (shape[1] // out[1], shape[2] // out[2])
        pool, _ = lowering.average_pool(shape, out, kernel, kernel, (0, 0), True, None)
        return t.add(fx, label(fx), pool, (operand,))
    for axis in (0, 1):
        starts, ends = adaptive_windows(shape[1 + axis], out[1 + axis])
        taps = taps_of(t, operand, axis, starts, ends, None)
        share = _wide(1.0 / (ends - starts).double(), axis, taps[0], t)
        operand = t.add(fx, f"{label(fx)}.axis{axis}", Combine(tuple(share for _ in taps)), tuple(taps))
    return operand


@covers("adaptive_max_pool2d.default", "adaptive_max_pool1d.default")
def _adaptive_max_pool(t: Translation, fx: Any, *, x: Any, output_size: Any) -> str:
    operand = t.map(x)
    shape, out = t.builder.nodes[operand].shape, as_shape(shape_of(fx))
    if all(n % m == 0 for n, m in zip(shape[1:], out[1:], strict=True)):
        kernel = (shape[1] // out[1], shape[2] // out[2])
        return t.add(fx, label(fx), MaxPool2d(kernel, kernel, (0, 0), (1, 1)), (operand,))
    for axis in (0, 1):
        starts, ends = adaptive_windows(shape[1 + axis], out[1 + axis])
        operand = largest(t, fx, f"{label(fx)}.axis{axis}", taps_of(t, operand, axis, starts, ends, ends - 1))
    return operand


def adaptive_windows(length: int, out: int) -> tuple[Tensor, Tensor]:
    """Where the windows of an adaptive pool begin and end along one axis, as torch has it."""
    at = torch.arange(out)
    return at * length // out, ((at + 1) * length + out - 1) // out


def taps_of(t: Translation, operand: str, axis: int, starts: Tensor, ends: Tensor, last: Tensor | None) -> list[str]:
    """Nodes whose rows (axis 0) or columns (1) are the first, the second ... of each window of the operand; beyond a
    window's end, zeros, or the row or column ``last``."""
    entries, made = t.entries(operand), list[str]()
    for tap in range(int((ends - starts).max())):
        place = starts + tap
        beyond = place >= ends
        moved = entries.index_select(1 + axis, torch.where(beyond, starts if last is None else last, place))
        if last is None:
            moved = torch.where(beyond[:, None] if axis == 0 else beyond, -1.0, moved)
        made.append(t.map_of(moved[None]))
    return made


@covers(
    *(
        f"{name}.{variant}"
        for name in (
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        )
        for variant in ("default", "vec")
    )
)
def _resize(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    align_corners: Any,
    output_size: Any = None,
    scales: Any = None,
    scales_h: Any = None,
    scales_w: Any = None,
    scale_factors: Any = None,
) -> str:
    """Along each axis sums of a few rows or columns, with the weights that torch itself gives each one."""
    operand, name = t.map(x), overload(fx.target).partition(".")[0]
    resize = getattr(torch.ops.aten, "upsample_bilinear2d" if name == "upsample_linear1d" else name).default
    given = _scales(scales, scales_h, scales_w, scale_factors, line=len(shape_of(x)) == 3)
    for axis in (0, 1):
        length, out = t.builder.nodes[operand].shape[1 + axis], as_shape(shape_of(fx))[1 + axis]
        if length == out and given[axis] in (None, 1.0):
            continue
        each = torch.eye(length, dtype=torch.float64)[None]
        # twice side by side: torch 2.13 misreads maps of one column where it blurs
        size, scale = ([out, 2], (given[0], None)) if axis == 0 else ([2, out], (None, given[1]))
        resized = resize(torch.stack((each, each), 3 - axis), size, bool(align_corners), *scale)
        weights = resized.select(3 - axis, 0)[0].T  # (out, length)
        nonzero = weights != 0
        places = nonzero.long().sort(dim=1, descending=True, stable=True).indices[:, : int(nonzero.sum(1).max())]
        places = torch.where(nonzero.gather(1, places), places, places[:, :1])
        first = torch.arange(places.shape[1]) < nonzero.sum(1, keepdim=True)
        shares = torch.where(first, weights.gather(1, places), 0.0)
        entries = t.entries(operand)
        taps = [t.map_of(entries.index_select(1 + axis, place)[None]) for place in places.T]
        coefs = tuple(_wide(share, axis, tap, t) for share, tap in zip(shares.T, taps, strict=True))
        operand = t.add(fx, f"{label(fx)}.axis{axis}", Combine(coefs), tuple(taps))
    return operand


def _wide(values: Tensor, axis: int, name: str, t: Translation) -> Tensor:
    """One number for each row (axis 0) or column (1) of a node as a coefficient (1, H, W)."""
    line = values[None, :, None] if axis == 0 else values[None, None, :]
    return line.expand(1, *t.builder.nodes[name].shape[1:]).contiguous()


def _scales(scales: Any, rows: Any, columns: Any, factors: Any, line: bool) -> tuple[float | None, float | None]:
    """What torch divides positions by along rows and columns, where it was told."""
    if factors is not None:
        return (None, factors[0]) if line else (factors[0], factors[1])
    return (None, scales) if line else (rows, columns)
