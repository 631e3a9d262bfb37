"""Calls that only move values: torch moves the numbers of entries as it would move the entries (translation.py).

All of their arguments are handed on as they are, so that none can be forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from corgi_opt.network.translation import NotCoveredError, Translation, Value

MOVES = frozenset(
    {
        "alias.default",
        "cat.default",
        "channel_shuffle.default",
        "chunk.default",
        "clone.default",
        "constant_pad_nd.default",
        "contiguous.default",
        "detach.default",
        "expand.default",
        "expand_as.default",
        "flatten.using_ints",
        "flip.default",
        "index.Tensor",
        "index_select.default",
        "lift_fresh_copy.default",
        "movedim.int",
        "movedim.intlist",
        "narrow.default",
        "native_channel_shuffle.default",
        "numpy_T.default",
        "pad.default",
        "permute.default",
        "pixel_shuffle.default",
        "pixel_unshuffle.default",
        "reflection_pad1d.default",
        "reflection_pad2d.default",
        "repeat.default",
        "repeat_interleave.self_int",
        "replication_pad1d.default",
        "replication_pad2d.default",
        "reshape.default",
        "roll.default",
        "rot90.default",
        "select.int",
        "slice.Tensor",
        "split.Tensor",
        "split.sizes",
        "split_with_sizes.default",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "stack.default",
        "swapaxes.default",
        "t.default",
        "tile.default",
        "transpose.int",
        "unbind.int",
        "unflatten.int",
        "unfold.default",
        "unsqueeze.default",
        "upsample_nearest1d.default",
        "upsample_nearest1d.vec",
        "upsample_nearest2d.default",
        "upsample_nearest2d.vec",
        "_upsample_nearest_exact1d.default",
        "_upsample_nearest_exact1d.vec",
        "_upsample_nearest_exact2d.default",
        "_upsample_nearest_exact2d.vec",
        "_unsafe_view.default",
        "view.default",
        "view_as.default",
    }
)
"""By operation and overload."""


_VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})


def moved(t: Translation, fx: Any) -> Value | tuple[Value, ...]:
    """What a call gives. Raises NotCoveredError where it depends on the image which entries are moved."""
    filled = _with_its_padding(t, fx)
    args, kwargs = map_arg((fx.args, fx.kwargs), lambda arg: t.numbers(arg) if t.is_map(arg) else t.constants[arg])
    if str(fx.target) in ("aten.cat.default", "aten.stack.default"):
        # maps and constants side by side: of a constant, the numbers are literals
        args = (map_arg(list(fx.args[0]), t.numbers), *args[1:])
    if filled is not None:
        args, kwargs = filled
    # how numbers lie in memory is not how the values do
    target = torch.ops.aten.reshape.default if str(fx.target) in _VIEWS else fx.target
    try:
        given = target(*args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise NotCoveredError(
            f"Which values it moves depends on the image, or is not known: torch said {said!r}."
        ) from error
    if isinstance(given, Tensor):
        return Value(given)
    return tuple(tree_map(Value, list(given)))


def _with_its_padding(t: Translation, fx: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of a pad whose border is a constant: its number in place of it."""
    name = str(fx.target)
    if name == "aten.constant_pad_nd.default":
        x, pad, *rest = fx.args
        value = fx.kwargs.get("value", rest[0] if rest else 0)
    elif (
        name == "aten.pad.default"
        and (fx.args[2] if len(fx.args) > 2 else fx.kwargs.get("mode", "constant")) == "constant"
    ):
        x, pad = fx.args[:2]
        value = fx.args[3] if len(fx.args) > 3 else fx.kwargs.get("value")
    else:
        return None
    if not isinstance(value, (int, float, type(None))):
        raise NotCoveredError("It pads with a value that is calculated; pad with a number.")
    border = float(t.numbers(float(value or 0.0)))
    return (t.numbers(x), pad, *(("constant",) if "pad.default" in name else ()), border), {}


def is_move(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and str(target).removeprefix("aten.") in MOVES
