"""A validated question: a property, asked at one scene. Shared by all methods that answer it."""

from __future__ import annotations

import builtins  # a field is called property here
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from corgi_opt._checks import not_negative
from corgi_opt.errors import InputError, TieError
from corgi_opt.problem.atoms import Groups
from corgi_opt.problem.original import Original
from corgi_opt.problem.properties import Property, keeping
from corgi_opt.problem.scene import Scene


class Seen(NamedTuple):
    """What the user's own model computes of an image: CAM (H, W), atoms (A,), the least premise (infinity: none)."""

    cam: Tensor
    atoms: Tensor
    premise: float


@dataclass(frozen=True, eq=False)
class Question(Scene):
    """Does a property hold for every image of a region? (Definitions: docs/definitions.md.)

    ``groups``: what the property says at this image. ``premises``: what an image must satisfy (every atom >= 0) to
    count as a counterexample; None: nothing. ``kept``: the class that it must still be given, None: any. ``scale``: the
    largest sum of absolute terms that a part comes from at x; tolerances are stated relative to it. ``at`` (A,): the
    atoms at x.
    """

    property: Property
    groups: Groups
    premises: Groups | None
    kept: int | None
    scale: float
    at: Tensor

    @classmethod
    def ask(
        cls, scene: Scene, property: Property, *, tie_tol: float | None = None, keep_class: bool = False
    ) -> Question:
        """Poses a property at a scene.

        Raises InputError where the network lacks what it is about; TieError where it is not defined, or does not hold,
        at the image.
        """
        if tie_tol is not None:
            tie_tol = not_negative("tie_tol", tie_tol)
        if not isinstance(keep_class, bool):
            raise InputError(f"keep_class must be True or False, got {keep_class!r}")
        groups = property.pose(scene, tie_tol)
        at = groups.atoms(groups.parts.values(scene.features, scene.logits[None], scene.net.weight))[0]
        if not (margin := float(groups.margin(at))) > 0:
            raise TieError(
                f"{property.in_words(scene.class_in_words)}: does not hold at the image itself (its margin there is "
                f"{margin:.3g}), so there is nothing to certify"
            )
        kept = scene.predicted if keep_class else None
        return cls(
            **{f.name: getattr(scene, f.name) for f in fields(Scene)},
            property=property,
            groups=groups,
            premises=None if kept is None else keeping(scene.net.classes, kept, scene.net.class_names),
            kept=kept,
            scale=scene.scale_of(groups.parts),
            at=at,
        )

    @cached_property
    def original(self) -> Original:
        """The image, as answers carry it."""
        return Original.of(self, self.property)

    @builtins.property
    def ahead(self) -> Tensor:
        """Atoms (A,) that do not hold at the image itself, so cannot be proven."""
        return ~(self.at > 0)

    @builtins.property
    def gap(self) -> float:
        """The margin at the image."""
        return float(self.groups.margin(self.at))

    def values(self, images: Tensor) -> Tensor:
        """The parts (N, F) of images (N, C, H, W), differentiable, in their precision and on their device."""
        return self.groups.parts.values(*self.net.outputs(images), self.net.weight)

    def see(self, x: Tensor) -> Seen:
        """Runs the user's own model on an image (1, C, H, W) in float64. Raises NumericalError."""
        net = self.net
        logits, features = net.replay.run(x)
        cam = torch.einsum("c,nchw->nhw", net.weight[self.class_idx], features)[0]
        atoms = self.groups.atoms(self.groups.parts.values(features, logits[None], net.weight))[0]
        premise = float("inf")
        if self.premises is not None:
            premise = float(self.premises.atoms(self.premises.parts.values(features, logits[None], net.weight)).min())
        return Seen(cam, atoms, premise)

    def margin(self, x: Tensor) -> float:
        """The margin at one image (1, C, H, W), by running the user's own model in float64."""
        return float(self.groups.margin(self.see(x).atoms))
