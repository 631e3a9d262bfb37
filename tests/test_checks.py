"""Plain arguments: what counts as a number, which ends are inside, and a refusal that names all three."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from corgi_opt._checks import check_rtol, finite, integer, not_negative, number_from_text, resolve_device
from corgi_opt.errors import InputError


@pytest.mark.parametrize("value", [2, 5, np.int64(2), np.uint8(5)])
def test_integers_up_to_both_ends_count(value):
    found = integer("k", value, 2, 5)
    assert found == value and type(found) is int


@pytest.mark.parametrize("value", [1, 6, 3.0, True, "3", None, np.float64(3), math.nan])
def test_what_is_no_integer_of_the_range_is_refused_by_name(value):
    with pytest.raises(InputError, match=r"^k must be an int in 2\.\.5 \(of pixels\), got"):
        integer("k", value, 2, 5, " (of pixels)")


@pytest.mark.parametrize("value", [0, -1.5, np.float32(0.5), Fraction(1, 3), np.int64(-7)])
def test_real_numbers_count_and_become_floats(value):
    found = finite("eps", value)
    assert found == float(value) and type(found) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 1j, np.float64("inf")])
def test_what_is_no_finite_number_is_refused(value):
    for check in (finite, not_negative):
        with pytest.raises(InputError, match="eps must be a finite number"):
            check("eps", value)


@pytest.mark.parametrize(
    ("text", "number"), [("1/255", 1 / 255), ("0.5/255", 0.5 / 255), ("8 / 255", 8 / 255), ("1e-3", 1e-3), (" 2 ", 2.0)]
)
def test_a_number_is_typed_as_a_decimal_or_a_fraction(text, number):
    assert number_from_text(text) == number


@pytest.mark.parametrize("text", ["", "a", "1/", "/2", "1/0", "1/2/3", "0,1"])
def test_other_text_is_no_number(text):
    with pytest.raises(ValueError, match=r"float|zero"):
        number_from_text(text)


def test_zero_is_not_negative_and_the_next_float_below_is():
    assert not_negative("eps", 0.0) == 0.0
    with pytest.raises(InputError, match="eps must be >= 0, got"):
        not_negative("eps", -math.ulp(0.0))


@pytest.mark.parametrize("rtol", [math.ulp(0.0), 0.5, np.float32(0.25), 1 - 2**-53])
def test_a_resolution_is_strictly_between_zero_and_one(rtol):
    assert check_rtol(rtol) == float(rtol)


@pytest.mark.parametrize("rtol", [0, 1, 0.0, 1.0, -0.1, math.nan, True, None, "0.1"])
def test_what_is_no_resolution_is_refused(rtol):
    with pytest.raises(InputError, match="rtol must be a number between 0 and 1"):
        check_rtol(rtol)


def test_a_device_is_one_that_holds_values():
    said: Any
    for said in ("cpu", torch.device("cpu")):
        assert resolve_device(said) == torch.device("cpu")
    for said in ("meta", "cuda:77", "no such", 3.5):
        with pytest.raises(InputError, match="use 'auto' or 'cpu'"):
            resolve_device(said)
