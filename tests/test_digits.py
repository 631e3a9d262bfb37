"""The bundled digits: the ordering of all methods on 20 images, and what is certified survives a hard attack."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.data import digits

HARD = co.PgdOptions(rows=64, steps=60, restarts=2, seed=11)


@pytest.fixture(scope="module")
def net() -> co.CamNetwork:
    return co.from_torch(digits.digits_model(), digits.load_digits()[0][:1])


def digit(index: int) -> torch.Tensor:
    return digits.load_digits()[0][digits.digits_split()[1][index]][None]


QUESTIONS = [*product((1, 3, 5), range(20))]


@pytest.mark.parametrize(("k", "index"), mostly_slow(QUESTIONS, QUESTIONS[7::19]))
def test_the_ordering_holds(net, k, index):
    x = digit(index)
    try:
        radii = co.compare(net, x, k=k, methods=["ibp", "corgi", "crown", "dual", "lp", "milp"]).radii
    except co.TieError:
        assert co.radius(net, x, k=k).lower == 0.0
        return
    ladder = [radii[m].lower for m in ("ibp", "corgi", "crown", "dual", "lp", "milp")]
    assert all(a <= b for a, b in pairwise(ladder))
    assert ladder[-1] <= radii["milp"].upper <= radii["milp"].attack
    assert radii["milp"].upper <= 1.01 * radii["milp"].lower
    assert co.attack(net, x, eps=radii["milp"].lower, k=k, options=HARD) is None
    witness = radii["milp"].counterexample
    assert witness is not None
    assert witness.margin <= 0


@pytest.mark.parametrize("index", mostly_slow(range(3), [1]))
def test_each_method_alone_agrees_with_the_comparison(net, index):
    """Compared radii share work; asked one by one they must come out the same, to the search's resolution."""
    x = digit(index)
    together = co.compare(net, x, k=3, methods=["corgi", "crown", "dual", "lp", "milp"]).radii
    for method, radius in together.items():
        assert co.radius(net, x, k=3, method=method).lower == pytest.approx(radius.lower, rel=0.011)
