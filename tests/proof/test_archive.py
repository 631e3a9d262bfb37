"""What a reader takes from a file: arrays and texts as they were written; of anything else no more than a refusal."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from corgi_opt.errors import CertificateError
from corgi_opt.proof import archive
from corgi_opt.proof.archive import array, unpacked


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", how) as made:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            made.writestr(name, content)
        made.comment = comment
    return stream.getvalue()


def saved(values: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=version)
    return stream.getvalue()


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_come_back_as_they_were(how):
    members = {"claim.json": b"{}", "a.npy": bytes(range(256)) * 50, "empty": b""}
    assert unpacked(io.BytesIO(zipped(*members.items(), how=how))) == members


def longer(content: bytes) -> bytes:
    """Says in its directory that the first member is larger than it is."""
    at = content.index(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<L", 7) + content[at + 4 :]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short"),
        (b"x" * 100, "no zip archive"),
        (zipped(("a", b"1"))[:-1], "no zip archive"),
        (zipped(("a", b"1"), comment=b"hello"), "no zip archive"),
        (zipped(("a", b"1"), ("a", b"2")), "twice"),
        (zipped(("a", b"1"), how=zipfile.ZIP_BZIP2), "compressed in a way"),
        (longer(zipped(("a", b"1"))), "another size"),
    ],
    ids=["empty", "text", "cut", "comment", "twice", "bzip2", "size"],  # an archive holds the time it was made at
)
def test_what_is_no_archive_of_ours_is_refused(content, words):
    with pytest.raises(CertificateError, match=words):
        unpacked(io.BytesIO(content))


@pytest.mark.parametrize(
    ("limit", "members"),
    [
        ("MOST_BYTES", [("a", bytes(60)), ("b", bytes(60))]),
        ("MOST_TEXT", [("claim.json", bytes(101))]),
        ("MOST_MEMBERS", [(str(n), b"") for n in range(101)]),
        ("MOST_DIRECTORY", [("n" * 60, b""), ("m" * 60, b"")]),
    ],
)
def test_sizes_are_looked_at_before_anything_is_unpacked(limit, members, monkeypatch):
    content = zipped(*members)
    unpacked(io.BytesIO(content))
    monkeypatch.setattr(archive, limit, 100)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(CertificateError, match=r"more than 100|or 100 parts"):
        unpacked(io.BytesIO(content))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["<f8", "<i8", "|i1"])
def test_arrays_come_back_to_the_bit(shape, dtype):
    values = (np.arange(np.prod(shape)) * 7 - 3).astype(dtype).reshape(shape)
    found = array(saved(values), dtype)
    assert found.dtype == np.dtype(dtype) and found.shape == shape
    assert found.tobytes() == values.tobytes()
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(np.zeros(3, dtype="<f4")), "where <f8 was expected"),
        (saved(np.zeros(3, dtype=">f8")), "where <f8 was expected"),
        (saved(np.asfortranarray(np.zeros((2, 3)))), "where <f8 was expected"),
        (saved(np.zeros(3))[:-1], "where <f8 was expected"),
        (saved(np.zeros(3)) + b"\0", "where <f8 was expected"),
        (saved(np.zeros(3), (2, 0)), "another version"),
        (saved(np.array([1.0, np.nan])), "NaN"),
    ],
)
def test_what_is_no_such_array_is_refused(content, words):
    with pytest.raises(CertificateError, match=words):
        array(content, "<f8")


def test_a_shape_that_overflows_is_no_small_array():
    """2^32 * 2^32 is 0 in 64 bits."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with pytest.raises(CertificateError, match="was expected"):
        array(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header, "<f8")
