"""Tables show texts as they are."""

from __future__ import annotations

import math

import pytest

from corgi_opt.drawing.tables import html_grid, html_table, print_table, seconds_in_words


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


def test_a_table_says_its_values_and_escapes_what_is_html():
    found = html_table("a <b>", {"x & y": 1 / 3, "n": 7, "s": "<script>", "left out": None})
    for words in ("a &lt;b&gt;", "x &amp; y", ">0.333333<", ">7<", "&lt;script&gt;"):
        assert words in found
    assert "<script>" not in found and "left out" not in found


def test_a_grid_has_a_line_of_headings_and_a_heading_a_row():
    found = html_grid("title", ("method", "eps", "why"), [("corgi", 1 / 3, "<i>"), ("lp", 2.0, None)])
    assert found.count("<tr>") == 3 and "<th>corgi</th>" in found and ">0.333333<" in found
    assert "&lt;i&gt;" in found and "<i>" not in found


def test_a_grid_scrolls_by_itself_and_what_is_no_number_is_a_dash():
    found = html_grid("title", ("method", "over CORGI"), [("corgi", math.nan), ("lp", math.inf)])
    assert found.startswith('<div style="overflow-x:auto"><table>') and found.endswith("</table></div>")
    assert ">-<" in found and "nan" not in found and ">inf<" in found


@pytest.mark.parametrize(("seconds", "said"), [(2e-5, "below 0.01"), (0.006, "0.01"), (1.234, "1.23"), (123.4, "123")])
def test_times_have_the_digits_that_somebody_reads(seconds, said):
    assert seconds_in_words(seconds) == said
