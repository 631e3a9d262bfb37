"""Whether so many pixels can pass at once: against enumeration, with a proof or an image to show for it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
from asking import ask
from corgi_solvers import Highs
from relaxing import relaxed
from small_questions import SmallQuestion, known_questions

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.encode.expressions import Expressions
from corgi_opt.search.atom import PartExpressions
from corgi_opt.search.attack import polish
from corgi_opt.search.counting import CountSolver

COUNT = 8


def asked_within() -> list[SmallQuestion]:
    """Small questions in which rivals have to be counted."""
    drawn = (replace(q, keep_class=False) for q in known_questions(200, seed=5, norms=("inf", "1")))
    counted = (q for q in drawn if q.within is not None and q.within > q.k)
    return list(itertools.islice((q for q in counted if q.answer().stable is not None), COUNT))


@dataclass(frozen=True)
class Decided:
    """What the attempts on one group come to: a proven slack, or a witness, or a reason."""

    slack: float
    witness: co.Witness | None
    reason: str


def decided(question: SmallQuestion, deadline: Deadline, goal: float = 0.0) -> list[Decided]:
    """The answer for every group, with all atoms likely to fail but for those that do at the image."""
    net = question.network
    given = {name: value for name, value in question.arguments.items() if name not in ("eps", "keep_class")}
    posed = ask(net, question.x, **given)
    ball = posed.ball(question.eps)
    known = relaxed(net, ball)
    parts = PartExpressions(posed, Expressions(net.graph, replace(known.only(0), planes={})))
    solver, found = CountSolver(posed, ball, parts, Highs()), list[Decided]()
    for group in range(len(posed.groups.need)):
        mine = posed.groups.atoms_of(group)
        ahead = mine[posed.ahead[mine]].tolist()
        likely = [a for a in mine.tolist() if a not in ahead]
        for answer in solver.attempts(group, likely, ahead, known, deadline, goal):
            image = answer.image
            witness = None if image is None or goal else polish(posed, ball, image, answer.atom)
            if answer.slack > goal or witness is not None or answer.reason:
                break
        found.append(Decided(answer.slack, witness, answer.reason))
    return found


CASES = asked_within()


@pytest.mark.parametrize("index", range(COUNT))
def test_it_is_decided_as_by_enumeration(index):
    question = CASES[index]
    exact, found = question.answer(), decided(question, Deadline(math.inf))
    if exact.stable:
        assert all(answer.slack > 0 and answer.witness is None for answer in found)
        assert min(answer.slack for answer in found) <= exact.upper + 1e-7
    else:
        witnesses = [answer.witness for answer in found if answer.witness is not None]
        assert witnesses
        for witness in witnesses:
            assert witness.margin <= 0
            assert witness.distance <= question.eps * (1 + 1e-12)


def test_both_answers_are_among_them():
    assert {CASES[index].answer().stable for index in range(COUNT)} == {False, True}


def test_without_time_nothing_is_said():
    for answer in decided(CASES[0], Deadline(0.0)):
        assert answer.slack == -math.inf and answer.witness is None
        assert "time limit" in answer.reason


@pytest.mark.parametrize("index", [at for at in range(COUNT) if CASES[at].answer().stable])
def test_a_goal_below_the_margin_is_proven_and_one_above_is_not(index):
    exact = CASES[index].answer()
    for share, proven in ((0.5, True), (1.5, False)):
        found = decided(CASES[index], Deadline(math.inf), goal=share * exact.upper)
        assert all(answer.slack > share * exact.upper for answer in found) == proven
