"""Branch and bound against scipy's MILP: which side of a threshold a minimum is on, and never a side it is not on."""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, atom_of
from corgi_solvers import Cvxpy, Highs, Problem, Report, Solution, SolverError, Status
from encoding import CASES, PATIENT, Setting, scipy_lp, scipy_milp, traced
from encoding import exact_setting as setting
from nets import Pooled, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.encode import phases as phases_module
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.hull import hull_planes
from corgi_opt.encode.phases import PhaseBounds
from corgi_opt.encode.program import Program
from corgi_opt.encode.triangle import triangle
from corgi_opt.problem.region import Ball
from corgi_opt.search import branch as branch_module
from corgi_opt.search import clipping as clipping_module
from corgi_opt.search.atom import AtomSolver, PartExpressions
from corgi_opt.search.branch import Branching, PseudoCosts, Searched, children
from corgi_opt.search.decide import Branched
from corgi_opt.search.frontier import Likely

CPU = torch.device("cpu")

MILPS = [(case, "inf") for case in CASES] + [("residual", "1"), ("pooled", "1")]
every_milp = pytest.mark.parametrize(("case", "norm"), MILPS)
FIRST_NODES = {"planes": 1, "never planes": math.inf}


@functools.cache
def exact(case: str, norm: str = "inf") -> float:
    return scipy_milp(big_m(setting(case, norm)[1]))


def run(program: Program, threshold: float, deadline: Deadline | None = None, solver=None) -> Searched:
    solver = solver or (Cvxpy() if program.norm == "2" else Highs())
    return Branching(program, threshold, solver, CPU).run(deadline or PATIENT)


def require_attained(at: Setting, program: Program, found: Searched) -> None:
    """The image is in the region, but for rounding of float64, and the network says ``upper`` there."""
    image = program.image(found.image, at.ball.center)
    assert at.ball.distance(image) <= at.ball.eps * (1 + 1e-12)
    assert found.upper * program.scales[0] == pytest.approx(at.pair_at(image)[0], rel=1e-9, abs=1e-9)


def require_right(case: str, norm: str, below: float, above: float) -> list[Searched]:
    """At thresholds so far below the minimum, and above it."""
    (at, program), minimum = setting(case, norm), exact(case, norm)
    close = 1e-6 * max(1.0, abs(minimum))
    holds, broken = run(program, minimum - below), run(program, minimum + above)
    assert holds.lower > minimum - below
    assert broken.upper <= minimum + above
    assert not broken.lower > minimum + above
    for found in (holds, broken):
        assert found.reason == ""
        assert found.lower <= minimum + close
        assert found.upper >= minimum - close
        require_attained(at, program, found)
    return [holds, broken]


BY_PLANES = [("residual", "inf", "planes"), ("deep", "inf", "planes"), ("pooled", "1", "planes")]


@pytest.mark.parametrize(
    ("case", "norm", "first"),
    mostly_slow(
        [*((*program, "never planes") for program in MILPS), *BY_PLANES],
        [*((*program, "never planes") for program in MILPS[1::3]), BY_PLANES[0], BY_PLANES[2]],
    ),
)
def test_both_sides_of_the_minimum(case, norm, first, monkeypatch):
    monkeypatch.setattr(branch_module, "FIRST_NODES", FIRST_NODES[first])
    searched = []

    def told(*args: Any) -> Any:
        searched.append(args)
        return hull_planes(*args)

    monkeypatch.setattr(branch_module, "hull_planes", told)
    require_right(case, norm, below=1e-3, above=3e-5)
    assert bool(searched) == (first == "planes")


@pytest.mark.parametrize(
    ("case", "norm", "first"),
    [
        ("residual", "inf", "planes"),
        ("residual", "1", "planes"),
        ("pooled", "inf", "never planes"),
    ],
)
def test_by_linear_programs_of_leaves_alone(case, norm, first, monkeypatch):
    """Every node counts as settled, none is ascended, and no image falls."""
    monkeypatch.setattr(phases_module, "FALLS", 0)
    for name, value in (("SETTLED", 1e9), ("STEPS", 0), ("ROOT_STEPS", 0), ("FIRST_NODES", FIRST_NODES[first])):
        monkeypatch.setattr(branch_module, name, value)
    holds, broken = require_right(case, norm, 1e-3, 1e-3)
    assert holds.leaves >= 1
    assert broken.leaves >= 1


