"""What is printed is what was said: messages hold brackets and long lines, numbers may be infinite."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from corgi_opt.cli.output import emit, say


@dataclass(frozen=True)
class Found:
    lower: float
    upper: float
    image: torch.Tensor


def test_a_line_is_printed_as_it_is(capsys):
    text = "[bold]not markup[/bold] :smile: 3.14159 'quoted' " + "x" * 300
    say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_style_changes_no_word(capsys):
    say("eps [0.1, 0.2]", style="bold red")
    assert "eps [0.1, 0.2]" in capsys.readouterr().out


def test_a_result_is_one_json_object_on_one_line(capsys):
    emit(Found(1 / 3, math.inf, torch.tensor([[0.1, 0.2]], dtype=torch.float64)))
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == ""
    found = json.loads(out, parse_constant=lambda name: 1 / 0)
    assert found == {"lower": 1 / 3, "upper": None, "image": [[0.1, 0.2]]}


def test_nan_is_null_wherever_it_is(capsys):
    emit({"a": [math.nan, {"b": -math.inf}], "c": "text"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": "text"}
