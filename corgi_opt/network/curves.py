"""Smooth activation functions: what bounds have to know of each.

A function is cut into *pieces* on which it is convex, concave or a line, so that a chord and a tangent bound it on any
interval. Between its *turns* it only rises or only falls, so that its values at the ends of an interval and at the
turns inside are its exact range.

**Rounding.** ``value`` and ``slope`` are computed by torch. Each is made of at most four elementary functions (exp,
expm1, log1p, tanh, cosh, erf; a few units in the last place each, by the accounts of SLEEF, of the C library and of
CUDA) and a few products, and nothing in it cancels beyond the size that is stated: a value is off by at most
``ROUNDINGS`` roundings of ``magnitude``, a slope by as many of ``steepest``. The constants here (inflections, minima)
are right to the last place; what that moves a value by is of second order.

A new function is a class here, and a builder in smooth_builders.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDINGS = 16
"""Most roundings that a value or a slope is off by, of its stated size."""

FLAT = 50.0
"""Beyond it the derivative of an exponential's function is constant, to within 1e-20."""


class Piece(NamedTuple):
    """``start <= x <= end``, where the function is convex (``bend`` 1), concave (-1) or a line (0)."""

    start: float
    end: float
    bend: int


@dataclass(frozen=True)
class Function(ABC):
    """A continuous function of one number, elementwise on tensors.

    ``title``: what people call it; ``pieces`` from minus to plus infinity; ``turns``: where it stops rising or falling;
    ``kinks``: where its slope jumps.
    ``reach``: beyond it, on either side, the slope is constant to within 1e-20 of ``steepest``.
    """

    title: ClassVar[str]
    turns: ClassVar[tuple[float, ...]] = ()
    kinks: ClassVar[tuple[float, ...]] = ()

    @property
    @abstractmethod
    def pieces(self) -> tuple[Piece, ...]: ...

    @property
    def reach(self) -> float:
        return FLAT

    @abstractmethod
    def value(self, x: Tensor) -> Tensor: ...

    def spoken(self, x: Tensor) -> Tensor:
        """What a network computes; less than ``value`` by ``drop`` at most."""
        return self.value(x)

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """The derivative on pieces that bend, their ends included."""

    @abstractmethod
    def steepest(self, size: Tensor) -> Tensor:
        """At least the size of any slope, or chord's slope, where ``|x| <= size``."""

    def magnitude(self, size: Tensor) -> Tensor:
        """At least ``|value|`` where ``|x| <= size``."""
        return self.steepest(size) * size

    def drop(self, upper: Tensor) -> Tensor | None:
        """How far what is computed may be below ``value`` where ``x <= upper``; None: not at all."""
        return None


def _curved_between(left: float, right: float) -> tuple[Piece, ...]:
    """Convex in the middle, concave on both sides."""
    return (Piece(-math.inf, left, -1), Piece(left, right, 1), Piece(right, math.inf, -1))


_S_SHAPED = (Piece(-math.inf, 0.0, 1), Piece(0.0, math.inf, -1))


@dataclass(frozen=True)
class Sigmoid(Function):
    """``1 / (1 + exp(-x))``."""

    title = "sigmoid"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _S_SHAPED

    def value(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def slope(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 0.25)

    def magnitude(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)


@dataclass(frozen=True)
class Tanh(Function):
    """``tanh(x)``."""

    title = "tanh"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _S_SHAPED

    def value(self, x: Tensor) -> Tensor:
        return x.tanh()

    def slope(self, x: Tensor) -> Tensor:
        return x.clamp(-FLAT, FLAT).cosh().square().reciprocal()

    def steepest(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)

    def magnitude(self, size: Tensor) -> Tensor:
        return size.clamp(max=1)


@dataclass(frozen=True)
class Silu(Function):
    """``x / (1 + exp(-x))``, swish. ``f'' = s (1 - s) (2 - x tanh(x / 2))``: two inflections."""

    title = "SiLU"
    turns = (-1.2784645427610738,)
    inflection: ClassVar[float] = 2.3993572805154677

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _curved_between(-self.inflection, self.inflection)

    def value(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def slope(self, x: Tensor) -> Tensor:
        x = x.clamp(-FLAT, FLAT)
        return x.sigmoid() * (1 + x * (-x).sigmoid())

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.1)

    def magnitude(self, size: Tensor) -> Tensor:
        return size


@dataclass(frozen=True)
class Gelu(Function):
    """``x Phi(x)`` with the normal distribution Phi (Hendrycks & Gimpel 2016). ``f'' = phi(x) (2 - x^2)``."""

    title = "GELU"
    turns = (-0.75179152469356446,)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _curved_between(-math.sqrt(2.0), math.sqrt(2.0))

    def value(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def slope(self, x: Tensor) -> Tensor:
        x = x.clamp(-FLAT, FLAT)
        density = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
        return 0.5 * (1 + (x * math.sqrt(0.5)).erf()) + x * density

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.13)

    def magnitude(self, size: Tensor) -> Tensor:
        return size


@dataclass(frozen=True)
class GeluTanh(Function):
    """``x (1 + tanh(y)) / 2`` with ``y = c (x + k x^3)``, which comes close to GELU.

    With ``b = 3 k x^2`` its second derivative has the sign of ``1 + 2 b - x tanh(y) c (1 + b)^2``, and
    ``x tanh(y) (1 + b)^2 / (1 + 2 b)`` rises from 0 on both sides of 0: two inflections.
    """

    title = "GELU (tanh)"
    turns = (-0.75246142207101626,)
    inflection: ClassVar[float] = 1.4185040087908284
    c: ClassVar[float] = math.sqrt(2 / math.pi)
    k: ClassVar[float] = 0.044715

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _curved_between(-self.inflection, self.inflection)

    def value(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def slope(self, x: Tensor) -> Tensor:
        x = x.clamp(-FLAT / 2, FLAT / 2)
        square = x.square()
        y = (self.c * x * (1 + self.k * square)).clamp(-FLAT, FLAT)
        steep = y.cosh().square().reciprocal()
        return 0.5 * (1 + y.tanh()) + 0.5 * x * steep * self.c * (1 + 3 * self.k * square)

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.13)

    def magnitude(self, size: Tensor) -> Tensor:
        return size


@dataclass(frozen=True)
class Mish(Function):
    """``x tanh(log(1 + exp(x)))`` (Misra 2019), with two inflections."""

    title = "Mish"
    turns = (-1.1924312145154952,)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return _curved_between(-2.2563763963607931, 1.4905711794854285)

    def value(self, x: Tensor) -> Tensor:
        return F.mish(x)

    def slope(self, x: Tensor) -> Tensor:
        x = x.clamp(-FLAT, FLAT)
        softplus = x.clamp(min=0) + (-x.abs()).exp().log1p()
        return softplus.tanh() + x * x.sigmoid() * softplus.cosh().square().reciprocal()

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.09)

    def magnitude(self, size: Tensor) -> Tensor:
        return size


