"""A study's plan: networks x images x questions, from a TOML file or a mapping, and the cells it expands to.

::

    name = "digits"
    imports = ["my_properties.py"]        # optional: what registers properties, methods ... of one's own
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
from corgi_opt.study.own import Import, Own, imports_of, own_layers, own_of, run_once

PLAN_KEYS = ("name", "imports", "models", "images", "questions")


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
    """One question about one image and one network. ``key``: a hash of the contents of the three, and of ``own``: what
    they take from outside corgi_opt. ``question``: a hash of the same without how it is answered (the method, its
    solver, rtol and time limit), so that cells which differ in nothing else have the same."""

    model: SourcedModel
    image: StudyImage
    ask: Ask
    key: str
    question: str
    own: tuple[Own, ...] = ()

    @classmethod
    def of(cls, model: SourcedModel, image: StudyImage, ask: Ask, own: tuple[Own, ...] = ()) -> Cell:
        asked = [part for part in own if part.role in ("property", "layer")]
        contents = [model.sha256, image.sha256]
        return cls(
            model,
            image,
            ask,
            key=_hash([*contents, ask.plain()], own),
            question=_hash([*contents, ask.asked()], asked),
            own=own,
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """``models`` and ``images`` by name; ``said``: the plan as it was written, for the record; ``imports``: what every
    process of the study imports before anything else."""

    name: str
    models: Mapping[str, ModelSource]
    images: Mapping[str, Sequence[StudyImage]]
    grids: tuple[Grid, ...]
    said: str
    imports: tuple[Import, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """A ``.toml`` file, or ``file.py:function`` that returns what :meth:`of` takes. Raises what that raises."""
        made, folder, said = _written(str(path))
        return made if isinstance(made, Plan) else cls.of(made, folder, said)

    @classmethod
    def of(cls, plan: Mapping[str, Any], folder: str | Path = ".", said: str | None = None) -> Plan:
        """From a mapping laid out as the TOML file is; images may also be tensors (N, C, H, W).

        ``folder``: what paths are relative to. Its ``imports`` are imported here, first of all. Raises InputError, with
        the place in the plan, which is a StudyError too for a property, method or solver that nobody registered.
        """
        if not isinstance(plan, Mapping):
            raise InputError(f"a plan is a mapping, got {type(plan).__name__}")
        folder = Path(folder)
        name = plan.get("name")
        if not isinstance(name, str) or not name:
            raise InputError("a plan needs a name")
        imports = imports_of(plan.get("imports", ()), folder)  # first: questions may name what they register
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
        return cls(name, models, images, tuple(grids), repr(plan) if said is None else said, imports)

    def cells(self) -> list[Cell]:
        """Every cell once, network by network and image by image.

        Builds each network, for its hash. Raises InputError, also where a question needs a label that an image lacks.
        """
        cells: dict[str, Cell] = {}
        layers = own_layers(self.imports)
        owns = [[(ask, (*layers, *_own_parts(ask))) for ask in grid.asks] for grid in self.grids]
        for model_name, source in self.models.items():
            model = source.sourced(model_name)
            for group, images in self.images.items():
                taken = [
                    (grid.label, ask, own)
                    for grid, asks in zip(self.grids, owns, strict=True)
                    if grid.takes(model_name, group)
                    for ask, own in asks
                ]
                for image in images:
                    for label, ask, own in taken:
                        cell = Cell.of(model, image, _labelled(ask, image) if label else ask, own)
                        cells.setdefault(cell.key, cell)
        if not cells:
            raise InputError("the plan has no cell: no question is about any of its models and images")
        return list(cells.values())


def _hash(contents: Sequence[Any], own: Sequence[Own]) -> str:
    """Of what a cell is about; one that takes nothing from elsewhere has the key that it always had."""
    more = [[[part.role, part.name, part.sha256] for part in own]] if own else []
    return hashlib.sha256(json.dumps([*contents, *more], sort_keys=True).encode()).hexdigest()[:32]


def import_for(path: str | Path) -> None:
    """Imports what a plan (as :meth:`Plan.load` takes it) names as ``imports``, and builds nothing else of it.

    A TOML file that is gone names nothing. Raises what :meth:`Plan.load` raises.
    """
    if str(path).endswith(".toml") and not Path(path).exists():
        return
    made, folder, _ = _written(str(path))
    if isinstance(made, Mapping):
        imports_of(made.get("imports", ()), folder)


def _written(name: str) -> tuple[Any, Path, str | None]:
    """What a plan's file or function holds, the folder that its paths are relative to, and a file's text."""
    if not name.endswith(".toml"):
        return find_function("a plan", run_once(name), "a .toml file, ")(), Path(name.rpartition(":")[0]).parent, None
    path = Path(name)
    try:
        said = path.read_text(encoding="utf-8")
        return tomllib.loads(said), path.parent, said
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"no plan can be read from {name!r}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not TOML: {error}") from error


def _own_parts(ask: Ask) -> tuple[Own, ...]:
    """What a question names that is not corgi_opt's. Raises UnknownNameError."""
    return tuple(part for part in (own_of(role, name) for role, name in ask.names()) if part is not None)


def _labelled(ask: Ask, image: StudyImage) -> Ask:
    """The question about the class that the image is labelled with. Raises InputError."""
    if image.label is None:
        raise InputError(f"class_idx = 'label', but image {image.name} came without a label")
    return replace(ask, class_idx=image.label)


def _tables(plan: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    entries = plan.get(what)
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"a plan needs at least one [{what}.NAME]")
    return entries


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
        content: Any = (images[test], labels[test])
    elif isinstance(source, str) and ":" in source and Path(source).suffix.lower() != ".npy":
        content = find_function("source", run_once(_placed(source, folder)))()
    elif isinstance(source, str) or (isinstance(source, list | tuple) and all(isinstance(s, str) for s in source)):
        paths = _files([source] if isinstance(source, str) else source, folder)
        return [p.name for p in paths], [load_image(str(p), size, bundled=False) for p in paths], None
    else:
        content = source
    given, given_labels = content if isinstance(content, tuple) and len(content) == 2 else (content, None)
    if not isinstance(given, Tensor) or given.ndim != 4 or not len(given):
        what = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"images must be a tensor (N, C, H, W), or that and N labels; got {what}")
    if given_labels is not None and len(given_labels) != len(given):
        raise InputError(f"{len(given)} images came with {len(given_labels)} labels")
    return [f"{group}[{i}]" for i in range(len(given))], [given[i : i + 1] for i in range(len(given))], given_labels


def _files(patterns: Sequence[str], folder: Path) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(folder.glob(pattern)) if not Path(pattern).is_absolute() else [Path(pattern)]
        if not matches:
            raise InputError(f"no file is {pattern!r} in {folder}")
        paths += matches
    return paths


def _placed(name: str, folder: Path) -> str:
    """``file.py:function`` with the file's whole path; a module's name as it is."""
    where, _, function = name.rpartition(":")
    return f"{(folder / where).resolve()}:{function}" if where.endswith(".py") else name


def _taken(take: Any, count: int) -> list[int]:
    """The indices that ``take`` chooses of ``count`` images. Raises InputError."""
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
    """The hash of an image's (1, C, H, W) float64 shape and values."""
    return hashlib.sha256(str(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes()).hexdigest()
