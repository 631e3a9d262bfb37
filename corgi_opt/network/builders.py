"""The table of builders: for each aten operation (with its overload) what adds it to a graph, as affine operations and
ReLUs.

A builder names every argument of the operation's schema that it handles (``self`` and ``input`` are called ``x``). One
that it does not name has to have its default value, or the operation is refused by that argument's name.

A vector is a map of one pixel, so global pooling and dense layers are convolutions like any other. A flattened map
stays the map it was: what matters is that its values follow each other in the same order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from corgi_opt.network import lowering
from corgi_opt.network.exported import module_path
from corgi_opt.network.graph import GraphBuilder
from corgi_opt.network.ops import Combine, Conv2d, MaxPool2d, Op, ReLU, Shape


class NotCoveredError(Exception):
    """Raised by a builder: this use of the operation is not covered; says what to do."""


class Translation:
    """The graph as far as it is built. ``names``: for each fx node the graph node with its values, in its order."""

    def __init__(self, constants: Mapping[Any, Tensor]) -> None:
        self.builder = GraphBuilder()
        self.constants = constants
        self.names: dict[Any, str] = {}

    def shape(self, fx: Any) -> Shape:
        """The shape of a result as a map."""
        size = shape_of(fx)
        if not size or size[0] != 1:
            raise NotCoveredError(f"Its result has shape {size}; the batch dimension must stay first and be 1.")
        rest = size[1:]
        if len(rest) > 3 and all(s == 1 for s in rest[3:]):
            rest = rest[:3]
        if len(rest) > 3:
            raise NotCoveredError(f"Its result has shape {size}; only (1, C, H, W) maps and (1, C) vectors are known.")
        padded = rest + (1,) * (3 - len(rest))
        return (padded[0], padded[1], padded[2])

    def add(self, fx: Any, name: str, op: Op, inputs: tuple[str, ...]) -> str:
        """Adds a node; an elementwise one keeps its operand's shape (a flattened map stays a map)."""
        shape = self.builder.nodes[inputs[0]].shape if inputs and op.elementwise else None
        return self.builder.add(name, op, inputs, shape or self.shape(fx), module_path(fx))

    def value(self, arg: Any) -> str:
        """The graph node of an operand, whatever shape it was given since. Raises NotCoveredError for a constant."""
        if arg not in self.names:
            raise NotCoveredError("One of its operands is a parameter or a constant where a feature map is expected.")
        return self.names[arg]

    def map(self, arg: Any) -> str:
        """The graph node of an operand (1, C, H, W). Raises NotCoveredError where it was reshaped since."""
        name = self.value(arg)
        if shape_of(arg) != (1, *self.builder.nodes[name].shape):
            raise NotCoveredError(
                f"It reads a map of shape (1, {', '.join(map(str, self.builder.nodes[name].shape))}) that was reshaped "
                f"to {shape_of(arg)}; rows, columns and channels must stay what they were."
            )
        return name

    def constant(self, arg: Any) -> Tensor | None:
        """A weight or a literal, in float64. Raises NotCoveredError for what depends on the image."""
        if arg is None:
            return None
        if isinstance(arg, (int, float)):
            return torch.tensor(float(arg), dtype=torch.float64)
        if arg not in self.constants:
            raise NotCoveredError("A weight that depends on the input is not an affine layer.")
        return self.constants[arg].double()


Builder = Callable[..., str]
BuilderT = TypeVar("BuilderT", bound=Builder)

BUILDERS: dict[str, Builder] = {}
"""Builders by operation and overload, as in ``conv2d.default``."""

SAME_VALUES = frozenset({"memory_format", "layout", "device", "pin_memory", "non_blocking", "copy", "cudnn_enabled"})
"""Arguments that say where and how values lie or are computed, not what they are."""


def covers(*overloads: str) -> Callable[[BuilderT], BuilderT]:
    """Enters a builder into the table for these operations."""

    def register(builder: BuilderT) -> BuilderT:
        BUILDERS.update(dict.fromkeys(overloads, builder))
        return builder

    return register


def overload(target: Any) -> str:
    """The name of an aten operation, its overload included; of anything else, its own."""
    text = str(target)
    return text.removeprefix("aten.") if isinstance(target, torch._ops.OpOverload) else text


def handled(builder: Builder) -> frozenset[str]:
    """The arguments that a builder names."""
    parameters = inspect.signature(builder).parameters
    return frozenset(name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY)


def argument_name(name: str) -> str:
    """The name that builders have for an argument of a schema."""
    return "x" if name in ("self", "input") else name


def build(t: Translation, fx: Any) -> str:
    """The graph node of one call. Raises NotCoveredError, KeyError for an operation that is not in the table."""
    builder = BUILDERS[overload(fx.target)]
    known, given = handled(builder), {}
    for position, argument in enumerate(fx.target._schema.arguments):
        name, default = argument_name(argument.name), argument.default_value
        value = fx.args[position] if position < len(fx.args) else fx.kwargs.get(argument.name, default)
        if name in known:
            given[name] = value
        elif name not in SAME_VALUES and value != default:
            raise NotCoveredError(f"Its argument {argument.name}={value!r} is not covered; only {default!r} is.")
    return builder(t, fx, **given)


