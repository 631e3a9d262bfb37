"""Pairwise PGD: looks for an image inside the region where some rest pixel passes some top pixel.

Pushing the sum of the top pixels down (the paper's attack) lowers their rivals with them. Here each batch row
drives one pair apart: descend ``CAM_i - CAM_j`` for the pairs with the smallest ``gap / ||gradient||_dual`` (the radius
at which the linearised pair ties; the dual norm of the ball's), from an FGSM start, by steps that shrink tenfold: sign
steps for an L-inf ball (Madry et al. 2018), for the others steps towards the linearised optimum over the region (Frank
and Wolfe 1956), which never leave it.
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
from corgi_opt.errors import NumericalError
from corgi_opt.problem.question import Question, class_rows
from corgi_opt.problem.region import Ball, Norm, distance
from corgi_opt.problem.results import Witness

TOP_CANDIDATES, REST_CANDIDATES = 64, 256
"""How many of the dimmest top pixels and brightest rest pixels are linearised."""

GRADIENT_BATCH = 64

STALL = 8
"""Steps within which the best margin must fall by a tenth, or PGD gives up."""

DUAL: Mapping[Norm, float] = {"inf": 1.0, "2": 2.0, "1": float("inf")}
"""Exponent of the dual norm."""

WITHIN, FEWEST = 3.0, 4
"""A pair is attacked at eps when its linearised radius is within this factor of eps; at least this many are."""


@dataclass(frozen=True)
class PgdOptions:
    """Batch rows (pairs attacked at once), sign steps, extra random starts and their seed. Raises InputError."""

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

    def slack(self, cams: Tensor) -> Tensor:
        """The slack of each of Q CAMs (Q, H, W) in its own row: not positive when that is broken; to be descended."""
        ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs (Q, 2) of flat pixel indices: the second is to pass the first."""

    pairs: Tensor
    radii: Tensor

    def first(self, count: int) -> Pairs:
        return Pairs(self.pairs[:count], self.radii[:count])

    def slack(self, cams: Tensor) -> Tensor:
        flat, row = cams.flatten(1), torch.arange(len(cams), device=cams.device)
        pairs = self.pairs.to(cams.device)
        return flat[row, pairs[:, 0]] - flat[row, pairs[:, 1]]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Top pixels (Q,), flat indices, of which each is to fall behind ``within`` others."""

    pixels: Tensor
    radii: Tensor
    within: int

    def first(self, count: int) -> Ranks:
        return Ranks(self.pixels[:count], self.radii[:count], self.within)

    def slack(self, cams: Tensor) -> Tensor:
        """The sum of the gaps to those of the ``within`` nearest to passing that are not yet ahead."""
        flat, own = cams.flatten(1), self.pixels.to(cams.device)[:, None]
        gaps = (flat.gather(1, own) - flat).scatter(1, own, torch.inf)
        return gaps.topk(self.within, dim=1, largest=False).values.clamp(min=0).sum(dim=1)


def one_target(question: Question, pair: tuple[int, int]) -> Targets:
    """A pair, or the fall of its first pixel where some rivals are allowed."""
    unknown = torch.zeros(1)
    if question.topk.allowed == 0:
        return Pairs(torch.tensor([pair]), unknown)
    return Ranks(torch.tensor(pair[:1]), unknown, question.topk.within)


def rank_targets(question: Question, device: torch.device) -> Targets:
    """Pairs by ``gap / ||grad CAM_i - grad CAM_j||`` at the image, in the dual of the question's norm.

    Where some rivals are allowed: top pixels, by that of the last rival needed.
    """
    topk, flat = question.topk, question.cam.flatten()
    top = topk.top.flip(0)[:TOP_CANDIDATES]
    rest = topk.rest[:REST_CANDIDATES]
    gradients = _gradients(question, torch.cat([top, rest]), device)
    rows = []
    for i in range(len(top)):
        slope = (gradients[i] - gradients[len(top) :]).norm(p=DUAL[question.norm], dim=1).cpu().double()
        gap = flat[top[i]] - flat[rest]
        rows.append(gap / slope.clamp(min=1e-30))
    radii = torch.stack(rows)
    if topk.allowed == 0:
        order = torch.argsort(radii.flatten(), stable=True)
        pairs = torch.stack([top[order // len(rest)], rest[order % len(rest)]], dim=1)
        return Pairs(pairs, radii.flatten()[order])
    # brighter ones are ahead already; rest pixels have to make up the number
    needed = topk.within - topk.ahead.sum(dim=1).flip(0)[:TOP_CANDIDATES]
    last = radii.sort(dim=1).values.gather(1, (needed - 1).clamp(0, len(rest) - 1)[:, None])[:, 0]
    order = torch.argsort(last, stable=True)
    return Ranks(top[order], last[order], topk.within)


@torch.enable_grad()  # callers may be inside no_grad
def _gradients(question: Question, pixels: Tensor, device: torch.device) -> Tensor:
    """d CAM_p / d x (P, inputs) at the image, float32; one image copy per pixel, so one pass serves many."""
    found = []
    for part in torch.split(pixels, GRADIENT_BATCH):
        x = question.x.to(device, torch.float32).expand(len(part), -1, -1, -1).clone().requires_grad_(True)
        cams = question.net.cams(x, question.class_idx).flatten(1)
        (gradient,) = torch.autograd.grad(cams[torch.arange(len(part)), part.to(device)].sum(), x)
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


def polish(question: Question, ball: Ball, image: Tensor, pair: tuple[int, int], steps: int = 20) -> Witness | None:
    """PGD for one pair from a given image (1, C, H, W), in float64: turns a near miss into a witness, or None.

    Where some rivals are allowed, for the fall of its first pixel.
    """
    for x in _path(question, ball, image, one_target(question, pair), 0.2, steps):
        witness = replay(question, ball, x)
        if witness is not None:
            return witness
    return None


def drive_apart(question: Question, ball: Ball, pair: tuple[int, int], steps: int = 40) -> Tensor:
    """The image (1, C, H, W) in the region with the smallest ``CAM_i - CAM_j`` that PGD meets, in float64."""
    target, best, least_gap = Pairs(torch.tensor([pair]), torch.zeros(1)), ball.center, float("inf")
    for x in _path(question, ball, ball.center, target, 1.0, steps):
        gap = float(target.slack(question.net.cams(x, question.class_idx))[0])
        if gap < least_gap:
            best, least_gap = x, gap
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
    """The slacks of images (Q, C, H, W) in their rows, differentiable, and their CAMs (Q, H, W).

    Where the class is to be kept, its loss weighs as much as a CAM pixel's.
    """
    cams = question.net.cams(x, question.class_idx)
    slack = targets.slack(cams)
    if question.predicted is not None:
        gaps = class_rows(question.net.classes, question.predicted).to(x)
        behind = -(question.net.class_scores(x) @ gaps.T).amin(dim=1)
        lost = behind.clamp(min=0) * question.cam.numel()
        slack = slack + lost
    return slack, cams


def _moved(region: Regions, x: Tensor, gradient: Tensor, size: float) -> Tensor:
    """Images (N, C, H, W) of one region after a step of this size, relative to it, up the gradient."""
    if region.norm == "inf":
        stepped = x + size * region.eps * gradient.sign()
        return torch.minimum(torch.maximum(stepped, region.lower), region.upper)
    low, high = (side.expand_as(x).flatten(1) for side in (region.lower - region.center, region.upper - region.center))
    best = least(region.norm, -gradient.flatten(1), low, high, region.eps.expand(len(x))).offset.view_as(x)
    return x + size * (region.center + best - x)


def replay(question: Question, ball: Ball, image: Tensor) -> Witness | None:
    """A Witness if the image, moved inside the region, changes the top-k set in the user's own float64 model."""
    x = ball.project(image.detach().cpu().double())
    if not ball.contains(x):
        return None
    try:
        cam = question.net.model_cam(x, question.class_idx)
    except NumericalError:  # an overflow is no answer of the exact network
        return None
    margin = float(question.topk.margin(cam[None])[0])
    if not margin <= 0 or not question.counts(x):
        return None
    return Witness(x, cam, question.topk.worst_pair(cam), margin, ball.distance(x), question.topk.allowed)


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
        slack, cams = _slack(question, targets, x)
        margins = question.topk.margin(cams.detach())
        order = margins.argsort(stable=True)
        for row in order[margins[order] <= 0].tolist():  # the first replays, unless its class is lost
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
