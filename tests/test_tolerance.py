"""Nothing is claimed that rounding made: bounds of every method against rational arithmetic, at all scales.

Networks of one input have their exact minimum as a Fraction (rational.py). Weights, inputs and eps go over many
decades, and layers cancel what others made. Then questions with answers by enumeration, asked in other units.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from asking import ask, top_of
from corgi_solvers import Highs
from nets import Plain, bias_of, image, seeded
from patience import mostly_slow
from rational import Exact, Scalar, draw
from small_questions import SmallQuestion, questions
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering.ladder import Ladder
from corgi_opt.bounding.tolerance import Rounding, below, gamma
from corgi_opt.problem.question import Question

CPU = torch.device("cpu")
EPSES = (0.0, 1e-300, 1e-12, 1e-3, 1.0, 1e3, 1e9, 3e9, 1e10)
RUNGS = ("ibp", "corgi", "crown", "dual")


def asked(model: Scalar, x: Tensor, **kwargs) -> Question | None:
    """Which of two pixels is the brighter one; None where they are tied."""
    try:
        net = co.from_torch(model, x)
        return ask(net, x, k=1, class_idx=0, norm="inf", clip=None, tie_tol=None, **kwargs)
    except co.TieError:
        return None


def require_no_more_than_true(question: Question, model: Scalar, eps: float, solved: bool) -> list[float]:
    """Each rung's margin on a ladder of its own; returns them."""
    x, exact, top = Fraction(float(question.x)), Exact(model), top_of(question)[0]
    least = exact.least(x - Fraction(eps), x + Fraction(eps), top)
    found = []
    for rung in (*RUNGS, *(("lp", "bab", "milp") if solved else ())):
        ladder = Ladder(question, eps, CPU)
        if rung in RUNGS:
            ladder.bound(rung)
        elif rung == "lp":
            ladder.lp(Highs(), Deadline(10.0))
        elif rung == "milp":
            ladder.milp(Highs(), Deadline(10.0))
        else:
            ladder.bab(Highs(), None, Deadline(10.0))
        assert not math.isnan(ladder.margin)
        if ladder.margin > -math.inf:
            assert Fraction(ladder.margin) <= least, (rung, eps, ladder.margin, float(least))
        found.append(ladder.margin)
    return found


def fuzz(seed: int, count: int, decades: float, solved: bool) -> int:
    """Returns how many questions some rung certified."""
    rng, certified = np.random.default_rng(seed), 0
    for _ in range(count):
        model = draw(rng, decades)
        x = torch.full((1, 1, 1, 1), rng.normal() * 10.0 ** rng.uniform(-decades, decades), dtype=torch.float64)
        try:
            question = asked(model, x)
        except co.ParityError:
            continue  # nothing is claimed of it
        if question is None:
            continue
        for eps in rng.choice(EPSES, 3, replace=False):
            margins = require_no_more_than_true(question, model, float(eps), solved)
            certified += max(margins) > 0
    return certified


@pytest.mark.parametrize(
    ("decades", "count"), mostly_slow([(0.0, 10), (3.0, 10), (0.0, 25), (3.0, 25)], [(0.0, 10), (3.0, 10)])
)
def test_no_method_claims_more_than_is_true(decades, count):
    assert fuzz(int(decades), count, decades, solved=False) > 2 * count // 5


@pytest.mark.parametrize("count", mostly_slow([5, 8], [5]))
def test_no_exact_method_claims_more_than_is_true(count):
    assert fuzz(7, count, 2.0, solved=True) > 3 * count / 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_method_claims_more_than_is_true_at_length(seed):
    assert fuzz(100 + seed, 60, (0.0, 2.0, 6.0, 12.0)[seed % 4], solved=seed % 2 == 0) > 0


# --- cancellation ----------------------------------------------------------------------------------------------


