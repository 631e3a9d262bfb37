"""The checker's network, intervals and D on whole networks, against torch's forward pass and our own CROWN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checked_networks import NORMS, built, crowned, region
from encoding import CASES
from nets import seeded
from oracles import points_in

import corgi_opt as co
from corgi_opt.answering.prover import plain_network
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.regions import Regions
from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.rows import Rows


def features_rows(bounds: Bounds, count: int, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Random functionals on windows of the last feature map, some of which overhang it; and as full maps."""
    rng = np.random.default_rng(seed)
    channels, height, width = bounds.network.nodes[bounds.network.features].shape
    h, w = min(2, height), min(3, width)
    coefs = rng.normal(0, 1, (count, channels, h, w))
    corners = np.stack([rng.integers(-1, height, count), rng.integers(-1, width, count)], axis=1)
    whole = np.zeros((count, channels, height + 4, width + 4))
    for row, (y, x) in enumerate(corners):
        whole[row, :, y + 2 : y + 2 + h, x + 2 : x + 2 + w] = coefs[row]
    return Rows(bounds.arithmetic.of(coefs), corners), whole[:, :, 2 : 2 + height, 2 : 2 + width]


@pytest.mark.parametrize("case", CASES)
def test_at_one_image_intervals_are_the_forward_pass(case):
    net, network, x = built(case)
    bounds = Bounds(network, Region(x[0].numpy(), 0.0, "inf", None), Float64())
    values = net.graph.values(x)
    for node, name in enumerate(net.graph.ancestors(net.features)):
        bounds.reach(node)
        there = values[name][0].numpy()
        tolerance = 1e-9 * (1 + np.abs(there).max())
        assert (bounds.lower[node] <= there + 1e-13 * (1 + np.abs(there))).all()
        assert (bounds.upper[node] >= there - 1e-13 * (1 + np.abs(there))).all()
        assert (bounds.upper[node] - bounds.lower[node] <= tolerance).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_values_are_within_bounds(case, norm):
    net, _, _ = built(case)
    bounds, (ball, _) = crowned(case, norm), region(case, norm)
    points = torch.cat([ball.project(p[None]) for p in points_in(ball.lower, ball.upper, 60, seed=3)])
    values = net.graph.values(points)
    for node, name in enumerate(net.graph.ancestors(net.features)):
        there = values[name].numpy()
        slack = 1e-12 * (1 + np.abs(there).max())
        assert (bounds.lower[node] - slack <= there).all() and (there <= bounds.upper[node] + slack).all()
    rows, whole = features_rows(bounds, 40)
    there = np.einsum("rchw,nchw->rn", whole, values[net.features].numpy())
    found = bounds.bound(bounds.network.features, rows)
    assert (found <= there.min(axis=1) + 1e-12 * np.abs(there).max()).all()
    assert (found > -np.inf).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", ["plain", "residual", "deep"])
def test_bounds_are_those_of_our_crown(case, norm):
    """Without pooling windows, which have planes there, both calculate the same; this one takes its rounding off."""
    net, network, _ = built(case)
    bounds, (ball, _) = crowned(case, norm), region(case, norm)
    theirs = crown_pass(net.graph, Regions.of([ball], torch.float64, torch.device("cpu"))).intervals
    compared = 0
    for node, name in enumerate(net.graph.ancestors(net.features)):
        if any(isinstance(n.op, Relu) and n.inputs[0] == node for n in network.nodes):
            low, high = (side[0].numpy() for side in theirs[name])
            open_ = (low < 0) & (high > 0)
            compared += int(open_.sum())
            size = np.abs(bounds.lower[node]).max()
            # norms other than inf: where a box's intervals settle less, D settles it from one side only there
            np.testing.assert_allclose(bounds.lower[node][open_], low[open_], atol=1e-6 * size)
            np.testing.assert_allclose(bounds.upper[node][open_], high[open_], atol=1e-6 * size)
    assert compared > 20


@pytest.mark.parametrize("case", ["plain", "pooled", "residual"])
def test_fractions_and_floats_agree(case):
    _, network, _ = built(case)
    floats = crowned(case)
    exact = Bounds(network, floats.region, Exact())
    exact.lower, exact.upper = dict(floats.lower), dict(floats.upper)  # the same relaxation
    for node in range(network.features + 1):
        exact._prepare(node)
    rows, _ = features_rows(floats, 3)
    found = floats.bound(network.features, rows)
    truth = exact.bound(network.features, Rows(exact.arithmetic.of(rows.coefs), rows.corners))
    assert (found <= truth).all()
    np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-10)


def test_exact_intervals_are_no_wider():
    _, network, x = built("plain")
    pixel = Region(x[0].numpy(), 0.01, "inf", (0.0, 1.0))
    floats, exact = Bounds(network, pixel, Float64()), Bounds(network, pixel, Exact())
    for node in range(network.features + 1):
        floats.reach(node)
        exact.reach(node)
        assert (floats.lower[node] <= exact.lower[node]).all() and (exact.upper[node] <= floats.upper[node]).all()
        np.testing.assert_allclose(floats.lower[node], exact.lower[node], atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_hash_is_of_every_weight_and_the_wiring(case):
    net, network, _ = built(case)
    assert network.sha256 == plain_network(net).sha256
    seen = {network.sha256}
    model, arguments, _, _, seed = CASES[case]
    for change in range(3):
        other = seeded(model, seed, **arguments)
        with torch.no_grad():
            parameters = list(other.parameters())
            flat = parameters[(0, len(parameters) // 2, -2)[change]].view(-1)
            flat[-1] = torch.nextafter(flat[-1], flat[-1] + 1)
        seen.add(plain_network(co.from_torch(other, built(case)[2].float())).sha256)
    assert len(seen) == 4
