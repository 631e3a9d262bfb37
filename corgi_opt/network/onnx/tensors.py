"""TensorProto -> torch tensor: floats as float64, integers as int64; sizes are checked before anything is read.

Float16, bfloat16 and float32 numbers are float64 numbers: nothing is rounded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corgi_opt.errors import InputError, UnsupportedOpError
from corgi_opt.network.onnx.limits import MOST_BYTES, values_in

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""ONNX's number of a floating type -> its name."""

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The relative size of one rounding."""

_TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("<u1", "int32_data"),
    3: ("<i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("|b1", "int32_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    16: ("<u2", "int32_data"),  # bfloat16: the upper half of a float32
}
"""ONNX's number of a type -> its values in raw_data, and the field that holds them otherwise."""

_BITS = {10: "<u2", 16: "<u2", 9: "|u1"}
"""What int32_data holds for a type: its bits, not its value."""


def torch_type(element: int) -> torch.dtype | None:
    """The type in which we hold what ONNX holds in type number ``element``; None where we do not."""
    if element in FLOATS:
        return torch.float64
    if element == 9:
        return torch.bool
    return torch.int64 if element in _TYPES else None


def declared_bytes(proto: Any, what: str) -> int:
    """What the tensor says that it holds. Raises InputError, UnsupportedOpError for a type that has no numbers."""
    if proto.data_type not in _TYPES:
        raise UnsupportedOpError(
            what, f"a tensor of type number {proto.data_type}", "Floats, integers and booleans are read."
        )
    if proto.HasField("segment"):
        raise InputError(f"{what} is a segment of a tensor, which no reader of ONNX takes")
    return values_in(proto.dims, what) * np.dtype(_TYPES[proto.data_type][0]).itemsize


def tensor(proto: Any, what: str) -> Tensor:
    """The values of a TensorProto that holds its data itself. Raises InputError, UnsupportedOpError."""
    size, shape = declared_bytes(proto, what), tuple(int(d) for d in proto.dims)
    kind, field = _TYPES[proto.data_type]
    if not proto.HasField("raw_data"):
        return _made(_listed(getattr(proto, field), proto.data_type, kind, size, what), proto.data_type, shape)
    raw = proto.raw_data
    if len(raw) != size:
        raise InputError(f"{what} has shape {shape} and {len(raw):,} bytes, not the {size:,} that it takes")
    return _made(np.frombuffer(raw, dtype=kind), proto.data_type, shape)


def _listed(values: Sequence[Any], element: int, kind: str, size: int, what: str) -> Any:
    wanted = np.dtype(kind)
    if len(values) * wanted.itemsize != size:
        raise InputError(f"{what} holds {len(values):,} values, not the {size // wanted.itemsize:,} of its shape")
    if element in _BITS:
        bits = np.array(values, dtype=np.int64)
        if bits.size and (bits.min() < 0 or bits.max() > np.iinfo(_BITS[element]).max):
            raise InputError(f"{what} holds numbers that are no bits of its type")
        return bits.astype(_BITS[element]).view(kind)
    return np.array(values, dtype=np.int64 if wanted.kind in "iu" else wanted)


def _made(values: Any, element: int, shape: tuple[int, ...]) -> Tensor:
    if element == 16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    kind = {"f": np.float64, "b": np.uint8}.get(np.dtype(values.dtype).kind, np.int64)
    with np.errstate(all="ignore"):  # a float32 that is no number
        made = torch.from_numpy(values.astype(kind)).reshape(shape)
    return made.bool() if element == 9 else made


def outside(proto: Any, what: str, folder: Path | None) -> bytes:
    """The bytes of a tensor in a file beside the model's, in ``folder`` (None: nowhere). Raises InputError."""
    size = declared_bytes(proto, what)
    said = {entry.key: entry.value for entry in proto.external_data}
    location = said.get("location", "")
    if proto.HasField("raw_data"):
        raise InputError(f"{what} holds data and names another file ({location!r})")
    if folder is None:
        raise InputError(
            f"{what} lies in another file ({location!r}); pass the model's path, or load it with its external data"
        )
    path = _beside(folder, location, what)
    offset = _whole(said.get("offset", "0"), f"the offset of {what}")
    length = _whole(said.get("length") or str(size), f"the length of {what}")
    if length != size or offset + length > path.stat().st_size:
        raise InputError(
            f"{what} takes {size:,} bytes; its entry names {length:,} bytes from {offset:,} of {path.name}, which has "
            f"{path.stat().st_size:,}"
        )
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _beside(folder: Path, location: str, what: str) -> Path:
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or ".." in parts or os.path.isabs(location) or ":" in parts[0]:
        raise InputError(f"{what} names the file {location!r}; only files beside the model's are read")
    home = folder.resolve()
    try:
        path = (home / location).resolve()
        inside = path.is_relative_to(home) and path.is_file()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{what} names the file {location!r}: {error}") from error
    if not inside:
        raise InputError(f"{what} names the file {location!r}, which is no file in the model's folder")
    return path


def _whole(text: str, what: str) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) > MOST_BYTES * 1024:
        raise InputError(f"{what} is no number of bytes: {text[:40]!r}")
    return int(text)
