"""The options of the commands, and the groups that several commands share.

A command takes a group as one parameter (``means: Means``); :func:`unfolded` puts the group's fields in its place, so
that each is an option of the command line. Whoever adds an option to a group adds it to every command that takes it.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from torch import Tensor

from corgi_opt._checks import number_from_text
from corgi_opt.answering.backends import check_solver
from corgi_opt.data.sources import load
from corgi_opt.errors import InputError
from corgi_opt.methods import TABLE
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import clip_from_text
from corgi_opt.problem.properties import PROPERTIES
from corgi_opt.problem.region import canonical_norm


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the fields of each dataclass among its parameters in the place of that parameter."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters += _of_group(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def unfolding(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    by_keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]  # defaults in any order
    unfolding.__signature__ = signature.replace(parameters=by_keyword)  # type: ignore[attr-defined]
    unfolding.__annotations__ = {p.name: p.annotation for p in parameters}
    return unfolding


def _of_group(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [p.replace(annotation=hints[name]) for name, p in inspect.signature(kind).parameters.items()]


def _there(solver: str | None) -> str | None:
    """A solver that is named is there before a model is loaded for it. Raises InputError, MissingPackageError."""
    if solver is not None:
        check_solver(solver, "lp", "inf")  # every solver takes linear programs
    return solver


def size(text: str) -> float:
    """An eps as it is typed. Raises BadParameter."""
    try:
        return number_from_text(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a number, or a fraction such as 1/255, got {text!r}") from error


Model = Annotated[
    str,
    typer.Argument(
        help="'digits' (bundled), or path/to/model.onnx, or path/to/model.keras (.h5, .hdf5), or "
        "path/to/file.py:function, or package.module:function returning an eval-mode nn.Module"
    ),
]
Image = Annotated[
    str,
    typer.Option("--image", help="a .npy array, an image file, or the number of a bundled digit (digits.load_digits)"),
]
Eps = Annotated[
    float,
    typer.Option(
        "--eps", parser=size, metavar="NUMBER", help="distance in the norm, in units of the input; also as 1/255"
    ),
]
K = Annotated[int | None, typer.Option("--k", help="how many brightest CAM pixels")]
PropertyText = Annotated[
    str | None, typer.Option("--property", help=f"what is asked instead of --k: {', '.join(PROPERTIES)}, or its JSON")
]
Within = Annotated[
    int | None, typer.Option("--within", help="each of the k stays among so many brightest; default k: the set")
]
KeepClass = Annotated[
    bool, typer.Option("--keep-class", help="only images of the predicted class count as counterexamples")
]
SolverName = Annotated[
    str | None,
    typer.Option("--solver", callback=_there, help="of lp, milp and bab: highs, pulp:cbc, cvxpy:clarabel ..."),
]
Class = Annotated[
    str | None,
    typer.Option("--class", help="number of the class, or its name with --classes; default: the predicted class"),
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", help="names of all classes in their order: a text file, a line each, or 'cat,dog,...'"),
]
NormText = Annotated[str, typer.Option("--norm", help="inf, 2 or 1, also Linf, l2 ...")]
ClipText = Annotated[
    str,
    typer.Option(
        "--clip", help="the box images live in: 'low,high', one for each channel 'low,high;low,high;...', or 'none'"
    ),
]
Size = Annotated[int | None, typer.Option("--size", min=1, help="resize an image file to SIZE x SIZE pixels")]
Weights = Annotated[Path | None, typer.Option("--weights", help="a .safetensors, .pt or .pth file with its state dict")]
Seconds = Annotated[float, typer.Option("--time-limit", help="total seconds")]
Device = Annotated[str, typer.Option("--device", help="'auto', 'cpu', 'cuda', ...")]
Seed = Annotated[int, typer.Option("--seed", help="seed of the attack's random starts")]
Method = Annotated[str, typer.Option("--method", help=", ".join(TABLE))]
COMPARED = "comma-separated; default: corgi, crown, dual, lp, and bab or auto (split where layers are curved)"
Json = Annotated[bool, typer.Option("--json", help="print one machine-readable object instead")]


# --- groups -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """The network and the image that a question is about."""

    model: Model
    image: Image


@dataclass(frozen=True)
class What:
    """What is asked, and the method that answers."""

    k: K = None
    within: Within = None
    property: PropertyText = None
    method: Method = "auto"

    def keywords(self) -> dict[str, Any]:
        """As ``verify`` and ``radius`` take them."""
        return asdict(self)


@dataclass(frozen=True)
class Several:
    """What ``compare`` asks of several methods."""

    ks: Annotated[str | None, typer.Option("--k", help="how many brightest CAM pixels; several: 1,3,5")] = None
    property: PropertyText = None
    epses: Annotated[str | None, typer.Option("--eps", help="margins at one or several eps (0.1,1/255), not radii")] = (
        None
    )
    methods: Annotated[str | None, typer.Option("--methods", help=COMPARED)] = None
    rtol: Annotated[float, typer.Option("--rtol", help="relative resolution of each radius")] = 0.01
    within: Within = None

    def keywords(self) -> dict[str, Any]:
        """As ``compare`` takes them. Raises InputError for lists that are none."""
        return {
            "k": None if self.ks is None else _listed("--k", self.ks, int),
            "property": self.property,
            "eps": None if self.epses is None else _listed("--eps", self.epses, number_from_text),
            "methods": None if self.methods is None else [m.strip() for m in self.methods.split(",") if m.strip()],
            "rtol": self.rtol,
            "within": self.within,
        }


@dataclass(frozen=True)
class Setting:
    """Where a question is asked: the class, the region's shape, how the image and the network are read; the solver."""

    keep_class: KeepClass = False
    class_idx: Class = None
    classes: Classes = None
    norm: NormText = "inf"
    clip: ClipText = "0,1"
    size: Size = None
    weights: Weights = None
    solver: SolverName = None

    def loaded(self, subject: Subject) -> tuple[CamNetwork, Tensor]:
        """The network and the image. Raises InputError, MissingPackageError."""
        names = None if self.classes is None else named_classes(self.classes)
        return load(subject.model, subject.image, self.size, self.weights, names)

    def keywords(self) -> dict[str, Any]:
        """As every question takes them. Raises InputError."""
        return {
            "keep_class": self.keep_class,
            "class_idx": number_or_name(self.class_idx, names=self.classes is not None),
            "norm": canonical_norm(self.norm),
            "clip": clip_from_text(self.clip),
            "solver": self.solver,
        }


