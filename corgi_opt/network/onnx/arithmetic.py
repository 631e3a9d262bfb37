"""Operations value by value: sums, products, activations, comparisons, casts.

Those that the graph does not know are here for what depends on weights alone; where they read a map they are refused
by name later.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import onnx_op
from corgi_opt.network.onnx.tensors import torch_type

Binary = Callable[[Tensor, Tensor], Tensor]


def _broadcasts(call: Call) -> None:
    """Sizes are checked before they are made."""
    shapes = [call.shape(at) for at in range(len(call.operands)) if call.has(at)]
    if not shapes:
        raise call.wrong("it has no input")
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    call.sized([max(sizes) if min(sizes) else 0 for sizes in zip(*padded, strict=True)])


def _binary(name: str, of: Binary, signs: tuple[int, ...] | None = None) -> None:
    @onnx_op(name, signs=signs)
    def prepare(call: Call) -> Run:
        _broadcasts(call)
        return of


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero. The smallest one by -1 would be more than a processor bears."""
    if a.is_floating_point():
        return a / b
    minus = b == -1
    return torch.where(minus, -a, torch.div(a, torch.where(minus, 1, b), rounding_mode="trunc"))


def _remainder(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.remainder(a, b)
    return torch.remainder(a, torch.where(b == -1, 1, b))


_binary("Add", torch.add, signs=(1, 1))
_binary("Sub", torch.sub, signs=(1, -1))
_binary("Mul", torch.mul, signs=(1, 1))
_binary("Div", _quotient)
_binary("Pow", lambda a, b: torch.pow(a, b).to(a.dtype))
_binary("Equal", torch.eq)
_binary("Less", torch.lt)
_binary("LessOrEqual", torch.le)
_binary("Greater", torch.gt)
_binary("GreaterOrEqual", torch.ge)
_binary("And", torch.logical_and)
_binary("Or", torch.logical_or)
_binary("Xor", torch.logical_xor)


@onnx_op("Mod")
def _mod(call: Call) -> Run:
    _broadcasts(call)
    return torch.fmod if call.flag("fmod") and call.floating() else _remainder


@onnx_op("Where")
def _where(call: Call) -> Run:
    _broadcasts(call)
    return torch.where


def _variadic(name: str, of: Callable[[tuple[Tensor, ...]], Tensor], signs: tuple[int, ...] | None = None) -> None:
    @onnx_op(name, signs=signs)
    def prepare(call: Call) -> Run:
        _broadcasts(call)
        return lambda *x: of(x)


def _total(x: tuple[Tensor, ...]) -> Tensor:
    return functools.reduce(torch.add, x)


_variadic("Max", lambda x: functools.reduce(torch.maximum, x))
_variadic("Min", lambda x: functools.reduce(torch.minimum, x))
_variadic("Sum", _total, signs=(1,))
_variadic("Mean", lambda x: _total(x) / len(x), signs=(1,))


def _unary(name: str, of: Callable[[Tensor], Tensor]) -> None:
    @onnx_op(name)
    def prepare(call: Call) -> Run:
        return of


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}
for _name, _of in _UNARY.items():
    _unary(_name, _of)


# beyond 40 the rest, exp(-x), is less than half a rounding of x, and exp(x) never overflows
_unary("Softplus", functools.partial(F.softplus, threshold=40.0))


@onnx_op("LeakyRelu")
def _leaky_relu(call: Call) -> Run:
    slope = call.finite(call.real("alpha", 0.01), "alpha")
    return lambda x: F.leaky_relu(x, slope)


@onnx_op("PRelu")
def _prelu(call: Call) -> Run:
    _broadcasts(call)
    shape, slope = call.shape(0), (1,) * (call.rank(0) - call.rank(1)) + call.shape(1)
    one = math.prod(slope) == 1
    if len(shape) > 1 and (one or slope == (1, shape[1], *(1,) * (len(shape) - 2))):
        return lambda x, w: F.prelu(x, w.reshape(-1))
    return lambda x, w: torch.relu(x) - w * torch.relu(-x)


