"""The premises of a question as expressions: whole where the network is small, else in part.

Logits are affine in all features, so they couple every pixel of the map. Where that is too much for a MILP, only the
pixels of the atoms in question stay variable, and the rest of a premise is replaced by its proven upper bound: some
images that violate a premise are kept then, which is sound.
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
from corgi_opt.encode.parts import expressed
from corgi_opt.problem.question import Question

IN_PART = "the kept class is encoded in part only, so the MILP's image may have another class"
"""Reason of an answer whose image may violate a premise, as premises were relaxed."""

MOST_UNITS = 300
"""Most unstable ReLUs of the whole network that are encoded for the sake of the premises."""


@dataclass(frozen=True, eq=False)
class Premises:
    """One expression for each premise, to be kept >= 0: the premise itself (``exact``) or an upper bound of it."""

    expressions: list[Expression]
    exact: bool


def premises(
    question: Question, expressions: Expressions, relaxed: Relaxed, atoms: Sequence[int], deadline: Deadline
) -> Premises:
    """The premises of a question that has some, for a program of these atoms. Raises TimeoutError."""
    held, net = question.premises, question.net
    assert held is not None
    unstable = sum(int(expressions.bounded.intervals[n].unstable.sum()) for n in net.graph.preactivations)
    if unstable <= MOST_UNITS:
        return Premises(expressed(net, held.parts, expressions, held.terms, held.coefs, deadline), True)
    bounds: dict[int, Expression] = {}
    for objective in objectives(net, held.parts, held.terms, held.coefs, torch.zeros_like(held.terms[:, 0])):
        made = _in_part(question, expressions, relaxed, objective, atoms, deadline)
        bounds.update(zip(objective.which.tolist(), made, strict=True))
    return Premises([bounds[at] for at in range(len(held))], False)


def _in_part(
    question: Question,
    expressions: Expressions,
    relaxed: Relaxed,
    objective: Objectives,
    atoms: Sequence[int],
    deadline: Deadline,
) -> list[Expression]:
    """Upper bounds of premises: exact at the pixels of these atoms, plus a proven upper bound of the rest."""
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
