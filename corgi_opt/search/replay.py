"""What the user's own model, in float64, says of an image that a search found: the only thing that falsifies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corgi_opt.errors import NumericalError
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.witness import Witness


@dataclass(frozen=True, eq=False)
class Met:
    """An image ``x`` (1, C, H, W) of a region that satisfies the premises: its CAM (H, W), atoms (A,) and margin."""

    x: Tensor
    cam: Tensor
    atoms: Tensor
    margin: float


def meet(question: Question, ball: Ball, image: Tensor) -> Met | None:
    """An image (1, C, H, W), moved inside the region; None where that fails, where it misses a premise, and where the
    model overflows, which is no answer of the exact network."""
    x = ball.project(image.detach().cpu().double())
    if not ball.contains(x):
        return None
    try:
        seen = question.see(x)
    except NumericalError:
        return None
    if not seen.premise >= 0:
        return None
    return Met(x, seen.cam, seen.atoms, float(question.groups.margin(seen.atoms)))


def witness_of(question: Question, ball: Ball, met: Met) -> Witness | None:
    """The counterexample that an image is, or None where the property holds there."""
    if not met.margin <= 0:
        return None
    groups = question.groups
    atom = groups.worst(met.atoms)
    first, second = groups.labels[atom].tolist()
    changed = groups.what_changed(atom, met.atoms)
    return Witness(met.x, met.cam, (first, second), met.margin, ball.distance(met.x), changed, question.original)


def replay(question: Question, ball: Ball, image: Tensor) -> Witness | None:
    """A Witness if the image, moved inside the region, breaks the property in the user's own float64 model."""
    met = meet(question, ball, image)
    return None if met is None else witness_of(question, ball, met)
