"""Functionals on windows say the same however they are laid out: against sums over the map, position by position."""

from __future__ import annotations

import numpy as np
import pytest

from corgi_opt.proof.rows import Rows

SHAPE = (2, 5, 4)
MAP = np.random.default_rng(1).integers(-9, 10, SHAPE).astype(np.float64)


def rows(count: int = 4, size: tuple[int, int] = (3, 2), seed: int = 0, spread: bool = True) -> Rows:
    """Windows of which some hang over every edge of the map."""
    rng = np.random.default_rng(seed)
    coefs = rng.integers(-5, 6, (count, SHAPE[0], *size)).astype(np.float64)
    corners = np.array([[-2, -1], [4, 3], [1, 1], [-1, 3]])[:count] if spread else np.full((count, 2), 1)
    return Rows(coefs, corners)


def values(of: Rows, maps: np.ndarray = MAP) -> list[float]:
    """Each functional at a map: what is off it counts nothing."""
    found = []
    for row, (top, left) in zip(of.coefs, of.corners.tolist(), strict=True):
        total = 0.0
        for c, i, j in np.ndindex(*row.shape):
            if 0 <= top + i < maps.shape[1] and 0 <= left + j < maps.shape[2]:
                total += row[c, i, j] * maps[c, top + i, left + j]
        found.append(total)
    return found


def test_what_is_gathered_is_the_map_on_the_windows_and_zero_off_it():
    found = rows().gather(MAP)
    assert found.shape == (4, 2, 3, 2)
    for row, (top, left) in enumerate(rows().corners.tolist()):
        for c, i, j in np.ndindex(2, 3, 2):
            inside = 0 <= top + i < SHAPE[1] and 0 <= left + j < SHAPE[2]
            assert found[row, c, i, j] == (MAP[c, top + i, left + j] if inside else 0.0)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 2), (2, 6), (9, 9)])
def test_cut_to_the_map_they_say_the_same_and_weigh_nothing_off_it(size):
    given = rows(size=size)
    cut = given.on(SHAPE)
    assert values(cut) == values(given)
    assert cut.coefs.shape[2] <= SHAPE[1] and cut.coefs.shape[3] <= SHAPE[2]
    off = cut.gather(np.ones((1, *SHAPE[1:]))) == 0
    assert not cut.coefs[np.broadcast_to(off, cut.coefs.shape)].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_laid_out_along_an_axis_they_hold_its_positions_from_the_first(axis):
    given, length = rows(), SHAPE[1 + axis]
    found = given.laid_out(axis, length)
    assert (found.corners[:, axis] == 0).all() and found.coefs.shape[2 + axis] == length
    assert values(found) == values(given)


@pytest.mark.parametrize("other", [rows(seed=5), rows(seed=6, size=(1, 4)), rows(seed=7, spread=False)])
def test_a_sum_says_the_sum(other):
    """Of windows that lie apart by one shift, and of others."""
    shifted = Rows(other.coefs, other.corners + np.array([1, -1]))
    for second in (other, shifted):
        expected = [a + b for a, b in zip(values(rows()), values(second), strict=True)]
        assert values(rows().plus(second, SHAPE)) == expected
        assert values(second.plus(rows(), SHAPE)) == expected


def test_a_map_that_is_the_same_everywhere_is_left_to_broadcast():
    constant = np.array([[[2.0]], [[-3.0]]])
    assert rows().over(constant) is constant
    assert rows().over(MAP).shape == rows().coefs.shape


def test_parts_are_some_of_them_in_order():
    given = rows()
    parts = [given.part(start, 2) for start in (0, 2)]
    assert [v for part in parts for v in values(part)] == values(given)
    assert len(given) == 4 and len(given.part(3, 2)) == 1
