"""What the cells of one question share: a stronger method ends at least where weaker ones did.

Cells of one question are answered one after the other, the weaker methods first. Each search is its own, so that
seconds compare methods. When it has ended it takes what weaker cells have proven, if that is better, and their nearest
counterexample, once that has been replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from corgi_opt.errors import BoundOrderError
from corgi_opt.methods import TABLE
from corgi_opt.problem.question import Question
from corgi_opt.problem.results import Proof, Radius, Verdict
from corgi_opt.problem.witness import Witness
from corgi_opt.search.replay import replay
from corgi_opt.study.plan import Cell
from corgi_opt.study.store import Row, Store

WITNESS = "witness"
"""The name of a counterexample (1, C, H, W) among a cell's arrays."""

SLACK = 1e-9
"""By how much, relatively, the region in which a counterexample is replayed is larger than its distance: no rounding on
the way to the boundary moves it. What counts is its distance, which is measured anew."""


@dataclass(frozen=True, eq=False)
class Before:
    """What the cells of weaker methods had of a question. ``lower``: the largest certified eps, or the best lower bound
    of the margin (-inf: none), with its ``proof``, what it was ``settled_by`` and the ``method`` of its cell.
    ``witness``: the nearest counterexample (1, C, H, W), met by the cell of ``witness_method``."""

    lower: float
    proof: Proof | None
    settled_by: str
    method: str
    witness: Tensor | None
    witness_method: str


def weakest_first(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by question, in the order in which questions come first; those of one question by method."""
    questions: dict[str, list[Cell]] = {}
    for cell in cells:
        questions.setdefault(cell.question, []).append(cell)
    return [sorted(same, key=lambda cell: _rank(cell.ask.method)) for same in questions.values()]


def told(cell: Cell, store: Store) -> dict[str, Any] | None:
    """What a cell is told of the answers of weaker methods, as JSON types; None where there is nothing to tell."""
    rows = [
        row
        for row in store.rows_of(cell.question)
        if row.state == "done" and row.status != "tied" and row.method in TABLE
        if _rank(row.method) < _rank(cell.ask.method)
    ]
    if not rows or cell.ask.kind == "heat_map":
        return None
    rows.sort(key=lambda row: _rank(row.method))
    best = max(rows, key=_lower)  # the weakest of several that are the same
    said: dict[str, Any] = {
        "lower": best.lower,
        "proof": best.proof,
        "settled_by": best.settled_by or best.method,
        "method": best.method,
    }
    pictured = store.pictured(cell.question, WITNESS)
    broken = [(row.upper, row) for row in rows if row.key in pictured and row.upper is not None]
    if broken:
        _, nearest = min(broken, key=lambda pair: pair[0])
        image = store.arrays(nearest.key)[WITNESS]
        said["witness"] = {"method": nearest.method, "shape": list(image.shape), "data": image.tobytes().hex()}
    return said


def _lower(row: Row) -> float:
    return -math.inf if row.lower is None else row.lower


def joined(own: Radius | Verdict, before: Before, question: Question) -> Radius | Verdict:
    """An answer with the better ends of its own search and of weaker cells.

    Raises BoundOrderError where something proven meets a replayed counterexample.
    """
    witness = _replayed(before, question, None if isinstance(own, Radius) else own.eps)
    found: Radius | Verdict
    if isinstance(own, Radius):
        found = _joined_radius(own, before, witness)
        contradicted = found.lower >= found.upper
    else:
        found = _joined_verdict(own, before, witness)
        contradicted = found.margin_lower > found.margin_upper
    if contradicted:
        raise BoundOrderError(
            f"the cells of one question contradict each other: {found!r}; nothing is certified, please report this"
        )
    return found


def _joined_radius(own: Radius, before: Before, witness: Witness | None) -> Radius:
    if before.lower > own.lower:
        own = replace(
            own,
            lower=before.lower,
            proof=before.proof,
            method=before.settled_by,
            reason=f"{own.reason}; certified by the cell of {before.method}",
        )
    if witness is not None and witness.distance < own.upper:
        own = replace(
            own,
            upper=witness.distance,
            counterexample=witness,
            reason=f"{own.reason}; broken by the cell of {before.witness_method}",
        )
    return own


def _joined_verdict(own: Verdict, before: Before, witness: Witness | None) -> Verdict:
    if before.lower > own.margin_lower:
        own = replace(
            own,
            margin_lower=before.lower,
            **_settled(own, "certified", before.settled_by, before.method) if before.lower > 0 else {},
            proof=before.proof if before.lower > 0 else own.proof,
        )
    if witness is not None and witness.margin < own.margin_upper:
        own = replace(
            own,
            margin_upper=witness.margin,
            counterexample=witness,
            **_settled(own, "falsified", "attack", before.witness_method),
            proof=None,
        )
    return own


def _settled(own: Verdict, status: str, settled_by: str, method: str) -> dict[str, Any]:
    """The fields of a verdict that the cell of a weaker method settled; nothing where it was settled before."""
    if own.status != "unknown":
        return {}
    return {"status": status, "method": settled_by, "reason": f"{own.reason}; {status} by the cell of {method}"}


def _replayed(before: Before, question: Question, eps: float | None) -> Witness | None:
    """The counterexample of weaker cells, if the user's own model still says that it is one."""
    if before.witness is None:
        return None
    if eps is None:
        eps = question.ball(0.0).distance(before.witness) * (1 + SLACK)
    return replay(question, question.ball(eps), before.witness)


def before_of(said: Mapping[str, Any], witness: Tensor | None) -> Before:
    """What :func:`told` said, with its counterexample as a tensor."""
    image = said.get("witness")
    return Before(
        lower=-math.inf if said["lower"] is None else said["lower"],
        proof=said["proof"],
        settled_by=said["settled_by"],
        method=said["method"],
        witness=witness,
        witness_method="" if image is None else image["method"],
    )


def _rank(method: str) -> int:
    return list(TABLE).index(method)
