"""Results as JSON types and back. Infinity and NaN, which JSON lacks, are null; readers know which a field means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from corgi_opt._ambient import pinned


def plain(value: Any) -> Any:
    """A result as JSON types, floats to the last bit. Fields that its repr leaves out are left out."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain_fields(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, each as :func:`plain` has it."""
    return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}


class Plain:
    """A dataclass that goes through JSON."""

    @pinned
    def to_dict(self) -> dict[str, Any]:
        """As JSON types, floats to the last bit. The proof of an answer is left out: it is a file of its own."""
        return plain_fields(self)


def numbers(said: Mapping[str, Any], **unknown: float) -> dict[str, Any]:
    """The fields ``said``, with null replaced by the number that ``unknown`` has for the field."""
    return {name: unknown.get(name) if value is None else value for name, value in said.items()}


def tensor(said: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor from nested lists."""
    return torch.tensor(said, dtype=dtype)
