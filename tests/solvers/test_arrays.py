"""Arrays of a problem: read-only and nobody else's, or refused with the place of what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from corgi_solvers import ProblemError
from corgi_solvers.arrays import frozen_mask, frozen_matrix, frozen_vector, require_finite, require_interval
from scipy.sparse import csr_array


def test_a_matrix_is_the_same_whatever_it_came_as_and_cannot_be_written() -> None:
    dense = np.array([[1.0, 0.0, -2.0], [0.0, 0.0, 3.0]])
    twice = csr_array(([1.0, -5.0, 3.0, 3.0, 0.0], [0, 2, 2, 2, 1], [0, 3, 5]), shape=(2, 3))
    for made in (dense, csr_array(dense), twice, dense.tolist()):
        found = frozen_matrix(made)
        assert (found.toarray() == dense).all()
        assert found.nnz == 3  # duplicates are summed, zeros dropped
        with pytest.raises(ValueError, match="read-only"):
            found.data[0] = 7.0


def test_a_matrix_is_copied_once_and_shared_from_then_on() -> None:
    mine = csr_array(np.eye(2))
    found = frozen_matrix(mine)
    mine.data[:] = 9.0
    assert found.toarray().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert frozen_matrix(found) is found


def test_a_vector_is_copied_unless_nobody_can_write_it() -> None:
    mine = np.array([1.0, 2.0])
    found = frozen_vector("c", mine, 2)
    mine[0] = 9.0
    assert found.tolist() == [1.0, 2.0] and not found.flags.writeable
    assert frozen_vector("c", found, 2) is found
    view = mine[:]
    view.setflags(write=False)  # its base can still be written
    held = frozen_vector("c", view, 2)
    mine[0] = 5.0
    assert held.tolist() == [9.0, 2.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], r"c has shape \(1,\); it must be \(2,\)"),
        ([[1.0, 2.0]], "c has shape"),
        ([1.0, math.nan], r"c\[1\] is NaN"),
        (["a", 1.0], "c is not an array of numbers"),
        ([[1.0], [1.0, 2.0]], "c is not an array of numbers"),
    ],
)
def test_what_is_no_vector_is_refused(values: object, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        frozen_vector("c", values, 2)  # type: ignore[arg-type]


def test_a_mask_is_boolean_or_empty() -> None:
    assert frozen_mask("integrality", [True, False], 2).tolist() == [True, False]
    assert frozen_mask("integrality", [], 0).shape == (0,)
    for values in ([0, 1], [1.0, 0.0], [True]):
        with pytest.raises(ProblemError, match="integrality has"):
            frozen_mask("integrality", values, 2)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_the_first_entry_that_is_not_finite_is_named(bad: float) -> None:
    require_finite("c", np.array([1e308, -0.0]))
    with pytest.raises(ProblemError, match=r"c: entry 1 is"):
        require_finite("c", np.array([0.0, bad, bad]))


def test_an_interval_holds_a_number() -> None:
    low, high = np.array([0.0, -math.inf, 2.0]), np.array([0.0, math.inf, math.inf])
    require_interval("row", low, high)
    for a, b in ((1.0, 0.0), (math.inf, math.inf), (-math.inf, -math.inf)):
        with pytest.raises(ProblemError, match=r"row_lower\[1\] = .* hold no number"):
            require_interval("row", np.array([0.0, a]), np.array([1.0, b]))


def test_three_dimensions_are_no_matrix() -> None:
    with pytest.raises((ProblemError, ValueError)):
        frozen_matrix(np.zeros((2, 2, 2)))
