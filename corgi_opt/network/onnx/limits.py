"""What a file may ask for before anything is allocated: a few bytes can declare any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corgi_opt.errors import InputError

MOST_BYTES = 2**30
"""Largest file, and largest sum of the tensors in a model, in bytes."""

MOST_VALUES = 2**27
"""Most values of one tensor, and of all constants together: 1 GiB of float64."""

MOST_COMPUTED = 3 * 2**25
"""Most values that one run of a model calculates, all nodes together, beside COMPUTED_PER_STORED for each weight that
the file really holds: a small file does not ask for much. A DenseNet-121 without its weights asks for 88 million."""

MOST_ON_A_MAP = 2**25
"""Most values of one map, with the same beside it: comparing takes a map in float64 several times over."""

COMPUTED_PER_STORED = 16

MOST_NODES = 100_000
MOST_AXES = 32


def values_in(shape: Sequence[int], what: str) -> int:
    """How many values a tensor of this shape holds. Raises InputError for a shape that is none, or too large."""
    if len(shape) > MOST_AXES or any(s < 0 for s in shape):
        raise InputError(f"{what} has shape {_shown(shape)}, which no tensor has")
    count = math.prod(int(s) for s in shape)
    if count > MOST_VALUES:
        raise InputError(f"{what} has shape {_shown(shape)}; tensors of more than {MOST_VALUES:,} values are not made")
    return count


def _shown(shape: Sequence[int]) -> str:
    listed = [str(int(s)) for s in shape[:8]]
    return f"({', '.join(listed + ['...'] * (len(shape) > 8))})"
