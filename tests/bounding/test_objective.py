"""Combinations of parts as functionals of the last feature map: their values, and bounds that no image leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from asking import ask
from nets import Plain, image, seeded
from oracles import points_in
from relaxing import regions, relaxed

import corgi_opt as co
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import (
    atom_bounds,
    combination_bounds,
    interval_parts,
    objectives,
    part_bounds,
    places_of,
    share_inputs,
)
from corgi_opt.problem.atoms import MEAN, Parts

X = image(1, 6, 6, seed=3)
TERMS = torch.tensor([[0, 1], [2, 3], [0, 4], [5, 0], [6, 0], [1, 0]])
COEFS = torch.tensor([[1, -1], [0.5, 3], [1, -0.25], [-1, 0], [2, 0], [-2, 0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 5, channels=4), X)


@pytest.fixture(scope="module")
def parts():
    heads = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    return Parts(heads, torch.tensor([0, 0, 1, 1, 0, 0, 1]), torch.tensor([0, 35, 7, 8, 30, MEAN, MEAN]))


def values(parts: Parts, x: torch.Tensor) -> torch.Tensor:
    """The parts (N, F) of images by torch alone."""
    model = copy.deepcopy(seeded(Plain, 5, channels=4)).double()
    with torch.no_grad():
        features, logits = model.body(x).flatten(2), model(x)
    weight = model.head.weight.detach()
    vectors, scores = [weight[1], weight[0] - weight[2]], [logits[:, 1], logits[:, 0] - logits[:, 2]]
    columns = [
        scores[h] if p == MEAN else torch.einsum("c,nc->n", vectors[h], features[:, :, p])
        for h, p in zip(parts.head.tolist(), parts.place.tolist(), strict=True)
    ]
    return torch.stack(columns, dim=1)


def combined(found: torch.Tensor) -> torch.Tensor:
    return (COEFS * found[:, TERMS]).sum(dim=2)


def test_each_functional_has_the_value_of_its_combination(net, parts):
    x = points_in(torch.zeros(1, 6, 6), torch.ones(1, 6, 6), 4, 0)
    features = net.graph.forward(x, net.features)
    expected, seen = combined(values(parts, x)), []
    for which, rows, shift, doubt in objectives(net, parts, TERMS, COEFS, torch.zeros(6, dtype=torch.long)):
        height, width = rows.coefs.shape[2:]
        for place, coefs, corner, by in zip(
            which.tolist(), rows.coefs, rows.places.corners.tolist(), shift, strict=True
        ):
            y, z = corner
            window = torch.nn.functional.pad(features, (0, width, 0, height))[:, :, y : y + height, z : z + width]
            torch.testing.assert_close((window * coefs).sum(dim=(1, 2, 3)) + by, expected[:, place])
            seen.append(place)
        assert bool((doubt >= 0).all())
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2])
def test_no_image_leaves_the_bounds(eps, net, parts):
    balls = [co.Ball(X.double(), eps), co.Ball(image(1, 6, 6, seed=8).double(), eps)]
    known = relaxed(net, *balls)
    every = torch.ones(2, len(parts), dtype=torch.bool)
    crown = part_bounds(net, parts, known.bound, every, every)
    features = interval_bounds(net.graph, regions(*balls))[net.features]
    ibp = interval_parts(net, parts, features)
    assert bool((crown.lower >= ibp.lower - 1e-9).all()) and bool((crown.upper <= ibp.upper + 1e-9).all())
    for case, ball in enumerate(balls):
        found = combination_bounds(net, parts, known.bound, TERMS, COEFS, torch.full((6,), case))
        seen = values(parts, points_in(ball.lower, ball.upper, 200, 2))
        assert bool((combined(seen) >= found).all())
        for bounds in (crown, ibp):
            assert bool((seen >= bounds.lower[case]).all()) and bool((seen <= bounds.upper[case]).all())
        if eps == 0.0:
            torch.testing.assert_close(found, combined(values(parts, ball.center))[0], rtol=1e-9, atol=1e-9)


def test_sides_that_are_not_asked_for_are_open(net, parts):
    low = torch.zeros(1, len(parts), dtype=torch.bool)
    high = low.clone()
    low[0, 2], high[0, 5] = True, True
    known = relaxed(net, co.Ball(X.double(), 0.05))
    found = part_bounds(net, parts, known.bound, low, high)
    assert torch.equal(found.lower > -torch.inf, low) and torch.equal(found.upper < torch.inf, high)


def test_an_atom_and_its_negative(net):
    question = ask(net, X, k=2, class_idx=1)
    known = relaxed(net, question.ball(0.05))
    atoms = torch.arange(5)
    case = torch.zeros(5, dtype=torch.long)
    low = atom_bounds(net, question.groups, known.bound, atoms, case)
    high = -atom_bounds(net, question.groups, known.bound, atoms, case, sign=-1.0)
    for x in points_in(question.ball(0.05).lower, question.ball(0.05).upper, 60, 3):
        at = question.see(x[None]).atoms[:5]
        assert bool((at >= low).all()) and bool((at <= high).all())


def test_which_pixels_parts_are_made_of(net, parts):
    marked = torch.zeros(2, len(parts), dtype=torch.bool)
    marked[0, [0, 3]], marked[1, 5] = True, True
    found = places_of(net, parts, marked)
    assert torch.nonzero(found[0].flatten()).flatten().tolist() == [0, 8]
    assert bool(found[1].all())  # a logit reads the whole map


def test_which_combinations_have_an_input_in_common(net, parts):
    """By autograd: pixels whose gradients are on the same inputs."""
    x = X.double().requires_grad_(True)
    features = net.graph.forward(x, net.graph[net.features].inputs[0]).flatten(2)[0]
    reach = []
    for place in parts.place.tolist():
        read = features.sum() if place == MEAN else features[:, place].sum()
        reach.append(torch.autograd.grad(read, x, retain_graph=True)[0].flatten() != 0)
    found = share_inputs(net, parts, TERMS, COEFS).tolist()
    for (a, b), (_, second), share in zip(TERMS.tolist(), COEFS.tolist(), found, strict=True):
        assert share == bool(second and (reach[a] & reach[b]).any())
    assert set(found) == {False, True}
