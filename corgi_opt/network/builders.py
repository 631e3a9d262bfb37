"""The table of builders: for each aten operation (with its overload) what adds it to a graph, as affine operations and
ReLUs, or as a curved node.

A builder names every argument of the operation's schema that it handles (``self`` and ``input`` are called ``x``). One
that it does not name has to have its default value, or the operation is refused by that argument's name. It returns
the node that it added, or the numbers of its entries (translation.py).

The rows stand in layers.py (convolutions, norms, pools, linear layers), arithmetic.py (sums, products, reductions),
pieces.py (ReLU and its kin) and smooth_builders.py (smooth activations). Calls that only move values are in moves.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from corgi_opt.network.exported import module_path
from corgi_opt.network.moves import is_move, moved
from corgi_opt.network.translation import NotCoveredError as NotCoveredError
from corgi_opt.network.translation import Translation as Translation
from corgi_opt.network.translation import Value

Builder = Callable[..., Any]
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


def known(target: Any) -> bool:
    """Whether the table has this operation, or it only moves values."""
    return overload(target) in BUILDERS or is_move(target)


def build(t: Translation, fx: Any) -> str | Tensor | Value | tuple[Value, ...]:
    """What one call gives. Raises NotCoveredError, KeyError for an operation that is not in the table."""
    if overload(fx.target) not in BUILDERS and is_move(fx.target):
        return moved(t, fx)
    builder = BUILDERS[overload(fx.target)]
    named, given = handled(builder), {}
    for position, argument in enumerate(fx.target._schema.arguments):
        name, default = argument_name(argument.name), argument.default_value
        value = fx.args[position] if position < len(fx.args) else fx.kwargs.get(argument.name, default)
        if name in named:
            given[name] = value
        elif name not in SAME_VALUES and value != default:
            raise NotCoveredError(f"Its argument {argument.name}={value!r} is not covered; only {default!r} is.")
    made: str | Tensor | Value | tuple[Value, ...] = builder(t, fx, **given)
    return made


def label(fx: Any) -> str:
    """What a call's nodes are called: its module, else its own name."""
    return module_path(fx) or str(fx.name)


def pair(value: Any) -> tuple[int, int]:
    """One number for both axes, or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def on_row(value: Any, across: int) -> tuple[int, int]:
    """Of a line that is a map of one row: the number along it, beside what stands for the row."""
    return (across, int(value) if isinstance(value, int) else int(value[0]))


def check_floating(dtype: Any) -> None:
    """A cast to another floating type is an identity here; to anything else it is a rounding."""
    if dtype is not None and not dtype.is_floating_point:
        raise NotCoveredError(f"It rounds to {dtype}, which is not piecewise linear.")
