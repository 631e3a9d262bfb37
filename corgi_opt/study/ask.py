"""What a study asks of one network and one image: a question, defaults filled in, and its spread over a grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from corgi_opt._checks import check_rtol, integer, not_negative, number_from_text
from corgi_opt._deadline import check_time_limit
from corgi_opt.answering.asking import chosen_property
from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.heatmap import METHODS as HEAT_MAP_METHODS
from corgi_opt.errors import InputError
from corgi_opt.methods import check_method
from corgi_opt.problem.clip import Box, as_list, checked_clip, clip_from_text
from corgi_opt.problem.properties import TopK
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.study.own import Role, UnknownNameError, hint, is_known

Kind = Literal["radius", "verify", "margin", "heat_map"]
KINDS = ("radius", "verify", "margin", "heat_map")

HOW = ("method", "rtol", "solver", "time_limit")
"""The fields that say how a question is answered: what is proven, or broken, with one of them is so with any other."""

LABEL = "label"
"""As ``class_idx``: the label that came with the image."""


@dataclass(frozen=True)
class Ask:
    """One question. ``kind``: ``"radius"`` (:func:`corgi_opt.radius`), ``"verify"`` (the sign of the margin at
    ``eps``), ``"margin"`` (the best bound that the method gives on the margin at ``eps``; :func:`corgi_opt.compare`),
    or ``"heat_map"`` (:func:`corgi_opt.heat_map`: what every pixel can be at ``eps``).

    Every field but ``eps`` (None for a radius) is what the function of that kind takes. Raises InputError for what that
    function refuses before it looks at the network.
    """

    kind: Kind
    k: int | None
    method: str
    eps: float | None = None
    within: int | None = None
    norm: Norm = "inf"
    clip: Box | None = (0.0, 1.0)
    class_idx: int | None = None
    keep_class: bool = False
    rtol: float = 0.01
    solver: str | None = None
    time_limit: float = 300.0
    seed: int = 0
    property: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a question's kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        if (self.eps is None) != (self.kind == "radius"):
            raise InputError(f"a question of kind {self.kind!r} takes {'no' if self.kind == 'radius' else 'an'} eps")
        eps, norm = _size(self.eps), canonical_norm(self.norm)
        check_solver(self.solver, check_method(self.method, norm).name, norm)
        check_time_limit(self.time_limit)
        if not isinstance(self.keep_class, bool):
            raise InputError(f"keep_class must be true or false, got {self.keep_class!r}")
        filled: dict[str, Any] = {
            "eps": None if eps is None else not_negative("eps", eps),
            "norm": norm,
            "clip": checked_clip(self.clip),
            "class_idx": None if self.class_idx is None else integer("class_idx", self.class_idx, 0, 10**9),
            "rtol": check_rtol(self.rtol),
            "time_limit": float(self.time_limit),
            "seed": integer("seed", self.seed, 0, 2**63 - 1),
        }
        # a top-k set is kept as k and within, however it was said; another property as the dict that makes it again
        what = chosen_property(self.property, self.k, self.within)
        if isinstance(what, TopK):
            filled |= {"k": what.k, "within": what.within, "property": None}
        else:
            filled |= {"property": what.to_dict()}
        if self.kind == "heat_map":
            _check_heat_map(self.method, plain_set=isinstance(what, TopK) and what.within is None)
            if self.keep_class:
                raise InputError("a heat map takes no keep_class")
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def plain(self) -> dict[str, Any]:
        """The fields as JSON types. One that plays no part in a question of this kind has its default."""
        values = asdict(self)
        if self.kind in ("verify", "heat_map"):
            values["rtol"] = Ask.rtol
        if self.property is None:
            del values["property"]  # keys of cells are older than this field
        return values | {"clip": None if self.clip is None else [as_list(end) for end in self.clip]}

    def asked(self) -> dict[str, Any]:
        """The same without how it is answered. The seed stays, so that a study can compare seeds."""
        return {name: value for name, value in self.plain().items() if name not in HOW}

    def names(self) -> list[tuple[Role, str]]:
        """The method, the property and the solver that it names: somebody has registered each."""
        names: list[tuple[Role, str]] = [("method", self.method)]
        if self.property is not None:
            names.append(("property", self.property["name"]))
        if self.solver is not None:
            names.append(("solver", self.solver))
        return names

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Ask:
        return cls(**plain)


def _size(eps: Any) -> Any:
    """An eps that a plan writes as text, such as "1/255", as the number."""
    try:
        return number_from_text(eps) if isinstance(eps, str) else eps
    except ValueError as error:
        raise InputError(f"eps must be a number or a fraction such as '1/255', got {eps!r}") from error


def _check_heat_map(method: str, plain_set: bool) -> None:
    """Raises InputError for a method that draws none, and for what is no top-k set."""
    if method not in HEAT_MAP_METHODS:
        raise InputError(f"a heat map is drawn by {', '.join(HEAT_MAP_METHODS)}; got method {method!r}")
    if not plain_set:
        raise InputError("a heat map is about a top-k set: give k, and neither within nor property")


SPREAD = ("property", "k", "within", "eps", "method", "norm", "class_idx", "seed")
"""The fields that may be lists in a plan, which asks all combinations."""


@dataclass(frozen=True)
class Grid:
    """The questions of one entry of a plan. ``label``: each is about the class that the image is labelled with.
    ``models`` and ``images``: names of those that they are about; None: all."""

    asks: tuple[Ask, ...]
    label: bool
    models: tuple[str, ...] | None
    images: tuple[str, ...] | None

    @classmethod
    def of(cls, entry: Mapping[str, Any], where: str) -> Grid:
        """From one ``[[questions]]`` table, defaults of the plan included. Raises InputError.

        That is an UnknownNameError for a property, method or solver that nobody has registered here.
        """
        entry = dict(entry)
        models, images = (_names(entry.pop(name, None), f"{where}: {name}") for name in ("models", "images"))
        known = {f.name for f in fields(Ask)}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise InputError(f"{where}: unknown key {unknown[0]!r}; a question has {', '.join(sorted(known))}")
        if "method" not in entry:
            raise InputError(f"{where} has no 'method'")
        if "property" not in entry and "k" not in entry:
            raise InputError(f"{where} has no 'k' (and no 'property' in its place)")
        entry.setdefault("k", None)
        entry.setdefault("kind", "radius" if "eps" not in entry else "verify")
        if entry["kind"] == "radius" and "eps" in entry:
            raise InputError(f"{where}: a radius has no eps")
        label = entry.get("class_idx") == LABEL
        if label:
            del entry["class_idx"]
        try:
            if isinstance(entry.get("clip"), str):
                entry["clip"] = clip_from_text(entry["clip"])
            return cls(tuple(Ask(**one) for one in _spread(entry)), label, models, images)
        except InputError as error:
            role = _unknown(entry)
            if role is not None:
                raise UnknownNameError(f"{where}: {error}. {hint(role)}") from error
            raise InputError(f"{where}: {error}") from error

    def takes(self, model: str, images: str) -> bool:
        return (self.models is None or model in self.models) and (self.images is None or images in self.images)


def _spread(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of what is a list, but those whose ``within`` is below their k."""
    axes = {name: _listed(entry[name]) for name in SPREAD if name in entry}
    rest = {name: value for name, value in entry.items() if name not in axes}
    for values in itertools.product(*axes.values()):
        one = {**rest, **dict(zip(axes, values, strict=True))}
        within, k = one.get("within"), one["k"]
        if len(axes.get("k", ())) > 1 and isinstance(within, int) and isinstance(k, int) and within < k:
            continue
        yield one


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        if not value:
            raise InputError("an empty list asks nothing")
        return value
    return (value,)


def _unknown(entry: Mapping[str, Any]) -> Role | None:
    """Whether it is a method, a property or a solver that an entry names and nobody has registered here."""
    roles: tuple[Role, ...] = ("method", "property", "solver")
    for role in roles:
        said = entry.get(role)
        for name in said if isinstance(said, list | tuple) else (said,):
            if role == "property":
                name = _property_name(name)
            if isinstance(name, str) and not is_known(role, name):
                return role
    return None


def _property_name(said: Any) -> Any:
    """The name in a property as a plan writes it: a name, a table, or either as JSON; None in a property itself."""
    if isinstance(said, str) and said.lstrip().startswith("{"):
        try:
            said = json.loads(said)
        except ValueError:
            return None
    return said.get("name") if isinstance(said, Mapping) else said


def _names(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where} must be a name or a list of names, got {value!r}")
    return names
