"""Pairs of CAM pixels by LP and MILP: true bounds, decided signs, and how receptive fields apart are taken apart."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, atom_of
from corgi_solvers import Highs, Report, Solution, Status
from encoding import PATIENT, Setting
from nets import Pooled, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.network.fields import fields_of
from corgi_opt.problem.question import Question
from corgi_opt.search.atom import AtomSolver, PartExpressions
from corgi_opt.search.decide import Decided, SolvedProgram

APART = [(56, 16), (56, 18), (56, 25), (56, 27), (8, 48), (8, 41)]
TOGETHER = [(56, 32), (56, 50), (56, 41), (8, 16), (8, 24)]
"""Pairs of a map of 8x8 whose receptive fields do not meet, and pairs whose do; some hold at 0.05, some do not."""


@functools.cache
def setting(norm: str = "inf", eps: float = 0.05) -> tuple[Question, Setting]:
    x = image(1, 16, 16, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    question = ask(net, x, k=2, class_idx=0, norm=norm, clip=(0.0, 1.0), tie_tol=None)
    return question, Setting.of(net, question.ball(eps), planes=False)


def solver_of(norm: str = "inf", eps: float = 0.05, encoding=big_m) -> AtomSolver:
    question, at = setting(norm, eps)
    return AtomSolver(question, at.ball, PartExpressions(question, at.expressions), SolvedProgram(encoding, Highs()))


@functools.cache
def exact(pair: tuple[int, int], norm: str = "inf", eps: float = 0.05) -> float:
    """The minimum, by one MILP of both pixels, to the end."""
    _, at = setting(norm, eps)
    first, second = at.pixels(*pair)
    program = at.program(first - second)
    solution = Highs().solve(big_m(program))
    assert solution.status is Status.OPTIMAL
    return solution.objective * float(program.scales[0])


def numbered(pair: tuple[int, int]) -> int:
    return atom_of(setting()[0], pair)


def apart(pair: tuple[int, int]) -> bool:
    return not bool(fields_of(setting()[0].net.graph, setting()[0].net.features).share(torch.tensor([pair]))[0])


def test_pixels_are_those_of_the_network_and_made_once():
    question, at = setting()
    parts = PartExpressions(question, at.expressions)  # the parts of a top-k set are the pixels
    first = dict(parts.parts([5, 9, 5], PATIENT))
    assert set(first) == {5, 9}
    more = parts.parts([9, 60], Deadline(math.inf))
    assert more[9] is first[9]
    assert parts.parts([5, 60], Deadline(0.0))[60] is more[60]  # nothing to be made, so no time is needed
    with pytest.raises(TimeoutError, match="time limit"):
        parts.parts([5, 61], Deadline(0.0))
    for x in at.points(3):
        values, variables = question.net.cams(x[None], 0).flatten(), at.variables(x)
        for pixel, e in more.items():
            got = e.constant + e.values @ variables[e.columns]
            assert got == pytest.approx(float(values[pixel]), abs=1e-9)


@pytest.mark.parametrize(
    "pair", mostly_slow([(pair,) for pair in APART + TOGETHER], [(pair,) for pair in (APART + TOGETHER)[::3]])
)
def test_an_exact_solve_decides_the_sign(pair):
    question, at = setting()
    assert apart(pair) == (pair in APART)
    answer, minimum = solver_of().solve(numbered(pair), PATIENT), exact(pair)
    assert answer.reason == ""
    assert answer.lower <= minimum + 1e-7
    assert answer.upper >= minimum - 1e-7
    assert (answer.lower > 0) == (minimum > 0)
    assert answer.passes == (minimum <= 0)
    assert 0 < answer.error < 1e-4 if answer.binaries else answer.error >= 0
    if answer.image is not None:
        cam = question.net.model_cam(answer.image, 0).flatten()
        assert float(cam[pair[0]] - cam[pair[1]]) == pytest.approx(answer.upper, abs=1e-5)
        assert at.ball.contains(at.ball.project(answer.image))
        assert at.ball.distance(answer.image) <= at.ball.eps * (1 + 1e-6)


def test_the_pairs_are_of_both_signs():
    for pairs in (APART, TOGETHER):
        assert len({exact(pair) > 0 for pair in pairs}) == 2


@pytest.mark.parametrize("pair", TOGETHER)
def test_an_lp_bounds_from_below(pair):
    _, at = setting()
    answer = solver_of(encoding=triangle).solve(numbered(pair), PATIENT)
    assert answer.reason == ""
    assert answer.lower <= exact(pair) + 1e-7
    first, second = at.pixels(*pair)
    program = at.program(first - second)
    assert answer.lower == pytest.approx(Highs().solve(triangle(program)).bound * program.scales[0], abs=1e-6)


@pytest.mark.parametrize("pair", APART)
def test_an_lp_of_pixels_apart_bounds_from_below(pair):
    answer = solver_of(encoding=triangle).solve(numbered(pair), PATIENT)
    assert answer.lower <= exact(pair) + 1e-7
    if exact(pair) <= 0:
        assert not answer.lower > 0


@pytest.mark.parametrize(
    "pair", [(56, 24), *(pytest.param(p, marks=pytest.mark.slow) for p in ((56, 16), (56, 48), (8, 48)))]
)
def test_an_l1_ball_is_shared_by_pixels_that_are_apart(pair):
    """Each on its own could spend the whole budget: the sum of the two minima is too low."""
    _, at = setting("1", 0.5)
    answer, minimum = solver_of("1", 0.5).solve(numbered(pair), PATIENT), exact(pair, "1", 0.5)
    assert answer.reason == ""
    assert answer.lower <= minimum + 1e-7
    assert answer.upper >= minimum - 1e-7
    assert (answer.lower > 0) == (minimum > 0)
    first, second = at.pixels(*pair)
    assert answer.binaries == at.program(first - second).units
    if apart(pair):
        programs = at.program(first), at.program(-second)
        alone = sum(Highs().solve(big_m(p)).bound * p.scales[0] for p in programs)
        assert alone < minimum - 1e-3


@pytest.mark.parametrize("pair", [(56, 25), (56, 32)])
@pytest.mark.parametrize("encoding", [triangle, big_m])
def test_what_is_too_large_or_too_late_proves_nothing(pair, encoding, monkeypatch):
    question, at = setting()

    def fresh() -> AtomSolver:
        cam = PartExpressions(question, Expressions(question.net.graph, at.known))
        return AtomSolver(question, at.ball, cam, SolvedProgram(encoding, Highs()))

    late = fresh().solve(numbered(pair), Deadline(0.0))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["corgi_opt.encode.program"], "MOST_NONZEROS", 10)
        large = fresh().solve(numbered(pair), PATIENT)
    for answer, reason in ((late, "time limit"), (large, "coefficients")):
        assert (answer.lower, answer.upper, answer.image) == (-math.inf, math.inf, None)
        assert not answer.passes
        assert reason in answer.reason


# --- deciders and solvers that fail ----------------------------------------------------------------------------


def holds() -> tuple[int, int]:
    """Pixels apart, the first of which stays the brighter."""
    return next(pair for pair in APART if exact(pair) > 0)


@pytest.mark.parametrize(
    ("lower", "upper"), [(-math.inf, math.inf), (math.nan, math.nan), (math.nan, 0.0), (-1e9, 1e9)]
)
def test_a_search_that_gains_nothing_ends(lower, upper):
    """Pixels apart are bounded in turns: none of them is asked the same again."""
    asked = []

    def decide(program, decide_at, deadline):
        asked.append(decide_at)
        assert len(asked) < 20
        return Decided(lower, upper, None, 0.0, 0, "float64", "")

    question, at = setting()
    answer = AtomSolver(question, at.ball, PartExpressions(question, at.expressions), decide).solve(
        numbered(holds()), PATIENT
    )
    assert asked
    assert not answer.lower > 0


def test_pixels_apart_keep_their_deadline():
    """Although each turn gains a little."""
    gained = iter(range(10**9))

    def decide(program, decide_at, deadline):
        return Decided(-1e9 + next(gained), math.inf, None, 0.0, 0, "float64", "")

    question, at = setting()
    solver = AtomSolver(question, at.ball, PartExpressions(question, at.expressions), decide)
    i, j = holds()
    pixels = solver.parts.parts((i, j), PATIENT)
    answer = solver._minimise_apart(numbered((i, j)), pixels[i], -pixels[j], 0.0, Deadline(0.0))
    assert answer.reason == "time limit"
    assert next(gained) == 0


@pytest.mark.parametrize("duals", ["none", "zero", "random", "nan"])
def test_an_lp_solver_that_lies_proves_nothing_false(duals):
    """What counts is what its multipliers prove, whatever it says that its bound is."""

    class Liar:
        def solve(self, problem, *, time_limit=math.inf, decide_at=None):
            y = {
                "none": None,
                "zero": np.zeros(problem.m),
                "random": np.random.default_rng(0).normal(size=problem.m),
                "nan": np.full(problem.m, np.nan),
            }[duals]
            return Solution(Status.OPTIMAL, 1e9, 1e9, None, y, Report("liar", "0", 0.0, 0, 0, "optimal"))

    question, at = setting()
    liar: Any = Liar()
    solver = SolvedProgram(triangle, liar)
    for pair in TOGETHER:
        cam = PartExpressions(question, at.expressions)
        answer = AtomSolver(question, at.ball, cam, solver).solve(numbered(pair), PATIENT)
        assert answer.lower <= exact(pair)
        assert answer.proof == "float64"


def test_an_lp_proves_all_but_rounding_of_what_its_solver_says():
    question, at = setting()
    for pair in TOGETHER:
        first, second = at.pixels(*pair)
        program = at.program(first - second)
        said = Highs().solve(triangle(program)).bound * float(program.scales[0])
        answer = solver_of(encoding=triangle).solve(numbered(pair), PATIENT)
        assert answer.proof == "float64"
        assert said - 1e-7 * question.scale <= answer.lower < said + 1e-12 * question.scale
