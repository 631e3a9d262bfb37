"""Builders of smooth activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from corgi_opt.network.arithmetic import product
from corgi_opt.network.builders import covers, label
from corgi_opt.network.curves import (
    Elu,
    Function,
    Gelu,
    GeluTanh,
    Hardswish,
    Mish,
    Sigmoid,
    Silu,
    Softplus,
    Square,
    Tanh,
)
from corgi_opt.network.lowering import scalar
from corgi_opt.network.ops import Combine
from corgi_opt.network.smooth import Smooth
from corgi_opt.network.translation import NotCoveredError, Translation, shape_of

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
"""Klambauer et al. 2017; torch has the same."""


def _applied(t: Translation, fx: Any, x: Any, function: Function) -> str:
    return t.add(fx, label(fx), Smooth(function), (t.value(x),))


@covers("sigmoid.default")
def _sigmoid(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Sigmoid())


@covers("tanh.default")
def _tanh(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Tanh())


@covers("silu.default")
def _silu(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Silu())


@covers("gelu.default")
def _gelu(t: Translation, fx: Any, *, x: Any, approximate: Any) -> str:
    known: dict[Any, Function] = {"none": Gelu(), "tanh": GeluTanh()}
    if approximate not in known:
        raise NotCoveredError(f"Its argument approximate={approximate!r} is not covered; only 'none' and 'tanh' are.")
    return _applied(t, fx, x, known[approximate])


@covers("elu.default")
def _elu(t: Translation, fx: Any, *, x: Any, alpha: Any, scale: Any, input_scale: Any) -> str:
    a, s, inner = float(alpha), float(scale), float(input_scale)
    if a < 0 or s <= 0 or inner <= 0:
        raise NotCoveredError(f"It is covered for positive numbers only, not for alpha={a}, scale={s}, inner={inner}.")
    return _applied(t, fx, x, Elu(a, s, inner))


@covers("celu.default")
def _celu(t: Translation, fx: Any, *, x: Any, alpha: Any) -> str:
    """``alpha * (exp(x / alpha) - 1)`` below 0."""
    a = float(alpha)
    if a <= 0:
        raise NotCoveredError(f"It is covered for positive alpha only, not for {a}.")
    return _applied(t, fx, x, Elu(a, 1.0, 1.0 / a))


@covers("selu.default")
def _selu(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Elu(SELU_ALPHA, SELU_SCALE))


@covers("softplus.default")
def _softplus(t: Translation, fx: Any, *, x: Any, beta: Any, threshold: Any) -> str:
    if float(beta) <= 0:
        raise NotCoveredError(f"It is covered for positive beta only, not for {beta}.")
    return _applied(t, fx, x, Softplus(float(beta), float(threshold)))


@covers("log_sigmoid.default", "log_sigmoid_forward.default")
def _log_sigmoid(t: Translation, fx: Any, *, x: Any) -> str:
    """``-softplus(-x)``."""
    name, minus = label(fx), scalar(-1.0)
    negated = t.add(fx, f"{name}.negated", Combine((minus,)), (t.value(x),))
    curved = t.add(fx, f"{name}.softplus", Smooth(Softplus(threshold=float("inf"))), (negated,))
    return t.add(fx, name, Combine((minus,)), (curved,))


@covers("hardswish.default")
def _hardswish(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Hardswish())


@covers("mish.default")
def _mish(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Mish())


@covers("square.default")
def _square(t: Translation, fx: Any, *, x: Any) -> str:
    return _applied(t, fx, x, Square())


@covers("pow.Tensor_Scalar")
def _power(t: Translation, fx: Any, *, x: Any, exponent: Any) -> str:
    if exponent != 2:
        raise NotCoveredError(f"Of powers only the square is covered, not exponent={exponent}.")
    return _applied(t, fx, x, Square())


@covers("glu.default")
def _glu(t: Translation, fx: Any, *, x: Any, dim: Any) -> Tensor:
    """One half of the channels times the sigmoid of the other (Dauphin et al. 2017)."""
    halves = [t.map_of(half) for half in t.numbers(x).chunk(2, dim=int(dim))]
    gate = t.add(fx, f"{label(fx)}.sigmoid", Smooth(Sigmoid()), (halves[1],))
    return t.entries(product(t, fx, label(fx), halves[0], gate)).reshape(shape_of(fx))