@pytest.mark.parametrize(("case", "norm"), [("residual", "inf"), ("pooled", "inf"), ("residual", "1")])
def test_without_ascent(case, norm, monkeypatch):
    monkeypatch.setattr(branch_module, "STEPS", 0)
    monkeypatch.setattr(branch_module, "ROOT_STEPS", 0)
    require_right(case, norm, 1e-2, 1e-2)


@pytest.mark.parametrize("case", ["residual", "deep"])
def test_in_an_l2_ball_claims_do_not_contradict_each_other(case):
    at, program = setting(case, "2")
    images = torch.cat([at.ball.project(x[None]) for x in at.points(200)])
    sampled, lp = float(at.pair_at(images).min()) / program.scales[0], Cvxpy().solve(triangle(program)).bound
    found = [run(program, threshold) for threshold in np.linspace(lp - 1e-3, sampled + 1e-3, 5)]
    assert found[0].lower > lp - 1e-3
    assert found[-1].upper <= sampled + 1e-3
    assert max(f.lower for f in found) <= min(f.upper for f in found) + 1e-6
    assert max(f.lower for f in found) <= sampled
    for f, threshold in zip(found, np.linspace(lp - 1e-3, sampled + 1e-3, 5), strict=True):
        assert (f.lower > threshold) != (f.upper <= threshold)
        require_attained(at, program, f)


@pytest.mark.parametrize(("case", "first"), [("residual", "planes"), ("pooled", "never planes")])
def test_the_same_every_time(case, first, monkeypatch):
    monkeypatch.setattr(branch_module, "FIRST_NODES", FIRST_NODES[first])
    _, program = setting(case)
    one, other = (run(program, exact(case) + 1e-4) for _ in range(2))
    for name in ("lower", "upper", "nodes", "leaves", "reason"):
        assert getattr(one, name) == getattr(other, name)
    assert np.array_equal(one.image, other.image)


@every_milp
def test_without_time_only_a_true_bound(case, norm):
    at, program = setting(case, norm)
    minimum = exact(case, norm)
    found = run(program, minimum - 1e-6, Deadline(0.0))
    if found.upper > minimum - 1e-6 and not found.lower > minimum - 1e-6:
        assert found.reason == "time limit"
    assert found.lower <= minimum + 1e-6 * max(1.0, abs(minimum))
    assert -math.inf < found.lower
    require_attained(at, program, found)


def test_without_time_something_is_undecided():
    """Else the last test says nothing."""
    reasons = [run(setting(*at)[1], exact(*at) - 1e-6, Deadline(0.0)).reason for at in MILPS]
    assert reasons.count("time limit") >= len(MILPS) / 2


def test_a_search_cut_short_has_a_true_bound(monkeypatch):
    _, program = setting("pooled")
    minimum, reached = exact("pooled"), []
    for nodes, looked_at in ((5, 0), (1, 100), (5, 100), (40, 100)):
        monkeypatch.setattr(branch_module, "MOST_LOOKED_AT", looked_at)
        found = branch_module._Tree(program, None, minimum - 1e-6, Highs(), CPU).search(PATIENT, nodes)
        assert found.reason == "node limit"
        assert found.lower <= minimum + 1e-6
        reached.append(found.lower)
    assert -math.inf < reached[0] < reached[1] < reached[2] < reached[3]


class Looks(Deadline):
    """Is over after so many looks."""

    def __init__(self, looks: int) -> None:
        super().__init__(math.inf)
        self.looks = looks

    @property
    def over(self) -> bool:
        self.looks -= 1
        return self.looks < 0


CUT_OFF = [
    (case, *threshold, first)
    for case in ("pooled", "deep")
    for threshold in ((-1e-4, True), (1e-4, False))
    for first in ("planes", "never planes")
]


