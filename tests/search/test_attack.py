"""The attack: what it hands over is a counterexample, and it is good enough to be worth its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from nets import Plain, Pooled, Residual, image, seeded

import corgi_opt as co
from corgi_opt.problem.atoms import Groups, alone, cam_pixels
from corgi_opt.problem.question import Question
from corgi_opt.search.attack import CANDIDATES, Atoms, PgdOptions, _candidates, rank_targets, shrink
from corgi_opt.search.replay import replay

CPU = torch.device("cpu")
CASES = [(Plain, (1, 6, 6)), (Residual, (1, 6, 5)), (Pooled, (1, 8, 8))]


def asked(net: co.CamNetwork, x: torch.Tensor, k: int = 2) -> Question:
    return ask(net, x, k=k, class_idx=0, norm="inf", clip=(0.0, 1.0), tie_tol=None)


@pytest.mark.parametrize(("model", "shape"), CASES)
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_witness_is_a_counterexample_inside_the_region(model, shape, seed):
    torch_model = seeded(model, seed)
    x = image(*shape, seed=seed + 50)
    net = co.from_torch(torch_model, x)
    w = co.attack(net, x, eps=0.2, k=2, class_idx=0)
    assert w is not None
    assert float((w.image - x.double()).abs().max()) <= 0.2
    assert 0 <= float(w.image.min()) <= float(w.image.max()) <= 1
    before, after = net.cam(x, 0).flatten().numpy(), net.cam(w.image, 0).flatten().numpy()
    order = np.argsort(-before, kind="stable")
    assert after[order[:2]].min() <= after[order[2:]].max()
    i, j = w.pair
    assert i in order[:2]
    assert j in order[2:]
    assert after[i] - after[j] == pytest.approx(w.margin, abs=1e-12)


@pytest.mark.parametrize(("model", "shape"), CASES)
def test_the_attack_is_close_to_the_exact_radius(model, shape):
    for seed in range(2):
        x = image(*shape, seed=seed + 60)
        net = co.from_torch(seeded(model, seed), x)
        r = co.radius(net, x, k=1, method="milp", class_idx=0)
        assert r.lower <= r.attack <= 1.3 * r.lower


def test_linearised_radii_are_gap_over_gradient_norm():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    question = asked(net, x)
    targets = rank_targets(question, CPU)
    assert isinstance(targets, Atoms)
    assert torch.equal(targets.radii, targets.radii.sort().values)
    for row in (0, len(targets.which) - 1):
        i, j = question.groups.labels[targets.which[row]].tolist()
        point = x.double().clone().requires_grad_(True)
        cam = net.cams(point, 0).flatten()
        (gradient,) = torch.autograd.grad(cam[i] - cam[j], point)
        expected = float(cam[i].detach() - cam[j].detach()) / float(gradient.abs().sum())
        assert float(targets.radii[row]) == pytest.approx(expected, rel=1e-4)


def test_replay_refuses_what_is_no_counterexample():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    question = asked(net, x)
    assert replay(question, question.ball(0.1), x) is None
    w = co.attack(net, x, eps=0.3, k=2, class_idx=0)
    assert w is not None
    # the same image, asked about a region that does not hold it, is moved inside and no longer breaks
    exact = co.radius(net, x, k=2, class_idx=0)
    assert replay(question, question.ball(0.5 * exact.lower), w.image) is None


def test_shrinking_keeps_a_witness_and_brings_it_closer():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    question = asked(net, x)
    w = co.attack(net, x, eps=0.3, k=2, class_idx=0)
    assert w is not None
    closer = shrink(question, w)
    assert closer.distance <= w.distance
    assert closer.margin <= 0


def test_same_seed_same_witness_and_eps_zero_finds_nothing():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    options = PgdOptions(seed=4)
    first, second = (co.attack(net, x, eps=0.1, k=2, options=options) for _ in range(2))
    assert (first is None) == (second is None)
    assert first is None or second is None or torch.equal(first.image, second.image)
    assert co.attack(net, x, eps=0.0, k=2) is None


def test_it_works_inside_no_grad():
    x = image(1, 8, 8, seed=3)
    net = co.from_torch(seeded(Pooled, 1), x)
    with torch.no_grad():
        assert co.attack(net, x, eps=0.3, k=2, class_idx=0) is not None
        assert co.radius(net, x, k=2, class_idx=0).ratio <= 1.01


def test_of_many_pairs_that_are_equal_some_are_candidates():
    """On a flat background all pairs of the brightest pixel are one number, and more than are linearised."""
    pixels, top = 600, 550
    rest = torch.tensor([p for p in range(pixels) if p != top])
    pairs = torch.stack([torch.full_like(rest, top), rest], dim=1)
    coefs = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(len(pairs), 2)
    groups = Groups(cam_pixels(2, 0, pixels), pairs, coefs, *alone(len(pairs)), pairs, ("pixel", "pixels"))
    flat: Any = SimpleNamespace(groups=groups, at=torch.ones(len(pairs), dtype=torch.float64))
    chosen = _candidates(flat)
    assert len(chosen) == CANDIDATES and int(groups.among(chosen).sum()) == CANDIDATES - 1
