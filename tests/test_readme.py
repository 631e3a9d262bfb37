"""README's Python runs as it stands, in its order, and prints what README says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_code import blocks, run

README = Path(__file__).parents[1] / "README.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def test_its_python_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    import matplotlib.pyplot

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = README.read_text(encoding="utf-8")
    first, *others = blocks(text, "python")
    run(first, README, names)
    (said,) = blocks(text, "text")
    printed = capsys.readouterr().out
    assert [NUMBER.sub("#", line).split() for line in printed.splitlines()] == [
        NUMBER.sub("#", line).split() for line in said.splitlines()
    ]
    ours, theirs = (list(map(float, NUMBER.findall(each))) for each in (printed, said))
    assert ours == pytest.approx(theirs, rel=0.02)  # the last digits are a machine's own
    for block in others:
        run(block, README, names)
    assert len(others) >= 2
    matplotlib.pyplot.close("all")
