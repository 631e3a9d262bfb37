"""Verdicts against brute force, the ordering of the methods, and what is never certified."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from corgi_solvers import Highs
from nets import Deep, Plain, Pooled, Tiny, bias_of, image, seeded
from oracles import brute_force_margin, plain_milp_margin
from patience import mostly_slow

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering import backends
from corgi_opt.problem.results import Verdict

EXPRESSIONS = sys.modules["corgi_opt.encode.expressions"]
MARGINS = sys.modules["corgi_opt.bounding.margins"]
METHODS = ("ibp", "corgi", "crown", "lp", "milp")


@cache
def tiny_questions(count: int):
    """Tiny networks and images whose top pixel is defined and whose CAM is not dead."""
    found = []
    for seed in range(200):
        model = seeded(Tiny, seed)
        x = image(1, 3, 4, seed=seed).double()
        net = co.from_torch(model, x)
        cam = net.cam(x).flatten().sort(descending=True).values
        if float(cam[0] - cam[1]) > 1e-3:
            found.append((net, model, x))
        if len(found) == count:
            return found
    raise AssertionError("too few live networks")


@pytest.mark.parametrize(
    ("clip", "index"), mostly_slow(product((None, (0.0, 1.0)), range(6)), [(None, 0), ((0.0, 1.0), 1)])
)
def test_milp_radius_equals_brute_force(clip, index):
    net, model, x = tiny_questions(6)[index]
    c = int(net.logits(x).argmax())
    r = co.radius(net, x, k=1, method="milp", clip=clip, rtol=0.002)
    if r.upper == float("inf"):
        largest = 0.999 * r.lower
        assert brute_force_margin(model.first, model.second, model.head.weight[c], x, largest, 1, clip) > 0
        return
    assert r.upper / r.lower <= 1.002
    at = [
        brute_force_margin(model.first, model.second, model.head.weight[c], x, e, 1, clip) for e in (r.lower, r.upper)
    ]
    assert at[0] > 0
    assert at[1] <= 1e-9


@pytest.mark.parametrize("index", mostly_slow(range(6), [1]))
def test_verdicts_bracket_the_brute_force_margin(index):
    net, model, x = tiny_questions(6)[index]
    c = int(net.logits(x).argmax())
    for eps in (0.02, 0.1, 0.3):
        exact = brute_force_margin(model.first, model.second, model.head.weight[c], x, eps, 1, None)
        for method in METHODS:
            v = co.verify(net, x, eps=eps, k=1, method=method, clip=None)
            assert v.margin_lower <= exact + 1e-7
            assert v.margin_upper >= exact - 1e-7
            assert (v.status == "certified") <= (exact > 0)
            assert (v.status == "falsified") <= (exact < 0)
        assert v.status == ("certified" if exact > 0 else "falsified")


@pytest.mark.parametrize(
    ("kernel", "stride", "seed"), mostly_slow(product((2,), (2, 1), range(5)), [(2, 2, 0), (2, 1, 1)])
)
def test_pooled_networks_agree_with_the_textbook_milp(kernel, stride, seed):
    """The normal form, cones and elimination against scipy on ReLU-then-pool with a binary per candidate."""
    model = seeded(Pooled, seed + 1, channels=2, kernel=kernel, stride=stride)
    x = image(1, 4, 4, seed=seed + 1)
    net = co.from_torch(model, x)
    for c in range(3):
        try:
            r = co.radius(net, x, k=1, class_idx=c, clip=None, rtol=0.01)
        except co.TieError:
            continue
        if 0 < r.upper < float("inf"):
            break
    else:
        raise AssertionError("a dead network; choose another seed")
    assert r.ratio <= 1.01
    for eps in (r.lower, 0.5 * (r.lower + r.upper), r.upper):
        exact = plain_milp_margin(model, x, eps, 1, c)
        v = co.verify(net, x, eps=eps, k=1, class_idx=c, clip=None)
        assert v.margin_lower <= exact + 1e-6
        assert v.margin_upper >= exact - 1e-6
        assert v.status == ("certified" if exact > 1e-5 else "falsified" if exact < -1e-5 else v.status)


NETWORKS = [(Plain, (1, 6, 6)), (Deep, (1, 8, 6)), (Pooled, (1, 8, 8))]


@pytest.mark.parametrize(
    ("model", "shape", "seed"),
    mostly_slow([(model, shape, seed) for model, shape in NETWORKS for seed in range(2)], [(*NETWORKS[2], 1)]),
)
def test_stronger_methods_certify_what_weaker_ones_do(model, shape, seed):
    x = image(*shape, seed=seed + 30)
    net = co.from_torch(seeded(model, seed), x)
    for k in (1, 3):
        for eps in (0.001, 0.01, 0.05):
            verdicts = [co.verify(net, x, eps=eps, k=k, method=m) for m in METHODS]
            margins = [v.margin_lower for v in verdicts if v.counterexample is None]
            assert all(a <= b + 1e-7 for a, b in pairwise(margins))
            certified = [v.status == "certified" for v in verdicts]
            assert certified == sorted(certified)
            for v in verdicts:
                check_promise(net, x, eps, v)


def k_of(v: Verdict) -> int:
    assert isinstance(v.asked.property, co.TopK)
    return v.asked.property.k


def check_promise(net, x: torch.Tensor, eps: float, v: Verdict) -> None:
    """What each status must carry, whoever produced it."""
    assert v.margin_lower <= v.margin_upper + 1e-9
    assert v.corgi_margin <= v.margin_upper + 1e-9
    if v.status == "certified":
        assert v.margin_lower > 0
        assert v.proof in ("float64", "solver")
        assert v.counterexample is None
        assert (
            co.attack(net, x, eps=eps, k=k_of(v), options=co.PgdOptions(rows=64, steps=100, restarts=4, seed=9)) is None
        )
    elif v.status == "falsified":
        w = v.counterexample
        assert w is not None
        assert float((w.image - x.double()).abs().max()) <= eps
        assert float(w.image.min()) >= 0
        assert float(w.image.max()) <= 1
        before = net.model_cam(x.double(), v.asked.class_idx).flatten().numpy()
        after = net.model_cam(w.image, v.asked.class_idx).flatten().numpy()
        order = np.argsort(-before, kind="stable")
        assert after[order[: k_of(v)]].min() <= after[order[k_of(v) :]].max()
    else:
        assert v.reason
        assert v.proof is None


def test_eps_zero_is_certified():
    x = image(1, 6, 6, seed=3)
    net = co.from_torch(seeded(Plain), x)
    for method in METHODS:
        assert co.verify(net, x, eps=0.0, k=2, method=method).status == "certified"


@pytest.fixture(scope="module")
def gap():
    """A question and an eps at which it is stable, but only the exact method can tell."""
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    radii = co.compare(net, x, k=2, class_idx=0, methods=["crown", "lp", "milp"]).radii
    assert radii["milp"].lower > 1.1 * radii["lp"].lower
    return net, x, 0.98 * radii["milp"].lower


def test_only_the_exact_method_certifies_in_the_gap(gap):
    net, x, eps = gap
    found = {m: co.verify(net, x, eps=eps, k=2, class_idx=0, method=m) for m in METHODS}
    assert found["milp"].status == "certified"
    assert found["milp"].proof == "solver"
    for method in ("ibp", "corgi", "crown", "lp"):
        assert found[method].status == "unknown"
        assert found[method].method == method


def test_a_tiny_time_limit_is_unknown_and_says_so(gap):
    net, x, eps = gap
    v = co.verify(net, x, eps=eps, k=2, class_idx=0, method="milp", time_limit=1e-6)
    assert v.status == "unknown"
    assert "time limit" in v.reason


@pytest.mark.parametrize("method", ["lp", "milp"])
def test_a_pair_too_large_to_encode_is_unknown_and_says_so(method, gap, monkeypatch):
    net, x, eps = gap
    monkeypatch.setattr(sys.modules["corgi_opt.encode.program"], "MOST_NONZEROS", 100)
    v = co.verify(net, x, eps=eps, k=2, class_idx=0, method=method)
    assert v.status == "unknown"
    assert v.method == method
    assert "its encoding takes more than 100 coefficients" in v.reason


@pytest.mark.parametrize("method", ["lp", "milp"])
def test_time_that_runs_out_while_a_pair_is_encoded_is_unknown_and_says_so(method, gap, monkeypatch):
    net, x, eps = gap
    monkeypatch.setattr(EXPRESSIONS, "rows_at_once", run_out(EXPRESSIONS.rows_at_once, monkeypatch))
    v = co.verify(net, x, eps=eps, k=2, class_idx=0, method=method, time_limit=1000.0)
    assert v.status == "unknown"
    assert v.method == method
    assert "undecided (time limit)" in v.reason


def run_out(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``function``, at whose first call every deadline passes."""

    def last(*args):
        monkeypatch.setattr(Deadline, "left", 0.0)
        return function(*args)

    return last


