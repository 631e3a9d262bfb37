"""The clip box: the two ends that images live between, each one number, or one for every channel.

A box that differs from channel to channel is what a normalisation outside the network makes of [0, 1]: channel c lives
in ``[(0 - mean[c]) / std[c], (1 - mean[c]) / std[c]]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from corgi_opt.errors import InputError

Box: TypeAlias = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]
"""``(low, high)``: two numbers, or two tuples of one number a channel. Plain floats, to compare, hash and write."""

Clip: TypeAlias = Box | tuple[Any, Any] | Sequence[Any] | Tensor | None
"""What callers may pass; :func:`checked_clip` says how it is read."""

TAKES = "clip must be (low, high) with low < high or None, each end a number or one number for each channel"

MOST_SHOWN = 4
"""Channels whose intervals are written out."""


def checked_clip(clip: Any, shape: Sequence[int] | None = None) -> Box | None:
    """The box that a caller passes, as plain floats; ``shape``: (C, H, W) of the image it is for.

    ``(low, high)``, each end a number, C numbers, or a tensor or array that broadcasts to the image and is the same all
    over a channel. A sequence of pairs, one a channel, does as well, unless there are two of them: two are always the
    low and the high end. Raises InputError, which names the channel, for ends that are not finite, not in order, or not
    as many as the image has channels.
    """
    if clip is None:
        return None
    low, high = (_channels(end, shape, clip) for end in _ends(clip))
    count = max(len(low), len(high))
    if {len(low), len(high)} - {1, count}:
        raise InputError(f"{TAKES}; got a low end of {len(low)} numbers and a high end of {len(high)}")
    if shape is not None and count not in (1, shape[0]):
        raise InputError(f"{TAKES}; got ends of {count} channels for an image of {shape[0]}")
    low, high = (end * count if len(end) == 1 else end for end in (low, high))
    for channel, (a, b) in enumerate(zip(low, high, strict=True)):
        if not -math.inf < a < b < math.inf:  # NaN counts as no
            raise InputError(f"{TAKES}; got {(a, b)}" + (f" in channel {channel}" if count > 1 else ""))
    return (low[0], high[0]) if count == 1 else (low, high)


def _ends(clip: Any) -> tuple[Any, Any]:
    """The low and the high end, as they were passed. Raises InputError."""
    whole = isinstance(clip, Tensor | np.ndarray) and clip.ndim > 0
    if not whole and (not isinstance(clip, Sequence) or isinstance(clip, str | bytes)):
        raise InputError(f"{TAKES}; got {clip!r}")
    parts = list(clip)
    if len(parts) == 2:
        return parts[0], parts[1]
    if not parts or not all(_is_pair(part) for part in parts):
        raise InputError(f"{TAKES}; got {clip!r}")
    return [pair[0] for pair in parts], [pair[1] for pair in parts]


def _is_pair(part: Any) -> bool:
    if isinstance(part, Tensor | np.ndarray):
        return tuple(part.shape) == (2,)
    return isinstance(part, Sequence) and len(part) == 2


def _channels(end: Any, shape: Sequence[int] | None, clip: Any) -> tuple[float, ...]:
    """One end as one number, or one a channel."""
    try:
        if isinstance(end, np.ndarray):
            end = end.astype(end.dtype.newbyteorder("="))  # torch takes no other byte order
        kind = torch.as_tensor(end).dtype
        if kind == torch.bool or kind.is_complex:
            raise TypeError
        ends = torch.as_tensor(end, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{TAKES}; got {clip!r}") from error
    if ends.ndim == 4 and ends.shape[0] == 1:
        ends = ends[0]
    if ends.ndim not in (0, 1, 3) or not ends.numel():
        raise InputError(f"{TAKES}; an end has shape {tuple(ends.shape)}")
    if ends.ndim == 3:
        whole = shape is None or all(n in (1, size) for n, size in zip(ends.shape[1:], shape[1:], strict=True))
        if not whole:
            raise InputError(f"{TAKES}; an end has shape {tuple(ends.shape)}, the image {shape}")
        values = ends[:, :1, :1]
        same = (ends == values) | (ends.isnan() & values.isnan())
        if not bool(same.all()):
            channel = int((~same).flatten(1).any(dim=1).nonzero()[0])
            raise InputError(f"{TAKES}; channel {channel} has different ends at different pixels, which no box has")
        ends = values
    return tuple(ends.flatten().tolist())


def as_tensors(box: Box) -> tuple[Tensor, Tensor]:
    """Both ends as float64 maps (C or 1, 1, 1)."""
    low, high = (torch.tensor(end, dtype=torch.float64).reshape(-1, 1, 1) for end in box)
    return low, high


def as_list(end: float | tuple[float, ...]) -> float | list[float]:
    """An end of a box as JSON has it."""
    return list(end) if isinstance(end, tuple) else end


def own_channels(box: Box | None) -> bool:
    """Whether each channel has an interval of its own."""
    return box is not None and isinstance(box[0], tuple)


def outermost(box: Box | None) -> tuple[float, float] | tuple[None, None]:
    """The lowest and the highest end of any channel."""
    if box is None:
        return None, None
    low, high = as_tensors(box)
    return float(low.min()), float(high.max())


def require_inside(center: Tensor, box: Box) -> None:
    """Raises InputError for an image (1, C, H, W) that is not in the box; names the channel where each has its own."""
    low, high = as_tensors(box)
    out = (center[0] < low) | (center[0] > high)
    if not bool(out.any()):
        return
    channel = int(out.flatten(1).any(dim=1).nonzero()[0])
    one = len(low) == 1
    values, place = (center[0], 0) if one else (center[0, channel], channel)
    beyond = torch.maximum(low - center[0], center[0] - high)
    said, hint = ".6g", "pass clip=None, or the box of your own preprocessing"
    if bool((beyond <= 1e-5 * (high - low)).all()):
        said, hint = ".17g", "it is only just outside: move it in by torch.minimum(torch.maximum(x, low), high)"
    raise InputError(
        f"the image has values in [{float(values.min()):{said}}, {float(values.max()):{said}}]"
        f"{'' if one else f' in channel {channel}'}, outside the clip box [{float(low[place])}, {float(high[place])}]; "
        f"{hint}"
    )


def clip_from_text(text: str) -> Box | None:
    """``"none"``, ``"low,high"``, or ``"low,high;low,high;..."``, one pair a channel. Raises InputError."""
    if text.strip().lower() == "none":
        return None
    try:
        pairs = [tuple(float(part) for part in pair.split(",")) for pair in text.split(";")]
        lows, highs = zip(*pairs, strict=True) if len(pairs) > 1 else pairs[0]
    except ValueError as error:
        raise InputError(
            f"--clip must be 'low,high' or 'none', got {text!r}; with a box for each channel, 'low,high;low,high;...'"
        ) from error
    return checked_clip((lows, highs))


def clip_in_words(box: Box | None) -> str:
    """The box as a label of a figure's axis."""
    return "no clip box" if box is None else f"clip box {intervals_in_words(box)}"


def intervals_in_words(box: Box) -> str:
    """``[0, 1]``, or one interval a channel with "x" between."""
    low, high = as_tensors(box)
    said = [f"[{a:g}, {b:g}]" for a, b in zip(low.flatten().tolist(), high.flatten().tolist(), strict=True)]
    return " x ".join(said[:MOST_SHOWN] + ["..."] * (len(said) > MOST_SHOWN))
