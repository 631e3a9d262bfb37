"""The account of rounding: gamma against exact sums, intervals and rows against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from corgi_opt.bounding.tolerance import ONCE, UNIT, Rounding, below, gamma
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ops import Conv2d, Input, ReLU

SHAPE = (3, 2, 2)


def drawn(*shape: int, seed: int, decades: float = 4.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-decades, decades, shape))


def graph(seed: int = 0) -> LayerGraph:
    convs = [
        Conv2d(drawn(3, 3, 1, 1, seed=seed + n), drawn(3, seed=seed + 5 + n), (1, 1), (0, 0), (1, 1), 1) for n in (0, 1)
    ]
    return LayerGraph(
        [
            Node("x", Input(), (), SHAPE),
            Node("first", convs[0], ("x",), SHAPE),
            Node("on", ReLU(), ("first",), SHAPE),
            Node("second", convs[1], ("on",), SHAPE),
        ],
        "second",
    )


def conv_of(net: LayerGraph, name: str) -> tuple[Conv2d, torch.Tensor]:
    """A convolution and its bias."""
    op = net[name].op
    assert isinstance(op, Conv2d) and op.bias is not None
    return op, op.bias


def exactly(net: LayerGraph, name: str, at: list[Fraction]) -> list[Fraction]:
    op, bias = conv_of(net, name)
    rows = zip(op.weight[:, :, 0, 0].tolist(), bias.tolist(), strict=True)
    return [sum((Fraction(w) * v for w, v in zip(row, at, strict=True)), Fraction(b)) for row, b in rows]


@pytest.mark.parametrize("n", [1, 5, 300])
def test_gamma_bounds_the_rounding_of_sums_twice_over(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        a, b = (rng.normal(size=n) * 10.0 ** rng.uniform(-6, 6, n) for _ in range(2))
        terms = [Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        off, size = abs(Fraction(float(a @ b)) - sum(terms)), sum(map(abs, terms))
        assert 2 * off <= Fraction(gamma(n)) * size
    exact = Fraction(n) * Fraction(UNIT) / (1 - Fraction(n) * Fraction(UNIT))
    assert 2 * exact <= Fraction(gamma(n)) <= 2 * (n + 2 * ONCE) * Fraction(UNIT)


def test_below_is_the_next_float():
    values = torch.tensor([1.0, 0.0, -1e300, 5e-324], dtype=torch.float64)
    found = below(values)
    assert bool((found < values).all())
    assert found.tolist() == np.nextafter(values.numpy(), -np.inf).tolist()


def box(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    center, width = drawn(*SHAPE, seed=seed + 20, decades=1), drawn(*SHAPE, seed=seed + 30, decades=2).abs()
    return center - width, center + width


def learned(seed: int, at: Fraction) -> tuple[Rounding, LayerGraph, list[list[Fraction]]]:
    """An account over a box, and a point of it whose values are exact: each node's at the first pixel."""
    net, (low, high) = graph(seed), box(seed)
    point = [
        Fraction(a) + at * (Fraction(b) - Fraction(a))
        for a, b in zip(low[:, 0, 0].tolist(), high[:, 0, 0].tolist(), strict=True)
    ]
    first = exactly(net, "first", point)
    on = [max(v, Fraction(0)) for v in first]
    found = Rounding(net)
    found.interval("x")
    found.learn("x", low[None], high[None])
    for name in ("first", "on", "second"):
        op = net[name].op
        found.interval(name)
        low, high = (side[0] for side in op.interval([low[None]], [high[None]]))
        found.learn(name, low[None], high[None])
    return found, net, [point, first, on, exactly(net, "second", on)]


@pytest.mark.parametrize("seed", range(6))
def test_what_float64_makes_of_a_value_is_within_the_account_of_its_interval(seed):
    for share in (Fraction(0), Fraction(1, 3), Fraction(1)):
        found, net, values = learned(seed, share)
        for name, before, after in (("first", values[0], values[1]), ("second", values[2], values[3])):
            errors, (op, bias) = found.interval(name), conv_of(net, name)
            assert errors is not None
            error = errors[0, :, 0, 0]
            as_floats = torch.tensor([float(v) for v in before], dtype=torch.float64)
            rounded = op.weight[:, :, 0, 0] @ as_floats + bias
            for got, exact, doubt in zip(rounded.tolist(), after, error.tolist(), strict=True):
                assert abs(Fraction(got) - exact) <= Fraction(doubt)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_that_passes_a_layer_is_off_by_its_account_at_most(seed):
    """``q' second`` as ``(q' M) on + q' b``, in floats, against the exact value."""
    q = drawn(1, 3, 1, 1, seed=seed + 50, decades=3)
    case = torch.zeros(1, dtype=torch.long)
    for share in (Fraction(0), Fraction(2, 3), Fraction(1)):
        found, net, values = learned(seed, share)
        op, bias = conv_of(net, "second")
        lam = q[0, :, 0, 0] @ op.weight[:, :, 0, 0]
        on = torch.tensor([float(v) for v in values[2]], dtype=torch.float64)
        got = float(lam @ on + q[0, :, 0, 0] @ bias)
        exact = sum((Fraction(a) * v for a, v in zip(q.flatten().tolist(), values[3], strict=True)), Fraction(0))
        account = gamma(op.terms) * float(found.at_start("second", q, case)[0] + found.through("second", q, case)[0])
        assert abs(Fraction(got) - exact) <= Fraction(account)


def test_a_constant_is_not_rounded():
    nothing = Conv2d(torch.zeros(3, 3, 1, 1).double(), drawn(3, seed=1), (1, 1), (0, 0), (1, 1), 1)
    net = LayerGraph([Node("x", Input(), (), SHAPE), Node("flat", nothing, ("x",), SHAPE)], "flat")
    found = Rounding(net)
    low, high = box(0)
    assert found.interval("x") is None
    found.learn("x", low[None], high[None])
    flat = found.interval("flat")
    assert flat is not None and not flat.any()


def test_what_is_always_off_hands_nothing_on():
    found, net, _ = learned(0, Fraction(0))
    before = found.through("second", drawn(1, 3, 1, 1, seed=1), torch.zeros(1, dtype=torch.long))
    found.learn("on", -torch.ones(1, *SHAPE).double(), torch.zeros(1, *SHAPE).double())
    found.interval("second")
    after = found.through("second", drawn(1, 3, 1, 1, seed=1), torch.zeros(1, dtype=torch.long))
    assert float(after) < float(before)
    bias = (drawn(1, 3, 1, 1, seed=1)[0, :, 0, 0].abs() * conv_of(net, "second")[1].abs()).sum()
    assert float(after) == pytest.approx(float(bias), rel=1e-12)
