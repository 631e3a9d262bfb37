"""Results as JSON types: to the last bit, with null for what JSON has no word for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from corgi_opt.problem.plain import Plain, numbers, plain, tensor


@dataclass(frozen=True)
class Result(Plain):
    lower: float
    image: torch.Tensor
    stats: dict[str, float]
    secret: object = field(default=None, repr=False)


AWKWARD = [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, 2**-1022]


def through_json(value: object) -> object:
    return json.loads(json.dumps(plain(value), allow_nan=False))


def test_numbers_come_back_to_the_bit():
    values = torch.tensor([AWKWARD, AWKWARD[::-1]], dtype=torch.float64)
    back = tensor(through_json(values))
    assert back.dtype == torch.float64
    assert torch.equal(back.view(torch.int64), values.view(torch.int64))
    assert tensor([1, 2], torch.long).tolist() == [1, 2]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_json_has_no_word_for_is_null_and_the_reader_knows_what_it_was(value):
    assert plain(value) is None and plain([value, 1.0]) == [None, 1.0]
    said = {"lower": plain(value), "upper": 2.0, "reason": None}
    read = numbers(said, lower=value, upper=0.0)
    assert read["upper"] == 2.0 and read["reason"] is None
    assert read["lower"] == value or (math.isnan(value) and math.isnan(read["lower"]))


def test_a_result_is_its_fields_but_those_that_its_repr_leaves_out():
    found = Result(math.inf, torch.eye(2), {"nodes": 3.0, "left": math.nan}, secret="proof")
    expected = {"lower": None, "image": [[1.0, 0.0], [0.0, 1.0]], "stats": {"nodes": 3.0, "left": None}}
    assert found.to_dict() == plain(found) == expected
    assert through_json({1: (found, [found])}) == {"1": [expected, [expected]]}


def test_what_is_plain_already_stays():
    values: tuple[Any, ...] = (None, True, 3, "text", [], {})
    for value in values:
        assert plain(value) == value and type(plain(value)) is type(value)
