"""D(mu) is a lower bound for any mu; the window machinery computes what the dense network computes."""

from __future__ import annotations

import pytest
import torch
from nets import Deep, Everything, Pooled, Residual, image, seeded
from oracles import points_in
from patience import mostly_slow
from relaxing import relaxed

import corgi_opt as co
from corgi_opt.bounding.dual import Interval, Rows, Step, lower_bounds, phi

CASES = [
    (Everything, {}, (3, 20, 22)),
    (Residual, {}, (1, 7, 5)),
    (Deep, {}, (1, 8, 6)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
]


def test_phi_is_the_minimum_over_the_interval():
    generator = torch.Generator().manual_seed(0)
    lam, mu, a, b = torch.randn(4, 500, generator=generator, dtype=torch.float64)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    z = low + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (high - low)
    sampled = (lam * z.clamp(min=0) - mu * z).min(dim=0).values
    exact = phi(lam, mu, low, high)
    assert bool((exact <= sampled + 1e-12).all())
    assert float((sampled - exact).max()) < 1e-2


ASKED = [(*case, seed) for case in CASES for seed in range(3)]


@pytest.mark.parametrize(("model", "kwargs", "shape", "seed"), mostly_slow(ASKED, ASKED[::4]))
def test_any_multipliers_give_a_lower_bound(model, kwargs, shape, seed):
    net = co.from_torch(seeded(model, seed, **kwargs), image(*shape))
    ball = co.Ball(image(*shape, seed=seed + 10), 0.05)
    known = relaxed(net, ball)
    generator = torch.Generator().manual_seed(seed)

    class Garbage:
        """Multipliers of no sense, with the share of D that phi says they have."""

        def __init__(self, source: str) -> None:
            self.source = source

        def step(self, rows: Rows) -> Step:
            l, u = (rows.gather(side) for side in known.intervals[self.source])
            noise = torch.randn(2, *rows.coefs.shape, generator=generator, dtype=torch.float64)
            mu = rows.coefs * noise[0] + 0.1 * noise[1]
            constant = phi(rows.coefs, mu, l, u).sum(dim=(1, 2, 3))
            return Step(((self.source, Rows(mu, rows.places)),), constant)

    channels, height, width = net.graph[net.features].shape
    coefs = torch.randn(6, channels, 2, 2, generator=generator, dtype=torch.float64)
    origins = torch.stack([torch.randint(-1, n, (6,), generator=generator) for n in (height, width)], dim=1)
    rows = Rows.at(coefs, origins, torch.zeros(6, dtype=torch.long))
    points = net.graph.forward(points_in(ball.lower, ball.upper, 300, seed), net.features)
    padded = torch.nn.functional.pad(points, (1, 2, 1, 2))
    windows = [padded[:, :, y + 1 : y + 3, x + 1 : x + 3] for y, x in origins.tolist()]
    smallest = torch.stack([(w * q).sum(dim=(1, 2, 3)).min() for w, q in zip(windows, coefs, strict=True)])
    garbage = {name: Garbage(lines.source) for name, lines in known.lines.items()}
    for relaxations in (known.relaxations, known.lines, garbage):
        bound = lower_bounds(net.graph, net.features, rows, known.regions, relaxations)
        assert bool((bound <= smallest + 1e-9).all())


@pytest.mark.parametrize(("model", "kwargs", "shape"), CASES)
def test_bounds_are_exact_where_no_relu_changes_sign(model, kwargs, shape):
    """Within a linear region the bound must equal value - eps * ||gradient||_1: nothing is lost in the windows."""
    net = co.from_torch(seeded(model, 1, **kwargs), image(*shape))
    x = image(*shape, seed=4).double()
    ball = co.Ball(x, 1e-9, clip=None)
    known = relaxed(net, ball)
    channels, height, width = net.graph[net.features].shape
    generator = torch.Generator().manual_seed(2)
    coefs = torch.randn(channels, height, width, generator=generator, dtype=torch.float64)
    rows = Rows.at(coefs[None], torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    # without what is taken off for rounding
    bound = lower_bounds(net.graph, net.features, rows, known.regions, known.relaxations)[0]
    point = x.clone().requires_grad_(True)
    value = (net.graph.forward(point, net.features)[0] * coefs).sum()
    (gradient,) = torch.autograd.grad(value, point)
    fall = 1e-9 * float(gradient.abs().sum())
    assert float(value.detach() - bound) == pytest.approx(fall, rel=1e-4)


def test_chunking_changes_nothing(monkeypatch):

    net = co.from_torch(seeded(Residual), image(1, 7, 5))
    ball = co.Ball(image(1, 7, 5), 0.1)
    whole = co.bounds(net, ball)
    monkeypatch.setenv("CORGI_CHUNK_BYTES", "320")
    parts = co.bounds(net, ball)
    for name in whole:
        torch.testing.assert_close(whole[name].lower, parts[name].lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole[name].upper, parts[name].upper, rtol=1e-12, atol=1e-12)


def test_interval_meet_and_unstable():
    a = Interval(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0]))
    b = Interval(torch.tensor([-2.0, 1.0, 0.0]), torch.tensor([0.5, 3.0, 2.0]))
    met = a.meet(b)
    assert met.lower.tolist() == [-1.0, 1.0, 1.0]
    assert met.upper.tolist() == [0.5, 2.0, 2.0]
    assert a.unstable.tolist() == [True, False, False]