class Cancelling(nn.Module):
    """Two pixels; ``b(a(x))`` is zero up to rounding, so all that differs between them is a pattern of ``size``."""

    pattern: Tensor

    def __init__(self, size: float, rectified: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(*c, 1, bias=False).double() for c in ((1, 3), (3, 1)))
        self.head, self.rectified = nn.Linear(1, 2).double(), rectified
        with torch.no_grad():
            w, u = self.a.weight[:, 0, 0, 0], self.b.weight[0, :, 0, 0]
            u[0] = -(u[1] * w[1] + u[2] * w[2]) / w[0]
        self.register_buffer("pattern", torch.rand(1, 3, 1, 2, dtype=torch.float64) * size)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(self.a(x) + self.pattern)
        return self.head((torch.relu(z) if self.rectified else z).mean((2, 3)))

    def _numbers(self, pixel: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.b.weight[0, :, 0, 0], self.a.weight[:, 0, 0, 0], self.pattern[0, :, 0, pixel]

    def gap(self, x: tuple[Fraction, Fraction], class_idx: int, top: int) -> Fraction:
        """``CAM_top - CAM_other``."""
        cam = []
        for pixel in (0, 1):
            z = sum(
                Fraction(float(u)) * (Fraction(float(w)) * x[pixel] + Fraction(float(p)))
                for u, w, p in zip(*self._numbers(pixel), strict=True)
            )
            cam.append(Fraction(float(self.head.weight[class_idx, 0])) * (max(z, Fraction(0)) if self.rectified else z))
        return cam[top] - cam[1 - top]


@pytest.mark.parametrize(
    ("rectified", "count"), mostly_slow([(False, 4), (True, 4), (False, 12), (True, 12)], [(False, 4), (True, 4)])
)
def test_what_cancels_is_not_taken_at_its_size_at_the_image(rectified, count):
    """At these eps the terms of a CAM are 1e14 times the CAM; only the corners have to be looked at."""
    certified = 0
    for seed in range(count):
        torch.manual_seed(seed)
        model, x = Cancelling(1e-6, rectified).eval(), torch.rand(1, 1, 1, 2, dtype=torch.float64)
        net = co.from_torch(model, x)
        for eps in (1e2, 1e5, 1e9, 1e10, 1e11):
            try:
                question = ask(net, x, k=1, class_idx=0, norm="inf", clip=None, tie_tol=None)
            except co.TieError:
                continue
            top = top_of(question)[0]
            at, far = [Fraction(float(v)) for v in x.flatten()], Fraction(eps)
            least = min(model.gap((at[0] + s * far, at[1] + t * far), 0, top) for s in (-1, 1) for t in (-1, 1))
            for rung in RUNGS:
                ladder = Ladder(question, eps, CPU)
                ladder.bound(rung)
                assert Fraction(ladder.margin) <= least
                certified += ladder.margin > 0
    assert certified > 10 * count / 12  # the smaller eps


def test_a_heat_map_holds_what_cancels():
    for seed in range(6):
        torch.manual_seed(seed)
        model, x = Cancelling(1e-6, False).eval(), torch.rand(1, 1, 1, 2, dtype=torch.float64)
        net, at = co.from_torch(model, x), [Fraction(float(v)) for v in x.flatten()]
        for method, eps in (("ibp", 1e5), ("corgi", 1e10), ("crown", 1e5), ("crown", 1e10), ("dual", 1e10)):
            found = co.heat_map(net, x, eps=eps, k=1, method=method, class_idx=0, clip=None)
            far = Fraction(eps)
            gaps = [model.gap((at[0] + s * far, at[1] + t * far), 0, 0) for s in (-1, 1) for t in (-1, 1)]
            if min(gaps) <= 0 <= max(gaps):
                assert found.undecided.all()


# --- other units -----------------------------------------------------------------------------------------------


def rescaled(q: SmallQuestion, inputs: float, hidden: float, cam: float) -> SmallQuestion:
    """The same question in other units of the input, of the hidden layer and of the CAM."""
    model = copy.deepcopy(q.model).double()
    with torch.no_grad():
        model.first.weight.mul_(hidden / inputs)
        bias_of(model.first).mul_(hidden)
        model.second.weight.div_(1.0 if q.model.residual else hidden)
        if q.model.residual:
            bias_of(model.second).mul_(hidden)
            model.head.weight.div_(hidden)
        model.head.weight.mul_(cam)
        model.head.bias.mul_(cam)
    clip = None if q.clip is None else (q.clip[0] * inputs, q.clip[1] * inputs)
    return replace(q, model=model.eval(), x=q.x * inputs, eps=q.eps * inputs, clip=clip)


UNITS = [(1e13, 1.0, 1.0), (1e-12, 1.0, 1.0), (1.0, 1e8, 1.0), (1.0, 1e-9, 1.0), (1e6, 1e-4, 1e9)]
MORE_UNITS = [(10.0**i, 10.0**h, 10.0**c) for i in (-12, -6, 0, 6, 13) for h in (-10, 0, 10) for c in (-9, 0, 9)]


def require_the_same(q: SmallQuestion, stable: bool | None, method: str) -> str:
    net = co.from_torch(q.model, q.x)
    try:
        verdict = co.verify(net, q.x, method=method, time_limit=30, device="cpu", **q.arguments)
    except co.TieError:
        return "tied"
    assert stable is None or verdict.status in ("unknown", "certified" if stable else "falsified"), (q.label, verdict)
    return verdict.status


@pytest.mark.parametrize(
    "units", [pytest.param(u, marks=[] if at % 2 == 0 else pytest.mark.slow) for at, u in enumerate(UNITS)]
)
def test_answers_do_not_depend_on_units(units):
    decided = 0
    for q in questions(6, seed=31, norms=("inf", "1")):
        plain = replace(q, within=None, keep_class=False)
        stable = plain.answer().stable
        decided += require_the_same(rescaled(plain, *units), stable, "bab") != "unknown"
    assert decided == 6


@pytest.mark.slow
@pytest.mark.parametrize("units", MORE_UNITS)
def test_answers_do_not_depend_on_units_at_length(units):
    decided = 0
    for q in questions(12, seed=32):
        plain, stable = replace(q, keep_class=False), None
        stable = plain.answer().stable
        other = rescaled(plain, *units)
        for method in ("crown", "lp", "bab", *(() if q.norm == "2" else ("milp",))):
            status = require_the_same(other, stable, method)
            decided += status != "unknown" and method == "bab" and q.within is None
    assert decided > 3


# --- the account itself ----------------------------------------------------------------------------------------


def test_gamma_and_below():
    assert gamma(10) > 10 * 2.0**-53
    assert gamma(1000) == pytest.approx(100 * gamma(10), rel=0.9)
    values = torch.tensor([0.0, 1.0, -1.0, 1e300], dtype=torch.float64)
    assert bool((below(values) < values).all())


def test_an_interval_of_what_is_constant_is_a_point():
    """Padding of a pool reads nothing: its maximum there is exactly zero, whatever rounding may do elsewhere."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2),
    ).eval()  # fmt: skip
    x = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    net = co.from_torch(model, x)
    found = co.bounds(net, co.Ball(x, 0.1), method="ibp")
    values = net.graph.values(x.double())
    for name in net.graph.order:
        lower, upper = found[name]
        assert bool(((lower <= values[name][0]) & (values[name][0] <= upper)).all())
    widths = torch.cat([(found[n].upper - found[n].lower).flatten() for n in net.graph.preactivations])
    assert bool(((widths == 0) | (widths > 1e-6)).all())
    assert bool((widths == 0).any())
    assert Rounding.of(net.graph, found).interval(net.graph.relus[0]) is None


@pytest.mark.parametrize("method", ["ibp", "corgi", "crown", "dual", "lp", "milp", "bab", "auto"])
def test_what_overflows_is_unknown_and_says_so(method):
    x = image(1, 6, 6)
    net = co.from_torch(seeded(Plain, 1), x)
    verdict = co.verify(net, x, eps=1.7e308, k=1, class_idx=0, clip=None, method=method)
    assert verdict.status == "unknown"
    assert "overflow" in verdict.reason
