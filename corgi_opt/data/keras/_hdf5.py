"""Run in a process of its own, as a script: what an HDF5 file holds, as JSON and raw numbers.

The HDF5 library trusts the files that it reads: one flipped bit can make it loop for ever, ask for terabytes, or crash.
So the caller runs this under limits of time and memory, and takes what it writes for plain data. It imports nothing of
this package (torch alone takes seconds).

It is told on stdin, as JSON: ``path`` of the file, the ``top`` groups to be read, ``sys_path``, its limits
(``most_bytes`` of numbers, ``seconds``, ``memory``), and ``out``, the file that the numbers go to. It writes JSON to
stdout: ``attributes`` of the file, ``groups`` (the attributes of every group by path), and ``arrays`` (by path: dtype,
shape, offset in ``out``); or ``refused``: why.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

MOST_OBJECTS = 200_000
MOST_DEPTH = 64
SAFE_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, checksum, lzf; others are plugins, which are code


class RefusedError(Exception):
    """Something in the file is not read; says what."""


def text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def attributes(thing: Any) -> dict[str, str | list[str | None]]:
    """The attributes that are strings, or lists of them."""
    found: dict[str, str | list[str | None]] = {}
    for name in thing.attrs:
        ident = thing.attrs.get_id(name)
        if ident.dtype.kind not in "OS" or len(ident.shape) > 1:
            continue
        if ident.shape and ident.shape[0] > MOST_OBJECTS:
            raise RefusedError(f"its attribute {name!r} lists {ident.shape[0]:,} things")
        value = thing.attrs[name]
        if ident.shape:
            found[name] = [text(part) for part in value]
        else:
            said = text(value)
            if said is not None:
                found[name] = said
    return found


class Reader:
    """``groups`` and ``arrays`` so far; the numbers go to ``out``."""

    def __init__(self, h5py: Any, out: BinaryIO, most_bytes: int) -> None:
        self.h5py, self.out, self.left = h5py, out, most_bytes
        self.groups: dict[str, Any] = {}
        self.arrays: dict[str, Any] = {}

    def walk(self, group: Any, path: str, depth: int) -> None:
        if depth > MOST_DEPTH:
            raise RefusedError(f"its groups are nested deeper than {MOST_DEPTH}")
        self.groups[path] = attributes(group)
        for name in group:
            if len(self.groups) + len(self.arrays) > MOST_OBJECTS:
                raise RefusedError(f"it holds more than {MOST_OBJECTS:,} groups and arrays")
            if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
                raise RefusedError(f"{path}/{name} is a link to somewhere else, which is not followed")
            thing = group[name]
            if isinstance(thing, self.h5py.Group):
                self.walk(thing, f"{path}/{name}", depth + 1)
            elif isinstance(thing, self.h5py.Dataset):
                self.take(thing, f"{path}/{name}")

    def take(self, dataset: Any, path: str) -> None:
        entry = {"dtype": dataset.dtype.str, "shape": list(dataset.shape or ()), "offset": None}
        self.arrays[path] = entry
        if dataset.shape is None or dataset.dtype.kind not in "fiu":
            return  # listed only: whoever needs numbers here says so
        size = dataset.size * dataset.dtype.itemsize
        self.left -= size
        if self.left < 0:
            raise RefusedError(f"{path} has shape {dataset.shape}: more numbers than a file of this size can hold")
        plist = dataset.id.get_create_plist()
        filters = {plist.get_filter(at)[0] for at in range(plist.get_nfilters())}
        if plist.get_external_count() or dataset.is_virtual or filters - SAFE_FILTERS:
            raise RefusedError(f"{path} takes its numbers from another file or through a plugin, which is not followed")
        entry["offset"] = self.out.tell()
        values = dataset[()]
        self.out.write(values.tobytes())
        del values


def limit(seconds: int, memory: int) -> None:
    """Where the system can: the process ends when it has run so long, and gets no more memory than that."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    told = json.load(sys.stdin)
    sys.path[:] = told["sys_path"]
    limit(told["seconds"], told["memory"])
    import h5py

    said: dict[str, Any] = {}
    try:
        with h5py.File(told["path"], "r") as file, open(told["out"], "wb") as out:
            reader = Reader(h5py, out, told["most_bytes"])
            for top in told["top"]:
                link = file.get(top, getlink=True) if top in file else None
                if isinstance(link, h5py.HardLink) and isinstance(file[top], h5py.Group):
                    reader.walk(file[top], top, 0)
            said = {"attributes": attributes(file), "groups": reader.groups, "arrays": reader.arrays}
    except RefusedError as error:
        said = {"refused": str(error)}
    except Exception as error:  # whatever the library says of a damaged file
        first = (str(error).splitlines() or [""])[0][:200]
        said = {"refused": f"the HDF5 library cannot read it ({type(error).__name__}: {first})"}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
