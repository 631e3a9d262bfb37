"""Combinations of parts as expressions have the network's own values, and bring their bias with them."""

from __future__ import annotations

import copy

import pytest
import torch
from encoding import PATIENT, Setting, value
from nets import Residual, seeded

from corgi_opt._deadline import Deadline
from corgi_opt.encode.parts import expressed
from corgi_opt.problem.atoms import MEAN, Parts


@pytest.fixture(scope="module")
def at():
    return Setting.case("residual")


@pytest.fixture(scope="module")
def parts():
    """Pixels of class 1's CAM and of a difference of two, and the logits of both heads."""
    heads = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    return Parts(heads, torch.tensor([0, 0, 1, 1, 0, 1]), torch.tensor([0, 7, 3, 34, MEAN, MEAN]))


TERMS = torch.tensor([[0, 1], [2, 3], [1, 2], [4, 0], [5, 0], [0, 0]])
COEFS = torch.tensor([[1, -1], [0.5, 3], [-2, 1], [1, 0], [-2.5, 0], [1, 0]], dtype=torch.float64)


def test_they_are_worth_what_torch_says(at, parts):
    found = expressed(at.net, parts, at.expressions, TERMS, COEFS, PATIENT)
    model = copy.deepcopy(seeded(Residual, 0)).double()
    weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
    for x in at.points(6):
        features = at.net.graph.forward(x[None], at.net.features)[0].flatten(1)
        with torch.no_grad():
            logits = model(x[None])[0]
        assert float((weight @ features.mean(dim=1) + bias - logits).abs().max()) < 1e-9
        vectors = torch.stack([weight[1], weight[0] - weight[2]])
        pixel = [float(vectors[h] @ features[:, p]) for h, p in ((0, 0), (0, 7), (1, 3), (1, 34))]
        values = [*pixel, float(logits[1]), float(logits[0] - logits[2])]
        expected = [
            sum(c * values[p] for p, c in zip(ts, cs, strict=True))
            for ts, cs in zip(TERMS.tolist(), COEFS.tolist(), strict=True)
        ]
        variables = at.variables(x)
        assert [value(e, variables) for e in found] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_what_time_is_over_for_is_not_made(at, parts):
    with pytest.raises(TimeoutError):
        expressed(at.net, parts, at.expressions, TERMS, COEFS, Deadline(0.0))
