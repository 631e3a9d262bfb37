"""Every kind of question on hundreds of tiny networks, against enumeration of their linear regions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from asking import ask
from enumeration import Answer, exact_margin_keep_class
from nets import Small, image, seeded
from patience import mostly_slow
from scipy.optimize import Bounds, LinearConstraint, milp
from small_questions import SmallQuestion, known_questions, read
from torch import nn

import corgi_opt as co
from corgi_opt.problem.properties import keeping
from corgi_opt.problem.region import Norm

EACH = 10
"""Questions of one seed."""


def verdict_of(question: SmallQuestion, method: str) -> co.Verdict:
    net = question.network
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


EXACTLY = [*product(("inf", "1"), ("milp", "auto"), range(52))]


@pytest.mark.parametrize(("norm", "method", "seed"), mostly_slow(EXACTLY, [("inf", "milp", 0), ("1", "auto", 0)]))
def test_exact_answers_are_those_of_enumeration(norm, method, seed):
    """52 x 4 x EACH questions: top-k sets and (k1, k2), with and without clip box and kept class."""
    for question in known_questions(EACH, seed, (norm,)):
        check(question, verdict_of(question, method), exact=True)


@pytest.mark.parametrize("method", ["milp", "auto"])
def test_a_counterexample_between_two_classes_is_found(method):
    """Its minimum over the images that keep the class has two equal logits: the solver's own point need not replay."""
    (question,) = (q for q in known_questions(300, 77) if q.label.endswith("seed 918637797"))
    answer = question.answer()
    logits = question.network.model_logits(answer.point)
    assert question.keep_class and logits.topk(2).values.diff().abs().item() < 1e-9
    verdict = verdict_of(question, method)
    check(question, verdict, exact=True)
    assert verdict.margin_upper == pytest.approx(answer.upper, abs=1e-5)


RELAXED = [("inf", "corgi", 100), ("2", "crown", 100), ("1", "dual", 100), ("inf", "lp", 100), ("2", "lp", 100)]


