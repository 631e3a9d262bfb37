"""MPS files: read back by HiGHS as the very same numbers, and by CBC and scipy as the same problem."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import highspy
import numpy as np
import pytest
from corgi_solvers import Highs, NormBall, Problem, ProblemError, Pulp, write_mps
from corgi_solvers.pulp import cbc_executable
from solver_problems import INF, problem_of, random_lp, scipy_minimum, skip_without, small_mip, usable


def read(path: Path) -> Any:
    """The LP that HiGHS makes of a file."""
    handle = highspy.Highs()
    handle.setOptionValue("output_flag", False)
    handle.setOptionValue("small_matrix_value", 1e-12)
    assert handle.readModel(str(path)) == highspy.HighsStatus.kOk
    return handle.getLp()


def rows_of(p: Problem, lp: Any, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row bounds of the file, gathered to the rows of the problem."""
    lower, upper = np.full(p.m, -INF), np.full(p.m, INF)
    np.maximum.at(lower, source, np.array(lp.row_lower_))
    np.minimum.at(upper, source, np.array(lp.row_upper_))
    return lower, upper


def matrix(lp: Any) -> np.ndarray:
    dense = np.zeros((lp.num_row_, lp.num_col_))
    starts, index, value = (np.array(part) for part in (lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_))
    for j in range(lp.num_col_):
        where = slice(starts[j], starts[j + 1])
        dense[index[where], j] = value[where]
    return dense


def test_reading_back_gives_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "p.mps"
    kinds = set()
    for _ in range(100):
        p = random_lp(rng, 6, 6) if rng.random() < 0.5 else small_mip(rng)[0]
        source = write_mps(p, path)
        lp = read(path)
        np.testing.assert_array_equal(lp.col_cost_, p.c)
        np.testing.assert_array_equal(lp.col_lower_, p.col_lower)
        np.testing.assert_array_equal(lp.col_upper_, p.col_upper)
        assert lp.offset_ == p.offset
        for found, expected in zip(rows_of(p, lp, source), (p.row_lower, p.row_upper), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(matrix(lp), p.A.toarray()[source])
        integer = [kind == highspy.HighsVarType.kInteger for kind in lp.integrality_] or [False] * p.n
        np.testing.assert_array_equal(integer, p.integrality)
        kinds |= set(path.read_text().split())
    assert {"RANGES", "'INTORG'", "'INTEND'", "FX", "LO", "UP", "E", "L", "G"} - kinds <= {"FX"}


def test_awkward_numbers_survive(tmp_path: Path) -> None:
    c = [1 / 3, -math.pi * 1e15, 5e-324, -0.0, 1.7976931348623157e308]
    n = len(c)
    sides = ([1e-17, -1.0, -1 / 3, -INF], [1.0, 1e-17, 1 / 7, INF])
    A = np.arange(1, 4 * n + 1).reshape(4, n) / 7
    p = problem_of(c, -1e-3, A, *sides, np.full(n, -1 / 3), np.full(n, 1e18 / 7), np.arange(n) == 2)
    source = write_mps(p, tmp_path / "p.mps")
    lp = read(tmp_path / "p.mps")
    np.testing.assert_array_equal(lp.col_cost_[:4], c[:4])
    np.testing.assert_array_equal(lp.col_upper_, p.col_upper)
    np.testing.assert_array_equal(matrix(lp), A[source])
    for found, expected in zip(rows_of(p, lp, source), sides, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert 3 not in source  # a row without sides says nothing


def test_a_range_that_would_round_becomes_two_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sides = np.sort(rng.normal(size=(300, 2)) * 10.0 ** rng.integers(-6, 7, (300, 2)), axis=1)
    p = problem_of([1.0], 0.0, np.ones((300, 1)), sides[:, 0], sides[:, 1], [-INF], [INF], [False])
    source = write_mps(p, tmp_path / "p.mps")
    assert 300 < source.size < 400
    lp = read(tmp_path / "p.mps")
    for found, expected in zip(rows_of(p, lp, source), sides.T, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_files_have_the_same_optimum_everywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "p.mps"
    compared = 0
    for _ in range(12):
        p, _ = small_mip(rng)
        status, minimum = scipy_minimum(p)
        if status:
            continue
        compared += 1
        write_mps(p, path)
        handle = highspy.Highs()
        handle.setOptionValue("output_flag", False)
        handle.setOptionValue("threads", 1)  # the scheduler stays with this thread, and other tests' runs want one
        handle.readModel(str(path))
        handle.run()
        assert handle.getInfo().objective_function_value == pytest.approx(minimum, abs=1e-5)
        assert Highs().solve(p).objective == pytest.approx(minimum, abs=1e-5)
        if usable("pulp:cbc"):
            assert Pulp("cbc").solve(p).objective == pytest.approx(minimum, abs=1e-5)
    assert compared > 5


def test_cbc_reads_the_problem_that_was_written(tmp_path: Path) -> None:
    """CBC writes out again what it read (8 digits): no bound or side was lost or misunderstood."""
    skip_without("pulp:cbc")
    rng = np.random.default_rng(3)
    path, again = tmp_path / "p.mps", tmp_path / "again.mps"
    for _ in range(40):
        p = random_lp(rng, 5, 5)
        source = write_mps(p, path)
        written = p.A.toarray()[source]
        if not (written.any(axis=0).all() and written.any(axis=1).all()):
            continue  # what CBC writes lacks empty columns
        command: list[str | Path] = [cbc_executable(), path, "-presolve", "off", "-export", again]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert "read with 0 errors" in done.stdout
        ours, theirs = read(path), read(again)
        for name in ("col_cost_", "col_lower_", "col_upper_", "row_lower_", "row_upper_"):
            np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), rtol=1e-7)
        np.testing.assert_allclose(matrix(theirs), written, rtol=1e-7)


def test_scip_reads_the_problem_that_was_written(tmp_path: Path) -> None:
    pyscipopt = pytest.importorskip("pyscipopt")
    rng = np.random.default_rng(4)
    for _ in range(10):
        p = random_lp(rng, 5, 5)
        status, minimum = scipy_minimum(p)
        if status:
            continue
        write_mps(p, tmp_path / "p.mps")
        model = pyscipopt.Model()
        model.hideOutput()
        model.readProblem(str(tmp_path / "p.mps"))
        model.optimize()
        assert model.getObjVal() == pytest.approx(minimum, abs=1e-5)


def test_empty_problems_can_be_written(tmp_path: Path) -> None:
    none = np.zeros(0)
    p = problem_of([1.0, 0.0], 2.0, np.zeros((1, 2)), [-1.0], [1.0], [-INF, -INF], [INF, 3.0], [False, True])
    assert write_mps(p, tmp_path / "p.mps").tolist() == [0]
    lp = read(tmp_path / "p.mps")
    assert (lp.num_row_, lp.num_col_) == (1, 2)
    nothing = Problem(none, 2.0, np.zeros((0, 0)), none, none, none, none, none.astype(bool))
    assert write_mps(nothing, tmp_path / "p.mps").size == 0


def test_balls_are_refused(tmp_path: Path) -> None:
    none = np.zeros(0)
    ball = NormBall([0], [1.0], [0.0], 1.0)  # type: ignore[arg-type]
    p = problem_of([1.0], 0.0, np.zeros((0, 1)), none, none, [0.0], [1.0], [False], (ball,))
    with pytest.raises(ProblemError, match="cannot hold balls"):
        write_mps(p, tmp_path / "p.mps")
    assert not (tmp_path / "p.mps").exists()