@pytest.mark.parametrize(
    ("case", "away", "holds", "first"),
    mostly_slow(CUT_OFF, [("pooled", -1e-4, True, "planes"), ("deep", -1e-4, True, "never planes"), CUT_OFF[3]]),
)
def test_a_search_that_is_cut_off_goes_on_where_it_was(case, away, holds, first, monkeypatch):
    """It bounds no node twice, and each run says what it bounded."""
    monkeypatch.setattr(branch_module, "FIRST_NODES", FIRST_NODES[first])
    monkeypatch.setattr(branch_module, "BATCH", 4)
    _, program = setting(case)
    threshold = exact(case) + away
    whole = Branching(program, threshold, Highs(), CPU).run(PATIENT)
    looks, search = 400 if first == "planes" else 3, Branching(program, threshold, Highs(), CPU)
    runs = [search.run(Looks(looks))]
    while runs[-1].reason == "time limit":
        assert not runs[-1].lower > threshold and runs[-1].lower <= exact(case) + 1e-6
        runs.append(search.run(Looks(looks)))
    assert (runs[-1].lower > threshold) == (whole.lower > threshold) == holds
    assert runs[-1].reason == whole.reason == ""
    if first == "never planes":  # planes are searched for again, where time was over before they were found
        assert len(runs) > 1
        assert sum(run.nodes for run in runs) == whole.nodes
        assert runs[-1].lower == whole.lower and runs[-1].upper == whole.upper


def test_a_tree_says_when_it_is_begun_and_resumed_and_that_it_found_planes(monkeypatch, caplog):
    monkeypatch.setattr(branch_module, "FIRST_NODES", 1)
    monkeypatch.setattr(branch_module, "BATCH", 4)
    caplog.set_level(logging.INFO, "corgi_opt.search.branch")
    _, program = setting("deep")
    search = Branching(program, exact("deep") - 1e-4, Highs(), CPU)
    first = search.run(Looks(400))
    search.run(PATIENT)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"tree of {program.units} units: begun"
    assert f"tree of {program.units} units: resumed after {first.nodes} nodes" in lines
    assert any(line.startswith(f"larger tree: planes above {program.units} units found") for line in lines)


# --- to the last digit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "overlapping pool", "deep"])
@pytest.mark.parametrize(("norm", "eps"), [("inf", 1e-5), ("1", 1e-4), ("2", 1e-3)])
@pytest.mark.parametrize("patience", [math.inf, 0.0])
def test_a_linear_program_is_bounded_in_float64(case, norm, eps, patience):
    """Without units the minimum has a closed form: no bound may exceed it, decided or not, nor an image be below."""
    at = traced(case)
    program = Setting.of(at.net, Ball(at.ball.center, eps, norm)).program()
    assert program.units == 0
    minimum = linear_minimum(program)
    rounding = 1e-12 * max(1.0, abs(minimum))
    if norm != "2":
        assert scipy_lp(triangle(program)) == pytest.approx(minimum, rel=1e-9)
    for share in (-1e2, 1e2, 1e3, 1e5):
        threshold = minimum + share * rounding
        found = run(program, threshold, Deadline(patience))
        assert found.lower <= minimum + rounding
        assert found.upper >= minimum - rounding
        assert found.lower <= threshold or share < 0


def linear_minimum(program: Program) -> float:
    """Over the box, or with no end of it near over an L1 or L2 ball."""
    c = program.outputs.toarray()[0]
    if program.norm == "inf":
        return float(program.output_constants[0] - np.abs(c).sum())
    # d = reach * t + shift, within the ball and the box [shift - reach, shift + reach]
    slope = c / program.reach
    start = float(program.output_constants[0] - slope @ program.shift)
    low, high = program.shift - program.reach, program.shift + program.reach
    if program.norm == "1":
        left = 1.0
        for i in np.argsort(-np.abs(slope)):
            moved = min(left, -low[i] if slope[i] > 0 else high[i])
            start, left = start - moved * abs(slope[i]), left - moved
        return start
    free = np.clip(-slope / np.linalg.norm(slope), low, high)
    assert np.linalg.norm(free) == pytest.approx(1.0, abs=1e-12), "an end of the box is near"
    return start + float(slope @ free)


