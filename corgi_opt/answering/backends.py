"""Which solver answers, and whether it can be run here: asked at the entrance, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from corgi_solvers import Backend, BackendBrokenError, BackendMissingError, ProblemError, backend
from corgi_solvers.choose import BACKENDS

from corgi_opt.errors import InputError, MissingPackageError
from corgi_opt.methods import TABLE
from corgi_opt.problem.region import Norm


def check_solver(solver: str | None, method: str, norm: Norm) -> Backend:
    """The backend that a method asks: HiGHS, or for an L2 ball CVXPY with Clarabel, unless another is named.

    Branch and bound asks it for linear programs only. What was named is there, whether the method asks it or not.

    Raises InputError for an unknown backend, one that cannot take what the method builds, or one that is installed and
    does not work; MissingPackageError for one that is not installed, or too old.
    """
    chosen = named_solver(solver, method, norm)
    if solver is not None or TABLE[method].asks != "nothing":
        with missing_for(f"solver {_name(solver, norm)!r}"):
            chosen.require()
    return chosen


def named_solver(solver: str | None, method: str, norm: Norm) -> Backend:
    """The backend of ``check_solver``, be it installed or not. Raises InputError."""
    name = _name(solver, norm)
    if not isinstance(name, str):
        raise InputError(f"solver must be the name of a backend, got {name!r}")
    try:
        chosen = backend(name)
    except ProblemError as error:
        raise InputError(str(error)) from error
    asks = TABLE[method].asks
    lacks = [
        what
        for what, wanted, able in (
            ("MILPs", asks == "milp", chosen.capabilities.mip),
            ("second-order cones (norm '2')", norm == "2" and asks == "lp", chosen.capabilities.soc),
        )
        if wanted and not able
    ]
    if lacks:
        raise InputError(f"solver {name!r} does not take {' or '.join(lacks)}")
    return chosen


def known_solvers() -> tuple[str, ...]:
    """Every name that ``solver=`` takes, whether it is installed or not."""
    return tuple(BACKENDS)


def why_not(name: str) -> str:
    """Why a solver cannot be run here; empty where it can."""
    try:
        backend(name).require()
    except BackendMissingError as error:
        return f"not installed: {error.pip}"
    except BackendBrokenError as error:
        return str(error)
    return ""


@contextmanager
def missing_for(purpose: str) -> Iterator[None]:
    """Raises MissingPackageError or InputError where a backend says in here that it cannot be run."""
    try:
        yield
    except BackendMissingError as error:
        raise MissingPackageError(error.package, purpose, error.pip, error.reason) from error
    except BackendBrokenError as error:
        raise InputError(f"{purpose}: {error}") from error


def _name(solver: str | None, norm: Norm) -> str:
    if solver is not None:
        return solver
    return "cvxpy:clarabel" if norm == "2" else "highs"