class Lying:
    """A solver that claims everything is decided in our favour, in one of several broken ways."""

    capabilities = Highs.capabilities

    def __init__(self, how: str) -> None:
        self.how, self.asked = how, 0

    def require(self):
        pass

    def solve(self, problem, *, time_limit, decide_at):
        self.asked += 1
        from corgi_solvers import Report, Solution, Status

        report = Report("liar", "0", 0.0, 0, 0, self.how)
        inf, nan = float("inf"), float("nan")
        answers = {
            "infeasible": Solution(Status.INFEASIBLE, inf, inf, None, None, report),
            "unbounded": Solution(Status.UNBOUNDED, -inf, 1e9, None, None, report),
            "error": Solution(Status.ERROR, inf, 1e9, None, None, report),
            "interrupted": Solution(Status.INTERRUPTED, inf, 1e9, None, None, report),
            "nan bound": Solution(Status.OPTIMAL, 1.0, nan, None, None, report),
            "infinite bound": Solution(Status.OPTIMAL, inf, inf, None, None, report),
            "no bound": Solution(Status.LIMIT, 5.0, -inf, None, None, report),
            "incumbent only": Solution(Status.LIMIT, 5.0, -inf, np.zeros(problem.n), None, report),
            "impossible incumbent": Solution(Status.DECIDED, -1.0, -inf, np.zeros(problem.n), None, report),
        }
        return answers[self.how]


