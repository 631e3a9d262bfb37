"""Where progress is shown and what it says: on standard error, asked for or before a terminal, and nowhere else."""

from __future__ import annotations

import sys

import pytest

from corgi_opt._progress import counting, reporting, silent
from corgi_opt.errors import InputError


class Terminal:
    """Standard error before somebody's eyes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_a_line_says_its_title_and_what_is_left(capfd):
    with reporting(True, "radius") as report:
        report("12 pairs left")
    out, err = capfd.readouterr()
    assert out == "" and "radius" in err and "12 pairs left" in err


@pytest.mark.parametrize("wanted", [False, None])
def test_where_nobody_looks_nothing_is_written(wanted, capfd):
    with reporting(wanted, "radius") as report:
        report("12 pairs left")
        assert report is silent
    with counting(wanted, "cells", total=5) as step:
        step(2)
    assert capfd.readouterr() == ("", "")


def test_before_a_terminal_it_is_shown_unasked_unless_told_not_to(monkeypatch):
    for wanted, shown in ((None, True), (False, False)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with counting(wanted, "cells", total=4) as step:
            step(1)
        assert ("cells" in terminal.text) is shown


def test_a_bar_counts_on_from_what_was_done_before(capfd):
    with counting(True, "cells", total=9, done=4) as step:
        assert "4/9" in capfd.readouterr().err
        step(5)
    assert "9/9" in capfd.readouterr().err


@pytest.mark.parametrize("wanted", [1, 0, "yes", []])
@pytest.mark.parametrize("shown", [lambda w: reporting(w, "a"), lambda w: counting(w, "a", 1)])
def test_what_is_no_wish_is_refused(shown, wanted):
    with pytest.raises(InputError, match="progress must be True, False or None"), shown(wanted):
        pass


def test_in_a_log_a_line_every_so_often_says_done_of_total_rate_and_time_left(monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr("corgi_opt._progress.time.monotonic", lambda: now[0])
    with counting(None, "digits", total=1000, done=100) as step:
        for seconds, steps in ((10, 1), (15, 1), (41, 8), (41, 1), (100, 9)):
            now[0] = seconds
            step(steps)
        now[0] = 100_000
        step(880)
    assert capfd.readouterr().err.splitlines() == [
        "digits: 110 of 1000 cells, 17.4 a minute, about 51 min left",
        "digits: 120 of 1000 cells, 12.7 a minute, about 1 h 09 min left",
        "digits: 1000 of 1000 cells, 32.4 an hour",
    ]


def test_before_there_is_a_rate_none_is_said(monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr("corgi_opt._progress.time.monotonic", lambda: now[0])
    with counting(None, "digits", total=9) as step:
        now[0] = 300.0
        step(1)
    assert capfd.readouterr().err == "digits: 1 of 9 cells\n"
