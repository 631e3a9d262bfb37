"""Backends by name."""

from __future__ import annotations

from collections.abc import Callable

from corgi_solvers import cvxpy, pulp
from corgi_solvers.backend import Backend
from corgi_solvers.cvxpy import Cvxpy
from corgi_solvers.errors import ProblemError
from corgi_solvers.highs import Highs
from corgi_solvers.pulp import Pulp


def _pulp(solver: str) -> Callable[[], Backend]:
    return lambda: Pulp(solver)


def _cvxpy(solver: str) -> Callable[[], Backend]:
    return lambda: Cvxpy(solver)


BACKENDS: dict[str, Callable[[], Backend]] = {
    "highs": Highs,
    "pulp": Pulp,
    **{f"pulp:{solver}": _pulp(solver) for solver in pulp.SOLVERS},
    "cvxpy": Cvxpy,
    **{f"cvxpy:{solver}": _cvxpy(solver) for solver in cvxpy.SETTINGS},
}


def names() -> tuple[str, ...]:
    """Every name that ``backend`` takes, whether its solver is installed or not."""
    return tuple(BACKENDS)


def backend(name: str) -> Backend:
    """The backend called ``name``, with its default settings: "highs", "pulp:cbc", "cvxpy:clarabel", ...

    "pulp" and "cvxpy" alone mean their defaults, CBC and Clarabel. Nothing is imported or searched for yet. Raises
    ProblemError on a name that is none of ``names()``.
    """
    if name not in BACKENDS:
        raise ProblemError(f"there is no solver {name!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]()
