"""PGD, atom by atom: looks for an image inside the region where so many atoms fail that a group does.

Pushing the sum of the top pixels down (the paper's attack) lowers their rivals with them. Here each batch row drives
one atom down (for a top-k set: one pair of pixels apart), those with the smallest ``value / ||gradient||_dual`` (the
radius at which the linearised atom is zero; the dual norm of the ball's), from an FGSM start, by steps that shrink
tenfold: sign steps for an L-inf ball (Madry et al. 2018), for the others steps towards the linearised optimum over the
region (Frank and Wolfe 1956), which never leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corgi_opt._checks import integer
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.regions import Regions, least
from corgi_opt.problem.atoms import Groups
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball, Norm, distance
from corgi_opt.problem.witness import Witness
from corgi_opt.search.replay import replay

CANDIDATES = 256
"""How many parts are linearised at most, those whose atoms are nearest to failing."""

SLOPES_AT_ONCE = 64
"""Atoms whose gradients are held at once: few, so that they stay in a processor's cache."""

GRADIENT_BATCH = 64

STALL = 8
"""Steps within which the best margin must fall by a tenth, or PGD gives up."""

DUAL: Mapping[Norm, float] = {"inf": 1.0, "2": 2.0, "1": float("inf")}
"""Exponent of the dual norm."""

WITHIN, FEWEST = 3.0, 4
"""An atom is attacked at eps when its linearised radius is within this factor of eps; at least this many are."""


@dataclass(frozen=True)
class PgdOptions:
    """Batch rows (atoms attacked at once), sign steps, extra random starts and their seed. Raises InputError."""

    rows: int = 32
    steps: int = 40
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("rows", 1), ("steps", 1), ("restarts", 0), ("seed", 0)):
            integer(name, getattr(self, name), low, 2**63 - 1)