def shape_of(fx: Any) -> tuple[int, ...]:
    """The shape of what a call gives, as torch has it."""
    return tuple(int(s) for s in fx.meta["val"].shape)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def _label(fx: Any) -> str:
    return module_path(fx) or str(fx.name)


def _check_floating(dtype: Any) -> None:
    """A cast to another floating type is an identity here; to anything else it is a rounding."""
    if dtype is not None and not dtype.is_floating_point:
        raise NotCoveredError(f"It rounds to {dtype}, which is not piecewise linear.")


@covers("conv2d.default", "conv2d.padding")
def _conv2d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> str:
    w, b = t.constant(weight), t.constant(bias)
    assert w is not None  # the schema requires a weight
    dilation = _pair(dilation)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        if padding == "same" and any(p % 2 for p in total):
            raise NotCoveredError(
                "padding='same' with an even kernel pads one side more. Give the kernel a row and a column of zeros "
                "more (an odd size) and pad by half of it."
            )
        padding = [p // 2 for p in total] if padding == "same" else [0, 0]
    op = Conv2d(w, b, _pair(stride), _pair(padding), dilation, int(groups))
    return t.add(fx, _label(fx), op, (t.map(x),))


@covers("batch_norm.default", "_native_batch_norm_legit_no_training.default")
def _batch_norm(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,  # updates the statistics, which eval mode does not
    eps: Any,
    training: Any = False,
) -> str:
    if training:
        raise NotCoveredError("Batch norm must be in eval mode with running statistics.")
    m, v = t.constant(running_mean), t.constant(running_var)
    if m is None or v is None:
        raise NotCoveredError("Batch norm without running statistics depends on the batch; track them and use eval().")
    operand = t.value(x)
    if shape_of(x)[1] != t.builder.nodes[operand].shape[0]:
        raise NotCoveredError("It normalises a flattened map value by value; normalise channels before flattening.")
    op = lowering.batch_norm(t.constant(weight), t.constant(bias), m, v, float(eps))
    return t.add(fx, _label(fx), op, (operand,))


@covers("relu.default")
def _relu(t: Translation, fx: Any, *, x: Any) -> str:
    operand = t.value(x)
    if isinstance(t.builder.nodes[operand].op, ReLU):
        return operand  # relu(relu(x)) = relu(x)
    return t.add(fx, _label(fx), ReLU(), (operand,))


@covers("leaky_relu.default")
def _leaky_relu(t: Translation, fx: Any, *, x: Any, negative_slope: Any) -> str:
    operand, slope = t.value(x), float(negative_slope)
    rectified = t.add(fx, f"{_label(fx)}.relu", ReLU(), (operand,))
    coefs = (lowering.scalar(slope), lowering.scalar(1.0 - slope))
    return t.add(fx, _label(fx), Combine(coefs), (operand, rectified))


@covers("max_pool2d.default")
def _max_pool2d(
    t: Translation, fx: Any, *, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> str:
    kernel = _pair(kernel_size)
    op = MaxPool2d(kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation), bool(ceil_mode))
    return t.add(fx, _label(fx), op, (t.map(x),))


@covers("avg_pool2d.default")
def _avg_pool2d(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
) -> str:
    operand, kernel = t.map(x), _pair(kernel_size)
    strides = _pair(stride) if stride else kernel
    shape, out = t.builder.nodes[operand].shape, t.shape(fx)
    divisor = None if divisor_override is None else int(divisor_override)
    pool, scale = lowering.average_pool(shape, out, kernel, strides, _pair(padding), bool(count_include_pad), divisor)
    if pool_size(shape, pool) != out[1:]:
        assert ceil_mode  # nothing else makes a window overhang
        raise NotCoveredError("ceil_mode=True with a window that overhangs the padding; use ceil_mode=False.")
    if scale is None:
        return t.add(fx, _label(fx), pool, (operand,))
    summed = t.add(fx, f"{_label(fx)}.sum", pool, (operand,))
    return t.add(fx, _label(fx), scale, (summed,))


def pool_size(shape: Shape, conv: Conv2d) -> tuple[int, int]:
    """Height and width of what an undilated convolution makes of a map of this shape."""
    kh, kw = conv.weight.shape[-2:]
    sizes = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(shape[1:], conv.padding, (kh, kw), conv.stride, strict=True)
    ]
    return (sizes[0], sizes[1])


def _global_mean(t: Translation, fx: Any, operand: str) -> str:
    channels, height, width = t.builder.nodes[operand].shape
    weight = torch.full((channels, 1, height, width), 1.0 / (height * width), dtype=torch.float64)
    return t.add(fx, _label(fx), Conv2d(weight, None, groups=channels), (operand,))


