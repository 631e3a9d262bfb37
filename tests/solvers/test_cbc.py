"""CBC itself, through its files: statuses, numbers and bounds on problems whose answers are known."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from corgi_solvers import Problem, Status
from corgi_solvers.cbc import INCREMENT, CbcSettings, run_cbc
from corgi_solvers.claims import Claim
from corgi_solvers.pulp import cbc_executable
from solver_problems import INF, problem_of, random_lp, scipy_minimum, skip_without, small_mip


@pytest.fixture(autouse=True)
def _cbc() -> None:
    skip_without("pulp:cbc")


def claim(problem: Problem, seconds: float = 60.0, abs_gap: float = 0.0) -> Claim:
    executable = cbc_executable()
    assert executable is not None
    return run_cbc(problem, CbcSettings(executable, 1, abs_gap, 0.0), time.perf_counter() + seconds)


@pytest.mark.parametrize("seed", range(6))
def test_a_linear_program_has_scipys_minimum_and_multipliers_that_prove_it(seed: int) -> None:
    p = random_lp(np.random.default_rng(seed), 4, 6)
    status, expected = scipy_minimum(p)
    found = claim(p)
    if status != 0:
        assert found.status in (Status.UNBOUNDED, Status.INFEASIBLE)
        return
    assert found.status is Status.OPTIMAL
    assert found.x is not None and found.row_dual is not None
    assert p.objective(found.x) == pytest.approx(expected, abs=1e-6) and p.violation(found.x) < 1e-6
    # weak duality, by hand: sides of rows and columns at the sign of their multiplier
    y = found.row_dual
    reduced = p.c - p.A.T @ y
    value = p.offset
    for duals, low, high in ((y, p.row_lower, p.row_upper), (reduced, p.col_lower, p.col_upper)):
        for d, a, b in zip(duals, low, high, strict=True):
            value += d * (a if d > 1e-9 else b if d < -1e-9 else 0.0)
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_mips_bound_is_below_its_enumerated_minimum(seed: int) -> None:
    p, best = small_mip(np.random.default_rng(seed))
    found = claim(p, abs_gap=1e-6)
    if math.isinf(best):
        assert found.status in (Status.INFEASIBLE, Status.ERROR)  # it may crash, and then claims nothing
        return
    assert found.status is Status.OPTIMAL
    assert found.x is not None
    assert p.objective(found.x) == pytest.approx(best, abs=1e-5)
    assert best - 1e-4 <= found.bound <= best + 1e-7
    assert found.bound <= p.objective(found.x) - 1e-6 - INCREMENT + 1e-12
    assert found.version


def test_unbounded_is_told_from_infeasible() -> None:
    free = ([-INF], [INF], [False])
    assert claim(problem_of([1.0], 0.0, [[1.0]], [-INF], [5.0], *free)).status is Status.UNBOUNDED
    two = problem_of([1.0], 0.0, [[1.0], [1.0]], [6.0, -INF], [INF, 5.0], *free)
    assert claim(two).status is Status.INFEASIBLE


def test_without_time_it_is_not_run() -> None:
    p = problem_of([1.0], 0.0, [[1.0]], [1.0], [INF], [0.0], [5.0], [False])
    found = claim(p, seconds=0.0)
    assert (found.status, found.x, found.row_dual, found.bound) == (Status.LIMIT, None, None, -INF)


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    claim(problem_of([1.0], 0.0, [[1.0]], [1.0], [INF], [0.0], [5.0], [False]))
    assert list(tmp_path.iterdir()) == []
