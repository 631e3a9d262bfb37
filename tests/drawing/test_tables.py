"""Tables show texts as they are."""

from __future__ import annotations

from corgi_opt.drawing.tables import print_table


def test_texts_are_printed_as_they_are(capsys):
    print_table("a [title]", ("what", "how"), [("[bold]x[/bold]", "path/:smile:/y"), ("e", "mc")])
    printed = capsys.readouterr().out
    for text in ("a [title]", "what", "how", "[bold]x[/bold]", "path/:smile:/y", "mc"):
        assert text in printed


def test_long_texts_are_folded_and_nothing_of_them_is_lost(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("t", ("a",), [(" ".join(f"word{n}" for n in range(30)),)])
    printed = capsys.readouterr().out
    assert all(f"word{n}" in printed for n in range(30)) and max(map(len, printed.splitlines())) <= 40


def test_columns_without_names_have_no_headings(capsys):
    print_table("t", ("", ""), [("a", "b")])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.strip()]) == 2
