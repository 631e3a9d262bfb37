"""What cells of one question share: ends are never worse than weaker methods', and nothing unreplayed is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import corgi_opt as co
from corgi_opt.data import digits
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene
from corgi_opt.study import Plan, Store
from corgi_opt.study.answer import answer
from corgi_opt.study.engine import arrays_of, row_of, task_of
from corgi_opt.study.sharing import Before, joined, told, weakest_first

K = 2


def plan(questions: list[dict[str, Any]]) -> Plan:
    return Plan.of(
        {
            "name": "shared",
            "models": {"m": "digits"},
            "images": {"i": {"source": "digits", "take": [0]}},
            "questions": [{"k": K, "time_limit": 60, **question} for question in questions],
        }
    )


@pytest.fixture(scope="module")
def asked() -> tuple[Question, co.Radius]:
    """A question, and CROWN's answer."""
    x = digits.load_digits()[0][digits.digits_split()[1][0]][None]
    net = co.from_torch(digits.digits_model(), x)
    question = Question.ask(Scene.of(net, x, class_idx=None, norm="inf", clip=(0.0, 1.0)), co.TopK(K))
    return question, co.radius(net, x, k=K, method="crown", rtol=0.1)


def before(lower: float, witness: torch.Tensor | None = None) -> Before:
    return Before(lower, "float64", "crown", "crown", witness, "crown")


def test_the_better_of_both_ends_counts_and_the_reason_says_whose_it_is(asked):
    question, own = asked
    worse = replace(own, lower=own.lower / 2, upper=2 * own.upper, counterexample=None, method="lp")
    found: Any = joined(worse, before(own.lower, own.counterexample.image), question)
    assert (found.lower, found.upper, found.method) == (own.lower, own.upper, "crown")
    assert "certified by the cell of crown" in found.reason and "broken by the cell of crown" in found.reason
    kept: Any = joined(own, before(own.lower / 2, None), question)
    assert (kept.lower, kept.upper, kept.reason) == (own.lower, own.upper, own.reason)


def test_an_image_that_breaks_nothing_when_it_is_replayed_is_not_taken(asked):
    question, own = asked
    harmless = question.x + (own.counterexample.image - question.x) / 4
    worse = replace(own, upper=2 * own.upper, counterexample=None)
    kept: Any = joined(worse, before(0.0, harmless), question)
    assert kept.upper == 2 * own.upper


def test_a_proven_end_above_a_replayed_image_is_an_error(asked):
    question, own = asked
    with pytest.raises(co.BoundOrderError, match="contradict each other"):
        joined(own, before(2 * own.upper), question)
    with pytest.raises(co.BoundOrderError):
        joined(replace(own, lower=2 * own.upper, upper=3 * own.upper), before(0.0, own.counterexample.image), question)


@pytest.mark.parametrize(("lower", "status"), [(0.5, "certified"), (-1.0, "unknown")])
def test_a_verdict_that_is_open_is_settled_by_what_is_proven(lower, status, asked):
    question, _ = asked
    own = co.verify(question.net, question.x, eps=0.05, k=K, method="ibp")
    own = replace(own, status="unknown", margin_lower=-2.0, margin_upper=1.0, counterexample=None, proof=None)
    found: Any = joined(own, before(lower), question)
    assert (found.status, found.margin_lower) == (status, lower)
    assert found.proof == ("float64" if lower > 0 else None)


def test_a_verdict_that_is_open_is_settled_by_a_counterexample(asked):
    question, radius = asked
    own = co.verify(question.net, question.x, eps=1.5 * radius.upper, k=K, method="ibp")
    own = replace(own, status="unknown", margin_lower=-2.0, margin_upper=1.0, counterexample=None, proof=None)
    found: Any = joined(own, before(-3.0, radius.counterexample.image), question)
    assert found.status == "falsified" and found.margin_upper <= 0 and "falsified by the cell of crown" in found.reason


def test_cells_of_one_question_go_weakest_first_and_how_is_no_part_of_what():
    cells = plan([{"method": ["bab", "corgi", "lp"], "norm": ["inf", "2"]}, {"method": "crown", "rtol": 0.2}]).cells()
    found = [[cell.ask.method for cell in same] for same in weakest_first(cells)]
    assert found == [["corgi", "crown", "lp", "bab"], ["corgi", "lp", "bab"]]
    different = plan([{"method": "crown", "seed": [0, 1]}, {"method": "crown", "eps": [0.1, 0.2]}]).cells()
    assert len({cell.question for cell in different}) == 4


def test_a_cell_ends_where_weaker_cells_in_the_store_have_ended(tmp_path):
    """CROWN to a thousandth, then LP so coarsely that alone it would certify less."""
    cells = plan([{"method": "crown", "rtol": 0.001}, {"method": "lp", "rtol": 0.5}]).cells()
    ((first, second),) = weakest_first(cells)
    with Store.writing(tmp_path) as store:
        assert told(first, store) is None
        for cell in (first, second):
            task = json.loads(json.dumps(task_of(cell, 0.0, 60.0, "cpu", (), told(cell, store))))
            columns = answer(task)
            store.put(row_of(cell, columns), arrays_of(columns))
        crown, lp = store.rows()
        assert crown.lower == crown.own_lower and lp.question == crown.question
        assert lp.lower is not None and crown.lower is not None and lp.lower >= crown.lower
        assert lp.upper is not None and crown.upper is not None and lp.upper <= crown.upper
        assert lp.own_lower is not None and lp.lower == max(lp.own_lower, crown.lower)
        assert store.pictured(first.question, "witness") >= {first.key}
        assert store.arrays(first.key)["witness"].shape == (1, 1, 8, 8)
        assert told(first, store) is None  # nothing weaker than the first
        # what is tied, failed or another question tells nothing
        store.put(replace(crown, state="failed"))
        assert told(second, store) is None
        store.put(replace(crown, question="another"))
        assert told(second, store) is None
