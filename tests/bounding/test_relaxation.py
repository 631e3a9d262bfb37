"""Planes of pooling windows: they hold, they say what the tree of differences says, and the better one is taken."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from nets import Pooled, image, seeded
from oracles import points_in
from patience import mostly_slow
from relaxing import corgi_pixels, pairs, pixels, relaxed
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.dual import Interval, lower_bounds
from corgi_opt.bounding.relaxation import (
    Planes,
    PoolPlanes,
    choose_planes,
    direct_planes,
    from_windows,
    tree_planes,
    window_taps,
)
from corgi_opt.network.graph import Pooled as PooledNode
from corgi_opt.network.ops import MaxPool2d

POOLS: list[dict[str, int | tuple[int, int]]] = [
    {"kernel": 2, "stride": 2},
    {"kernel": 2, "stride": 1, "padding": 1},
    {"kernel": 3, "stride": 3},
    {"kernel": 3, "stride": 2},
    {"kernel": 3, "stride": 2, "padding": 1},
    {"kernel": 3, "stride": 1},
    {"kernel": (3, 2), "stride": (3, 1), "padding": (1, 1)},
    {"kernel": (1, 4), "stride": (1, 2)},
    {"kernel": 2, "stride": 3, "dilation": 2},
    {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2},
]
APART = [p for p in POOLS if p["kernel"] in (2, (1, 4)) or p["stride"] in (3, (3, 1))]
APART.remove(POOLS[1])
"""Pools none of whose windows share a column's maximum with the window above or below."""

EPSES = (0.003, 0.03, 0.1, 0.3)
SHAPE = (1, 9, 9)


def smooth(seed: int) -> Tensor:
    """An image whose neighbours are alike, as in photographs: many candidates of a window compete."""
    coarse = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, SHAPE[1:], mode="bicubic", align_corners=True).clamp(0, 1)


@functools.cache
def network(index: int, seed: int) -> co.CamNetwork:
    return co.from_torch(seeded(Pooled, seed, **POOLS[index]), image(*SHAPE))


def cases(*seeds: int):
    return [(index, seed) for index in range(len(POOLS)) for seed in seeds]


def only_pool(net: co.CamNetwork) -> tuple[str, PooledNode]:
    (name,) = (n for n in net.graph.order if net.graph[n].pooled is not None)
    pooled = net.graph[name].pooled
    assert pooled is not None
    return name, pooled


def composed(net: co.CamNetwork, known: Relaxed) -> Planes:
    name, pooled = only_pool(net)
    return tree_planes(net.graph, name, known.lines, known.intervals[pooled.source].lower)


def by_composed(net: co.CamNetwork, known: Relaxed, node: str, rows) -> Tensor:
    """CROWN with the tree's composed planes for every window."""
    name, pooled = only_pool(net)
    planes = PoolPlanes(pooled.source, pooled.pool, composed(net, known))
    return lower_bounds(net.graph, node, rows, known.regions, {**known.lines, name: planes})


def by_tree(net: co.CamNetwork, known: Relaxed, node: str, rows) -> Tensor:
    """CROWN down the tree of differences, ReLU by ReLU."""
    return lower_bounds(net.graph, node, rows, known.regions, known.lines)


def by_direct_and_tree(net: co.CamNetwork, known: Relaxed, node: str, rows) -> Tensor:
    """The direct plane where it is used, the tree for the coefficients it leaves."""
    return lower_bounds(net.graph, node, rows, known.regions, {**known.lines, **known.direct})


def mean_width(bounds: Interval) -> float:
    return float((bounds.upper - bounds.lower).mean())


# --- windows and their candidates ----------------------------------------------------------------------------

GEOMETRIES = [
    MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1)),
    MaxPool2d((3, 3), (2, 2), (1, 1), (1, 1)),
    MaxPool2d((3, 2), (1, 3), (1, 0), (2, 1)),
    MaxPool2d((3, 3), (2, 2), (0, 0), (1, 1), ceil_mode=True),
    MaxPool2d((2, 4), (3, 1), (1, 2), (1, 1)),
]


