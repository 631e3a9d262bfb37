"""How the command line ends, in processes of their own: closed pipes, ``python -m corgi_opt``, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
from commands import QUESTION

from corgi_opt._version import __version__
from corgi_opt.cli.ending import code_of
from corgi_opt.errors import InputError

FALSIFIED = ("verify", *QUESTION, "--eps", "0.05", "--method", "corgi")
CERTIFIED = ("verify", *QUESTION, "--eps", "0.001", "--method", "corgi")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "corgi_opt", *arguments]


@pytest.mark.parametrize(
    "arguments",
    [(*CERTIFIED, "--json"), *(pytest.param(a, marks=pytest.mark.slow) for a in (CERTIFIED, ("--help",)))],
)
def test_a_pipe_that_nobody_reads_is_no_verdict_and_no_traceback(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(command(*arguments), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_pipe_that_is_read_in_part_leaves_no_traceback():
    """The reader is gone before or after all is written: which, is a matter of luck."""
    said = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit "${PIPESTATUS[0]}"', "bash", *command(*CERTIFIED)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.stdout.startswith("certified at eps=0.001") and said.stdout.count("\n") == 1
    assert said.returncode in (0, 141) and said.stderr == ""


def test_python_m_is_the_console_script():
    ran = subprocess.run(command(*FALSIFIED), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and ran.stdout.startswith("falsified at eps=0.05")


def test_the_version_is_the_packages(corgi):
    assert corgi("--version") == (0, f"corgi-opt {__version__}\n", "")


def ends_with(error: BaseException) -> int:
    def run() -> int:
        raise error

    return code_of(run)


def test_only_a_verdict_is_a_verdict(capsys):
    assert [code_of(partial(int, code)) for code in (0, 1, 2)] == [0, 1, 2]
    assert code_of(lambda: None) == 0
    assert ends_with(InputError("a [word] in brackets")) == 3
    assert "error: a [word] in brackets\n" in capsys.readouterr().err
    assert ends_with(KeyboardInterrupt()) == 130 and capsys.readouterr().err == ""
    for crash in (SystemExit(1), OSError(28, "No space left"), ZeroDivisionError()):
        assert ends_with(crash) == 3
        assert "Please report it" in capsys.readouterr().err


def test_a_closed_pipe_is_found_behind_the_exit_of_others(monkeypatch, capsys):
    """click and rich turn it into SystemExit(1), which a shell would read as falsified."""
    monkeypatch.setattr("corgi_opt.cli.ending._drop_output", lambda: None)
    stop = SystemExit(1)
    stop.__context__ = BrokenPipeError(32, "Broken pipe")
    assert ends_with(stop) == ends_with(BrokenPipeError(32, "Broken pipe")) == 141
    assert capsys.readouterr().err == ""
