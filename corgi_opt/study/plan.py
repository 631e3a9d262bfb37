"""A study's plan: networks x images x questions, from a TOML file or a mapping, and the cells it expands to.

::

    name = "digits"
    time_limit = 60                       # any key of a question may stand here, as its default

    [models.digits]
    build = "digits"                      # or "file.py:function", "package.module:function"
    weights = "digits.safetensors"        # optional

    [images.test]
    source = "digits"                     # or "file.py:function" (images, or images and labels), or files
    take = "0:20"                         # or a list of indices

    [[questions]]                         # every list spreads: here 20 images x 3 k x 2 methods
    k = [1, 3, 5]
    method = ["crown", "bab"]

    [[questions]]
    kind = "margin"
    eps = [0.001, 0.002]
    k = 3
    method = ["corgi", "crown", "lp", "bab"]

Paths are relative to the plan's file.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corgi_opt.data.sources import find_function, load_image
from corgi_opt.errors import InputError
from corgi_opt.study.ask import Ask, Grid
from corgi_opt.study.models import ModelSource, SourcedModel

PLAN_KEYS = ("name", "models", "images", "questions")


@dataclass(frozen=True, eq=False)
class StudyImage:
    """One image: ``x`` (1, C, H, W) float64; ``name`` says where it came from; ``sha256`` of its shape and values."""

    name: str
    group: str
    x: Tensor
    label: int | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Cell:
    """One question about one image and one network. ``key``: a hash of the contents of the three."""

    model: SourcedModel
    image: StudyImage
    ask: Ask
    key: str

    @classmethod
    def of(cls, model: SourcedModel, image: StudyImage, ask: Ask) -> Cell:
        said = json.dumps([model.sha256, image.sha256, ask.plain()], sort_keys=True)
        return cls(model, image, ask, hashlib.sha256(said.encode()).hexdigest()[:32])


@dataclass(frozen=True, eq=False)
class Plan:
    """``models`` and ``images`` by name; ``said``: the plan as it was written, for the record."""

    name: str
    models: Mapping[str, ModelSource]
    images: Mapping[str, Sequence[StudyImage]]
    grids: tuple[Grid, ...]
    said: str

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """A ``.toml`` file, or ``file.py:function`` that returns what :meth:`of` takes. Raises InputError."""
        text = str(path)
        if not text.endswith(".toml"):
            made = find_function("a plan", text, "a .toml file, ")()
            return made if isinstance(made, Plan) else cls.of(made, Path(text.rpartition(":")[0]).parent)
        path = Path(path)
        try:
            said = path.read_text(encoding="utf-8")
            return cls.of(tomllib.loads(said), path.parent, said)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"no plan can be read from {text!r}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{text} is not TOML: {error}") from error

    @classmethod
    def of(cls, plan: Mapping[str, Any], folder: str | Path = ".", said: str | None = None) -> Plan:
        """From a mapping laid out as the TOML file is; images may also be tensors (N, C, H, W).

        ``folder``: what paths are relative to. Raises InputError, with the place in the plan.
        """
        if not isinstance(plan, Mapping):
            raise InputError(f"a plan is a mapping, got {type(plan).__name__}")
        folder = Path(folder)
        name = plan.get("name")
        if not isinstance(name, str) or not name:
            raise InputError("a plan needs a name")
        defaults = {key: value for key, value in plan.items() if key not in PLAN_KEYS}
        models = {key: ModelSource.of(entry, folder, f"models.{key}") for key, entry in _tables(plan, "models").items()}
        images = {
            key: tuple(_images(entry, key, folder, f"images.{key}")) for key, entry in _tables(plan, "images").items()
        }
        entries = plan.get("questions")
        if not isinstance(entries, list | tuple) or not entries:
            raise InputError("a plan needs at least one [[questions]]")
        grids = []
        for place, entry in enumerate(entries, start=1):
            if not isinstance(entry, Mapping):
                raise InputError(f"questions {place} must be a table, got {entry!r}")
            grids.append(Grid.of({**defaults, **entry}, f"questions {place}"))
        for place, grid in enumerate(grids, start=1):
            for what, chosen, known in (("models", grid.models, models), ("images", grid.images, images)):
                unknown = [key for key in chosen or () if key not in known]
                if unknown:
                    raise InputError(f"questions {place}: the plan has no {what}.{unknown[0]}")
        return cls(name, models, images, tuple(grids), repr(plan) if said is None else said)

    def cells(self) -> list[Cell]:
        """Every cell once, network by network and image by image.

        Builds each network, for its hash. Raises InputError, also where a question needs a label that an image lacks.
        """
        found: dict[str, Cell] = {}
        for model_name, source in self.models.items():
            model = source.sourced(model_name)
            for group, images in self.images.items():
                asks = [(grid.label, ask) for grid in self.grids if grid.takes(model_name, group) for ask in grid.asks]
                for image in images:
                    for label, ask in asks:
                        cell = Cell.of(model, image, _labelled(ask, image) if label else ask)
                        found.setdefault(cell.key, cell)
        if not found:
            raise InputError("the plan has no cell: no question is about any of its models and images")
        return list(found.values())


def _labelled(ask: Ask, image: StudyImage) -> Ask:
    if image.label is None:
        raise InputError(f"class_idx = 'label', but image {image.name} came without a label")
    return replace(ask, class_idx=image.label)


def _tables(plan: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    found = plan.get(what)
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"a plan needs at least one [{what}.NAME]")
    return found


def _images(entry: Any, group: str, folder: Path, where: str) -> list[StudyImage]:
    if isinstance(entry, Tensor | str):
        entry = {"source": entry}
    if not isinstance(entry, Mapping) or "source" not in entry or set(entry) - {"source", "take", "size"}:
        raise InputError(f"{where} needs a source, and may have take and size; got {entry!r}")
    try:
        names, images, labels = _sourced(entry["source"], group, folder, entry.get("size"))
        chosen = _taken(entry.get("take"), len(images))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    made = []
    for at in chosen:
        x = images[at].detach().cpu().double()
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"{where}: {names[at]} has values that are not finite")
        made.append(StudyImage(names[at], group, x, None if labels is None else int(labels[at]), image_sha256(x)))
    return made


def _sourced(
    source: Any, group: str, folder: Path, size: int | None
) -> tuple[list[str], list[Tensor], Sequence[int] | None]:
    """Names, images (1, C, H, W) and labels of a source."""
    if isinstance(source, str) and source == "digits":
        from corgi_opt.data.digits import digits_split, load_digits

        images, labels = load_digits()
        _, test = digits_split()
        found: Any = (images[test], labels[test])
    elif isinstance(source, str) and ":" in source and Path(source).suffix.lower() != ".npy":
        found = find_function("source", _placed(source, folder))()
    elif isinstance(source, str) or (isinstance(source, list | tuple) and all(isinstance(s, str) for s in source)):
        paths = _files([source] if isinstance(source, str) else source, folder)
        return [p.name for p in paths], [load_image(str(p), size, bundled=False) for p in paths], None
    else:
        found = source
    given, given_labels = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(given, Tensor) or given.ndim != 4 or not len(given):
        what = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"images must be a tensor (N, C, H, W), or that and N labels; got {what}")
    if given_labels is not None and len(given_labels) != len(given):
        raise InputError(f"{len(given)} images came with {len(given_labels)} labels")
    return [f"{group}[{i}]" for i in range(len(given))], [given[i : i + 1] for i in range(len(given))], given_labels


def _files(patterns: Sequence[str], folder: Path) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(folder.glob(pattern)) if not Path(pattern).is_absolute() else [Path(pattern)]
        if not found:
            raise InputError(f"no file is {pattern!r} in {folder}")
        paths += found
    return paths


def _placed(name: str, folder: Path) -> str:
    """``file.py:function`` with the file's whole path; a module's name as it is."""
    where, _, function = name.rpartition(":")
    return f"{(folder / where).resolve()}:{function}" if where.endswith(".py") else name


def _taken(take: Any, count: int) -> list[int]:
    if take is None:
        return list(range(count))
    if isinstance(take, str):
        try:
            parts = [int(part) if part.strip() else None for part in take.split(":")]
            if not 2 <= len(parts) <= 3:
                raise ValueError
            chosen = list(range(count))[slice(*parts)]
        except ValueError as error:
            raise InputError(
                f"take must be 'first:end', 'first:end:step' or a list of indices, got {take!r}"
            ) from error
    elif isinstance(take, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in take):
        wrong = [i for i in take if not 0 <= i < count]
        if wrong:
            raise InputError(f"take names image {wrong[0]}; there are images 0..{count - 1}")
        chosen = list(take)
    else:
        raise InputError(f"take must be 'first:end' or a list of indices, got {take!r}")
    if not chosen:
        raise InputError(f"take {take!r} leaves none of {count} images")
    return chosen


def image_sha256(x: Tensor) -> str:
    """Of an image (1, C, H, W) float64: its shape and values."""
    return hashlib.sha256(str(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes()).hexdigest()
