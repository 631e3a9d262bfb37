"""The errors of this package. Each also derives from the built-in exception a caller would expect."""

from __future__ import annotations


class SolverError(RuntimeError):
    """A solver refused its input or failed in a way that is no answer about the problem."""


class BackendMissingError(SolverError, ImportError):
    """The solver behind a backend is not installed, or too old; the message holds the pip command."""

    def __init__(self, package: str, reason: str, pip: str) -> None:
        self.package, self.pip = package, pip
        super().__init__(f"{package} {reason}. Run: {pip}")


class ProblemError(SolverError, ValueError):
    """A problem, point or limit is malformed; the message says what is wrong and where."""
