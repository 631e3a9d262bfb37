"""The checker's bounds against exact rational minima of networks of one input, at any scales and multipliers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from checked_trees import descent as rows_of
from one_input import ONE, Drawn, draw
from patience import mostly_slow

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.bounds import Bounds, Claims
from corgi_opt.proof.leaves import Leaves
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Combine, Conv, Input, Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.tree import Clips, Tree, covers


def region_of(rng: np.random.Generator, decades: float) -> Region:
    center = np.array([[[rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-decades, decades)]]])
    eps = float(abs(center[0, 0, 0]) * 10.0 ** rng.uniform(-6, 1)) if rng.random() < 0.9 else 0.0
    far = float(abs(center[0, 0, 0]) * rng.uniform(1.0, 3.0))
    clip = (-far, far) if rng.random() < 0.3 and far > 0 else None
    return Region(center, eps, ("inf", "2", "1")[rng.integers(3)], clip)


def ends(region: Region) -> tuple[Fraction, Fraction]:
    center, eps = Fraction(float(region.center[0, 0, 0])), Fraction(region.eps)
    low, high = center - eps, center + eps
    if region.clip is not None:
        least, most = region.clip
        assert isinstance(least, float) and isinstance(most, float)  # one interval for all channels
        low, high = max(low, Fraction(least)), min(high, Fraction(most))
    return low, high


def reached(drawn: Drawn, region: Region, arithmetic: Float64 | Exact) -> Bounds:
    bounds = Bounds(drawn.network(), region, arithmetic)
    for node in range(bounds.network.features + 1):
        bounds.reach(node)
    return bounds


def objective_of(drawn: Drawn, bounds: Bounds) -> Rows:
    coefs = bounds.arithmetic.of(drawn.objective[None, :, None, None])
    return Rows(coefs, np.zeros((1, 2), dtype=np.int64))


def random_tree(rng: np.random.Generator, bounds: Bounds, leaves: int, goal: float | None = None) -> Tree:
    """A tree over random units, with hints that may be anything; clipped for a goal where there is one."""
    nodes = bounds.network.nodes
    units = [(at, f) for at, n in enumerate(nodes) if isinstance(n.op, Relu) for f in range(n.shape[0])]
    chosen = sorted(units[i] for i in rng.permutation(len(units))[: rng.integers(0, len(units) + 1)])
    count = len(chosen)
    phases, descent = rows_of(rng, np.sign(rng.normal(size=(2, count))), leaves - 1)
    if goal is None:
        phases = phases[descent.leaves]
    shape = phases.shape
    slopes = rng.random(shape) if rng.random() < 0.7 else rng.normal(0, 3, shape)
    pushes = rng.normal(0, 1, shape) * 10.0 ** rng.uniform(-200, 200) * (rng.random(shape) < rng.choice([0, 0.3]))
    shares = rng.random((count, 1 + count)) if rng.random() < 0.5 else None
    return Tree(
        node=np.array([at for at, _ in chosen], dtype=np.int64),
        flat=np.array([f for _, f in chosen], dtype=np.int64),
        phases=phases,
        slopes=slopes.astype(np.float32),
        mixes=rng.random(shape).astype(np.float32),
        pushes=pushes,
        inputs=np.zeros(1, dtype=np.int64),
        shares=None if shares is None else shares.astype(np.float32),
        clips=None if goal is None else random_clips(rng, count, goal),
        descent=None if goal is None else descent,
    )


def random_clips(rng: np.random.Generator, count: int, goal: float) -> Clips:
    times = int(rng.integers(1, 3))
    slopes, mixes = (rng.random((times, count)).astype(np.float32) for _ in range(2))
    shares = 10.0 ** rng.uniform(-4, 3, (times, 2, count))
    return Clips(goal, slopes, mixes, np.where(rng.random(shares.shape) < 0.3, -1.0, shares))


def least_where(drawn: Drawn, tree: Tree, leaf: int, points: list[Fraction]) -> Fraction | None:
    """The objective's least value where a leaf's signs hold; None if they hold nowhere."""
    # node 1 is the first layer's; a ReLU's layer is how many ReLUs there are before it
    relus = [at for at, node in enumerate(drawn.network().nodes) if isinstance(node.op, Relu)]
    found = []
    for x in points:
        zs, value = drawn.at(x)
        signs = zip(tree.node.tolist(), tree.flat.tolist(), tree.phases[leaf].tolist(), strict=True)
        if all(sign * zs[relus.index(at)][flat] >= 0 for at, flat, sign in signs):
            found.append(value)
    return min(found, default=None)


def is_below(bound: float, exact: Fraction) -> bool:
    return bound == -np.inf or (np.isfinite(bound) and Fraction(bound) <= exact)


def check_case(rng: np.random.Generator, decades: float) -> bool:
    """One random network, region and tree; returns whether any bound was finite."""
    drawn, region = draw(rng, decades), region_of(rng, decades / 2)
    points = drawn.points(*ends(region))
    exact = min(drawn.at(x)[1] for x in points)
    bounds = reached(drawn, region, Float64())
    relus = [at for at, node in enumerate(bounds.network.nodes) if isinstance(node.op, Relu)]
    for layer, at in enumerate(relus):
        (source,) = bounds.network.nodes[at].inputs
        for unit in range(len(bounds.lower[source])):
            values = [drawn.at(x)[0][layer][unit] for x in points]
            assert is_below(float(bounds.lower[source][unit, 0, 0]), min(values))
            assert is_below(-float(bounds.upper[source][unit, 0, 0]), -max(values))
    found = float(bounds.bound(bounds.network.features, objective_of(drawn, bounds))[0])
    assert is_below(found, exact)
    if not all(np.isfinite(side).all() for side in (*bounds.lower.values(), *bounds.upper.values())):
        return False
    tree = random_tree(rng, bounds, int(rng.integers(1, 7)))
    assert covers(tree.phases)
    proven_below(drawn, tree, bounds, points)
    if abs(exact) < 1e300:
        goal = float(exact) + float(abs(exact)) * float(rng.choice([0.0, -0.01, 0.1, 1.0]))
        proven_below(drawn, random_tree(rng, bounds, int(rng.integers(1, 7)), goal), bounds, points)
    return bool(np.isfinite(found))


def proven_below(drawn: Drawn, tree: Tree, bounds: Bounds, points: list[Fraction]) -> None:
    """What is proven of each leaf is no more than its exact minimum, nor than the goal."""
    tree.require_whole()
    by_leaf = Leaves(bounds, tree, bounds.network.features, objective_of(drawn, bounds)).lower()
    for leaf, value in enumerate(by_leaf.tolist()):
        if tree.descent is not None and not tree.descent.leaves[leaf]:
            continue
        there = least_where(drawn, tree, leaf, points)
        assert there is None or is_below(value, there)
        assert tree.clips is None or value <= tree.clips.goal


DECADES = [(1.0, 0.99), (7.0, 0.99), (50.0, 0.9), (150.0, 0.2)]


@pytest.mark.parametrize(("decades", "enough"), mostly_slow(DECADES, [DECADES[1], DECADES[3]]))
def test_no_bound_is_above_the_exact_minimum(decades, enough):
    rng = np.random.default_rng(int(decades))
    finite = sum(check_case(rng, decades) for _ in range(500))
    assert finite >= enough * 500


@pytest.mark.slow
@pytest.mark.parametrize("decades", [1.0, 7.0, 50.0, 150.0])
def test_no_bound_is_above_the_exact_minimum_at_length(decades):
    rng = np.random.default_rng(1000 + int(decades))
    for _ in range(25_000):
        check_case(rng, decades)


def test_what_underflows_is_not_lost():
    rng = np.random.default_rng(8)
    lost = 0
    for _ in range(100):
        drawn = draw(rng, 0.5)
        weights = [w * 10.0 ** rng.uniform(-175, -150) for w in drawn.weights]
        small = replace(drawn, weights=weights, biases=[0 * b for b in drawn.biases])
        center = np.array([[[10.0 ** rng.uniform(-175, -150)]]])
        region = Region(center, float(2 * center[0, 0, 0]), "inf", None)
        bounds = reached(small, region, Float64())
        points = small.points(*ends(region))
        for unit, weight in enumerate(small.weights[0][:, 0].tolist()):
            values = [small.at(x)[0][0][unit] for x in points]
            lost += weight != 0 and weight * float(points[0]) == 0
            assert is_below(float(bounds.lower[1][unit, 0, 0]), min(values))
            assert is_below(-float(bounds.upper[1][unit, 0, 0]), -max(values))
    assert lost > 100


@pytest.mark.parametrize("in_a_tree", [False, True])
def test_what_cancels_is_not_taken_for_nothing(in_a_tree):
    """Two units with coefficients that cancel but for rounding, times a large value: what is left has a sign."""
    rng, wrong = np.random.default_rng(9), 0
    for _ in range(200):
        w, q = rng.uniform(1, 2, 2), rng.uniform(1, 2)
        objective = np.array([q, -q * w[0] / w[1]])
        drawn = Drawn([w[:, None]], [np.zeros(2)], [False], objective)
        center, eps = (0.0, 2.0**40) if in_a_tree else (2.0**40, 1.0)
        region = Region(np.array([[[center]]]), eps, "inf", None)
        exact = min(drawn.at(x)[1] for x in drawn.points(*ends(region)))
        wrong += q * w[0] + objective[1] * w[1] >= 0 > exact
        bounds = reached(drawn, region, Float64())
        if in_a_tree:
            two = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.int8)
            none = np.zeros((4, 2), dtype=np.float32)
            tree = Tree(np.array([2, 2]), np.array([0, 1]), two, none, none, np.zeros((4, 2)), np.zeros(1, int), None)
            found = Leaves(bounds, tree, 2, objective_of(drawn, bounds)).lower()
            assert is_below(float(found[0]), exact)
        else:
            assert is_below(float(bounds.bound(2, objective_of(drawn, bounds))[0]), exact)
    assert wrong > 10  # in plain float64 the sign is lost


@pytest.mark.parametrize(
    ("gap", "rise", "shift"),
    [
        ((1.0, -1.0), 1.0, 0.0),
        ((1.0, -0.5), 1.0, 0.0),
        ((0.5, -1.0), 1.0, 0.0),
        ((1.0, -1.0), 2.0, 0.0),
        ((1.0, -1.0), 1.0, 0.5),
        ((1.0, -2.0), 1.0, 0.0),
    ],
)
def test_only_maxima_are_bounded_as_maxima(gap, rise, shift):
    """``a + rise * relu(gap[0] * b + gap[1] * a) + shift``: the first is a maximum, the others only look like one."""

    def one(value: float) -> np.ndarray:
        return np.full((1, 1, 1), value)

    ends_of_conv = (ONE, (0, 0), ONE, 1)
    nodes = (
        Node(Input(), (), (1, 1, 1)),
        Node(Conv(one(1.0)[None], np.array([0.25]), *ends_of_conv), (0,), (1, 1, 1)),
        Node(Conv(one(-2.0)[None], np.array([0.5]), *ends_of_conv), (0,), (1, 1, 1)),
        Node(Combine((one(gap[0]), one(gap[1])), one(0.0)), (2, 1), (1, 1, 1)),
        Node(Relu(), (3,), (1, 1, 1)),
        Node(Combine((one(1.0), one(rise)), one(shift)), (1, 4), (1, 1, 1)),
    )
    for center in (-2.0, -0.3, 0.0, 0.4, 2.0):
        bounds = Bounds(Network(nodes, 5, np.ones((1, 1))), Region(one(center), 1.0, "inf", None), Float64())
        for node in range(6):
            bounds.reach(node)
        x = np.linspace(center - 1, center + 1, 101)
        a, b = x + 0.25, 0.5 - 2 * x
        value = a + rise * np.maximum(gap[0] * b + gap[1] * a, 0) + shift
        assert bounds.lower[5][0, 0, 0] <= value.min() + 1e-12 and value.max() <= bounds.upper[5][0, 0, 0] + 1e-12
        if (gap, rise, shift) == ((1.0, -1.0), 1.0, 0.0):
            assert bounds.lower[5][0, 0, 0] >= max(a.min(), b.min()) - 1e-12
            assert bounds.upper[5][0, 0, 0] <= max(a.max(), b.max()) + 1e-12


def test_bounds_lose_little_to_rounding():
    """In float64 and in fractions, at the same multipliers, D is the same up to 1e-12 of what it sums."""
    rng, compared = np.random.default_rng(5), 0
    for _ in range(60):
        drawn, region = draw(rng, 1.0), region_of(rng, 0.5)
        floats, fractions = (reached(drawn, region, a) for a in (Float64(), Exact()))
        size = float(np.abs(drawn.objective) @ floats.magnitude(floats.network.features)[:, 0, 0]) + 1e-30
        found, exact = (b.bound(b.network.features, objective_of(drawn, b))[0] for b in (floats, fractions))
        assert found <= exact <= found + 1e-12 * size * 10 ** len(drawn.weights)
        fractions.lower, fractions.upper = dict(floats.lower), dict(floats.upper)  # the same relaxation
        tree = random_tree(rng, floats, 4)
        tree = replace(tree, pushes=np.zeros_like(tree.pushes))
        by_float, by_fraction = (
            Leaves(b, tree, b.network.features, objective_of(drawn, b)).lower() for b in (floats, fractions)
        )
        ordinary = np.abs(by_fraction) < 1e6
        # multipliers follow from coefficients, so they differ in the last digit; errors are rounded up by 2^-20 a few
        # times, and what open units that are not in the tree may come to counts as one
        lost = np.abs(by_float[ordinary] - by_fraction[ordinary])
        assert (lost <= 2.0**-16 * size + 1e-9 * (1e3 + np.abs(by_fraction[ordinary]))).all()
        compared += int(ordinary.sum())
    assert compared > 60


def test_claims_are_believed_only_as_far_as_they_are_proven():
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(200):
        drawn, region = draw(rng, 1.0), region_of(rng, 0.5)
        bounds = Bounds(drawn.network(), region, Float64())
        bounds.reach(0)
        bounds.reach(1)
        every = np.arange(len(drawn.biases[0]))
        low, high = bounds.neurons(1, every, every)
        proven = Claims(every, low, high)
        bounds.reach(1, proven)
        exact = [[drawn.at(x)[0][0][u] for x in ends(region)] for u in every]
        for u, values in enumerate(exact):
            width = float(max(values) - min(values)) + abs(float(values[0])) + 1e-30
            for more, less in ((1e-9 * width, 0.0), (0.0, 1e-9 * width)):
                wrong = Claims(
                    every[u : u + 1], np.array([float(min(values)) + more]), np.array([float(max(values)) - less])
                )
                if Fraction(wrong.lower[0]) > min(values) or Fraction(wrong.upper[0]) < max(values):
                    refused += 1
                    with pytest.raises(ProofError, match="claimed"):
                        bounds.reach(1, wrong)
    assert refused > 300
    for flat in ([-1], [len(drawn.biases[0])], [0, 0]):
        none = np.full(len(flat), np.inf)
        with pytest.raises(ProofError, match="do not exist"):
            bounds.reach(1, Claims(np.array(flat, dtype=np.int64), -none, none))
