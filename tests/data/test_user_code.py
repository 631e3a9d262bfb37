"""Where an error of the user's own code is said to be; the whole way is in tests/cli/test_refusals.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import corgi_opt as co
from corgi_opt.data.user_code import MOST_SAID, import_module, user_code


def failure(call: Callable[[], object]) -> co.UserCodeError:
    with pytest.raises(co.UserCodeError) as raised, user_code("what.py:build"):
        call()
    return raised.value


def test_the_place_is_the_last_line_of_the_users_own():
    error = failure(lambda: json.loads("{"))  # the error itself is raised in the standard library
    assert Path(error.place.split(", line")[0]).name == Path(__file__).name
    assert "json.loads" in error.line and error.said.startswith("JSONDecodeError: ")
    error = failure(lambda: torch.zeros(2).view(3).add(1))
    assert "torch.zeros(2).view(3)" in error.line and isinstance(error.__cause__, RuntimeError)


def test_the_message_is_five_lines_however_long_the_error_is():
    def fails() -> None:
        raise ValueError("much " * 1000 + "\nand more")

    error = failure(fails)
    assert len(str(error).splitlines()) == 5 and len(error.said) <= MOST_SAID + len("ValueError: ")
    assert error.name == "what.py:build"

    def says_nothing() -> None:
        raise AssertionError

    assert failure(says_nothing).said == "AssertionError"


def test_code_without_a_file_has_a_place_too():
    error = failure(lambda: exec("1 / 0"))
    assert error.said == "ZeroDivisionError: division by zero" and "exec" in error.line


def test_a_module_is_missing_or_fails_or_lacks_another(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "lacking.py").write_text("import no_such_package\n")
    for name in ("no_such_package", "no_such_package.nets", "user_package.gone"):
        with pytest.raises(co.InputError, match=f"cannot import '{name}'"):
            import_module(name)
    with pytest.raises(co.UserCodeError, match=r"lacking.py, line 1.*\n.*\n.*no_such_package"):
        import_module("user_package.lacking")
    assert import_module("json") is json


def test_what_is_no_mistake_of_the_users_goes_through():
    for raised in (co.InputError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(raised)), user_code("what.py:build"):
            raise raised
    with user_code("what.py:build"):
        pass
