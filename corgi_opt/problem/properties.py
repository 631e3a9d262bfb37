"""Properties: what must hold at every image of a region, posed as atoms in groups; methods see no more than these.

A new property is a frozen dataclass with ``name`` and ``pose``; :func:`register` makes its name known to plans, files
and the command line.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch

from corgi_opt._ambient import pinned
from corgi_opt._checks import integer
from corgi_opt.errors import InputError, TieError
from corgi_opt.problem.atoms import MEAN, Groups, Parts, alone, cam_pixels
from corgi_opt.problem.scene import Scene

PROPERTIES: dict[str, type[Property]] = {}
"""Registered properties by name."""

P = TypeVar("P", bound="type[Property]")


def register(property: P) -> P:
    """Makes a property known by its name. One that is defined again, by a notebook's cell that is run again, takes its
    own place.

    Raises InputError for a name that another one has.
    """
    known = PROPERTIES.get(property.name, property)
    if (known.__module__, known.__qualname__) != (property.__module__, property.__qualname__):
        raise InputError(f"there is a property of the name {property.name!r} already")
    PROPERTIES[property.name] = property
    return property


class Property(ABC):
    """A frozen dataclass of plain values: properties are compared, hashed, and written as JSON."""

    name: ClassVar[str]

    @property
    def outlined(self) -> tuple[int, int] | None:
        """What pictures outline: so many of the image's brightest pixels, which are to stay among so many; None:
        nothing."""
        return None

    @abstractmethod
    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        """The property at the scene's image, as groups of atoms that hold there.

        ``tie_tol``: values that differ by no more are tied; None: 1e-9 of the sums of absolute terms that they come
        from. Raises TieError for a tie, InputError where the network has no such pixel or class.
        """

    @property
    def short(self) -> str:
        """The property in short, as ``k=15``."""
        said = ", ".join(f"{name}={value}" for name, value in self.to_dict().items() if name != "name")
        return f"{self.name}({said})"

    def in_words(self, class_idx: int | str) -> str:
        """The property for a title; ``class_idx``: a class's number, or its number and name, ``7 (stop)``."""
        return f"{self.short} of class {class_idx}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]  # every property is a dataclass


def property_from(said: object) -> Property:
    """A property from its name or from what :meth:`Property.to_dict` wrote (also as JSON text); a Property as it is.

    Raises InputError.
    """
    if isinstance(said, Property):
        return said
    if isinstance(said, str) and said.lstrip().startswith("{"):
        try:
            said = json.loads(said)
        except ValueError as error:
            raise InputError(f"a property is a name or a JSON object with a name, got {said!r}") from error
    values = dict(said) if isinstance(said, Mapping) else {"name": said}
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in PROPERTIES:
        raise InputError(f"there is no property {name!r}; there are {', '.join(PROPERTIES)}")
    known = {f.name for f in fields(PROPERTIES[name])}  # type: ignore[arg-type]
    if set(values) - known:
        raise InputError(f"property {name!r} has no {sorted(set(values) - known)[0]!r}")
    try:
        return PROPERTIES[name](**values)
    except TypeError as error:
        raise InputError(f"property {name!r} cannot be made of {values}: {error}") from error