@pytest.mark.parametrize(
    "how",
    [
        "infeasible",
        "unbounded",
        "error",
        "interrupted",
        "nan bound",
        "infinite bound",
        "no bound",
        "incumbent only",
    ],
)
def test_a_broken_solver_never_certifies_or_falsifies(how, gap, monkeypatch):
    net, x, eps = gap
    liar = Lying(how)
    monkeypatch.setattr(backends, "backend", lambda name: liar)
    v = co.verify(net, x, eps=eps, k=2, class_idx=0, method="milp")
    assert liar.asked
    assert v.status == "unknown"
    assert v.reason


def test_nan_bounds_prove_nothing(gap, monkeypatch):
    from corgi_opt.bounding.dual import Interval

    net, x, _ = gap
    nan = torch.full((1, net.cam(x).numel()), float("nan"), dtype=torch.float64)
    monkeypatch.setattr(MARGINS, "interval_parts", lambda *_: Interval(nan, nan))
    monkeypatch.setattr(MARGINS, "part_bounds", lambda *_: Interval(nan, nan))
    v = co.verify(net, x, eps=1e-6, k=2, class_idx=0, method="corgi")
    assert v.status == "unknown"
    assert v.margin_lower == -float("inf")


def test_an_incumbent_below_a_proven_bound_is_raised(gap, monkeypatch):
    net, x, eps = gap
    monkeypatch.setattr(backends, "backend", lambda name: Lying("impossible incumbent"))
    with pytest.raises(co.BoundOrderError, match="below a proven bound"):
        co.verify(net, x, eps=eps, k=2, class_idx=0, method="milp")


APART = [(6, 2, 2, 0.0217258), (7, 2, 2, 0.0198484), (4, 1, 3, 0.02), (4, 1, 5, 0.04)]


@pytest.mark.parametrize(("seed", "k", "within", "eps"), mostly_slow(APART, APART[::2]))
def test_an_lp_of_pixels_apart_is_no_contradiction(seed, k, within, eps):
    """Where one of two LPs, or PGD before them, shows that the pair cannot be proven, nothing of it is proven."""
    x = image(1, 16, 16, seed=seed)
    net = co.from_torch(seeded(Pooled, 1), x)
    v = co.verify(net, x, eps=eps, k=k, within=within, class_idx=0, method="lp")
    assert v.status == "unknown"
    assert v.reason
    exact = co.verify(net, x, eps=eps, k=k, within=within, class_idx=0, method="milp")
    assert v.margin_lower <= exact.margin_upper


def test_a_bound_above_a_replayed_image_is_raised(monkeypatch):
    from corgi_opt.bounding.dual import Interval

    x = image(1, 6, 6, seed=3)
    net = co.from_torch(seeded(Plain), x)
    cam = net.cam(x).flatten()[None]
    broken = co.radius(net, x, k=1, method="corgi").upper
    monkeypatch.setattr(MARGINS, "part_bounds", lambda *_: Interval(cam - 1e-3, cam + 1e-3))
    with pytest.raises(co.BoundOrderError, match="nothing is certified"):
        ladder_with_witness(net, x, 1.2 * broken)


def ladder_with_witness(net: co.CamNetwork, x: torch.Tensor, eps: float) -> None:
    from asking import ask

    from corgi_opt.answering.ladder import Ladder

    question = ask(net, x, k=1, class_idx=None, norm="inf", clip=(0.0, 1.0), tie_tol=None)
    ladder = Ladder(question, eps, torch.device("cpu"))
    witness = co.attack(net, x, eps=eps, k=1)
    assert witness is not None
    ladder.meet(witness.image)
    ladder.bound("crown")


def test_same_call_same_answer():
    x = image(1, 8, 8, seed=5)
    net = co.from_torch(seeded(Pooled), x)
    first, second = (co.radius(net, x, k=2, method="milp") for _ in range(2))
    assert (first.lower, first.upper, first.attack) == (second.lower, second.upper, second.attack)


def test_symmetries_do_not_move_the_radius():
    """Scaling the class weights, or permuting channels, changes nothing about the top-k set."""
    x = image(1, 8, 8, seed=5)
    model = seeded(Pooled)
    expected = co.radius(co.from_torch(model, x), x, k=2, method="milp", class_idx=0, rtol=0.002)
    with torch.no_grad():
        model.fc.weight.mul_(4.0)
        order = torch.tensor([2, 0, 1])
        model.c1.weight.copy_(model.c1.weight[order])
        bias_of(model.c1).copy_(bias_of(model.c1)[order])
        model.c2.weight.copy_(model.c2.weight[:, order])
    moved = co.radius(co.from_torch(model, x), x, k=2, method="milp", class_idx=0, rtol=0.002)
    assert moved.lower == pytest.approx(expected.lower, rel=0.005)
    assert moved.upper == pytest.approx(expected.upper, rel=0.005)