class Targets(Protocol):
    """What to attack, the most breakable first: Q rows, and the linearised radius (Q,) of each."""

    @property
    def radii(self) -> Tensor: ...

    def first(self, count: int) -> Targets: ...

    def each(self, count: int) -> Iterator[Targets]:
        """The first ones, one by one."""
        ...

    def slack(self, groups: Groups, parts: Tensor) -> Tensor:
        """The slack (Q,) of each row in its own parts (Q, F): not positive when that is broken; to be descended.

        Only what a row is about is calculated, as all of it is differentiated.
        """
        ...


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms (Q,) that are to fail, each for itself."""

    which: Tensor
    radii: Tensor

    def first(self, count: int) -> Atoms:
        return Atoms(self.which[:count], self.radii[:count])

    def each(self, count: int) -> Iterator[Atoms]:
        both = zip(self.which[:count].split(1), self.radii[:count].split(1), strict=True)
        return (Atoms(which, radius) for which, radius in both)

    def slack(self, groups: Groups, parts: Tensor) -> Tensor:
        return groups.of_rows(parts, self.which[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Falls:
    """Groups of which so many atoms are to fail at once: their atoms ``members`` (Q, S; -1 beyond the last), and how
    many, ``enough`` (Q,)."""

    members: Tensor
    enough: Tensor
    radii: Tensor

    def first(self, count: int) -> Falls:
        return Falls(self.members[:count], self.enough[:count], self.radii[:count])

    def each(self, count: int) -> Iterator[Falls]:
        rows = (rows[:count].split(1) for rows in (self.members, self.enough, self.radii))
        return (Falls(*row) for row in zip(*rows, strict=True))

    def slack(self, groups: Groups, parts: Tensor) -> Tensor:
        """The sum of those of the ``enough`` smallest atoms that have not failed yet."""
        missing = (self.members < 0).to(parts.device)
        held = groups.of_rows(parts, self.members.clamp(min=0)).masked_fill(missing, torch.inf)
        most = int(self.enough.max())
        smallest = held.topk(most, dim=1, largest=False).values.clamp(min=0)
        beyond = torch.arange(most, device=parts.device) >= self.enough.to(parts.device)[:, None]
        return smallest.masked_fill(beyond, 0.0).sum(dim=1)


def only(atom: int) -> Targets:
    """That one atom fails; its linearised radius is not asked for."""
    return Atoms(torch.tensor([atom]), torch.zeros(1))


def one_target(question: Question, atom: int) -> Targets:
    """That an atom fails, or its group where it needs not all of its atoms."""
    groups = question.groups
    if groups.every:
        return only(atom)
    mine = groups.group[atom : atom + 1]
    return Falls(groups.members[mine], groups.enough[mine], torch.zeros(1))


def rank_targets(question: Question, device: torch.device) -> Targets:
    """Atoms by their value over the dual norm of their gradient, at the image: where the linearised atom fails.

    Groups that need not all of their atoms: by that of the last one that has to fail.
    """
    groups = question.groups
    chosen = _candidates(question)
    slopes, row = _gradients(question, chosen, device).cpu(), torch.zeros(len(groups.parts), dtype=torch.long)
    row[chosen] = torch.arange(len(chosen))
    known = torch.nonzero(groups.among(chosen)).flatten()
    radii = torch.full((len(groups),), torch.inf, dtype=torch.float64)
    for some in known.split(SLOPES_AT_ONCE):
        coefs, rows = groups.coefs[some].float().T, row[groups.terms[some]].T
        gradient = slopes[rows[0]].mul_(coefs[0][:, None])
        for coef, at in zip(coefs[1:], rows[1:], strict=True):
            gradient.addcmul_(coef[:, None], slopes[at])
        radii[some] = question.at[some] / gradient.norm(p=DUAL[question.norm], dim=1).double().clamp(min=1e-30)
    if groups.every:
        order = known[torch.argsort(radii[known], stable=True)]
        return Atoms(order, radii[order])
    held = radii[groups.members.clamp(min=0)].masked_fill(groups.members < 0, torch.inf).sort(dim=1).values
    there = held.isfinite()
    # where not so many atoms were linearised as have to fail, the last that was
    place = torch.minimum(groups.enough, there.sum(dim=1).clamp(min=1)) - 1
    last = held.gather(1, place[:, None])[:, 0]
    order = torch.argsort(last, stable=True)
    order = order[last[order].isfinite()]
    return Falls(groups.members[order], groups.enough[order], last[order])


def _candidates(question: Question) -> Tensor:
    """The parts (at most CANDIDATES, but all of the nearest atom) whose atoms are nearest to failing at the image.

    By the rank of an atom, not by its value: of many that are equal, as of a flat background, each has all its parts.
    """
    groups, unused = question.groups, len(question.groups)
    rank = torch.argsort(torch.argsort(question.at, stable=True))
    nearest = torch.full((len(groups.parts),), unused)
    for term, coef in zip(groups.terms.T, groups.coefs.T, strict=True):
        nearest.scatter_reduce_(0, term, torch.where(coef != 0, rank, unused), "amin")
    count = min(max(CANDIDATES, int((nearest == 0).sum())), int((nearest < unused).sum()))
    return torch.argsort(nearest, stable=True)[:count]


@torch.enable_grad()  # callers may be inside no_grad
def _gradients(question: Question, parts: Tensor, device: torch.device) -> Tensor:
    """d part / d x (F, inputs) at the image, float32; one image copy per part, so one pass serves many."""
    found = []
    for some in torch.split(parts, GRADIENT_BATCH):
        x = question.x.to(device, torch.float32).expand(len(some), -1, -1, -1).clone().requires_grad_(True)
        values = question.values(x)
        (gradient,) = torch.autograd.grad(values[torch.arange(len(some)), some.to(device)].sum(), x)
        found.append(gradient.flatten(1))
    return torch.cat(found)


def pgd(
    question: Question,
    ball: Ball,
    targets: Targets,
    device: torch.device,
    options: PgdOptions,
    deadline: Deadline = NEVER,
) -> Witness | None:
    """The first witness that PGD meets and that replays, or None; also when time is over."""
    if ball.eps == 0:
        return None
    near = int((targets.radii <= WITHIN * ball.eps).sum())
    rows = targets.first(min(options.rows, max(near, FEWEST)))
    generator = torch.Generator().manual_seed(options.seed)
    for start in range(1 + options.restarts):
        found = _descend(question, ball, rows, device, options, generator if start else None, deadline)
        if found is not None:
            return found
    return None


def polish(question: Question, ball: Ball, image: Tensor, atom: int) -> Witness | None:
    """The first witness that :func:`polishing` meets, or None."""
    replayed = (replay(question, ball, x) for x in polishing(question, ball, image, atom))
    return next((witness for witness in replayed if witness is not None), None)


def polishing(question: Question, ball: Ball, image: Tensor, atom: int, steps: int = 20) -> Iterator[Tensor]:
    """The images (1, C, H, W) of PGD for one atom, from a given one, in float64: they may turn a near miss into a hit.

    Where the atom's group needs not all of its atoms, PGD is for the fall of the group.
    """
    return _path(question, ball, image, one_target(question, atom), 0.2, steps)


def drive_down(question: Question, ball: Ball, target: Targets, steps: int = 40) -> Tensor:
    """The image (1, C, H, W) in the region with the smallest slack of one target that PGD meets, in float64."""
    best, lowest = ball.center, float("inf")
    for x in _path(question, ball, ball.center, target, 1.0, steps):
        slack = float(_slack(question, target, x)[0])
        if slack < lowest:
            best, lowest = x, slack
    return best


@torch.enable_grad()
def _path(question: Question, ball: Ball, image: Tensor, target: Targets, size: float, steps: int) -> Iterator[Tensor]:
    """PGD's images for one target; the first step has this size relative to the region, the last a hundredth of it."""
    region = Regions.of([ball], torch.float64, torch.device("cpu"))
    x = ball.project(image)
    for step in range(steps + 1):
        yield x
        x = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(-_slack(question, target, x)[0].sum(), x)
        x = _moved(region, x.detach(), gradient, size * 0.01 ** (step / steps))


