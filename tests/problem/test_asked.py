"""What was asked, in words and through JSON: nothing is lost, and only what differs from the default is said."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from asking import about

import corgi_opt as co
from corgi_opt.errors import InputError
from corgi_opt.problem.asked import Asked

PLAIN = about(k=15, class_idx=3)
BOX = ((-1.0, -2.5), (1.5, 1 / 3))


@pytest.mark.parametrize(
    "asked",
    [
        PLAIN,
        about(k=3, within=5),
        about(clip=None),
        replace(PLAIN, norm="2", kept=3, clip=BOX, gap=1 / 3, dtype="float64", network="f" * 64),
        replace(PLAIN, property=co.KeepsClass()),
    ],
)
def test_it_goes_through_json(asked):
    said = json.loads(json.dumps(asked.to_dict(), allow_nan=False))
    assert Asked.from_dict(said) == asked
    assert hash(Asked.from_dict(said)) == hash(asked)


def test_in_short_only_what_is_not_the_default_is_said():
    assert PLAIN.short == "k=15, class 3"
    said = replace(PLAIN, norm="1", clip=None, kept=3).short
    for words in ("k=15", "class 3", "norm 1", "keeping class 3", "no clip box"):
        assert words in said
    assert "norm" not in replace(PLAIN, kept=2).short


def test_an_axis_says_norm_and_box():
    assert PLAIN.units == "L-inf, input units, clip box [0, 1]"
    assert "L-2" in replace(PLAIN, norm="2").units


@pytest.mark.parametrize(
    "changes", [{"property": {"name": "magic"}}, {"norm": "3"}, {"clip": [1.0, 0.0]}, {"clip": [0.0, math.nan]}]
)
def test_what_is_none_is_refused(changes):
    with pytest.raises(InputError):
        Asked.from_dict(PLAIN.to_dict() | changes)
