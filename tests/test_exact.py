"""Every kind of question on hundreds of tiny networks, against enumeration of their linear regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from small_questions import SmallQuestion, questions

import corgi_opt as co

EACH = 20
"""Questions of one seed."""


def verdict_of(question: SmallQuestion, method: str) -> co.Verdict:
    net = co.from_torch(question.model, question.x)
    return co.verify(net, question.x, method=method, time_limit=600, device="cpu", **question.arguments)


def check(question: SmallQuestion, verdict: co.Verdict, *, exact: bool) -> None:
    answer = question.answer()
    assert verdict.status != "certified" or answer.lower > 0, question.label
    assert verdict.status != "falsified" or answer.upper <= 1e-9, question.label
    assert verdict.margin_lower <= answer.upper + 1e-9, question.label
    if question.within != question.k or answer.lower > 0:  # for (k, k) ours is the margin of the set, of the same sign
        assert verdict.margin_upper >= answer.lower - 1e-9, question.label
    if verdict.counterexample is not None:
        w = verdict.counterexample
        assert w.margin <= 0
        assert w.distance <= question.eps
    if exact and abs(answer.upper) > 1e-5:
        assert verdict.status == ("certified" if answer.stable else "falsified"), (question.label, verdict)


SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed else []) for seed in range(26)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["milp", "auto"])
@pytest.mark.parametrize("norm", ["inf", "1"])
def test_exact_answers_are_those_of_enumeration(norm, method, seed):
    """26 x 4 x EACH questions: top-k sets and (k1, k2), with and without clip box and kept class."""
    for question in questions(EACH, seed, (norm,)):
        check(question, verdict_of(question, method), exact=True)


@pytest.mark.parametrize("method", ["milp", "auto"])
def test_a_counterexample_between_two_classes_is_found(method):
    """Its minimum over the images that keep the class has two equal logits: the solver's own point need not replay."""
    (question,) = (q for q in questions(300, 77) if q.label.endswith("seed 918637797"))
    answer = question.answer()
    logits = co.from_torch(question.model, question.x).model_logits(answer.point)
    assert question.keep_class and logits.topk(2).values.diff().abs().item() < 1e-9
    verdict = verdict_of(question, method)
    check(question, verdict, exact=True)
    assert verdict.margin_upper == pytest.approx(answer.upper, abs=1e-5)


@pytest.mark.parametrize("method", ["corgi", "crown", "dual", "lp"])
@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_bounds_never_contradict_enumeration(norm, method):
    for question in questions(EACH // 2, 100, (norm,)):
        check(question, verdict_of(question, method), exact=False)


@pytest.mark.parametrize("method", ["milp", "auto"])
@pytest.mark.parametrize("norm", ["inf", "1"])
def test_exact_brackets_hold_the_radius(norm, method):
    """Enumeration agrees at both ends: of top-k sets, (k1, k2), and with the class kept."""
    closed = 0
    for question in questions(EACH // 2, 200, (norm,)):
        net = co.from_torch(question.model, question.x)
        asked = {n: v for n, v in question.arguments.items() if n != "eps"}
        r = co.radius(net, question.x, method=method, rtol=0.02, time_limit=600, device="cpu", **asked)
        assert replace(question, eps=r.lower).answer().upper > -1e-9, question.label
        if r.counterexample is not None:
            assert replace(question, eps=r.upper).answer().lower <= 1e-9, question.label
        closed += r.ratio <= 1.021
    assert closed >= EACH // 4


def mps_optimum(path) -> float:
    """The optimum of an MPS file as HiGHS reads it, found by scipy's own copy of a solver."""
    import highspy
    import numpy as np
    from scipy import sparse

    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    assert model.readModel(str(path)) == highspy.HighsStatus.kOk
    lp = model.getLp()
    matrix = lp.a_matrix_
    rows = sparse.csc_array((matrix.value_, matrix.index_, matrix.start_), shape=(lp.num_row_, lp.num_col_))
    integral = [int(kind == highspy.HighsVarType.kInteger) for kind in lp.integrality_] or None
    answer = milp(
        np.array(lp.col_cost_),
        integrality=integral,
        bounds=Bounds(lp.col_lower_, lp.col_upper_),
        constraints=LinearConstraint(rows, lp.row_lower_, lp.row_upper_),
        options={"mip_rel_gap": 0.0},
    )
    return float(answer.fun) + lp.offset_


def test_exported_pairs_have_the_margin_of_enumeration(tmp_path):
    compared = 0
    for number, question in enumerate(questions(40, 7, ("inf", "1"))):
        asked = {n: v for n, v in question.arguments.items() if n not in ("within", "keep_class")}
        if question.within is not None or question.keep_class:
            continue
        net = co.from_torch(question.model, question.x)
        cam = net.cam(question.x, question.class_idx).flatten()
        order = cam.argsort(descending=True, stable=True).tolist()
        least = float("inf")
        for i in order[: question.k]:
            for j in order[question.k :]:
                done = co.export_mps(net, question.x, tmp_path / f"{number}.mps", pair=(i, j), **asked)
                least = min(least, mps_optimum(done.path) * done.scale)
        answer = question.answer()
        assert answer.lower - 1e-6 <= least <= answer.upper + 1e-6
        compared += 1
    assert compared >= 5