@pytest.mark.parametrize("case", ["residual", "pooled"])
def test_a_threshold_just_above_the_minimum_is_not_claimed(case):
    """Whatever float32 makes of it."""
    _, program = setting(case)
    minimum = exact(case)
    for away in (1e-8, 1e-7):
        threshold = minimum + away * max(1.0, abs(minimum))
        found = run(program, threshold)
        assert not found.lower > threshold
        assert found.upper <= threshold or found.reason


@pytest.mark.parametrize("case", ["pooled", "deep"])
def test_what_float32_closes_and_float64_does_not_stays_open(case, monkeypatch):
    """Here float32 says of every node that its bound is ``lift`` higher than it is, on whatever machine."""
    _, program = setting(case)
    lift, misled = 1e-3, []
    single, double = (PhaseBounds(program, None, dtype, CPU) for dtype in (torch.float32, torch.float64))
    ascend = PhaseBounds.ascend

    def lifted(self, nodes, steps, enough=math.inf):
        nodes, bound, point = ascend(self, nodes, steps, enough)
        value, proven = bound.value + lift, double.descend(nodes.to(torch.float64))
        misled.append(bool(((value > threshold) & (proven <= threshold)).any()))
        return nodes, replace(bound, value=value), point

    def searched() -> Searched:
        misled.clear()
        return branch_module._Tree(program, None, threshold, Highs(), CPU).search(PATIENT, math.inf)

    monkeypatch.setattr(PhaseBounds, "ascend", lifted)
    for steps in range(0, 12, 2):  # the root's bound is below the threshold, and float32 puts it above
        threshold = float(double.descend(ascend(single, single.root(), steps)[0].to(torch.float64))) + lift / 2
        assert threshold < exact(case) - lift
        monkeypatch.setattr(branch_module, "ROOT_STEPS", steps)
        found = searched()
        assert misled[0] or steps > 0
        assert threshold < found.lower <= exact(case) + 1e-6
    threshold = exact(case) + lift / 2  # and so it does here with what is left in the end
    found = searched()
    assert any(misled)
    assert found.upper <= threshold
    assert found.lower <= exact(case) + 1e-6


def test_two_minima_apart_are_bounded_in_float64():
    """At this eps their sum is zero but for the last digits, and each is decided at a threshold far from zero."""
    pair, x = (8, 41), image(1, 16, 16, seed=4)
    question = ask(co.from_torch(seeded(Pooled, 1), x), x, k=2, class_idx=0, norm="inf", clip=(0.0, 1.0), tie_tol=None)
    at = Setting.of(question.net, question.ball(0.038507605239735704), planes=False)
    decide = Branched(Highs(), CPU)
    answer = AtomSolver(question, at.ball, PartExpressions(question, at.expressions), decide).solve(
        atom_of(question, pair), PATIENT
    )
    first, second = at.pixels(*pair)
    programs = at.program(first), at.program(-second)
    minimum = sum(scipy_milp(big_m(program)) * program.scales[0] for program in programs)
    assert abs(minimum) < 2e-9
    assert answer.lower <= minimum + 1e-9


# --- solvers that fail ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Liar:
    """Answers every problem alike, at a point that is the middle of its box."""

    status: Status
    bound: float
    point: bool = False

    def solve(self, problem: Problem, *, time_limit: float = math.inf, decide_at: float | None = None) -> Solution:
        x = (problem.col_lower + problem.col_upper) / 2 if self.point else None
        return Solution(self.status, math.inf, self.bound, x, None, Report("liar", "0", 0.0, 0, 0, "no reason"))


LIARS = {
    "infeasible": Liar(Status.INFEASIBLE, math.inf),
    "error": Liar(Status.ERROR, math.inf),
    "no number": Liar(Status.ERROR, math.nan),
    "limit": Liar(Status.LIMIT, -math.inf),
    "interrupted": Liar(Status.INTERRUPTED, -math.inf),
    "a point alone": Liar(Status.LIMIT, -math.inf, point=True),
    "a bound alone": Liar(Status.OPTIMAL, 1e6),
}


