"""Each operation's rules against torch's, and each adjoint against its map, in exact fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.operations import Combine, Conv, Tap
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.tally import Tally

SHAPE = (4, 6, 5)
CONVS = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 3), (2, 1), (0, 2), (1, 1), 2),
    ((2, 2), (1, 3), (1, 0), (2, 1), 4),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1),
]
TAPS = [((1, 1), (0, 0)), ((2, 1), (-1, 1)), ((1, 2), (2, -2))]


def whole(*shape: int, seed: int = 0) -> np.ndarray:
    """Small integers as floats, so that nothing rounds."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float64)


def conv(kernel, stride, padding, dilation, groups) -> Conv:
    return Conv(whole(4, 4 // groups, *kernel), whole(4, seed=1), stride, padding, dilation, groups)


def by_torch(op: Conv, x: np.ndarray) -> np.ndarray:
    weight, bias = torch.from_numpy(op.weight), torch.from_numpy(op.bias)
    return F.conv2d(torch.from_numpy(x)[None], weight, bias, op.stride, op.padding, op.dilation, op.groups)[0].numpy()


def pairing(coefs: np.ndarray, corners: np.ndarray, maps: np.ndarray) -> list[Fraction]:
    """``sum coef * value`` on each window, what is off the map left out."""
    found = []
    for row, corner in zip(coefs, corners.tolist(), strict=True):
        total = Fraction(0)
        for c, i, j in np.ndindex(*row.shape):
            y, x = corner[0] + i, corner[1] + j
            if 0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]:
                total += Fraction(row[c, i, j]) * Fraction(maps[c, y, x])
        found.append(total)
    return found


def functionals(shape: tuple[int, int, int], count: int = 5) -> Rows:
    """On windows inside a map: an operation's rows never weigh what is off it."""
    rng = np.random.default_rng(2)
    corners = np.stack([rng.integers(0, n - 1, count) for n in shape[1:]], axis=1)
    return Rows(Exact().of(whole(count, shape[0], 2, 2, seed=3)), corners)


@pytest.mark.parametrize("arguments", CONVS)
def test_a_convolution_is_torchs(arguments):
    op, x = conv(*arguments), whole(*SHAPE, seed=4)
    expected = by_torch(op, x)
    for number in (Float64().of, Exact().of):
        (found,) = op.images([number(op.weight)], [number(x)], expected.shape)
        assert (found.astype(np.float64) + op.bias_map == expected).all()
    height, width = op.reads(expected.shape[1:])
    assert height <= SHAPE[1] + 2 * op.padding[0] < height + op.stride[0]
    assert width <= SHAPE[2] + 2 * op.padding[1] < width + op.stride[1]


@pytest.mark.parametrize("arguments", CONVS)
def test_the_adjoint_of_a_convolution_gives_the_same_sums(arguments):
    op, x = conv(*arguments), whole(*SHAPE, seed=4)
    out = by_torch(op, x) - op.bias_map
    rows = functionals(out.shape)
    (below,) = op.adjoint([Exact().of(op.weight)], rows)
    assert pairing(below.coefs, below.corners, x) == pairing(rows.coefs, rows.corners, out)


@pytest.mark.parametrize("arguments", CONVS)
def test_as_many_products_as_it_says(arguments):
    """Of ones: a value of the map counts its terms, so does a coefficient of the adjoint, at most."""
    op = conv(*arguments)
    ones = np.ones_like(op.weight)
    (counts,) = op.images([ones], [np.ones(SHAPE)], by_torch(op, whole(*SHAPE)).shape)
    assert counts.max() <= op.terms
    (below,) = op.adjoint([ones], Rows(np.ones((1, 4, 3, 3)), np.zeros((1, 2), dtype=np.int64)))
    assert below.coefs.max() <= op.adjoint_terms
    (inside,) = op.images([ones], [np.ones((4, 30, 30))], (4, 5, 5))
    assert inside[:, 2:, 2:].max() == op.terms


@pytest.mark.parametrize("arguments", CONVS)
@pytest.mark.parametrize("arithmetic", [Float64(), Exact()])
def test_the_bias_is_added_for_every_position(arguments, arithmetic):
    op = conv(*arguments)
    rows = functionals((4, 4, 4))
    floats = Rows(arithmetic.of(rows.coefs.astype(np.float64)), rows.corners)
    tally = Tally(arithmetic, len(rows))
    op.add_bias(floats, arithmetic.of(op.bias_map), tally)
    expected = [sum(Fraction(v) for v in (row.sum(axis=(1, 2)) * op.bias)) for row in rows.coefs]
    assert [Fraction(v) for v in tally.value] == expected
    assert (tally.lower <= [float(e) for e in expected]).all()


@pytest.mark.parametrize(("stride", "offset"), TAPS)
def test_a_selection_is_what_it_says_and_so_is_its_adjoint(stride, offset):
    op, x = Tap(stride, offset), whole(*SHAPE, seed=4)
    shape = (SHAPE[0], 4, 3)
    expected = np.zeros(shape)
    for c, i, j in itertools.product(*map(range, shape)):
        y, z = i * stride[0] + offset[0], j * stride[1] + offset[1]
        if 0 <= y < SHAPE[1] and 0 <= z < SHAPE[2]:
            expected[c, i, j] = x[c, y, z]
    assert (op.image([x], shape) == expected).all()
    rows = functionals(shape)
    (below,) = op.adjoint(rows)
    assert pairing(below.coefs, below.corners, x) == pairing(rows.coefs, rows.corners, expected)


def test_a_sum_with_coefficients_of_any_shape_and_its_adjoints():
    shape, coefs = (4, 4, 3), (whole(1, 1, 1, seed=5) + 2, whole(4, 1, 1, seed=6), whole(1, 4, 3, seed=7))
    op = Combine(coefs, whole(4, 4, 3, seed=8))
    values = [whole(*shape, seed=9 + n) for n in range(3)]
    images = op.images(op.weights, values, shape)
    expected = coefs[0] * values[0] + coefs[1] * values[1] + coefs[2] * values[2]
    assert (sum(np.broadcast_to(i, shape) for i in images) == expected).all()
    rows = functionals(shape)
    below = op.adjoint([Exact().of(c) for c in coefs], rows)
    sums = [pairing(b.coefs, b.corners, v) for b, v in zip(below, values, strict=True)]
    assert [sum(parts) for parts in zip(*sums, strict=True)] == pairing(rows.coefs, rows.corners, expected)
    tally = Tally(Exact(), len(rows))
    op.add_bias(rows, Exact().of(op.shift), tally)
    assert tally.value.tolist() == pairing(rows.coefs, rows.corners, op.shift)