@onnx_op("Clip")
def _clip(call: Call) -> Run:
    if call.version < 11:
        low, high = call.real("min", -math.inf), call.real("max", math.inf)
    else:
        low = call.number(1) if call.has(1) else -math.inf
        high = call.number(2) if call.has(2) else math.inf
    least, most = (None if math.isinf(v) else v for v in (low, high))
    if math.isnan(low) or math.isnan(high) or low == math.inf or high == -math.inf:
        raise call.wrong(f"it clips to [{low}, {high}]")
    if least is None and most is None:
        return lambda x: x
    if least == 0 and most is None:
        return torch.relu
    return lambda x: torch.clamp(x, least, most)


@onnx_op("HardSigmoid")
def _hard_sigmoid(call: Call) -> Run:
    alpha, beta = call.real("alpha", 0.2), call.real("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@onnx_op("Elu")
def _elu(call: Call) -> Run:
    alpha = call.real("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@onnx_op("Selu")
def _selu(call: Call) -> Run:
    alpha = call.real("alpha", 1.67326319217681884765625)
    gamma = call.real("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@onnx_op("Celu")
def _celu(call: Call) -> Run:
    alpha = call.real("alpha", 1.0)
    if alpha == 0:
        raise call.wrong("alpha is 0")
    return lambda x: F.celu(x, alpha)


@onnx_op("Gelu")
def _gelu(call: Call) -> Run:
    how = call.text("approximate", "none")
    if how not in ("none", "tanh"):
        raise call.wrong(f"approximate is {how!r}")
    return lambda x: F.gelu(x, approximate=how)


@onnx_op("ThresholdedRelu")
def _thresholded_relu(call: Call) -> Run:
    alpha = call.finite(call.real("alpha", 1.0), "alpha")
    return torch.relu if alpha == 0 else lambda x: F.threshold(x, alpha, 0.0)


@onnx_op("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Run:
    log = call.node.op == "LogSoftmax"
    of = torch.log_softmax if log else torch.softmax
    if call.version >= 13:
        axis = call.axis(call.integer("axis", -1))
        return lambda x: of(x, axis)
    shape, axis = call.shape(), call.axis(call.integer("axis", 1))
    if math.prod(shape[axis + 1 :]) == 1:
        return lambda x: of(x, axis)
    rows = (math.prod(shape[:axis]), math.prod(shape[axis:]))  # as a matrix, says the older opset
    return lambda x: of(x.reshape(rows), 1).reshape(shape)


@onnx_op("Identity")
def _identity(call: Call) -> Run:
    return lambda x: x


@onnx_op("Dropout")
def _dropout(call: Call) -> Run:
    """Nothing, when a network is not trained."""
    call.real("ratio", 0.5)
    call.integer("seed", 0)
    if call.has(1):
        call.number(1)
    if call.has(2) and call.number(2):
        raise call.refused("it is in training mode, where it drops values at random")
    return lambda x: x


@onnx_op("Cast")
def _cast(call: Call) -> Run:
    """Between floating types an identity: what is asked is about the exact network."""
    call.integer("saturate", 1)
    call.text("round_mode", "up")
    element = call.integer("to")
    kind = torch_type(element)
    if kind is None:
        raise call.refused(f"it casts to type number {element}, which is not read")
    return _as(call, kind)


@onnx_op("CastLike")
def _cast_like(call: Call) -> Run:
    call.integer("saturate", 1)
    call.text("round_mode", "up")
    kind = call.value(1).tensor.dtype
    call.unused(1)
    return _as(call, kind)


def _as(call: Call, kind: torch.dtype) -> Run:
    if kind.is_floating_point and call.floating():
        return lambda x: x
    if not kind.is_floating_point and call.floating() and not call.known(0):
        raise call.refused("it rounds the image's values to whole numbers, which is not piecewise linear")
    return lambda x: x.to(kind)
