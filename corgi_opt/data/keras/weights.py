"""Where a layer's arrays stand in a file: by name in the HDF5 of Keras 2 (and .h5 of Keras 3), by number in .keras."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from corgi_opt.data.keras.graph import Entry
from corgi_opt.data.keras.store import ZIPPED_TOPS, Store
from corgi_opt.errors import InputError

_NOT_VALUES = re.compile(r"(count|seed_generator_state|seed)(_\d+)?")
"""Arrays that play no part in inference: how much a Normalization has seen, the state of a random generator."""


def weights_of(store: Store, entry: Entry) -> Numbered | Named:
    """Raises InputError where the file contradicts itself."""
    return _numbered(store, entry) if store.zipped else _named(store, entry)


@dataclass(frozen=True)
class Numbered:
    """``arrays`` in the order of the layer's variables, trainable ones first."""

    arrays: Sequence[NDArray[Any] | None]

    def array(self, names: Sequence[str], at: int) -> NDArray[Any] | None:
        return self.arrays[at] if at < len(self.arrays) else None

    def others(self, names: Sequence[str]) -> list[str]:
        left = self.arrays[len(names) :]
        return [f"number {at}" for at, a in enumerate(left, start=len(names)) if a is None or a.ndim > 0]


def _numbered(store: Store, entry: Entry) -> Numbered:
    folder = f"{_folder(store, entry)}/vars"
    called = store.names.get(folder, {}).get("name")  # since Keras 3.4
    if isinstance(called, str) and called != entry.names[-1]:
        raise InputError(f"Keras layer {entry.path!r}: the arrays in its place, {folder}, are those of {called!r}")
    found = {
        path.rpartition("/")[2]: array for path, array in store.arrays.items() if path.rpartition("/")[0] == folder
    }
    if set(found) != {str(at) for at in range(len(found))}:
        raise InputError(f"Keras layer {entry.path!r}: its arrays are not numbered from 0 on: {sorted(found)[:9]}")
    return Numbered([found[str(at)] for at in range(len(found))])


def _folder(store: Store, entry: Entry) -> str:
    """Where a layer stands in the .keras layout: ``layers/conv2d_3`` is the fourth of its class."""
    new, old = ZIPPED_TOPS
    if old not in store.names:
        return "/".join(f"{new}/{slot}_{at}" if at else f"{new}/{slot}" for slot, at in entry.slots)
    folder = ""
    for (
        slot,
        at,
    ) in entry.slots:  # there a layer with weights counts for two, of which one is written: its class goes 0, 2, 4
        inside = f"{folder}/{old}/" if folder else f"{old}/"
        written = re.compile(rf"{re.escape(inside + slot)}(?:_(\d+))?")
        found = sorted((int(m[1] or 0), m[0]) for m in map(written.fullmatch, store.names) if m)
        folder = found[at][1] if at < len(found) else f"{inside}{slot}, number {at}"
    return folder


@dataclass(frozen=True)
class Named:
    """``arrays`` by the bare name of the variable: ``dense_2/kernel:0`` is ``kernel``. ``shared``: with other layers of
    a nested model."""

    arrays: Mapping[str, NDArray[Any] | None]
    shared: bool

    def array(self, names: Sequence[str], at: int) -> NDArray[Any] | None:
        return self.arrays.get(names[at])

    def others(self, names: Sequence[str]) -> list[str]:
        left = [] if self.shared else self.arrays
        return [name for name in left if name not in names and not _NOT_VALUES.fullmatch(name)]


def _named(store: Store, entry: Entry) -> Named:
    group = f"model_weights/{entry.names[0]}"
    listed = store.names.get(group, {}).get("weight_names", [])
    found: dict[str, NDArray[Any] | None] = {}
    shared = False
    for path in listed if isinstance(listed, list) else []:
        if not isinstance(path, str):
            raise InputError(f"Keras layer {entry.path!r}: its weight_names are no names")
        scope, _, name = path.rpartition("/")
        if len(entry.names) > 1 and not _is_of(scope, name, entry, listed):
            continue
        shared = shared or (len(entry.names) > 1 and not scope)
        bare = re.sub(r"(_\d+)?(:0)?$", "", name)
        if f"{group}/{path}" not in store.arrays:
            raise InputError(f"the weights {path!r} that layer {entry.path!r} lists are not in the file")
        if bare in found:
            raise InputError(f"Keras layer {entry.path!r}: the file has two arrays {bare!r} that may be its")
        found[bare] = store.arrays[f"{group}/{path}"]
    return Named(found, shared)


def _is_of(scope: str, name: str, entry: Entry, listed: Sequence[Any]) -> bool:
    """Is an array of a nested model that of this layer? Its scope ends in the layer's name, which the model's may
    precede; the first releases of Keras 3 wrote bare names, and no file in which two of them are equal."""
    if not scope:
        return True
    own = entry.names[-1]
    exact = [p for p in listed if isinstance(p, str) and _ends_in(p.rpartition("/")[0], own)]
    if exact:
        return _ends_in(scope, own)
    return _ends_in(re.sub(r"_\d+$", "", scope), own)  # TensorFlow 1 numbered the scopes of a model that was built anew


def _ends_in(scope: str, name: str) -> bool:
    return scope == name or scope.endswith(f"/{name}")