def candidates(pool: MaxPool2d, row: int, column: int, height: int, width: int) -> list[tuple[int, int] | None]:
    """Positions of the candidates of one window, row by row; None off the image."""
    found: list[tuple[int, int] | None] = []
    for ky in range(pool.kernel[0]):
        for kx in range(pool.kernel[1]):
            y = row * pool.stride[0] - pool.padding[0] + ky * pool.dilation[0]
            x = column * pool.stride[1] - pool.padding[1] + kx * pool.dilation[1]
            found.append((y, x) if 0 <= y < height and 0 <= x < width else None)
    return found


@pytest.mark.parametrize("pool", GEOMETRIES)
def test_window_taps_are_the_candidates(pool):
    values = image(2, 8, 7, seed=1).double()
    taps = window_taps(pool, values, -5.0)
    assert torch.equal(taps.amax(dim=0), pool.apply([values]))
    for row in range(taps.shape[3]):
        for column in range(taps.shape[4]):
            places = candidates(pool, row, column, 8, 7)
            expected = [torch.full((2,), -5.0).double() if p is None else values[0, :, p[0], p[1]] for p in places]
            assert torch.equal(taps[:, 0, :, row, column], torch.stack(expected))


@pytest.mark.parametrize("pool", GEOMETRIES)
def test_marks_of_windows_go_back_to_their_positions(pool):
    taps = window_taps(pool, torch.zeros(2, 3, 8, 7), 1.0)
    generator = torch.Generator().manual_seed(2)
    marks = torch.rand(taps.shape, generator=generator) < 0.05
    expected = torch.zeros(2, 3, 8, 7, dtype=torch.bool)
    for row in range(taps.shape[3]):
        for column in range(taps.shape[4]):
            for tap, place in enumerate(candidates(pool, row, column, 8, 7)):
                if place is not None:
                    expected[:, :, place[0], place[1]] |= marks[tap, :, :, row, column]
    assert torch.equal(from_windows(pool, marks, 8, 7), expected)
    # there and back: a marked position marks its candidates, and these mark the position, if any window holds it
    held = from_windows(pool, torch.ones_like(marks), 8, 7)
    there = torch.rand(2, 3, 8, 7, generator=generator) < 0.3
    back = from_windows(pool, window_taps(pool, there.double(), 0.0) > 0, 8, 7)
    assert torch.equal(back, there & held)


