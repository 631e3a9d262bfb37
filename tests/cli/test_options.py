"""Groups of options: a command with a group takes each of its fields as an option, and is handed the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import corgi_opt as co
from corgi_opt.cli.options import Means, Setting, Several, Subject, What, unfolded


@dataclass(frozen=True)
class Pair:
    width: Annotated[int, typer.Option("--width")] = 3
    name: Annotated[str, typer.Option("--name")] = "none"


def test_a_group_is_its_fields_at_its_place(capsys):
    app, given = typer.Typer(), dict[str, Any]()

    @app.command()
    @unfolded
    def run(
        first: Annotated[int, typer.Option("--first")],
        pair: Pair,
        last: Annotated[bool, typer.Option("--last")] = False,
    ) -> None:
        """Says what it is given."""
        given.update(first=first, pair=pair, last=last)

    assert list(inspect.signature(run).parameters) == ["first", "width", "name", "last"]
    result = CliRunner().invoke(app, ["--first", "1", "--name", "x", "--last"])
    assert result.exit_code == 0, result.output
    assert given == {"first": 1, "pair": Pair(3, "x"), "last": True}
    assert CliRunner().invoke(app, ["--width", "1"]).exit_code == 2  # --first has to be given


def test_no_option_stands_in_two_groups():
    fields = [name for kind in (Subject, What, Setting, Means) for name in inspect.signature(kind).parameters]
    assert len(fields) == len(set(fields))


def test_numbers_in_a_list_are_numbers():
    several: Any = Several
    words = several(ks="1, 3", epses="0.1,2e-3").keywords()
    assert words["k"] == [1, 3] and words["eps"] == [0.1, 0.002]
    with pytest.raises(co.InputError, match="--k"):
        several(ks="1,x").keywords()