def _slack(question: Question, targets: Targets, x: Tensor) -> tuple[Tensor, Tensor]:
    """The slacks of images (Q, C, H, W) in their rows, differentiable, and their parts (Q, F).

    Where there are premises, the one that an image misses most weighs as much as a CAM pixel each.
    """
    features, logits = question.net.outputs(x)
    parts = question.groups.parts.values(features, logits, question.net.weight)
    slack = targets.slack(question.groups, parts)
    if question.premises is not None:
        held = question.premises.atoms(question.premises.parts.values(features, logits, question.net.weight))
        slack = slack + (-held.amin(dim=1)).clamp(min=0) * question.cam.numel()
    return slack, parts


def _moved(region: Regions, x: Tensor, gradient: Tensor, size: float) -> Tensor:
    """Images (N, C, H, W) of one region after a step of this size, relative to it, up the gradient."""
    if region.norm == "inf":
        stepped = x + size * region.eps * gradient.sign()
        return torch.minimum(torch.maximum(stepped, region.lower), region.upper)
    low, high = (side.expand_as(x).flatten(1) for side in (region.lower - region.center, region.upper - region.center))
    best = least(region.norm, -gradient.flatten(1), low, high, region.eps.expand(len(x))).offset.view_as(x)
    return x + size * (region.center + best - x)


@torch.enable_grad()
def _descend(
    question: Question,
    ball: Ball,
    targets: Targets,
    device: torch.device,
    options: PgdOptions,
    generator: torch.Generator | None,
    deadline: Deadline,
) -> Witness | None:
    region = Regions.of([ball], torch.float32, device)
    count = len(targets.radii)
    x = region.center.expand(count, -1, -1, -1).clone()
    if generator is not None:
        x = _scattered(region, count, generator)
    nearest: list[float] = []
    for step in range(options.steps + 1):
        x.requires_grad_(True)
        slack, parts = _slack(question, targets, x)
        margins = question.groups.margin(question.groups.atoms(parts.detach()))
        order = margins.argsort(stable=True)
        for row in order[margins[order] <= 0].tolist():  # the first replays, unless it misses a premise
            witness = replay(question, ball, x.detach()[row : row + 1])
            if witness is not None:
                return witness
        nearest.append(min(float(margins.min()), nearest[-1] if nearest else float("inf")))
        if step == options.steps or _stalled(nearest) or deadline.over:
            return None
        (gradient,) = torch.autograd.grad(-slack.sum(), x)
        # the first step is FGSM's, across the whole region; later ones shrink geometrically to a tenth of it
        x = _moved(region, x.detach(), gradient, 0.1 ** (step / options.steps))
    return None


def _stalled(margins: list[float]) -> bool:
    """Whether the best margin has stopped falling fast enough to reach zero in the steps that are left."""
    return len(margins) > STALL and margins[-1] > 0.9 * margins[-1 - STALL]


def _scattered(region: Regions, count: int, generator: torch.Generator) -> Tensor:
    """Random images (N, C, H, W) of one region."""
    shape = (count, *region.center.shape[1:])
    noise = torch.rand(shape, generator=generator).to(region.center)
    if region.norm == "inf":
        return region.lower + noise * (region.upper - region.lower)
    return _moved(region, region.center.expand(shape), noise - 0.5, 0.5)


def attack_radius(
    question: Question,
    targets: Targets,
    device: torch.device,
    options: PgdOptions,
    deadline: Deadline,
    *,
    rtol: float,
    largest: float,
    start: Witness | None = None,
) -> Witness | None:
    """The nearest witness that repeated PGD finds, or None up to ``largest``.

    Rises from the smallest linearised radius until PGD breaks, shrinks the witness along its segment to the centre,
    and tries again just below until a try fails. ``start``: a witness to go on from.
    """
    eps = min(float(targets.radii[0]), largest)
    best = start
    while best is None:
        best = pgd(question, question.ball(eps), targets, device, options, deadline)
        if best is None and (eps >= largest or deadline.over):
            return None
        eps = min(1.5 * eps, largest)
    best = shrink(question, best)
    step = 4 * rtol
    while step >= rtol / 2 and not deadline.over:
        closer = pgd(question, question.ball(best.distance / (1 + step)), targets, device, options, deadline)
        if closer is None:
            step /= 2
        else:
            best = shrink(question, closer)
    return best


def shrink(question: Question, witness: Witness) -> Witness:
    """The nearest image on the segment from the centre to a witness that is still one."""
    low, high, best = 0.0, 1.0, witness
    for _ in range(12):
        middle = (low + high) / 2
        image = question.x + middle * (witness.image - question.x)
        closer = replay(question, question.ball(distance(question.norm, image - question.x)), image)
        if closer is None:
            low = middle
        else:
            high, best = middle, closer
    return best
