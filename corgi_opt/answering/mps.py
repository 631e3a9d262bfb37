"""One atom's program as an MPS file, for any other solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from corgi_solvers import write_mps
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import resolve_device
from corgi_opt._deadline import Deadline
from corgi_opt.answering.asking import atom_of, chosen_property, curved_layers
from corgi_opt.answering.ladder import Ladder
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.program import TooLargeError, compile_program
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import InputError
from corgi_opt.methods import check_method
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.problem.scene import Scene
from corgi_opt.search.atom import PartExpressions


@dataclass(frozen=True)
class Exported:
    """An MPS file whose optimum, times ``scale``, is ``min CAM_i - CAM_j`` of ``pair`` (or for an LP, a lower bound).

    Of other properties, the least that the first of the pair is ahead of the second by. The pair keeps its order at
    every image of the region iff the MILP's optimum is positive.
    """

    path: Path
    pair: tuple[int, int]
    scale: float
    binaries: int


@pinned
def export_mps(
    net: CamNetwork,
    x: Tensor,
    path: str | PathLike[str],
    *,
    eps: float,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    method: str = "milp",
    pair: tuple[int, int] | None = None,
    device: str | torch.device = "auto",
) -> Exported:
    """Writes the MILP (``method="milp"``) or LP ("lp") that decides one pair that a property compares.

    ``pair``: flat indices of a top pixel and one outside (or what else the property compares); None: the most doubtful
    that CROWN leaves undecided. Other
    arguments as in :func:`corgi_opt.verify`. Raises InputError where CROWN leaves none, for a pair that is none, and
    for norm "2", whose region is no linear program.
    """
    norm = canonical_norm(norm)
    if check_method(method, norm, curved_layers(net)).name not in ("lp", "milp") or norm == "2":
        raise InputError(f"an MPS file holds an 'lp' or 'milp' for norm 'inf' or '1', not {method!r} for norm {norm!r}")
    where, wanted = resolve_device(device), chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    question = Question.ask(scene, wanted, tie_tol=tie_tol)
    ladder = Ladder(question, eps, where)
    ladder.bound("crown")
    atom = _chosen(ladder, pair)
    i, j = question.groups.labels[atom].tolist()
    assert ladder.margins.relaxed is not None  # crown has just computed it
    known = ladder.margins.relaxed.only(0)
    if method == "milp":
        known = replace(known, planes={})
    parts, deadline = PartExpressions(question, Expressions(net.graph, known)), Deadline(float("inf"))
    try:
        program = compile_program(parts.expressions, ladder.ball, parts.atoms([atom], deadline), deadline)
    except TooLargeError as error:
        raise InputError(f"pair {(i, j)}: {error}") from error
    problem = big_m(program) if method == "milp" else triangle(program)
    write_mps(problem, Path(path))
    return Exported(Path(path), (i, j), float(program.scales[0]), int(problem.integrality.sum()))


def _chosen(ladder: Ladder, pair: tuple[int, int] | None) -> int:
    """The atom that compares a pair. Raises InputError where there is none."""
    if pair is not None:
        return atom_of(ladder.question, pair)
    if not ladder.undecided:
        raise InputError(
            f"CROWN decides every pair at eps={ladder.ball.eps:g}: there is nothing left to export; name a pair"
        )
    return ladder.undecided[0]