@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize(("case", "away"), [("residual", -1e-6), ("pooled", 1e-6)])
def test_a_solver_that_fails_proves_nothing(case, away, liar, monkeypatch):
    """A leaf's program always has a point: an infeasible one is a failure, as infinite bounds of others are."""
    monkeypatch.setattr(clipping_module, "ROUNDS", 0)  # which proves the first threshold without any solver
    monkeypatch.setattr(branch_module, "SETTLED", 1e9)
    monkeypatch.setattr(branch_module, "STEPS", 0)
    _, program = setting(case)
    threshold = exact(case) + away
    found = run(program, threshold, Deadline(0.2), LIARS[liar])
    assert found.leaves > 0
    assert found.upper > threshold
    assert not found.lower > threshold
    assert found.lower <= exact(case) + 1e-6
    assert found.reason


def test_what_float32_cannot_hold_is_no_answer():
    _, program = setting("residual")
    huge = replace(program, constants=program.constants * 1e60, slack=program.slack * 1e60)
    found = run(huge, 0.0)
    assert found.reason == branch_module.NOT_A_NUMBER
    assert not found.lower > 0


def test_residue_is_taken_off_whatever_closes_a_node(monkeypatch):
    """By D, and by linear programs of leaves alone; and a value within it is not searched below any further."""
    _, program = setting("residual")
    minimum = exact("residual")
    for off, below in ((1e-2, 1.1e-2), (1e-2, 0.9e-2)):
        loose = replace(program, residue=np.full_like(program.residue, off))
        for settled in (branch_module.SETTLED, 1e9):
            with monkeypatch.context() as patch:
                patch.setattr(branch_module, "SETTLED", settled)
                found = run(loose, minimum - below)
            assert found.lower <= minimum - off + 1e-6
            assert (found.lower > minimum - below) == (below > off)
            assert found.reason == ""
            assert below > off or found.upper - off <= minimum - below


def test_a_solver_that_raises_is_heard(monkeypatch):
    class Broken(Liar):
        def solve(self, problem: Problem, **_: object) -> Solution:
            raise SolverError("broken")

    monkeypatch.setattr(branch_module, "SETTLED", 1e9)
    with pytest.raises(SolverError, match="broken"):
        run(setting("pooled")[1], exact("pooled") - 1e-6, solver=Broken(Status.ERROR, math.inf))


# --- what a node is split by ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["residual", "deep"])
def test_children_are_by_the_unit_that_does_most_for_the_weaker(case):
    _, program = setting(case)
    bounds = PhaseBounds(program, None, torch.float64, CPU)
    nodes, bound, _ = bounds.ascend(bounds.root(), 20)
    costs = PseudoCosts(program.units, CPU)
    units = torch.arange(program.units)[:, None]
    lam = bound.lam[program.inputs :]
    worth = []
    for unit in range(program.units):
        gains = (bounds.descend(nodes.split(units[unit], lam[unit])) - bound.value).clamp(min=0)
        worth.append(float(gains.min() + 0.1 * gains.max()))
    for start in range(program.units - 4):
        likely = Likely(units.T[:, start : start + 5], lam.T[:, start : start + 5])
        both = children(bounds, nodes, bound.value, likely, 1e9, costs)
        chosen = int(both.phases[:, 0].nonzero())
        assert both.phases[chosen].tolist() == [1, -1]
        assert start <= chosen < start + 5
        assert worth[chosen] == pytest.approx(max(worth[start : start + 5]), abs=1e-12)
        # a unit that is settled is not tried again
        fixed = replace(nodes, phases=both.phases[:, :1])
        again = children(bounds, fixed, bounds.descend(fixed), likely, 1e9, costs)
        assert (again.phases != 0).sum(dim=0).tolist() == [2, 2]


def test_pseudo_costs_are_mean_shares_and_lean_on_all_units_where_little_is_known():
    costs = PseudoCosts(3, CPU)
    assert costs.mean.tolist() == [1, 1, 1]
    for _ in range(300):
        costs.learn(torch.tensor([0, 1, 1]), torch.tensor([0.9, 0.0, 0.6]))
    known, tried, unknown = costs.mean.tolist()
    assert known == pytest.approx(0.9, abs=0.01)
    assert tried == pytest.approx(0.3, abs=0.01)
    assert unknown == pytest.approx(0.5, abs=1e-5)
