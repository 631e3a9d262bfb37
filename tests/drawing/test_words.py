"""Lines end between words, but not within an interval or between a class and its number."""

from __future__ import annotations

import pytest

from corgi_opt.drawing.words import wrapped

LABEL = "margin of the top-4 set of the CAM of class 1 at eps=0.002 (L-inf, input units, clip box [0, 1])"


@pytest.mark.parametrize("inches", [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0])
def test_no_line_ends_within_an_interval_or_after_the_word_class(inches):
    lines = wrapped(LABEL, inches).splitlines()
    assert " ".join(lines) == LABEL
    assert any("[0, 1]" in line for line in lines) and any("class 1" in line for line in lines)
    assert max(map(len, lines)) <= round(11 * inches)


def test_lines_have_so_many_letters_an_inch_and_at_least_some():
    assert wrapped("aaa bbb ccc", 1.0, letters=3, least=1) == "aaa\nbbb\nccc"
    assert wrapped("aaa bbb ccc", 0.1) == "aaa bbb\nccc"
