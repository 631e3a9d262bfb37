"""One layer of a Keras model: its options, each read or refused by name, and its weights, of the shapes that fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corgi_opt.errors import InputError, UnsupportedOpError

Shape = tuple[int, ...]

_HARMLESS = frozenset(
    (
        *(
            "name",
            "trainable",
            "dtype",
            "input_dtype",
            "batch_input_shape",
            "batch_shape",
            "input_shape",
            "sparse",
            "ragged",
        ),
        *("optional", "seed", "noise_shape", "momentum", "renorm_momentum", "synchronized", "fused", "build_config"),
    )
)
"""Options of many layers that say nothing of what is computed in inference."""

_OF_TRAINING = re.compile(r".*_(initializer|regularizer|constraint)")

_FLOATS = ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


class Weights(Protocol):
    """Where the arrays of one layer are found."""

    def array(self, names: Sequence[str], at: int) -> NDArray[Any] | None:
        """The array of ``names[at]``, all names being what the layer must have, in Keras's order. Raises InputError."""

    def others(self, names: Sequence[str]) -> list[str]:
        """What else the file has of this layer."""


@dataclass
class Layer:
    """``kind``: its class. ``path``: its name, those of the models that it is nested in before it.

    ``is_last``: nothing but reshaping comes after it. ``major``: the version of Keras.
    """

    kind: str
    path: str
    config: Mapping[str, Any]
    source: Weights
    is_last: bool
    major: int
    _read: set[str] = field(default_factory=set)

    def damaged(self, why: str) -> InputError:
        """The error that names this layer, for the caller to raise: the file contradicts itself."""
        return InputError(f"Keras layer {self.path!r} ({self.kind}): {why}")

    def unsupported(self, what: str, hint: str) -> UnsupportedOpError:
        """The error that names this layer, for the caller to raise: Keras knows it, and it is not read here."""
        return UnsupportedOpError(f"Keras layer {self.path!r}", f"{self.kind} {what}".strip(), hint)

    # --- options -------------------------------------------------------------------------------------------------

    def option(self, key: str, default: object) -> Any:
        """Option ``key`` as it stands; files of older versions lack the newer ones."""
        self._read.add(key)
        return self.config.get(key, default)

    def require(self, key: str, value: object, hint: str = "Only the default is read.") -> None:
        """Raises UnsupportedOpError unless option ``key`` is ``value`` or absent."""
        found = self.option(key, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise self.unsupported(f"with {key}={_short(found)}", hint)

    def choice(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        """Raises UnsupportedOpError for another."""
        found = self.option(key, default)
        if not isinstance(found, str) or found not in known:
            raise self.unsupported(f"with {key}={_short(found)}", f"Only {', '.join(map(repr, known))} is read.")
        return found

    def flag(self, key: str, default: bool) -> bool:
        found = self.option(key, default)
        if not isinstance(found, bool):
            raise self.damaged(f"{key}={_short(found)} is neither true nor false")
        return found

    def number(self, key: str, default: float | None) -> float:
        """A finite number."""
        found = self.option(key, default)
        if isinstance(found, Mapping) and "value" in found:  # as Keras 2.2 writes a numpy number
            found = found["value"]
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < 1e300:
            raise self.damaged(f"{key}={_short(found)} is not a finite number")
        return float(found)

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        found = self.option(key, default)
        if not _is_size(found):
            raise self.damaged(f"{key}={_short(found)} is not a positive integer")
        return int(found)

    def sizes(self, key: str, rank: int, default: Sequence[int] | None = None) -> Shape:
        """``rank`` positive integers; one stands for all."""
        found = self.option(key, default)
        if _is_size(found):
            found = [found] * rank
        if not isinstance(found, (list, tuple)) or len(found) != rank or not all(map(_is_size, found)):
            wanted = "a pair of positive integers" if rank == 2 else "one positive integer"
            raise self.damaged(f"{key}={_short(found)} is not {wanted}")
        return tuple(found)

    def margins(self, key: str, rank: int, default: object) -> list[tuple[int, int]]:
        """What is added or cut before and behind along ``rank`` axes."""
        found = self.option(key, default)
        if rank == 1:
            found = [found if not isinstance(found, list) or len(found) != 1 else found[0]]
        elif isinstance(found, int):
            found = [found] * rank
        pairs = []
        for each in found if isinstance(found, (list, tuple)) else []:
            before_behind = [each, each] if isinstance(each, int) else each
            match before_behind:
                case [int(before), int(behind)] if 0 <= before < 1 << 24 and 0 <= behind < 1 << 24:
                    pairs.append((before, behind))
        if len(pairs) != rank or not isinstance(found, (list, tuple)) or len(found) != rank:
            raise self.damaged(f"{key}={_short(found)} does not say how much on each side")
        return pairs

    def channels_last(self) -> None:
        """Raises UnsupportedOpError for a layer that reads its channels first."""
        if self.option("data_format", None) is not None:
            self.choice("data_format", ("channels_last",))

    def finish(self) -> None:
        """Raises UnsupportedOpError for an option that nobody has read, unless it says nothing of the values."""
        dtype = self.config.get("dtype")
        match dtype:
            case {"class_name": "DTypePolicy" | "Policy", "config": {"name": name}}:
                pass
            case _:
                name = dtype
        if name is not None and name not in _FLOATS:
            raise self.unsupported(f"with dtype={_short(dtype)}", "Only models of float32 weights are read.")
        for key, value in self.config.items():
            if key in self._read or key in _HARMLESS or _OF_TRAINING.fullmatch(key) or value is None or value is False:
                continue
            raise self.unsupported(f"with {key}={_short(value)}", "This option is not known.")

    # --- weights -------------------------------------------------------------------------------------------------

    def weights(self, **shapes: Sequence[int]) -> dict[str, Tensor]:
        """The layer's arrays, all of those named and no others, as float32. Raises InputError."""
        names = list(shapes)
        found = {}
        for at, (name, shape) in enumerate(shapes.items()):
            array = self.source.array(names, at)
            if array is None or array.shape != tuple(shape):
                said = "none" if array is None else f"shape {array.shape}"
                raise self.damaged(f"a {name} of shape {tuple(shape)} is expected in the file; found {said}")
            if array.dtype.newbyteorder("=") != np.float32 or not np.isfinite(array).all():
                raise self.damaged(f"the weights {name!r} are not finite float32 numbers")
            found[name] = torch.from_numpy(np.array(array, dtype=np.float32))
        others = self.source.others(names)
        if others:
            raise self.damaged(f"the file has weights of it that it does not read: {', '.join(others[:5])}")
        return found


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 80 else said[:77] + "..."


MOST_VALUES = 1 << 27
"""Largest map, in numbers (1 GB in float64). A network whose file says more is no network that could be looked at."""


@dataclass(frozen=True)
class Flow:
    """What passes between two layers, without its batch: a map of ``size`` (rows, columns, channels), a sequence
    (steps, channels), or a vector (n,). In torch they are (1, C, H, W), (1, C, 1, L) and (1, n).

    ``order`` belongs to a flattened map: unit i of torch's vector is unit ``order[i]`` of Keras's. Rows, columns and
    steps are None where the Keras model leaves them open.
    """

    size: tuple[int | None, ...]
    order: NDArray[np.intp] | None = None

    @property
    def spatial(self) -> tuple[int | None, ...]:
        return self.size[:-1]

    @property
    def channels(self) -> int:
        last = self.size[-1]
        assert last is not None  # a model that leaves them open is refused at its input
        return last

    @property
    def too_large(self) -> bool:
        return math.prod(s for s in self.size if s is not None) > MOST_VALUES

    @property
    def one_pixel(self) -> bool:
        return all(s == 1 for s in self.spatial)


Built = tuple[list[tuple[str, nn.Module]], Flow]
"""Modules by name, each reading what the one before it gives, and what the last one gives."""


def spatial_of(layer: Layer, flow: Flow, rank: int) -> tuple[int | None, ...]:
    """The rows and columns, or the steps, that a layer of so many spatial axes reads. Raises InputError."""
    if len(flow.size) != rank + 1:
        found = f"a vector of {flow.size[0]}" if len(flow.size) == 1 else f"one of shape {flow.size}"
        wanted = "an image-like map" if rank == 2 else "a sequence of vectors"
        raise layer.damaged(f"it needs {wanted} as input, but gets {found}")
    return flow.spatial
