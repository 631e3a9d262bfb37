"""Every error this package raises on purpose: each says what is wrong, where, and what to do about it.

All derive from :class:`CorgiError` and from the built-in exception a caller would expect, so ``except ValueError``
keeps working. :class:`Interrupted` (Ctrl-C) is no error, and a KeyboardInterrupt only.
"""

from __future__ import annotations

from collections.abc import Sequence


class CorgiError(Exception):
    """Base class of all errors raised by corgi_opt."""


class InputError(CorgiError, ValueError):
    """An argument is unusable: wrong shape, NaN, eps < 0, k out of range, image outside the clip box ..."""


class UnknownMethodError(InputError):
    """The requested method does not exist."""

    def __init__(self, method: object, known: Sequence[str]) -> None:
        self.method, self.known = method, tuple(known)
        super().__init__(f"unknown method {method!r}; choose one of {', '.join(map(repr, known))}")


class TieError(CorgiError, ValueError):
    """Pixels k and k+1 of the CAM are tied at the given image, so its top-k set is not defined."""


class ModelModeError(CorgiError, ValueError):
    """The model is in training mode, where dropout and batch norm make it a different function each time."""


class UnsupportedOpError(CorgiError, NotImplementedError):
    """The model uses an operation that is not known here.

    ``node`` is the module path (or graph node), ``op`` the operation, ``hint`` the way out.
    """

    def __init__(self, node: str, op: str, hint: str) -> None:
        self.node, self.op, self.hint = node, op, hint
        super().__init__(f"{node}: {op} is not supported. {hint}")


class NoCamHeadError(CorgiError, ValueError):
    """The network does not end in: spatial features -> global average pool -> linear."""


class ParityError(CorgiError, RuntimeError):
    """The layer graph and the torch model disagree on an input: a bug of ours, never to be passed over."""


class BoundOrderError(CorgiError, RuntimeError):
    """A proven bound contradicts a stronger one or a concrete image: a bug of ours, never to be passed over."""


class NumericalError(CorgiError, ArithmeticError):
    """A calculation overflowed or gave NaN: nothing is claimed from it."""


class CertificateError(CorgiError, ValueError):
    """A file is no certificate or a damaged one, or a certificate cannot be made; says why."""


class ProofError(CorgiError, RuntimeError):
    """A certificate does not prove what it claims about this network; says where."""


class StoreError(CorgiError, RuntimeError):
    """A study's results cannot be read or written: no such file, a damaged one, or another process writes it."""


class StudyError(CorgiError, RuntimeError):
    """A study cannot go on (its scheduler is gone, or has no worker); what was answered by then is kept."""


class MissingPackageError(CorgiError, ImportError):
    """A package is not installed, or too old; the message holds the pip command."""

    def __init__(self, package: str, purpose: str, pip: str, reason: str = "is not installed") -> None:
        self.package, self.pip = package, pip
        super().__init__(f"{purpose} needs the package {package!r}, which {reason}. Run: {pip}")


class UserCodeError(CorgiError, RuntimeError):
    """Code of the user's, which was named, raised an error, the ``__cause__``: a model, what builds it, a study's plan.

    ``name``: what was asked for; ``place``: file, line and function in the user's code, and ``line``, what stands
    there; ``said``: the error's type and message. The message is five lines.
    """

    def __init__(self, name: str, place: str, line: str, said: str) -> None:
        self.name, self.place, self.line, self.said = name, place, line, said
        super().__init__(
            f"{name} failed in its own code:\n  {place}\n    {line or '(no source)'}\n  {said}\n"
            "Mend it there; run again with CORGI_TRACEBACK=1 in the environment to see the whole traceback."
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a call. ``partial``: the Verdict, Radius, Comparison or (of a study) Progress
    as far as it is known by then."""

    def __init__(self, partial: object) -> None:
        self.partial = partial
        super().__init__("interrupted; what is known by then is in .partial")
