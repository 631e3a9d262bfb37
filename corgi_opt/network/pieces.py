"""Builders of what is piecewise linear: ReLU and its kin, absolute values, clamps, maxima and minima.

All are ReLUs between affine operations, spelt so that interval arithmetic on them is exact:
``clamp(x, a, b) = b - relu(b - a - relu(x - a))``, ``max(x, y) = x + relu(y - x)``, ``|x| = relu(x) + relu(-x)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from corgi_opt.network.builders import covers, label
from corgi_opt.network.lowering import scalar
from corgi_opt.network.ops import Combine, ReLU
from corgi_opt.network.translation import NotCoveredError, Translation, shape_of


@covers("relu.default")
def _relu(t: Translation, fx: Any, *, x: Any) -> str:
    operand = t.value(x)
    if isinstance(t.builder.nodes[operand].op, ReLU):
        return operand  # relu(relu(x)) = relu(x)
    return t.add(fx, label(fx), ReLU(), (operand,))


def _leaky(t: Translation, fx: Any, operand: str, slope: Tensor) -> str:
    """``slope * x + (1 - slope) * relu(x)``."""
    rectified = t.add(fx, f"{label(fx)}.relu", ReLU(), (operand,))
    return t.add(fx, label(fx), Combine((slope, 1.0 - slope)), (operand, rectified))


@covers("leaky_relu.default")
def _leaky_relu(t: Translation, fx: Any, *, x: Any, negative_slope: Any) -> str:
    return _leaky(t, fx, t.value(x), scalar(float(negative_slope)))


@covers("prelu.default", "_prelu_kernel.default")
def _prelu(t: Translation, fx: Any, *, x: Any, weight: Any) -> str:
    slopes, operand, size = t.constant(weight), t.value(x), shape_of(x)
    assert slopes is not None  # the schema requires a weight
    if slopes.ndim <= 1:
        slopes = slopes.view(1, -1, *(1 for _ in size[2:]))
    return _leaky(t, fx, operand, t.placed(slopes.expand(size), operand))


@covers("rrelu.default")
def _rrelu(t: Translation, fx: Any, *, x: Any, lower: Any, upper: Any, training: Any) -> str:
    """In eval mode, its mean slope."""
    if training:
        raise NotCoveredError("It draws its slopes at random in training mode; use nn.RReLU in eval mode.")
    return _leaky(t, fx, t.value(x), scalar((float(lower) + float(upper)) / 2))


@covers("relu6.default")
def _relu6(t: Translation, fx: Any, *, x: Any) -> str:
    return _clamped(t, fx, t.value(x), 0.0, 6.0)


@covers("hardtanh.default")
def _hardtanh(t: Translation, fx: Any, *, x: Any, min_val: Any, max_val: Any) -> str:
    return _clamped(t, fx, t.value(x), float(min_val), float(max_val))


@covers("clamp.default", "clamp_min.default", "clamp_max.default", "clip.default")
def _clamp(t: Translation, fx: Any, *, x: Any, min: Any = None, max: Any = None) -> str:
    low = -math.inf if min is None else float(min)
    high = math.inf if max is None else float(max)
    return _clamped(t, fx, t.value(x), low, high)


@covers("hardsigmoid.default")
def _hardsigmoid(t: Translation, fx: Any, *, x: Any) -> str:
    """``clamp(x / 6 + 1 / 2, 0, 1)``."""
    operand = t.value(x)
    line = t.add(fx, f"{label(fx)}.line", Combine((scalar(1.0 / 6.0),), scalar(0.5)), (operand,))
    return _clamped(t, fx, line, 0.0, 1.0)


@covers("threshold.default")
def _threshold(t: Translation, fx: Any, *, x: Any, threshold: Any, value: Any) -> str:
    if float(threshold) != float(value):
        raise NotCoveredError(
            f"It jumps from {value} to {threshold}, which no piecewise-linear function does; use one value for both."
        )
    return _clamped(t, fx, t.value(x), float(value), math.inf)


def _clamped(t: Translation, fx: Any, operand: str, low: float, high: float) -> str:
    """``b - relu(b - a - relu(x - a))``, or what of that is finite."""
    if low > high:
        low = high  # as torch has it
    if not (low > -math.inf or high < math.inf):
        return operand
    one, minus, name = scalar(1.0), scalar(-1.0), label(fx)
    if low == -math.inf:
        gap = t.add(fx, f"{name}.gap", Combine((minus,), scalar(high)), (operand,))
        return t.add(fx, name, Combine((minus,), scalar(high)), (t.add(fx, f"{name}.relu", ReLU(), (gap,)),))
    above = operand if low == 0 else t.add(fx, f"{name}.above", Combine((one,), scalar(-low)), (operand,))
    rise = t.add(fx, f"{name}.relu", ReLU(), (above,))
    if high == math.inf:
        return rise if low == 0 else t.add(fx, name, Combine((one,), scalar(low)), (rise,))
    gap = t.add(fx, f"{name}.gap", Combine((minus,), scalar(high - low)), (rise,))
    return t.add(fx, name, Combine((minus,), scalar(high)), (t.add(fx, f"{name}.relu", ReLU(), (gap,)),))


@covers("abs.default")
def _abs(t: Translation, fx: Any, *, x: Any) -> str:
    operand, name, one = t.value(x), label(fx), scalar(1.0)
    negated = t.add(fx, f"{name}.negated", Combine((scalar(-1.0),)), (operand,))
    sides = tuple(t.add(fx, f"{name}.relu", ReLU(), (side,)) for side in (operand, negated))
    return t.add(fx, name, Combine((one, one)), sides)


@covers("maximum.default", "max.other")
def _maximum(t: Translation, fx: Any, *, x: Any, other: Any) -> str:
    return _extreme(t, fx, x, other, 1.0)


@covers("minimum.default", "min.other")
def _minimum(t: Translation, fx: Any, *, x: Any, other: Any) -> str:
    return _extreme(t, fx, x, other, -1.0)


@covers("clamp.Tensor")
def _clamp_between(t: Translation, fx: Any, *, x: Any, min: Any, max: Any) -> str:
    operand = t.broadcast(fx, x)[0]
    for limit, sign in ((min, 1.0), (max, -1.0)):
        if limit is not None:
            if t.is_map(limit):
                raise NotCoveredError("Its limits depend on the image; write torch.maximum and torch.minimum.")
            operand = _beyond(t, fx, operand, t.constant(limit), sign)
    return operand


@covers("clamp_min.Tensor")
def _clamp_min(t: Translation, fx: Any, *, x: Any, min: Any) -> str:
    return _extreme(t, fx, x, min, 1.0)


@covers("clamp_max.Tensor")
def _clamp_max(t: Translation, fx: Any, *, x: Any, max: Any) -> str:
    return _extreme(t, fx, x, max, -1.0)


def _extreme(t: Translation, fx: Any, x: Any, y: Any, sign: float) -> str:
    """``x + s relu(s (y - x))``; one of the two may be a constant."""
    if t.is_map(x) and t.is_map(y):
        return largest(t, fx, label(fx), t.broadcast(fx, x, y), sign)
    operand, constant = (x, t.constant(y)) if t.is_map(x) else (y, t.constant(x))
    return _beyond(t, fx, t.broadcast(fx, operand)[0], constant, sign)


def _beyond(t: Translation, fx: Any, base: str, constant: Tensor | None, sign: float) -> str:
    """The larger (sign -1: the smaller) of a node and a constant that broadcasts to the result of a call."""
    assert constant is not None
    name, limit = label(fx), t.placed(constant.expand(shape_of(fx)), base)
    gap = t.add(fx, f"{name}.gap", Combine((scalar(sign),), -sign * limit), (base,))
    return t.add(fx, name, Combine((scalar(sign),), limit), (t.add(fx, f"{name}.relu", ReLU(), (gap,)),))


def largest(t: Translation, fx: Any, name: str, nodes: Sequence[str], sign: float = 1.0) -> str:
    """The largest (sign -1: the smallest) of nodes, entry by entry: a balanced tree of maxima of two."""
    level = list(nodes)
    while len(level) > 1:
        made = []
        for first, second in zip(level[::2], level[1::2], strict=False):
            gap = t.add(fx, f"{name}.gap", Combine((scalar(sign), scalar(-sign))), (second, first))
            rise = t.add(fx, f"{name}.relu", ReLU(), (gap,))
            made.append(t.add(fx, f"{name}.max", Combine((scalar(1.0), scalar(sign))), (first, rise)))
        level = made + level[2 * len(made) :]
    return level[0]


@covers("amax.default", "max.dim")
def _largest_of(t: Translation, fx: Any, *, x: Any, dim: Any, keepdim: Any) -> Tensor:
    return _extreme_of(t, fx, x, dim, 1.0)


@covers("amin.default", "min.dim")
def _smallest_of(t: Translation, fx: Any, *, x: Any, dim: Any, keepdim: Any) -> Tensor:
    return _extreme_of(t, fx, x, dim, -1.0)


MOST_SLICES = 4096
"""Most values that one maximum is taken of."""


def _extreme_of(t: Translation, fx: Any, x: Any, dim: Any, sign: float) -> Tensor:
    """``keepdim`` shows in the shape of the result alone."""
    slices = slices_of(*reduced(t.numbers(x), dim))
    if len(slices) > MOST_SLICES:
        raise NotCoveredError(f"It takes the maximum of {len(slices)} values at once; at most {MOST_SLICES} are.")
    name = largest(t, fx, label(fx), [t.map_of(numbers) for numbers in slices], sign)
    return t.entries(name).reshape(shape_of(fx))


def reduced(numbers: Tensor, dim: Any) -> tuple[Tensor, list[int]]:
    """Numbers with the batch's axis first, and the axes of these that are reduced, rising (none given: all others)."""
    rank, given = numbers.ndim, [dim] if isinstance(dim, int) else list(dim or ())
    if not rank or len(numbers) != 1:  # of the one image of the batch: its own axes alone
        return numbers[None], sorted(d % max(rank, 1) + 1 for d in given or range(rank))
    dims = sorted(d % rank for d in given or range(1, rank))
    if 0 in dims:
        raise NotCoveredError("It reduces over the batch dimension.")
    return numbers, dims


def slices_of(numbers: Tensor, dims: Sequence[int]) -> Tensor:
    """What is reduced over some axes, (K, 1, ...): slice by slice."""
    rest = [d for d in range(numbers.ndim) if d not in dims]
    return numbers.permute(*dims, *rest).flatten(0, len(dims) - 1) if dims else numbers[None]
