"""A box and a condition on outputs as VNN-LIB text, version 1.0 (vnnlib.org, 2022) and 2.0 (2025).

Both ask for an input X of the box whose outputs Y fulfil the condition. The condition is a disjunction of conjunctions:
one conjunction a way of failing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import torch
from torch import Tensor

DIGITS = 18
"""Of a bound: rounded away from the box, and still nearer to its float64 than to any other."""


@dataclass(frozen=True)
class Way:
    """One way of failing: these outputs are at most 0, and the others at least 0."""

    failing: tuple[int, ...]
    kept: tuple[int, ...] = ()


def outward(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The smallest box of numbers of ``dtype``, as float64, that holds a box of float64 numbers."""
    inner = low.to(dtype), high.to(dtype)
    steps = (torch.full_like(inner[0], end) for end in (-torch.inf, torch.inf))
    down, up = (torch.nextafter(end, step) for end, step in zip(inner, steps, strict=True))
    return (
        torch.where(inner[0].double() > low, down, inner[0]).double(),
        torch.where(inner[1].double() < high, up, inner[1]).double(),
    )


def decimal(value: float, *, up: bool) -> str:
    """A float64 as a decimal number without exponent: on the given side of it, and nearest to it of all float64."""
    rounded = Context(prec=DIGITS, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(Decimal(value))
    said = format(rounded, "f")
    return said if "." in said else f"{said}.0"


def version_1(low: Tensor, high: Tensor, outputs: int, ways: Sequence[Way], said: Iterable[str]) -> str:
    """The box ``low`` to ``high`` (C, H, W), the number of outputs, the ways of failing, and comments."""
    names = [f"X_{n}" for n in range(low.numel())], [f"Y_{n}" for n in range(outputs)]
    declared = [f"(declare-const {name} Real)" for some in names for name in some]
    lines = [
        *_comments(said),
        "",
        *declared,
        "",
        *_box(names[0], low, high),
        "",
        *_condition(ways, names[1].__getitem__),
    ]
    return "\n".join(lines) + "\n"


def version_2(
    low: Tensor, high: Tensor, outputs: int, ways: Sequence[Way], said: Iterable[str], dtype: torch.dtype
) -> str:
    """The same in version 2.0; ``dtype``: of the network's numbers."""
    kind = str(dtype).removeprefix("torch.")
    shape = ",".join(map(str, (1, *low.shape)))
    places = torch.cartesian_prod(*(torch.arange(n) for n in low.shape)).view(-1, low.ndim).tolist()
    inputs = [f"X[{','.join(map(str, (0, *place)))}]" for place in places]
    lines = [
        *_comments(said),
        "(vnnlib-version <2.0>)",
        "(declare-network N",
        f"    (declare-input X {kind} [{shape}])",
        f"    (declare-output Y {kind} [1,{outputs}])",
        ")",
        *_box(inputs, low, high),
        *_condition(ways, lambda n: f"Y[0,{n}]"),
    ]
    return "\n".join(lines) + "\n"


def _comments(said: Iterable[str]) -> list[str]:
    return [f"; {line}" for text in said for line in text.splitlines()]


def _box(names: Sequence[str], low: Tensor, high: Tensor) -> Iterator[str]:
    for name, a, b in zip(names, low.flatten().tolist(), high.flatten().tolist(), strict=True):
        yield f"(assert (>= {name} {decimal(a, up=False)}))"
        yield f"(assert (<= {name} {decimal(b, up=True)}))"


def _condition(ways: Sequence[Way], name: Callable[[int], str]) -> list[str]:
    """Of a single way its comparisons one by one, of several a disjunction of conjunctions."""
    several = [[f"(<= {name(n)} 0.0)" for n in way.failing] + [f"(>= {name(n)} 0.0)" for n in way.kept] for way in ways]
    if len(several) == 1:
        return [f"(assert {comparison})" for comparison in several[0]]
    return ["(assert (or", *(f"    (and {' '.join(comparisons)})" for comparisons in several), "))"]
