"""The premises of a question as expressions: whole where the network is small, else in part.

Logits are affine in all features, so they couple every pixel of the map. Where that is too much for a MILP, only the
pixels of the atoms in question stay variable and the rest counts with its proven largest share: fewer images are
excluded than do miss a premise, which is sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.dual import Rows
from corgi_opt.bounding.objective import Objectives, objectives, places_of
from corgi_opt.encode.expressions import Expression, Expressions
from corgi_opt.problem.question import Question

IN_PART = "the class is kept in part only"
"""Why an answer may be no answer."""

MOST_UNITS = 300
"""Most unstable ReLUs of the whole network that are encoded for the sake of the premises."""


@dataclass(frozen=True, eq=False)
class Premises:
    """What must not be negative, one expression each, or upper bounds of it; ``exact`` says which."""

    expressions: list[Expression]
    exact: bool


def premises(
    question: Question, expressions: Expressions, relaxed: Relaxed, atoms: Sequence[int], deadline: Deadline
) -> Premises:
    """For a question that has premises, beside these of its atoms. Raises TimeoutError."""
    held = question.premises
    assert held is not None
    unstable = sum(int(expressions.bounded.intervals[n].unstable.sum()) for n in question.net.graph.preactivations)
    found: dict[int, Expression] = {}
    for objective in objectives(
        question.net, held.parts, held.terms, held.coefs, torch.zeros(len(held), dtype=torch.long)
    ):
        if unstable <= MOST_UNITS:
            made = _whole(question, expressions, objective, deadline)
        else:
            made = _in_part(question, expressions, relaxed, objective, atoms, deadline)
        found.update(zip(objective.which.tolist(), made, strict=True))
    return Premises([found[at] for at in range(len(held))], unstable <= MOST_UNITS)


def _whole(question: Question, expressions: Expressions, objective: Objectives, deadline: Deadline) -> list[Expression]:
    made = expressions.of(question.net.features, objective.rows, deadline)
    both = zip(made, objective.shift.tolist(), objective.doubt.tolist(), strict=True)
    return [expression.plus(shift, doubt) for expression, shift, doubt in both]


def _in_part(
    question: Question,
    expressions: Expressions,
    relaxed: Relaxed,
    objective: Objectives,
    atoms: Sequence[int],
    deadline: Deadline,
) -> list[Expression]:
    """Upper bounds: exact at the pixels of these atoms, the rest at its proven largest."""
    net, groups, rows = question.net, question.groups, objective.rows
    marked = torch.zeros(1, len(groups), dtype=torch.bool)
    marked[0, list(atoms)] = True
    low, high = groups.sides_of(marked)
    near = rows.gather(places_of(net, groups.parts, low | high).double()[:, None])
    here = expressions.of(net.features, Rows(rows.coefs * near, rows.places), deadline)
    device = relaxed.regions.eps.device
    places = (rows.places.corners.to(device), rows.places.case.to(device))
    rest = Rows.at((-rows.coefs * (1 - near)).to(device), *places)
    most = objective.shift + objective.doubt - relaxed.bound(net.features, rest).cpu()
    return [expression.plus(constant) for expression, constant in zip(here, most.tolist(), strict=True)]
