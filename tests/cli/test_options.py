"""Groups of options: a command with a group takes each of its fields as an option, and is handed the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import corgi_opt as co
from corgi_opt.cli.options import Means, Setting, Several, Subject, What, named_classes, number_or_name, unfolded


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


def test_names_of_classes_stand_between_commas_or_line_by_line_in_a_file(tmp_path):
    assert named_classes("stop, give way,30") == ["stop", "give way", "30"]
    many = [f"sign number {at}" for at in range(400)]  # longer than a file's name, and than a path
    assert named_classes(",".join(many)) == many
    (tmp_path / "names.txt").write_text("stop\ngive way, please\nétroit\n", encoding="utf-8")
    assert named_classes(str(tmp_path / "names.txt")) == ["stop", "give way, please", "étroit"]
    with pytest.raises(co.InputError, match=r"a text file with a name on each line, or .*got 'absent.txt'"):
        named_classes("absent.txt")
    (tmp_path / "net.pt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(co.InputError, match="no text file in UTF-8"):
        named_classes(str(tmp_path / "net.pt"))


def test_a_class_is_a_number_or_a_name():
    assert number_or_name(None, names=True) is None
    assert number_or_name("12", names=True) == 12 and number_or_name("-1", names=False) == -1
    assert number_or_name("stop", names=True) == "stop"
    with pytest.raises(co.InputError, match="number of a class, or its name together with --classes"):
        number_or_name("stop", names=False)