@covers("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(t: Translation, fx: Any, *, x: Any, output_size: Any) -> str:
    if _pair(output_size) != (1, 1):
        raise NotCoveredError("Only a global average, AdaptiveAvgPool2d(1), is known; use AvgPool2d for the rest.")
    return _global_mean(t, fx, t.map(x))


@covers("mean.dim")
def _mean(t: Translation, fx: Any, *, x: Any, dim: Any, keepdim: Any, dtype: Any) -> str:
    """``keepdim`` changes the shape of the result only."""
    _check_floating(dtype)
    rank = len(shape_of(x))
    if rank != 4 or sorted(d % rank for d in dim or []) != [2, 3]:
        raise NotCoveredError("Only the mean over both spatial axes, x.mean((2, 3)), is known.")
    return _global_mean(t, fx, t.map(x))


@covers("linear.default")
def _linear(t: Translation, fx: Any, *, x: Any, weight: Any, bias: Any) -> str:
    operand, w, b = t.value(x), t.constant(weight), t.constant(bias)
    assert w is not None  # the schema requires a weight
    shape = t.builder.nodes[operand].shape
    if len(shape_of(x)) != 2 or torch.Size(shape).numel() != w.shape[1]:
        raise NotCoveredError("A linear layer must act on a (1, features) vector; flatten first.")
    return t.add(fx, _label(fx), Conv2d(w.reshape(w.shape[0], *shape), b), (operand,))


@covers(
    "flatten.using_ints",
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "unsqueeze.default",
)
def _reshape(
    t: Translation,
    fx: Any,
    *,
    x: Any,
    size: Any = None,
    shape: Any = None,
    dim: Any = None,
    start_dim: Any = None,
    end_dim: Any = None,
) -> str:
    """The same values in the same order. A builder that needs rows and columns checks the shape (Translation.map)."""
    return t.value(x)


@covers(
    "clone.default",
    "alias.default",
    "detach.default",
    "contiguous.default",
    "lift_fresh_copy.default",
    "type_as.default",
    "to.other",
)
def _same(t: Translation, fx: Any, *, x: Any, other: Any = None) -> str:
    _check_floating(fx.meta["val"].dtype)
    return t.value(x)


@covers("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device")
def _cast(t: Translation, fx: Any, *, x: Any, dtype: Any = None) -> str:
    _check_floating(dtype)
    return t.value(x)


@covers("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _dropout(t: Translation, fx: Any, *, x: Any, p: Any, train: Any) -> str:
    if train and p:
        raise NotCoveredError(
            "It drops values in eval mode too, at random: pass training=self.training to F.dropout, or use nn.Dropout."
        )
    return t.value(x)


def _sum(t: Translation, fx: Any, x: Any, y: Any, scale: float) -> str:
    """``x + scale * y``; one of them may be a constant."""
    if x in t.names and y in t.names:
        a, b = t.names[x], t.names[y]
        if t.builder.nodes[a].shape != t.builder.nodes[b].shape or shape_of(x) != shape_of(y):
            raise NotCoveredError("The two maps differ in shape; broadcasting between maps is not known.")
        return t.add(fx, str(fx.name), Combine((lowering.scalar(1.0), lowering.scalar(scale))), (a, b))
    first = x in t.names
    operand = t.value(x if first else y)
    shift = _map_constant(t, y if first else x, fx, x if first else y) * (scale if first else 1.0)
    coef = lowering.scalar(1.0 if first else scale)
    return t.add(fx, str(fx.name), Combine((coef,), shift), (operand,))


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
    if (x in t.names) == (other in t.names):
        raise NotCoveredError("A product of two feature maps is not piecewise linear.")
    operand, factor = (x, other) if x in t.names else (other, x)
    return t.add(fx, str(fx.name), Combine((_map_constant(t, factor, fx, operand),)), (t.value(operand),))


@covers("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _div(t: Translation, fx: Any, *, x: Any, other: Any, rounding_mode: Any = None) -> str:
    if rounding_mode is not None:
        raise NotCoveredError(f"rounding_mode={rounding_mode!r} rounds, which is not piecewise linear; leave it out.")
    if other in t.names:
        raise NotCoveredError("A quotient by a feature map is not piecewise linear.")
    return t.add(fx, str(fx.name), Combine((1.0 / _map_constant(t, other, fx, x),)), (t.value(x),))


def _map_constant(t: Translation, arg: Any, fx: Any, operand: Any) -> Tensor:
    """A constant broadcast against a feature map, as a coefficient (1 or C, 1 or H, 1 or W) over that map."""
    value = t.constant(arg)
    if value is None:
        raise NotCoveredError("It needs a constant operand.")
    if shape_of(fx) != shape_of(operand):
        raise NotCoveredError("The constant is larger than the map; broadcasting a map to more values is not known.")
    if value.numel() == 1:
        return value.reshape(1, 1, 1)
    shape = t.builder.nodes[t.value(operand)].shape
    full = value.expand(shape_of(fx)).reshape(shape)
    per_channel = full[:, :1, :1]
    return (per_channel if bool((full == per_channel).all()) else full).contiguous()
