"""The child process of PuLP: its parent reads what it writes to the last bit; what goes wrong is its exit code."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corgi_solvers import Status
from corgi_solvers.pulp import read_answer
from corgi_solvers.pulp_engines import Limits
from solver_problems import INF, problem_of, skip_without

LIMITS = Limits(60.0, 1, 0.0, 1e-9)
P = problem_of(
    [1 / 3, 1.0], 7.0, [[1.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [False, False]
)  # 7 + 1/3 at x0 = 1


def answered(question: Path) -> subprocess.CompletedProcess[bytes]:
    """The worker in a process of its own: HiGHS's scheduler belongs to a thread, and another test may have set it."""
    command = [sys.executable, "-m", "corgi_solvers.pulp_worker", str(question), str(question.with_name("answer"))]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def question(tmp_path: Path) -> Path:
    skip_without("pulp:highs")
    path = tmp_path / "question"
    path.write_bytes(pickle.dumps(("highs", P, LIMITS)))
    return path


def test_an_answer_goes_through_its_file_as_it_is(question: Path, tmp_path: Path) -> None:
    assert answered(question).returncode == 0
    found = read_answer(tmp_path / "answer")
    assert found.status is Status.OPTIMAL and found.raw_status == "kOptimal" and found.version
    assert found.x is not None and found.row_dual is not None
    np.testing.assert_allclose(found.x, [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(found.row_dual, [1 / 3], atol=1e-9)


def test_the_offset_that_pulp_drops_is_in_a_mips_bound(tmp_path: Path) -> None:
    skip_without("pulp:highs")
    whole = problem_of(P.c, P.offset, P.A, P.row_lower, P.row_upper, P.col_lower, P.col_upper, [True, True])
    (tmp_path / "question").write_bytes(pickle.dumps(("highs", whole, LIMITS)))
    assert answered(tmp_path / "question").returncode == 0
    assert json.loads((tmp_path / "answer").read_text())["bound"] == pytest.approx(7 + 1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickle.dumps(("magic", P, LIMITS)), pickle.dumps(("highs", P, 3))]
)
def test_what_is_no_question_ends_it_without_an_answer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "question").write_bytes(content)
    assert answered(tmp_path / "question").returncode != 0
    assert not (tmp_path / "answer").exists()
