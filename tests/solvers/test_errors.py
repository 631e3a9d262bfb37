"""A caller who knows only Python's own errors catches these, and each says what to do."""

from __future__ import annotations

import pytest
from corgi_solvers import BackendBrokenError, BackendMissingError, ProblemError, SolverError, backend
from solver_problems import problem_of


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (BackendMissingError("gurobipy", "is not installed", "pip install gurobipy"), (SolverError, ImportError)),
        (BackendBrokenError("cplex", "no licence"), (SolverError, RuntimeError)),
        (ProblemError("c[1] is NaN"), (SolverError, ValueError)),
        (SolverError("HiGHS answered kError"), (RuntimeError,)),
    ],
)
def test_each_is_a_builtin_error_too(error: Exception, kinds: tuple[type, ...]) -> None:
    assert all(isinstance(error, kind) for kind in kinds)


def test_they_say_what_to_do() -> None:
    missing = BackendMissingError("pulp", "is older than 3.3.2", "pip install -U pulp")
    assert str(missing) == "pulp is older than 3.3.2. Run: pip install -U pulp"
    broken = str(BackendBrokenError("gurobipy", "no licence found"))
    assert "gurobipy is installed" in broken and "no licence found" in broken and "'highs'" in broken


def test_a_refusal_is_a_value_error_of_this_package() -> None:
    with pytest.raises(ValueError, match=r"'magic'.*highs"):
        backend("magic")
    with pytest.raises(SolverError, match=r"c\[0\] is NaN"):
        problem_of([float("nan")], 0.0, [[1.0]], [0.0], [1.0], [0.0], [1.0], [False])