@dataclass(frozen=True)
class Means:
    """How long a question may take, where it is computed, and its seed."""

    time_limit: Seconds = 600.0
    device: Device = "auto"
    seed: Seed = 0

    def keywords(self) -> dict[str, Any]:
        """As every question takes them."""
        return asdict(self)


@dataclass(frozen=True)
class MeansAtOneEps(Means):
    """The same for a single verdict."""

    time_limit: Seconds = 300.0


def named_classes(text: str) -> list[str]:
    """The names of classes, in their order, that a text file holds line by line, or that stand between commas.

    Raises InputError.
    """
    path = Path(text)
    try:
        there = path.is_file()
    except OSError:  # many names are longer than any file's
        there = False
    if not there:
        if "," not in text:
            raise InputError(f"--classes must be a text file with a name on each line, or 'cat,dog,...', got {text!r}")
        return [name.strip() for name in text.split(",")]
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes: {text!r} is no text file in UTF-8 that can be read: {error}") from error


def number_or_name(text: str | None, names: bool) -> int | str | None:
    """A class as it is typed: its number, or else its name, where there are ``names``. Raises InputError."""
    if text is None or re.fullmatch(r"[-+]?\d+", text):
        return None if text is None else int(text)
    if not names:
        raise InputError(f"--class must be the number of a class, or its name together with --classes, got {text!r}")
    return text


T = TypeVar("T")


def _listed(option: str, text: str, number: Callable[[str], T]) -> list[T]:
    try:
        return [number(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} must be a number, or several with commas between, got {text!r}") from error
