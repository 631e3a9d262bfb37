"""Ctrl-C in a command: what is known by then, printed as an answer is, and exit code 130."""

from __future__ import annotations

import pytest
import typer
from commands import QUESTION, only_json

import corgi_opt as co
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.radius_search import RadiusSearch
from corgi_opt.cli.answers import answered

OPEN = ("digits", "--image", "7", "--k", "3")
"""CROWN certifies up to 0.0138, the dual up to 0.0151."""

SAID = "interrupted; this is what was known by then:\n"


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C comes when dual ascent begins."""
    certified, bound = RadiusSearch.certified, Ladder.bound

    def in_a_radius(search, name, *given):
        if name == "dual":
            raise KeyboardInterrupt
        return certified(search, name, *given)

    def in_a_verdict(ladder, name, *given):
        if name == "dual":
            raise KeyboardInterrupt
        return bound(ladder, name, *given)

    monkeypatch.setattr(RadiusSearch, "certified", in_a_radius)
    monkeypatch.setattr(Ladder, "bound", in_a_verdict)


def test_a_stopped_verdict_is_printed(corgi, stopped):
    asked = ("verify", *OPEN, "--eps", 0.0145, "--method", "dual")
    ran = corgi(*asked)
    assert (ran.code, ran.err) == (130, SAID)
    assert ran.out.startswith("unknown at eps=0.0145, k=3, class 7: interrupted\n  margin in [")
    ran = corgi(*asked, "--json")
    found = only_json(ran)
    assert (ran.code, found["status"], found["reason"]) == (130, "unknown", "interrupted")


def test_a_stopped_radius_is_printed(corgi, stopped):
    asked = ("radius", *OPEN, "--method", "dual")
    ran = corgi(*asked)
    assert (ran.code, ran.err) == (130, SAID)
    assert ran.out.startswith("certified up to 0.01") and "interrupted" in ran.out.splitlines()[2]
    ran = corgi(*asked, "--json")
    found = only_json(ran)
    assert ran.code == 130 and 0 < found["lower"] < found["upper"] and "interrupted" in found["reason"]


def test_a_stopped_comparison_is_printed_with_the_methods_that_are_done(corgi, stopped):
    asked = ("compare", *QUESTION, "--methods", "corgi,crown,dual")
    ran = corgi(*asked)
    assert (ran.code, ran.err) == (130, SAID)
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("  c")] == ["corgi", "crown"]
    ran = corgi(*asked, "--json")
    assert ran.code == 130 and list(only_json(ran)["questions"][0]["answers"]) == ["corgi", "crown"]


def test_an_interrupt_before_there_is_anything_is_no_verdict_either(corgi, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("corgi_opt.cli.main.verify", interrupted)
    ran = corgi("verify", *QUESTION, "--eps", 0.003)
    assert (ran.code, ran.out) == (130, "")


def test_an_answer_is_told_once_and_handed_on():
    told: list[int] = []
    assert answered(lambda: 7, told.append) == 7 and told == [7]

    def stops() -> int:
        raise co.Interrupted(3)

    with pytest.raises(typer.Exit) as stop:
        answered(stops, told.append)
    assert stop.value.exit_code == 130 and told == [7, 3]


def test_a_radius_of_zero_is_exit_code_2_and_says_why(corgi):
    ran = corgi("radius", *QUESTION, "--time-limit", 1e-9)
    assert (ran.code, ran.err) == (2, "")
    assert ran.out.startswith("nothing is certified: the proven radius is 0 (falsified at inf)")
    assert "time limit" in ran.out
    found = only_json(corgi("radius", *QUESTION, "--time-limit", 1e-9, "--json"))
    assert found["lower"] == 0 and "time limit" in found["reason"]
    assert corgi("radius", *QUESTION, "--method", "ibp").code == 0
