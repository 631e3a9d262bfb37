"""The errors of this package. Each also derives from the built-in exception a caller would expect."""

from __future__ import annotations


class SolverError(RuntimeError):
    """A solver refused its input or failed in a way that is no answer about the problem."""


class BackendMissingError(SolverError, ImportError):
    """The solver behind a backend is not installed, or too old; the message holds the pip command."""

    def __init__(self, package: str, reason: str, pip: str) -> None:
        self.package, self.reason, self.pip = package, reason, pip
        super().__init__(f"{package} {reason}. Run: {pip}")


class BackendBrokenError(SolverError):
    """The solver behind a backend is installed and cannot solve the least of problems: no licence, a broken install."""

    def __init__(self, package: str, words: str) -> None:
        self.package, self.words = package, words
        super().__init__(
            f"{package} is installed but solves nothing here (its last words: {words}). "
            "See to its installation and licence, or take another solver: 'highs' comes along and needs no licence"
        )


class ProblemError(SolverError, ValueError):
    """A problem, point or limit is malformed; the message says what is wrong and where."""
