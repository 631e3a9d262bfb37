"""How a run of the command line ends: its exit code, and what it says of errors.

A verdict is 0, 1 or 2. Whatever else happens is none of these: Python's usual 1 for a crash would read as falsified.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer
from rich.console import Console

from corgi_opt.cli.answers import INTERRUPTED
from corgi_opt.errors import CorgiError

USAGE, UNREAD = 3, 141

TRACEBACK = "CORGI_TRACEBACK"
"""The environment variable that shows the whole traceback of an error."""

REPORT = "https://github.com/corgi-opt/corgi_opt/issues"

# usage errors are of click's class, which newer typers carry a copy of: no import finds it in all of them
CLICK_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def code_of(run: Callable[[], Any]) -> int:
    """The exit code of a run, after its errors have been said: 3 for an error, 130 for Ctrl-C, and 141, as a shell has
    it, where nobody reads the output to its end."""
    try:
        code = run()
        sys.stdout.flush()  # a pipe that is closed is noticed here, not when Python ends
        return int(code or 0)
    except CorgiError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    except CLICK_ERROR as error:
        error.show()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (SystemExit, OSError) as error:  # click and rich end the process themselves where a pipe is closed
        if _unread(error):
            _drop_output()
            return UNREAD
        _say_crash()
    except Exception:
        _say_crash()
    return USAGE


def _unread(error: BaseException | None) -> bool:
    """Whether an error comes of writing to a pipe that nobody reads any more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            return True
        error = error.__context__
    return False


def _drop_output() -> None:
    """What is still to be written goes nowhere: Python would complain of the closed pipe when it ends."""
    with suppress(OSError, ValueError):  # no file is behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _say_crash() -> None:
    traceback.print_exc()
    print(
        f"This is a mistake of corgi_opt and no verdict. Please report it with all of the above: {REPORT}",
        file=sys.stderr,
    )