@pytest.mark.parametrize(
    ("norm", "method", "seed"),
    mostly_slow(product(("inf", "1", "2"), ("corgi", "crown", "dual", "lp"), range(100, 104)), RELAXED),
)
def test_bounds_never_contradict_enumeration(norm, method, seed):
    for question in known_questions(EACH // 2, seed, (norm,)):
        check(question, verdict_of(question, method), exact=False)


BRACKETS = [*product(("inf", "1"), ("milp", "auto"), range(200, 204), (EACH // 2,))]
FEWER = [("inf", "milp", 201, 3), ("1", "auto", 201, 3)]
"""The first questions of two of them."""


@pytest.mark.parametrize(("norm", "method", "seed", "count"), mostly_slow([*FEWER, *BRACKETS], FEWER))
def test_exact_brackets_hold_the_radius(norm, method, seed, count):
    """Enumeration agrees at both ends: of top-k sets, (k1, k2), and with the class kept."""
    closed = 0
    for question in known_questions(count, seed, (norm,)):
        net = question.network
        asked = {n: v for n, v in question.arguments.items() if n != "eps"}
        r = co.radius(net, question.x, method=method, rtol=0.02, time_limit=600, device="cpu", **asked)
        assert replace(question, eps=r.lower).answer().upper > -1e-9, question.label
        if r.counterexample is not None:
            assert replace(question, eps=r.upper).answer().lower <= 1e-9, question.label
        closed += r.ratio <= 1.021
    assert 2 * closed >= count  # half of them


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
    for number, question in enumerate(known_questions(40, 7, ("inf", "1"))):
        asked = {n: v for n, v in question.arguments.items() if n not in ("within", "keep_class")}
        if question.within is not None or question.keep_class:
            continue
        net = question.network
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


# --- a single logit: its sign is the class --------------------------------------------------------------------


class Padded(nn.Module):
    """A network of one logit with a second in front of it that is always 0: the same two classes, said in full."""

    def __init__(self, one: Small) -> None:
        super().__init__()
        self.first, self.second, self.relu = one.first, one.second, one.relu
        self.head = nn.Linear(one.head.in_features, 2)
        with torch.no_grad():
            self.head.weight.zero_()[1:].copy_(one.head.weight)
            self.head.bias.zero_()[1:].copy_(one.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


@cache
def padded(number: int, norm: Norm) -> tuple[co.CamNetwork, co.CamNetwork, torch.Tensor, float, Answer]:
    """A network of one logit, the same with two, its image, an eps just beyond its radius, and the answer there."""
    model, x = binary(2)[number]
    net, two = read(model, x.float()), Padded(model).eval()
    eps = 1.05 * co.radius(net, x, k=1, class_idx=0, norm=norm, device="cpu").upper
    answer = exact_margin_keep_class(two, x, eps=eps, norm=norm, clip=(0.0, 1.0), k=1, within=None, class_idx=1)
    return net, co.from_torch(two, x.float()), x, eps, answer


@cache
def binary(count: int) -> tuple[tuple[Small, torch.Tensor], ...]:
    return tuple(_binary(count))


def _binary(count: int) -> Iterator[tuple[Small, torch.Tensor]]:
    """Networks of one logit, just above and just below zero at their image; their brightest pixel is well ahead."""
    seed = found = 0
    while found < count:
        seed += 1
        model, x = seeded(Small, seed, classes=1), image(1, 3, 4, seed=seed).double()
        net = read(model, x.float())
        cam = net.cam(x, 0).flatten().sort(descending=True).values
        if cam[0] - cam[1] > 0.05:
            found += 1
            for sign in (1, -1):
                own = copy.deepcopy(model)
                with torch.no_grad():
                    own.head.bias.add_(sign * 1e-3 - float(net.logits(x)))
                yield own, x


SINGLE = [("auto", "inf"), ("milp", "inf"), ("crown", "inf"), ("auto", "2"), ("crown", "2")]
BOTH_SIGNS = [(*question, range(2)) for question in SINGLE if question != ("auto", "2")]


@pytest.mark.parametrize(
    ("method", "norm", "numbers"), mostly_slow([*BOTH_SIGNS, *((*q, range(4)) for q in SINGLE)], BOTH_SIGNS)
)
def test_a_single_logit_keeps_its_sign(method, norm, numbers):
    told_apart = 0
    for number in numbers:
        net, two, x, eps, answer = padded(number, norm)
        asked = {"k": 1, "norm": norm, "method": method, "time_limit": 60, "device": "cpu"}
        kept = co.verify(net, x, eps=eps, class_idx=0, keep_class=True, **asked)
        same = co.verify(two, x, eps=eps, class_idx=1, keep_class=True, **asked)
        free = co.verify(net, x, eps=eps, class_idx=0, **asked)
        assert kept.status == same.status
        assert kept.status != "certified" or answer.lower > 0
        if kept.counterexample is not None:
            logit = float(net.model_logits(kept.counterexample.image))
            assert logit <= 0 if number % 2 else logit >= 0
        if method != "crown" and abs(answer.upper) > 1e-5:
            assert kept.status == ("certified" if answer.stable else "falsified")
        told_apart += kept.status != free.status
    assert told_apart or method == "crown" or norm == "2"  # no MILP keeps a class in an L2 ball


def test_a_logit_of_zero_is_class_0():
    model, x = next(_binary(1))  # of its own: it is written into
    net = co.from_torch(model, x.float())
    with torch.no_grad():
        model.head.weight.zero_(), model.head.bias.zero_()
    dead = co.from_torch(model, x.float())
    question = ask(net, x, k=1, class_idx=0, norm="inf", clip=None, tie_tol=None, keep_class=True)
    assert question.kept == 1
    for kept in (0, 1):  # a tie keeps either class, as of several logits
        assert replace(question, net=dead, premises=keeping(1, kept)).see(x).premise >= 0
