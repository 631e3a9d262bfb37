"""Builders of sums, products with constants and of two maps, and sums and means over axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from corgi_opt.network import lowering
from corgi_opt.network.builders import check_floating, covers, label
from corgi_opt.network.curves import Sigmoid, Silu, Square
from corgi_opt.network.ops import Combine, Conv2d
from corgi_opt.network.pieces import reduced, slices_of
from corgi_opt.network.smooth import Product, Smooth
from corgi_opt.network.translation import NotCoveredError, Translation, Value, shape_of


@covers("type_as.default", "to.other")
def _same(t: Translation, fx: Any, *, x: Any, other: Any = None) -> str | Tensor:
    check_floating(fx.meta["val"].dtype)
    return t.numbers(x)


@covers("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device")
def _cast(t: Translation, fx: Any, *, x: Any, dtype: Any = None) -> Tensor:
    check_floating(dtype)
    return t.numbers(x)


@covers("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _dropout(t: Translation, fx: Any, *, x: Any, p: Any, train: Any) -> Tensor:
    if train and p:
        raise NotCoveredError(
            "It drops values in eval mode too, at random: pass training=self.training to F.dropout, or use nn.Dropout."
        )
    return t.numbers(x)


def _sum(t: Translation, fx: Any, x: Any, y: Any, scale: float) -> str:
    """``x + scale * y``; one of them may be a constant."""
    if t.is_map(x) and t.is_map(y):
        coefs = (lowering.scalar(1.0), lowering.scalar(scale))
        return t.add(fx, str(fx.name), Combine(coefs), tuple(t.broadcast(fx, x, y)))
    first = t.is_map(x)
    (operand,) = t.broadcast(fx, x if first else y)
    shift = _constant(t, y if first else x, fx, operand) * (scale if first else 1.0)
    return t.add(fx, str(fx.name), Combine((lowering.scalar(1.0 if first else scale),), shift), (operand,))


@covers("add.Tensor", "add.Scalar")
def _add(t: Translation, fx: Any, *, x: Any, other: Any, alpha: Any) -> str:
    return _sum(t, fx, x, other, float(alpha))


@covers("sub.Tensor", "sub.Scalar")
def _sub(t: Translation, fx: Any, *, x: Any, other: Any, alpha: Any) -> str:
    return _sum(t, fx, x, other, -float(alpha))


@covers("rsub.Tensor", "rsub.Scalar")
def _rsub(t: Translation, fx: Any, *, x: Any, other: Any, alpha: Any) -> str:
    """``other - alpha * x``, which is how torch spells a constant minus a map."""
    return _sum(t, fx, other, x, -float(alpha))


@covers("neg.default")
def _neg(t: Translation, fx: Any, *, x: Any) -> str:
    return t.add(fx, str(fx.name), Combine((lowering.scalar(-1.0),)), (t.value(x),))


@covers("mul.Tensor", "mul.Scalar")
def _mul(t: Translation, fx: Any, *, x: Any, other: Any) -> str:
    if t.is_map(x) and t.is_map(other):
        return product(t, fx, str(fx.name), *t.broadcast(fx, x, other))
    x, factor = (x, other) if t.is_map(x) else (other, x)
    (operand,) = t.broadcast(fx, x)
    return t.add(fx, str(fx.name), Combine((_constant(t, factor, fx, operand),)), (operand,))


def product(t: Translation, fx: Any, name: str, x: str, y: str) -> str:
    """Of two nodes of one shape; of a node with itself a square, with its own sigmoid SiLU, which are tighter."""
    for one, other in ((x, y), (y, x)):
        gate = t.builder.nodes[other]
        if isinstance(gate.op, Smooth) and gate.op.function == Sigmoid() and gate.inputs == (one,):
            return t.add(fx, name, Smooth(Silu()), (one,))
    return t.add(fx, name, Smooth(Square()), (x,)) if x == y else t.add(fx, name, Product(), (x, y))


@covers("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _div(t: Translation, fx: Any, *, x: Any, other: Any, rounding_mode: Any = None) -> str:
    if rounding_mode is not None:
        raise NotCoveredError(f"rounding_mode={rounding_mode!r} rounds, which is not piecewise linear; leave it out.")
    if t.is_map(other):
        raise NotCoveredError("A quotient by a feature map is not piecewise linear.")
    (operand,) = t.broadcast(fx, x)
    return t.add(fx, str(fx.name), Combine((1.0 / _constant(t, other, fx, operand),)), (operand,))


@covers("lerp.Scalar", "lerp.Tensor")
def _lerp(t: Translation, fx: Any, *, x: Any, end: Any, weight: Any) -> str:
    """``x + weight * (end - x)``."""
    if not (t.is_map(x) and t.is_map(end)) or t.is_map(weight):
        raise NotCoveredError("Only a constant way from one map to another is known; write x + weight * (end - x).")
    nodes = t.broadcast(fx, x, end)
    share = _constant(t, weight, fx, nodes[1])
    return t.add(fx, str(fx.name), Combine((1.0 - share, share)), tuple(nodes))


@covers("addcmul.default")
def _addcmul(t: Translation, fx: Any, *, x: Any, tensor1: Any, tensor2: Any, value: Any) -> str:
    """``x + value * tensor1 * tensor2``."""
    if not t.is_map(x) or not (t.is_map(tensor1) or t.is_map(tensor2)):
        raise NotCoveredError("Only the sum of a map and a map times something is known; write x + value * y.")
    if t.is_map(tensor1) and t.is_map(tensor2):
        first, *factors = t.broadcast(fx, x, tensor1, tensor2)
        both = product(t, fx, f"{fx.name}.product", factors[0], factors[1])
        coefs = (lowering.scalar(1.0), lowering.scalar(float(value)))
        return t.add(fx, str(fx.name), Combine(coefs), (first, both))
    y, factor = (tensor1, tensor2) if t.is_map(tensor1) else (tensor2, tensor1)
    nodes = t.broadcast(fx, x, y)
    coefs = (lowering.scalar(1.0), float(value) * _constant(t, factor, fx, nodes[1]))
    return t.add(fx, str(fx.name), Combine(coefs), tuple(nodes))


def _constant(t: Translation, arg: Any, fx: Any, operand: str) -> Tensor:
    """A constant broadcast to the result of a call, as a coefficient over the node that stands for its operand."""
    value = t.constant(arg)
    if value is None:
        raise NotCoveredError("It needs a constant operand.")
    return lowering.scalar(float(value)) if value.numel() == 1 else t.placed(value.expand(shape_of(fx)), operand)


# --- over axes -------------------------------------------------------------------------------------------------------

MOST_TERMS = 256
"""Most slices that are added one by one."""


@covers("mean.dim", "mean.default")
def _mean(t: Translation, fx: Any, *, x: Any, dtype: Any, dim: Any = None, keepdim: Any = False) -> Value:
    """``keepdim`` shows in the shape of the result alone."""
    check_floating(dtype)
    return summed(t, fx, x, dim, mean=True)


@covers("sum.dim_IntList", "sum.default")
def _sum_over(t: Translation, fx: Any, *, x: Any, dtype: Any, dim: Any = None, keepdim: Any = False) -> Value:
    check_floating(dtype)
    return summed(t, fx, x, dim, mean=False)


def summed(t: Translation, fx: Any, x: Any, dim: Any, mean: bool) -> Value:
    """Sums, or means, over some axes (None: all but the batch's)."""
    (numbers, dims), size = reduced(t.numbers(x), dim), shape_of(fx)
    slices, rank = slices_of(numbers, dims), numbers.ndim
    share = 1.0 / len(slices) if mean else 1.0
    plane = (numbers.shape[dims[0]], numbers.shape[dims[1]]) if len(dims) == 2 else None
    last = None if plane is not None else _last_map(t, x, slices.flatten(1).T)
    if last is not None:
        return Value(_averaged(t, fx, t.map_of(last), share).reshape(size))
    whole = _planes(t, fx, slices, share, plane)
    if whole is not None:
        return Value(whole.reshape(size))
    if rank in (3, 4):
        operand = t.map_of(numbers)
        axes = {d if rank == 4 else {1: 1, 2: 3}[d] for d in dims}
        return Value(t.entries(_over_axes(t, fx, operand, axes, share)).reshape(size))
    if len(slices) > MOST_TERMS:
        raise NotCoveredError(f"It adds {len(slices)} slices of a tensor of {rank} axes; at most {MOST_TERMS} are.")
    coefs, nodes = tuple(lowering.scalar(share) for _ in slices), tuple(t.map_of(one) for one in slices)
    return Value(t.entries(t.add(fx, label(fx), Combine(coefs), nodes)).reshape(size))


def _last_map(t: Translation, x: Any, sums: Tensor) -> Tensor | None:
    """The numbers (1, C, H, W) of the nearest map that an operand was made of by moving alone, whose channels are what
    is summed (C, K); None where there is none. It knows its rows and columns, where the operand was flattened."""
    expected = sums.sort(dim=1).values
    while t.is_map(x) and isinstance(t.values[x], Value):
        numbers = t.numbers(x)
        if numbers.numel() != sums.numel():
            return None
        held = numbers[0].flatten(1) if numbers.ndim == 4 else None
        if held is not None and held.shape == sums.shape and torch.equal(held.sort(dim=1).values, expected):
            return numbers
        made_of = [a for a in x.all_input_nodes if t.is_map(a)]
        if len(made_of) != 1:
            return None
        (x,) = made_of
    return None


def _averaged(t: Translation, fx: Any, operand: str, share: float) -> Tensor:
    """The numbers (C,) of ``share`` times the sums over each channel of a node."""
    count, height, width = t.builder.nodes[operand].shape
    weight = torch.full((count, 1, height, width), share, dtype=torch.float64)
    node = t.add(fx, label(fx), Conv2d(weight, None, groups=count), (operand,), (count, 1, 1))
    return t.entries(node).flatten()


def _planes(t: Translation, fx: Any, slices: Tensor, share: float, plane: tuple[int, int] | None) -> Tensor | None:
    """The numbers of sums that are each over the whole plane of a channel of a node; None where some are not.

    ``plane``: rows and columns of what is summed as the model has it, if it has any. Where that is not the node's map
    (it was flipped, its channels were shuffled, its rows became columns), the sums are over the map that the model has,
    whose CAM is asked for.
    """
    sums = slices.flatten(1).T  # what each entry of the result is the sum of
    made = [found for found in map(t.plane_of, sums) if found is not None]
    names = list(dict.fromkeys(name for name, _ in made))
    if len(made) < len(sums) or len({t.builder.nodes[name].shape[1:] for name in names}) != 1:
        return None
    operand, channels = names[0], [channel for _, channel in made]
    ordered = bool((sums[:, 1:] > sums[:, :-1]).all())
    whole, rows_and_columns = range(t.builder.nodes[operand].shape[0]), t.builder.nodes[operand].shape[1:]
    if plane is None:
        plane = rows_and_columns if ordered else (1, sums.shape[1])
    if len(names) > 1 or not ordered or channels != list(whole) or plane != rows_and_columns:
        operand = t.map_of(sums.reshape(1, -1, *plane))
        channels = list(range(len(made)))
    return _averaged(t, fx, operand, share)[channels]


def _over_axes(t: Translation, fx: Any, operand: str, axes: set[int], share: float) -> str:
    """A map summed over some of its axes (1 channels, 2 rows, 3 columns): a convolution with equal weights."""
    channels, height, width = t.builder.nodes[operand].shape
    kernel = (height if 2 in axes else 1, width if 3 in axes else 1)
    across = 1 in axes
    weight = torch.full((1, channels, *kernel) if across else (channels, 1, *kernel), share, dtype=torch.float64)
    shape = (1 if across else channels, 1 if 2 in axes else height, 1 if 3 in axes else width)
    name = t.add(fx, label(fx), Conv2d(weight, None, groups=1 if across else channels), (operand,), shape)
    if not across:
        t.halves.add(name)
    return name
