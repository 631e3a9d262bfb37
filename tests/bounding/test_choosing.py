"""What is taken off the coefficients of a cut unit bounds them, whatever it is; searches keep to their limits."""

from __future__ import annotations

import torch
from torch import Tensor

from corgi_opt.bounding.choosing import ChoosingLines, ChoosingPulls, ChosenPulls
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.relaxation import ReluLines


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(coefs: Tensor) -> Rows:
    """Row n is about piece n."""
    return Rows.at(coefs, torch.zeros(len(coefs), 2, dtype=torch.long), torch.arange(len(coefs)))


def test_any_pulls_bound_a_functional_where_values_lie_within_the_cut():
    """q z >= (q - p) z + constant for all z of the cut, for any p, and with equality at one of its ends."""
    ends = drawn(2, 200, 3, 2, 2, seed=1).sort(dim=0).values
    cut, pulls, q = Interval(*ends), drawn(200, 3, 2, 2, seed=2), drawn(200, 3, 2, 2, seed=3)
    step = ChosenPulls(cut, pulls, 0.0).step(rows_of(q))
    assert step.passed == () and step.rest is not None and step.constant is not None
    torch.testing.assert_close(step.rest.coefs, q - pulls, rtol=0, atol=0)
    for share in (0.0, 0.3, 1.0):
        z = cut.lower + share * (cut.upper - cut.lower)
        value, bound = (q * z).flatten(1).sum(1), (step.rest.coefs * z).flatten(1).sum(1) + step.constant
        assert bool((bound <= value + 1e-12).all())
    touched = torch.where(pulls > 0, *cut)
    bound = (step.rest.coefs * touched).flatten(1).sum(1) + step.constant
    torch.testing.assert_close(bound, (q * touched).flatten(1).sum(1))


def test_what_rounding_may_hide_is_taken_off():
    cut, pulls = Interval(drawn(5, 1, 1, 1, seed=4) - 3, drawn(5, 1, 1, 1, seed=5) + 3), drawn(5, 1, 1, 1, seed=6)
    plain, careful = (ChosenPulls(cut, pulls, rounded).step(rows_of(pulls)).constant for rounded in (0.0, 1e-3))
    assert plain is not None and careful is not None
    size = torch.maximum(cut.lower.abs(), cut.upper.abs())
    torch.testing.assert_close(plain - careful, 1e-3 * (pulls.abs() * size).flatten())


def test_only_cut_units_are_pulled():
    interval = Interval(torch.full((2, 1, 1, 2), -1.0), torch.full((2, 1, 1, 2), 1.0))
    choosing = ChoosingPulls(interval, torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]))
    choosing.step(rows_of(torch.ones(2, 1, 1, 2)))
    for _ in range(20):
        choosing.move(torch.ones(2, 1, 1, 2), 1.0)
    assert choosing.choice is not None
    choice = choosing.choice.detach()
    assert float(choice.max()) == choosing.limits[1]
    pulls = choosing.pulls_of(choice)
    assert pulls[0, 0, 0, 1] == 0 and pulls[1, 0, 0, 0] == 0 and bool((pulls.flatten(1).amax(1) > 1).all())


def test_rows_that_are_forgotten_leave_the_others_as_they_are():
    interval = Interval(drawn(3, 2, 1, 1, seed=7) - 2, drawn(3, 2, 1, 1, seed=8) + 2)
    rows = rows_of(drawn(3, 2, 1, 1, seed=9))
    for choosing in (ChoosingLines(ReluLines.crown("z", interval)), ChoosingPulls(interval, torch.ones(3, 2, 1, 1))):
        choosing.step(rows)
        choosing.move(drawn(3, 2, 1, 1, seed=10), 0.1)
        whole, kept = choosing.step(rows), torch.tensor([True, False, True])
        choosing.keep(kept)
        part = choosing.step(rows[kept])
        assert whole.constant is not None and part.constant is not None
        torch.testing.assert_close(part.constant, whole.constant[kept])
