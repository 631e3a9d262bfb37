"""The smooth functions that the package knows, each with its exact definition in as many digits as are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

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


def _gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpf(0.044715) * x**3)))


def _elu(f: Elu) -> Callable[[Any], Any]:
    alpha, scale, inner = mpf(f.alpha), mpf(f.scale), mpf(f.inner)
    return lambda x: scale * (x if x > 0 else alpha * mpmath.expm1(inner * x))


def _softplus(f: Softplus) -> Callable[[Any], Any]:
    beta, threshold = mpf(f.beta), mpf(f.threshold)
    return lambda x: x if beta * x > threshold else mpmath.log1p(mpmath.exp(beta * x)) / beta


ELUS = (Elu(), Elu(0.3), Elu(2.5), Elu(1.6732632423543772, 1.0507009873554805), Elu(0.5, 1.0, 2.0), Elu(0.0))
SOFTPLUSES = (Softplus(), Softplus(3.0, 1.0), Softplus(0.2, 40.0), Softplus(1.0, -2.0), Softplus(1.0, float("inf")))

EXACT: dict[Function, Callable[[Any], Any]] = {
    Sigmoid(): lambda x: 1 / (1 + mpmath.exp(-x)),
    Tanh(): mpmath.tanh,
    Silu(): lambda x: x / (1 + mpmath.exp(-x)),
    Gelu(): lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    GeluTanh(): _gelu_tanh,
    Mish(): lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    Hardswish(): lambda x: x * min(max(x + 3, 0), 6) / 6,
    Square(): lambda x: x * x,
    **{f: _elu(f) for f in ELUS},
    **{f: _softplus(f) for f in SOFTPLUSES},
}
"""By function, in mpmath."""

FUNCTIONS = list(EXACT)


def special(function: Function) -> list[float]:
    """Where a function bends or turns another way, or steps down."""
    ends = [piece.end for piece in function.pieces[:-1]]
    step = [function.threshold / function.beta] if isinstance(function, Softplus) else []
    return [0.0, *ends, *function.turns, *(at for at in step if abs(at) < 1e9)]


def intervals(function: Function, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ends (count,), (count,) of intervals of every size: about special points, about any, far out; points too."""

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    points = torch.tensor(special(function), dtype=torch.float64)
    near = points[torch.randint(len(points), (count,), generator=generator)]
    far = 10 ** drawn(-12, 6) * torch.where(drawn(0, 1) < 0.5, -1.0, 1.0)
    where = drawn(0, 1)
    center = torch.where(where < 0.3, near, torch.where(where < 0.75, drawn(-6, 6), far))
    size = torch.where(drawn(0, 1) < 0.8, 10 ** drawn(-3, 1.3), 10 ** drawn(-17, 7))
    share = torch.where(drawn(0, 1) < 0.2, drawn(0, 1).round(), drawn(0, 1))  # a fifth has the point at an end
    l, u = center - share * size, center + (1 - share) * size
    u[::50] = l[::50]
    return torch.minimum(l, u), torch.maximum(l, u)


def within(l: Tensor, u: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, ...) of intervals, their ends among them."""
    share = torch.rand(count, *l.shape, generator=generator, dtype=torch.float64)
    share[0], share[1], share[2] = 0.0, 1.0, 0.5
    points = torch.minimum(torch.maximum(l + share * (u - l), l), u)
    points[1] = u  # which rounding may have missed
    return points
