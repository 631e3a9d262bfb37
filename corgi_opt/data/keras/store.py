"""A Keras file as plain data: its configuration, parsed from JSON, and its arrays by path.

Nothing in a file is trusted and nothing in it is run: no pickle, no marshal, no custom object. HDF5 is read by a
process of its own under limits (``_hdf5.py`` says why); JSON and zip files are read here, with limits on what they may
unpack to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corgi_opt.data._optional import package
from corgi_opt.errors import InputError

MOST_BYTES = 4_000_000_000
"""Largest file that is read."""

MOST_JSON = 64_000_000
"""Longest configuration, in characters: that of a network of 1,000 layers has a million."""

MOST_PACKED = 16
"""How many times its own size a file may unpack to (and a megabyte). Weights hardly pack at all."""

SUFFIXES = (".h5", ".hdf5", ".keras")

ZIPPED_TOPS = ("layers", "_layer_checkpoint_dependencies")
"""The group of a model's layers in a .keras file, and what Keras 2.12 and 2.13 called it."""


@dataclass(frozen=True)
class Store:
    """``config``: the parsed model configuration. ``major``: of the version of Keras that wrote the file. ``names``: of
    groups by path, the lists or the name that they bear. ``arrays``: by path, None for what holds no numbers.

    ``zipped``: arrays have the paths of the .keras layout, not those of the HDF5 of Keras 2.
    """

    config: Any
    major: int
    names: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, NDArray[Any] | None]
    zipped: bool


def is_keras_file(name: str) -> bool:
    """Does the name of a model end as those of Keras do?"""
    return name.lower().endswith(SUFFIXES)


def open_store(path: Path, extra: str) -> Store:
    """Raises InputError for a file that is missing, too large, of another kind or damaged; MissingPackageError."""
    package("h5py", "h5py", "Reading a Keras model", extra)
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} holds {path.stat().st_size:,} bytes; more than {MOST_BYTES:,} are not read")
    try:
        return _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _legacy(path: Path) -> Store:
    with open(path, "rb") as file:
        if b"\x89HDF\r\n\x1a\n" not in file.read(4096):
            raise InputError("it is not a readable HDF5 file, and no .keras file either")
    said, arrays = _hdf5(path, ("model_weights",))
    config = said["attributes"].get("model_config")
    if not isinstance(config, str):
        raise InputError("it has no model_config: the weights alone were saved; save the whole model (model.save)")
    return Store(
        _json("model_config", config), _major(said["attributes"].get("keras_version")), said["groups"], arrays, False
    )


def _zipped(path: Path) -> Store:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.h5")
        try:
            with zipfile.ZipFile(path) as archive:
                config = _json("config.json", _member(archive, "config.json", MOST_JSON))
                about = _json("metadata.json", _member(archive, "metadata.json", MOST_JSON))
                entry = archive.getinfo("model.weights.h5")
                if entry.file_size > MOST_PACKED * path.stat().st_size + 1_000_000:
                    raise InputError(
                        f"its weights unpack to {entry.file_size:,} bytes, which no weights of its size do"
                    )
                with archive.open(entry) as source, open(weights, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
        # what zipfile raises of damaged and of encrypted archives
        except (
            KeyError,
            RuntimeError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            ValueError,
        ) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"it is no .keras file, or a damaged one ({error})") from error
        said, arrays = _hdf5(weights, ZIPPED_TOPS)
    version = about.get("keras_version") if isinstance(about, Mapping) else None
    return Store(config, _major(version), said["groups"], arrays, True)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> str:
    entry = archive.getinfo(name)
    if entry.file_size > most:
        raise InputError(f"its {name} holds {entry.file_size:,} bytes; more than {most:,} are not read")
    return archive.read(entry).decode("utf-8")


def _json(what: str, raw: str) -> Any:
    if len(raw) > MOST_JSON:
        raise InputError(f"its {what} has {len(raw):,} characters; more than {MOST_JSON:,} are not read")
    try:
        return json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its {what} is not JSON: {error}") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _major(version: object) -> int:
    first = version.partition(".")[0] if isinstance(version, str) else ""
    return int(first) if first in ("1", "2", "3") else 2  # the first files did not say


def _hdf5(path: Path, top: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, NDArray[Any] | None]]:
    """What the script of the other process says of a file, and the arrays. Raises InputError."""
    size = path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "numbers")
        most = MOST_PACKED * size + 1_000_000
        seconds = 5 + size // 20_000_000
        told = {
            "path": str(path.resolve()),
            "top": top,
            "sys_path": sys.path,
            "most_bytes": most,
            "seconds": seconds,
            "memory": 1_500_000_000 + 3 * most,
            "out": str(out),
        }
        command = [sys.executable, "-I", str(Path(__file__).with_name("_hdf5.py"))]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(told),
                capture_output=True,
                text=True,
                timeout=200 * seconds,  # its own limit counts what it has run, however busy the machine is
            )
        except subprocess.TimeoutExpired as error:
            raise InputError("the HDF5 library does not come to an end with it: the file is damaged") from error
        said = _answer(done)
        raw = out.read_bytes() if out.is_file() else b""
    return said, {name: _array(entry, raw) for name, entry in said["arrays"].items()}


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        said = json.loads(done.stdout) if done.returncode == 0 else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        last = (done.stderr.splitlines() or [""])[-1][:200]
        raise InputError(f"the HDF5 library broke on it (exit {done.returncode}; {last or 'it said nothing'})")
    if "refused" in said:
        raise InputError(str(said["refused"]))
    return said


def _array(entry: Mapping[str, Any], raw: bytes) -> NDArray[Any] | None:
    if entry["offset"] is None:
        return None
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    count = int(np.prod(shape, dtype=object))
    return np.frombuffer(raw, dtype, count, entry["offset"]).reshape(shape)
