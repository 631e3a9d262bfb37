"""Import of the packages of an extra, at the moment they are needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from corgi_opt.errors import MissingPackageError


def package(module: str, package: str, purpose: str, extra: str) -> ModuleType:
    """Import ``module``, which the installable ``package`` of an extra of ours provides; ``purpose`` opens the message.

    Raises MissingPackageError when it is not installed. An ImportError of another kind (a broken install)
    passes through: "run pip install" would be the wrong advice for it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(package, purpose, f"pip install 'corgi_opt[{extra}]'") from error