@register
@dataclass(frozen=True)
class TopK(Property):
    """Each of the k brightest pixels of the CAM stays among the ``within`` brightest (default k: the set stays).

    k and within are checked against each other here (InputError), against the map when it is posed.
    """

    k: int
    within: int | None = None
    name: ClassVar[str] = "TopK"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", integer("k", self.k, 1, MOST))
        if self.within is not None:
            within = integer("within", self.within, self.k, MOST, f" (k is {self.k})")
            object.__setattr__(self, "within", None if within == self.k else within)

    @property
    def rank(self) -> int:
        """``within``, with its default."""
        return self.k if self.within is None else self.within

    @property
    def outlined(self) -> tuple[int, int]:
        return self.k, self.rank

    @property
    def short(self) -> str:
        return f"k={self.k}" if self.within is None else f"k={self.k} within {self.within}"

    def in_words(self, class_idx: int | str) -> str:
        set_ = f"top-{self.k} set" if self.within is None else f"top {self.k} within the top {self.within}"
        return f"{set_} of the CAM of class {class_idx}"

    @pinned
    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        """Pairs ``CAM_i - CAM_j`` of a pixel i of the top and a pixel j outside, each alone; within more, for each i
        those with every other pixel j, of which ``within`` must fail for i to fall out."""
        pixels = scene.cam.numel()
        if pixels < 2:
            raise InputError("the CAM has a single pixel, so there is no top-k set that could change")
        integer("k", self.k, 1, pixels - 1, f" (the CAM has {pixels} pixels)")
        integer("within", self.rank, self.k, pixels - 1, f" (k is {self.k}, the CAM has {pixels})")
        parts = cam_pixels(scene.net.classes, scene.class_idx, pixels)
        values = scene.cam.flatten()
        order = torch.argsort(values, descending=True, stable=True)
        tolerance = 1e-9 * scene.scale_of(parts) if tie_tol is None else tie_tol
        gap = float(values[order[self.k - 1]] - values[order[self.k]])
        if gap <= tolerance:
            raise TieError(
                f"CAM pixels {self.k} and {self.k + 1} differ by {gap:.3g} at the given image (tie_tol "
                f"{tolerance:.3g}), so its top-{self.k} set is not defined; choose another k"
            )
        top, rest = order[: self.k], order[self.k :]
        pairs = torch.cartesian_prod(top, rest if self.within is None else order)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if self.within is None:
            members, need, anchors = alone(len(pairs))
        else:
            members = torch.arange(len(pairs)).view(self.k, pixels - 1)
            need, anchors = torch.full((self.k,), pixels - self.within), torch.cartesian_prod(top, rest)
        coefs = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(len(pairs), 2)
        return Groups(parts, pairs, coefs, members, need, anchors, pairs, ("pixel", "pixels"))


MOST = 2**31 - 1
"""Largest k and ``within``."""


def keeping(classes: int, kept: int, names: Sequence[str] = ()) -> Groups:
    """Atoms of "the class ``kept`` is still predicted": ``logit_c - logit_t`` for every other class t, each alone.

    A single logit is that of a binary classifier: class 1 where it is positive, class 0 where not. So its sign is kept,
    as if there were a second logit that is always 0. ``names`` of the classes, for messages.
    """
    if classes == 1:
        rows, others = torch.full((1, 1), 1.0 if kept == 1 else -1.0, dtype=torch.float64), torch.tensor([1 - kept])
    else:
        others = torch.tensor([t for t in range(classes) if t != kept])
        rows = torch.zeros(len(others), classes, dtype=torch.float64)
        rows[:, kept] = 1.0
        rows[torch.arange(len(others)), others] = -1.0
    count = len(rows)
    parts = Parts(rows, torch.arange(count), torch.full((count,), MEAN))
    labels = torch.stack([torch.full((count,), kept), others], dim=1)
    ones = torch.ones(count, 1, dtype=torch.float64)
    return Groups(
        parts,
        torch.arange(count)[:, None],
        ones,
        *alone(count),
        labels,
        ("class", "classes"),
        tuple(names) if classes > 1 else (),
    )


@register
@dataclass(frozen=True)
class KeepsClass(Property):
    """Every image is classified as the question's class, as the image itself is: plain robust classification.

    With a single logit, the class is the sign of that logit at the image.
    """

    name: ClassVar[str] = "KeepsClass"

    @property
    def short(self) -> str:
        return "class kept"

    def in_words(self, class_idx: int | str) -> str:
        return f"logit of class {class_idx} against every other"

    @pinned
    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        """``logit_c - logit_t`` for every other class t, each alone."""
        kept = scene.predicted if scene.net.classes == 1 else scene.class_idx
        groups = keeping(scene.net.classes, kept, scene.net.class_names)
        tolerance = 1e-9 * scene.scale_of(groups.parts) if tie_tol is None else tie_tol
        ahead = groups.atoms(groups.parts.heads @ scene.logits)  # every part is a logit
        nearest = int(ahead.argmin())
        if float(ahead[nearest]) <= tolerance:
            raise TieError(
                f"class {groups.said(kept)} is not clearly ahead at the given image: {groups.named(nearest)} differ by "
                f"{float(ahead[nearest]):.3g} (tie_tol {tolerance:.3g}), so there is no class to keep; ask about the "
                "class that is predicted (class_idx=None)"
            )
        return groups
