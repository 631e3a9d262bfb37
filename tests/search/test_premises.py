"""Premises as expressions: logit differences as torch has them, or, in part, never below them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from asking import ask
from encoding import Setting, value
from nets import Residual, seeded

from corgi_opt._deadline import Deadline
from corgi_opt.search import premises as module
from corgi_opt.search.premises import premises

PATIENT = Deadline(math.inf)


@pytest.fixture(scope="module")
def at():
    return Setting.case("residual")


@pytest.fixture(scope="module")
def question(at):
    return ask(at.net, at.ball.center, k=2, class_idx=0, keep_class=True)


def differences(at, x) -> list[float]:
    """Of the kept class to every other, by the model itself."""
    model = copy.deepcopy(seeded(Residual, 0)).double()
    with torch.no_grad():
        kept = int(model(at.ball.center)[0].argmax())
        logits = model(x[None])[0]
    return [float(logits[kept] - logits[t]) for t in range(3) if t != kept]


def test_whole_they_are_the_logit_differences(at, question):
    found = premises(question, at.expressions, at.whole, [0], PATIENT)
    assert found.exact
    for x in at.points(8):
        got = [value(e, at.variables(x)) for e in found.expressions]
        assert got == pytest.approx(differences(at, x), rel=1e-9, abs=1e-9)


def test_in_part_they_are_upper_bounds_that_read_less(at, question, monkeypatch):
    whole = premises(question, at.expressions, at.whole, [0], PATIENT).expressions
    monkeypatch.setattr(module, "MOST_UNITS", 0)
    found = premises(question, at.expressions, at.whole, [0], PATIENT)
    assert not found.exact
    assert all(len(part.columns) < len(all_.columns) for part, all_ in zip(found.expressions, whole, strict=True))
    gaps = []
    for x in at.points(60):
        variables = at.variables(x)
        pairs = zip(found.expressions, differences(at, x), strict=True)
        gaps += [value(e, variables) - d for e, d in pairs]
    assert min(gaps) >= -1e-9
    assert min(gaps) < 5.0  # and say something


def test_without_time_none_is_made(at, question):
    with pytest.raises(TimeoutError):
        premises(question, at.expressions, at.whole, [0], Deadline(0.0))
