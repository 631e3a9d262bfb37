"""Reads a certificate's file, a zip archive of plain arrays and one JSON text, and trusts nothing in it.

Nothing is unpacked before its stated size is known to be small enough, and nothing beyond that size, so that a file of
a few kilobytes cannot make its reader ask for gigabytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import CertificateError

MOST_BYTES = 2**28
"""Largest content, unpacked, that is read. The largest certificate of the paper's network holds a quarter of it."""

MOST_TEXT = 2**22
"""Largest text: parsed JSON takes up to twenty times its bytes."""

MOST_MEMBERS = 2**16 - 1
"""As many as a zip archive without 64-bit extensions holds."""

MOST_DIRECTORY = 2**23
"""Largest list of members, in bytes: it is parsed before anything in it can be checked."""

END = struct.Struct("<4s4H2LH")
"""The record that ends a zip archive (PKWARE's APPNOTE 4.3.16)."""

TEXT = "claim.json"


def unpacked(stream: BinaryIO) -> dict[str, bytes]:
    """The members of an archive by name. Raises CertificateError; what zipfile and zlib raise for a damaged one."""
    _require_small_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS or sum(m.file_size for m in members) > MOST_BYTES:
            raise CertificateError(f"it holds more than {MOST_BYTES:,} bytes or {MOST_MEMBERS:,} parts")
        if any(m.filename == TEXT and m.file_size > MOST_TEXT for m in members):
            raise CertificateError(f"its text has more than {MOST_TEXT:,} bytes")
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
            raise CertificateError("it is compressed in a way that certificates are not")
        if len({m.filename for m in members}) != len(members):
            raise CertificateError("it names a part twice")
        return {m.filename: _content(archive, m) for m in members}


def _require_small_directory(stream: BinaryIO) -> None:
    size = stream.seek(0, io.SEEK_END)
    before = 20  # the locator of a 64-bit record, which certificates do not have
    stream.seek(max(0, size - END.size - before))
    tail = stream.read()
    if len(tail) < END.size:
        raise CertificateError("not a readable certificate: it is too short")
    mark, _, _, _, _, length, _, comment = END.unpack(tail[-END.size :])
    if mark != b"PK\x05\x06" or comment or tail[: -END.size].startswith(b"PK\x06\x07"):
        raise CertificateError("not a readable certificate: it is no zip archive of their kind, or was cut off")
    if length > MOST_DIRECTORY:
        raise CertificateError(f"its list of parts has more than {MOST_DIRECTORY:,} bytes")


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes, as many as it states and no more: ``archive.read`` unpacks all of them before it compares.

    Raises CertificateError for another number of them.
    """
    with archive.open(member) as file:
        content = file.read(member.file_size)
        if len(content) != member.file_size or file.read(1):
            raise CertificateError(f"{member.filename} has another size than it says")
    return content


def array(content: bytes, dtype: str) -> NDArray[Any]:
    """A .npy array of this type, without a copy of it. Raises CertificateError."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise CertificateError("an array of another version of the .npy format")
    shape, fortran, stored = np.lib.format.read_array_header_1_0(stream, max_header_size=1000)
    start, count = stream.tell(), 1
    for length in shape:
        count *= length
    fits = min(shape, default=1) >= 0 and count * stored.itemsize == len(content) - start
    if stored != np.dtype(dtype) or fortran or not fits:
        raise CertificateError(f"an array of type {stored} and shape {shape} where {dtype} was expected")
    values = np.frombuffer(content, dtype=stored, offset=start).reshape(shape)
    if stored.kind == "f" and np.isnan(values).any():
        raise CertificateError("an array holds NaN")
    return values
