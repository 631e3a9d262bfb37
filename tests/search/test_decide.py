"""Two ways to decide a drawn program: both bracket its minimum by enumeration, and know a threshold's side."""

from __future__ import annotations

import math

import pytest
import torch
from corgi_solvers import Highs, Report, Solution, Status
from drawn_programs import at, drawn, least, outputs_at

from corgi_opt._deadline import Deadline
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.triangle import triangle
from corgi_opt.search.decide import Branched, Decider, SolvedProgram, why_undecided

PATIENT = Deadline(math.inf)
WAYS: dict[str, Decider] = {
    "milp": SolvedProgram(big_m, Highs()),
    "tree": Branched(Highs(), torch.device("cpu")),
}
SEEDS = range(4)


def true(program, held: int | None = None) -> float:
    """The least of the first output, in its own unit."""
    return least(program, held) * float(program.scales[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", SEEDS)
def test_both_sides_of_a_threshold(way, seed):
    program = drawn(seed, units=4)
    minimum = true(program)
    below, above = (WAYS[way](program, minimum + by, PATIENT) for by in (-0.01, 0.01))
    assert below.lower > minimum - 0.01 and not above.lower > minimum + 0.01
    assert above.upper <= minimum + 0.01 + above.error
    for found in (below, above):
        assert found.lower <= minimum + 1e-6 and found.reason == ""
        assert found.upper >= minimum - 1e-6
    assert above.variables is not None
    v = at(program, above.variables[: program.inputs])
    assert outputs_at(program, v)[0] * program.scales[0] == pytest.approx(above.upper, abs=1e-6)


def test_whose_word_it_is():
    program = drawn(0)
    assert WAYS["milp"](program, -9.0, PATIENT).proof == "solver"
    assert WAYS["tree"](program, -9.0, PATIENT).proof == "float64"
    assert SolvedProgram(triangle, Highs())(program, -9.0, PATIENT).proof == "float64"


@pytest.mark.parametrize("seed", SEEDS)
def test_further_outputs_are_premises(seed):
    program = drawn(seed, outputs=2)
    expected = true(program, held=1)
    if math.isinf(expected):
        return
    assert SolvedProgram(big_m, Highs())(program, expected - 0.01, PATIENT).lower > expected - 0.01
    assert SolvedProgram(big_m, Highs())(program, expected + 0.01, PATIENT).lower <= expected + 1e-6
    strict = SolvedProgram(big_m, Highs(), slack=-1e6)(program, expected, PATIENT)  # clearly positive
    assert strict.lower >= expected - 1e-6 or strict.reason


class Liar(Highs):
    """Claims an optimum of 1000, with multipliers that prove nothing of the kind."""

    def solve(self, problem, **given):
        found = super().solve(problem, **given)
        return Solution(Status.OPTIMAL, 1000.0, 1000.0, found.x, found.row_dual, found.report)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_programs_bound_is_what_its_multipliers_prove(seed):
    program = drawn(seed)
    found = SolvedProgram(triangle, Liar())(program, -9.0, PATIENT)
    assert -math.inf < found.lower <= true(program) + 1e-9


def test_why_a_side_is_not_known():
    program = drawn(0, units=4)
    assert "time limit" in WAYS["milp"](program, 0.0, Deadline(0.0)).reason

    def ended(status: Status) -> str:
        return why_undecided(Solution(status, math.inf, -math.inf, None, None, Report("s", "1", 0.0, 0, 0, "kRaw")))

    assert ended(Status.OPTIMAL) == ended(Status.DECIDED) == ""
    assert ended(Status.LIMIT) == "time limit"
    assert ended(Status.ERROR) == "solver ended error (kRaw)"
