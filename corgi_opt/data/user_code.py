"""The user's own code, run by name: what it raises is said in five lines, with the place in the user's file."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from corgi_opt.errors import CorgiError, InputError, UserCodeError

MOST_SAID = 300
"""Characters of an error's own message that are shown."""

_PACKAGES = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
FOREIGN = tuple(f"{folder.resolve()}/" for folder in (*map(Path, _PACKAGES), Path(__file__).parents[1]))
"""Folders of code that is not the user's: Python, installed packages, this one."""


@contextmanager
def user_code(name: str) -> Iterator[None]:
    """Around a call of what ``name`` names. Raises UserCodeError for whatever that raises, but errors of ours."""
    try:
        yield
    except CorgiError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit(1) in a model's file is no verdict
        raise UserCodeError(name, *_place(error), _said(error)) from error


def import_module(name: str) -> ModuleType:
    """The user's module of a dotted name. Raises InputError where it is not there, UserCodeError where it fails."""
    try:
        with user_code(name):
            return importlib.import_module(name)
    except UserCodeError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{name}.".startswith(f"{missing.name}."):
            raise InputError(f"cannot import {name!r}: {missing}") from missing
        raise


def _place(error: BaseException) -> tuple[str, str]:
    """File, line and function of the last step in the user's own code, and what stands there."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{_short(error.filename)}, line {error.lineno}", (error.text or "").strip()
    steps = traceback.extract_tb(error.__traceback__)
    own = [step for step in steps if not _foreign(step.filename)]
    step = (own or steps)[-1]
    return f"{_short(step.filename)}, line {step.lineno}, in {step.name}", (step.line or "").strip()


def _foreign(file: str) -> bool:
    return file.startswith("<") or str(Path(file).resolve()).startswith(FOREIGN)


def _short(file: str) -> str:
    """Relative to the current directory, for what is in there."""
    path, here = Path(file).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _said(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0][:MOST_SAID]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