# --- planes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "seed"), mostly_slow(cases(0, 1), cases(0)))
def test_planes_hold_on_sampled_images(index, seed):
    net = network(index, seed)
    name, pooled = only_pool(net)
    for eps in EPSES[1::2]:
        for x in (image(*SHAPE, seed=seed + 5), smooth(seed)):
            ball = co.Ball(x, eps)
            known = relaxed(net, ball)
            values = net.graph.values(points_in(ball.lower, ball.upper, 300, seed), name)
            # what lies off the image must not count, whatever it is taken to be
            taps = window_taps(pooled.pool, values[pooled.source], 1e3)
            best = pooled.pool.apply([values[pooled.source]])
            torch.testing.assert_close(values[name], best, rtol=1e-12, atol=1e-12)
            tree, chosen = composed(net, known), known.pools[name].every.planes
            for planes in (tree, chosen, direct_planes(pooled.pool, known.intervals[pooled.source])):
                assert bool((planes.lower.at(taps) <= best + 1e-9).all())
                assert bool((planes.upper.at(taps) >= best - 1e-9).all())
            assert 0 <= float(tree.lower.slopes.min()) <= float(tree.upper.slopes.max()) <= 1 + 1e-12
            settled = ~tree.open.expand_as(best)
            torch.testing.assert_close(tree.lower.at(taps)[settled], best[settled], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", GEOMETRIES)
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_direct_planes_hold_for_any_candidates(pool, spread):
    """Not only for those that a network has: intervals of any widths, some of them points."""
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(3, 8, 7, generator=generator, dtype=torch.float64)
    width = spread * torch.rand(3, 8, 7, generator=generator, dtype=torch.float64)
    width *= torch.rand(3, 8, 7, generator=generator) < 0.8
    planes = direct_planes(pool, Interval(low[None], (low + width)[None]))
    points = points_in(low, low + width, 1000, 4)
    best, taps = pool.apply([points]), window_taps(pool, points, 1e3)
    assert bool((planes.lower.at(taps) <= best + 1e-9).all())
    assert bool((planes.upper.at(taps) >= best - 1e-9).all())


@pytest.mark.parametrize("pool", GEOMETRIES)
@pytest.mark.parametrize("size", [0.0, 1e-16, 1e-14])
def test_planes_hold_where_rounding_has_crossed_the_bounds(pool, size):
    """A candidate that is constant has bounds from several passes, which differ by rounding: either may be larger."""
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(3, 8, 7, generator=generator, dtype=torch.float64)
    value = torch.where(torch.rand(3, 8, 7, generator=generator) < 0.3, value[0, 0, 0], value)  # and some are equal
    noise = size * torch.randn(2, 3, 8, 7, generator=generator, dtype=torch.float64)
    wide = torch.rand(3, 8, 7, generator=generator, dtype=torch.float64)
    wide *= torch.rand(3, 8, 7, generator=generator) < 0.2
    low, high = value + noise[0] - wide, value + noise[1] + wide
    planes = direct_planes(pool, Interval(low[None], high[None]))
    points = points_in(value - wide, value + wide, 500, 6)
    best, taps = pool.apply([points]), window_taps(pool, points, 0.0)
    for plane in (planes.lower, planes.upper):
        assert bool(plane.shift.isfinite().all()) and bool(plane.slopes.isfinite().all())
    assert bool((planes.lower.at(taps) <= best + 1e-9).all())
    assert bool((planes.upper.at(taps) >= best - 1e-9).all())


class Dark(nn.Module):
    """Three layers before the pool: where the image is black the first is dead and what the pool reads is constant."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.c3, self.c4 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.fc = nn.Linear(channels, 2)
        with torch.no_grad():
            assert self.c1.bias is not None
            self.c1.bias.fill_(-0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.c3(F.relu(self.c2(F.relu(self.c1(x))))))
        return self.fc(F.relu(self.c4(F.max_pool2d(h, 2))).mean((2, 3)))


@pytest.mark.parametrize("seed", [603, 1048, 1409, 1483, 1812])
def test_bounds_hold_beside_constant_candidates(seed):
    """Networks in which a constant beats all others of its window, and rounding has put its bounds the wrong way."""
    x = image(1, 12, 12, seed=seed) * (torch.arange(12) % 5 > 2)
    net = co.from_torch(seeded(Dark, seed), x)
    for eps in (0.03, 0.06, 0.1):
        ball = co.Ball(x, eps)
        cams = net.cams(points_in(ball.lower, ball.upper, 300, seed), 0).flatten(1)
        for bound in (pixels(net, relaxed(net, ball), 0), corgi_pixels(net, ball, 0)):
            assert bool(bound.lower.isfinite().all()) and bool(bound.upper.isfinite().all())
            assert bool((cams >= bound.lower - 1e-9).all())
            assert bool((cams <= bound.upper + 1e-9).all())


# --- planes in a backward pass -------------------------------------------------------------------------------


COMPOSED = [(pool, seed) for pool in APART for seed in range(2)]


@pytest.mark.parametrize(("pool", "seed"), mostly_slow(COMPOSED, COMPOSED[::3]))
def test_composed_planes_equal_the_walk_down_the_tree(pool, seed):
    """Where windows share no maximum of a column, CROWN through one plane a window is CROWN through the tree."""
    net = network(POOLS.index(pool), seed)
    for eps in EPSES:
        for x in (image(*SHAPE, seed=seed + 5), smooth(seed)):
            known = relaxed(net, co.Ball(x, eps))
            planes, tree = (pixels(net, known, 0, functools.partial(by, net, known)) for by in (by_composed, by_tree))
            for mine, theirs in zip(planes, tree, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("index", "seed"), cases(0))
def test_composed_planes_are_not_much_looser_than_the_tree(index, seed):
    """Where windows overlap the tree relaxes a shared maximum once for all that read it, planes once for each."""
    net = network(index, seed)
    for eps in EPSES:
        known = relaxed(net, co.Ball(smooth(seed), eps))
        planes, tree = (pixels(net, known, 0, functools.partial(by, net, known)) for by in (by_composed, by_tree))
        assert mean_width(planes) <= 1.25 * mean_width(tree)


DIRECT = [(*case, eps) for case in cases(0, 1) for eps in (0.1, 0.3)]


@pytest.mark.parametrize(("index", "seed", "eps"), mostly_slow(DIRECT, DIRECT[::5]))
def test_bounds_hold_where_direct_planes_are_used(index, seed, eps):
    net = network(index, seed)
    name, _ = only_pool(net)
    ball = co.Ball(smooth(seed), eps)
    known = relaxed(net, ball)
    assert known.pools[name].direct is not None
    cams = net.cams(points_in(ball.lower, ball.upper, 500, seed), 0).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(0, cams.shape[1], (20, 2), generator=generator)
    wanted = wanted[wanted[:, 0] != wanted[:, 1]]
    gaps = cams[:, wanted[:, 0]] - cams[:, wanted[:, 1]]
    for bound in (known.bound, functools.partial(by_direct_and_tree, net, known)):
        found = pixels(net, known, 0, bound)
        assert bool((cams >= found.lower - 1e-9).all())
        assert bool((cams <= found.upper + 1e-9).all())
        assert bool((gaps >= pairs(net, known, 0, wanted, bound) - 1e-9).all())


@pytest.mark.parametrize("pool", [{"kernel": 2, "stride": 2}, {"kernel": 3, "stride": 2}])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_the_better_plane_pays_on_smooth_images(pool, seed, eps):
    """Large regions of smooth images are what direct planes are for: the choice must not lose there."""
    net = network(POOLS.index(pool), seed)
    name, _ = only_pool(net)
    known = relaxed(net, co.Ball(smooth(seed), eps))
    direct = known.pools[name].direct
    assert direct is not None and direct.used is not None
    assert bool((direct.used[0] | direct.used[1]).any())
    both, tree = pixels(net, known, 0), pixels(net, known, 0, functools.partial(by_tree, net, known))
    assert mean_width(both) <= 1.001 * mean_width(tree)


def test_each_window_takes_the_plane_that_is_tighter_in_the_middle():
    net = network(POOLS.index({"kernel": 3, "stride": 2}), 1)
    _, pooled = only_pool(net)
    known = relaxed(net, co.Ball(smooth(1), 0.1))
    found = known.intervals[pooled.source]
    tree, direct = composed(net, known), direct_planes(pooled.pool, found)
    choice = choose_planes(pooled, tree, found)
    middle = window_taps(pooled.pool, (found.lower + found.upper) / 2, 0.0)
    planes = choice.every.planes
    assert bool((planes.lower.at(middle) >= torch.maximum(tree.lower.at(middle), direct.lower.at(middle)) - 1e-4).all())
    assert bool((planes.upper.at(middle) <= torch.minimum(tree.upper.at(middle), direct.upper.at(middle)) + 1e-4).all())
    assert choice.direct is not None and choice.direct.used is not None
    both, theirs = (planes.lower, planes.upper), (direct.lower, direct.upper)
    for used, mine, plane in zip(choice.direct.used, both, theirs, strict=True):
        assert bool(used.any()) and not bool(used.all())
        assert torch.equal(mine.at(middle)[used], plane.at(middle)[used])


def test_planes_of_one_region_are_those_of_its_batch():
    net = network(POOLS.index({"kernel": 3, "stride": 2}), 1)
    name, _ = only_pool(net)
    balls = [co.Ball(smooth(seed), eps) for seed, eps in ((0, 0.1), (1, 0.3), (2, 0.05))]
    together = relaxed(net, *balls)
    for case, ball in enumerate(balls):
        alone = relaxed(net, ball).only(0).planes[name]
        mine = together.only(case).planes[name]
        assert mine.used is not None and alone.used is not None
        for side in (0, 1):
            assert torch.equal(mine.used[side], alone.used[side])
        for plane, other in ((mine.planes.lower, alone.planes.lower), (mine.planes.upper, alone.planes.upper)):
            torch.testing.assert_close(plane.slopes, other.slopes, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(plane.shift, other.shift, rtol=1e-9, atol=1e-9)
