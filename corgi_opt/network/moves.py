"""Calls that only move values, or put constants beside them: torch moves the numbers of entries as it would move the
entries (translation.py).

All of their arguments are handed on as they are, so that none can be forgotten.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg

from corgi_opt.network.translation import NotCoveredError, Translation, Value

MOVES = frozenset(
    {
        "alias.default",
        "atleast_1d.Sequence",
        "atleast_2d.Sequence",
        "atleast_3d.Sequence",
        "cat.default",
        "channel_shuffle.default",
        "chunk.default",
        "clone.default",
        "constant_pad_nd.default",
        "contiguous.default",
        "copy.default",
        "detach.default",
        "expand.default",
        "expand_as.default",
        "fill.Scalar",
        "fill.Tensor",
        "flatten.using_ints",
        "flip.default",
        "gather.default",
        "im2col.default",
        "index.Tensor",
        "index_put.default",
        "index_select.default",
        "lift_fresh_copy.default",
        "masked_fill.Scalar",
        "masked_fill.Tensor",
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
        "select_scatter.default",
        "slice.Tensor",
        "slice_scatter.default",
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
        "tril.default",
        "triu.default",
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
        "_unsafe_index.Tensor",
        "_unsafe_view.default",
        "view.default",
        "view_as.default",
        "where.ScalarOther",
        "where.ScalarSelf",
        "where.self",
    }
)
"""By operation and overload."""


_VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})

_PLACES = frozenset({"index", "indices", "condition", "mask"})
"""Arguments that say which values move where; other tensors hold the values."""

_NUMBER = frozenset({"value", "self", "other"})
"""Arguments that may be a number in place of values (a border, say)."""


def moved(t: Translation, fx: Any) -> Value | tuple[Value, ...]:
    """What a call gives. Raises NotCoveredError where it depends on the image which entries are moved."""
    given = {}
    for position, argument in enumerate(fx.target._schema.arguments):
        name = argument.name
        value = fx.args[position] if position < len(fx.args) else fx.kwargs.get(name, argument.default_value)
        given[name] = map_arg(value, t.constants.__getitem__ if name in _PLACES else partial(_shifted, t))
        if name in _NUMBER and isinstance(value, (int, float)):
            given[name] = float(_shifted(t, float(value)))
        if name == "accumulate" and value:
            raise NotCoveredError("It adds to what is there; write a sum.")
    # how numbers lie in memory is not how the values do
    target = torch.ops.aten.reshape.default if str(fx.target) in _VIEWS else fx.target
    given = {"shape" if name == "size" and target is not fx.target else name: v for name, v in given.items()}
    try:
        made = target(**given)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise NotCoveredError(
            f"Which values it moves depends on the image, or is not known: torch said {said!r}."
        ) from error
    if isinstance(made, Tensor):
        return Value(made - 1.0)
    return tuple(Value(one - 1.0) for one in made)


def _shifted(t: Translation, arg: Any) -> Tensor:
    """The numbers of an operand's entries plus one, which makes that of a literal zero zero: what torch fills in."""
    return t.numbers(arg) + 1.0


def is_move(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and str(target).removeprefix("aten.") in MOVES
