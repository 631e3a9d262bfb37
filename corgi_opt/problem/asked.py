"""The question that stands beside every answer, in plain values, without network and image."""

from __future__ import annotations

import builtins  # a field is called property here
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corgi_opt.network.names import in_words
from corgi_opt.problem.clip import Box, as_list, checked_clip, clip_in_words, intervals_in_words
from corgi_opt.problem.properties import Property, property_from
from corgi_opt.problem.region import Norm, canonical_norm


@dataclass(frozen=True)
class Asked:
    """A property at an image, and the kind of region around it.

    ``class_idx``: whose CAM it is about. ``kept``: the class that an image must still be given to count as a
    counterexample; None: any. ``gap``: the margin at the image itself (0 for a tie). ``dtype``: the type that the image
    was given in. ``network``: the SHA-256 of the network, its bias included, as in certificates of statements on logits
    (those on CAM pixels alone leave the bias out). ``class_name``, ``kept_name``: those of the two classes, where the
    network knows them.
    """

    property: Property
    class_idx: int
    norm: Norm
    clip: Box | None
    kept: int | None
    gap: float
    dtype: str
    network: str
    class_name: str | None = None
    kept_name: str | None = None

    @builtins.property
    def short(self) -> str:
        """The question in one line: ``k=15, class 3``, and what differs from the default."""
        said = [self.property.short, f"class {self.class_in_words}"]
        if self.norm != "inf":
            said.append(f"norm {self.norm}")
        if self.clip != (0.0, 1.0):
            said.append(clip_in_words(self.clip))
        if self.kept is not None:
            said.append(f"keeping class {in_words(self.kept, self.kept_name)}")
        return ", ".join(said)

    @builtins.property
    def class_in_words(self) -> str:
        """``7``, or ``7 (stop)`` where the name is known."""
        return in_words(self.class_idx, self.class_name)

    @builtins.property
    def in_words(self) -> str:
        """The question as a title."""
        return self.property.in_words(self.class_in_words)

    @builtins.property
    def units(self) -> str:
        """Norm and box, for a figure's axis."""
        return f"L-{self.norm}, input units, {clip_in_words(self.clip)}"

    @builtins.property
    def where(self) -> dict[str, str]:
        """Norm and box, as rows of a table."""
        return {"norm": f"L-{self.norm}", "clip": "none" if self.clip is None else intervals_in_words(self.clip)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "property": self.property.to_dict(),
            "class_idx": self.class_idx,
            "norm": self.norm,
            "clip": None if self.clip is None else [as_list(end) for end in self.clip],
            "kept": self.kept,
            "gap": self.gap,
            "dtype": self.dtype,
            "network": self.network,
            "class_name": self.class_name,
            "kept_name": self.kept_name,
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Asked:
        """What :meth:`to_dict` wrote, now or before there were names. Raises InputError for a property that is not
        known here."""
        values = dict(said)
        values["property"] = property_from(values["property"])
        values["clip"] = checked_clip(values["clip"])
        values["norm"] = canonical_norm(values["norm"])
        return cls(**values)