@dataclass(frozen=True)
class Elu(Function):
    """``scale * x`` above 0, ``scale * alpha * (exp(inner * x) - 1)`` below; CELU and SELU too.

    All three numbers are positive. At 0 it has a kink unless ``alpha * inner`` is 1.
    """

    title = "ELU"
    kinks = (0.0,)
    alpha: float = 1.0
    scale: float = 1.0
    inner: float = 1.0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(-math.inf, 0.0, 1), Piece(0.0, math.inf, 0))

    @property
    def reach(self) -> float:
        return FLAT / self.inner

    def value(self, x: Tensor) -> Tensor:
        low = self.alpha * (self.inner * x.clamp(max=0)).expm1()
        return self.scale * torch.where(x > 0, x, low)

    def slope(self, x: Tensor) -> Tensor:
        return self.scale * self.alpha * self.inner * (self.inner * x.clamp(max=0)).exp()

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.001 * self.scale * max(1.0, self.alpha * self.inner))


@dataclass(frozen=True)
class Softplus(Function):
    """``log(1 + exp(beta x)) / beta``; torch takes x itself where ``beta x > threshold``, which is less."""

    title = "softplus"
    beta: float = 1.0
    threshold: float = 20.0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(-math.inf, math.inf, 1),)

    @property
    def reach(self) -> float:
        return FLAT / self.beta

    def value(self, x: Tensor) -> Tensor:
        y = self.beta * x
        return (y.clamp(min=0) + (-y.abs()).exp().log1p()) / self.beta

    def spoken(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, self.threshold) if math.isfinite(self.threshold) else self.value(x)

    def slope(self, x: Tensor) -> Tensor:
        return (self.beta * x).sigmoid()

    def steepest(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)

    def magnitude(self, size: Tensor) -> Tensor:
        return size + 1 / self.beta

    def drop(self, upper: Tensor) -> Tensor | None:
        """``log(1 + exp(-threshold)) / beta``, the step down at the threshold, where the interval may reach it."""
        if self.threshold == math.inf:
            return None
        below = max(-self.threshold, 0.0) + math.log1p(math.exp(-abs(self.threshold)))
        near = self.threshold - 1e-6 * (1 + abs(self.threshold))
        return torch.where(self.beta * upper < near, 0.0, 1.001 * below / self.beta).to(upper.dtype)


@dataclass(frozen=True)
class Hardswish(Function):
    """``x * min(max(x + 3, 0), 6) / 6``: zero, a parabola between -3 and 3, and x; with kinks at both."""

    title = "hardswish"
    turns = (-1.5,)
    kinks = (-3.0, 3.0)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(-math.inf, -3.0, 0), Piece(-3.0, 3.0, 1), Piece(3.0, math.inf, 0))

    @property
    def reach(self) -> float:
        return 3.0

    def value(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def slope(self, x: Tensor) -> Tensor:
        return (2 * x.clamp(-3, 3) + 3) / 6

    def steepest(self, size: Tensor) -> Tensor:
        return torch.full_like(size, 1.51)

    def magnitude(self, size: Tensor) -> Tensor:
        return size


@dataclass(frozen=True)
class Square(Function):
    """``x^2``."""

    title = "square"
    turns = (0.0,)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(-math.inf, math.inf, 1),)

    @property
    def reach(self) -> float:
        return math.inf

    def value(self, x: Tensor) -> Tensor:
        return x.square()

    def slope(self, x: Tensor) -> Tensor:
        return 2 * x

    def steepest(self, size: Tensor) -> Tensor:
        return 2 * size

    def magnitude(self, size: Tensor) -> Tensor:
        return size.square()
