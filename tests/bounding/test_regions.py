"""The least value of a linear function over a ball within a box, against solvers that know nothing of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import image
from patience import mostly_slow
from scipy.optimize import linprog

import corgi_opt as co
from corgi_opt.bounding.regions import Regions, least
from corgi_opt.network.ops import Places
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.region import Norm

CPU = torch.device("cpu")
NORMS = ("inf", "2", "1")
KINDS = (
    "box inactive",
    "box cuts in",
    "box fully active",
    "centre on the border",
    "eps zero",
    "some coefficients zero",
    "one coefficient",
    "coefficients far apart",
    "ties",
    "all coefficients zero",
)
ROWS = 30


def cases(kind: str, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """lam, low, high (ROWS, size) and eps (ROWS,), float64, with low <= 0 <= high."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lam = torch.randn(ROWS, size, generator=generator, dtype=torch.float64)
    eps = 10 ** (3 * uniform(ROWS) - 3)
    low, high = -eps[:, None] * torch.ones(ROWS, size).double(), eps[:, None] * torch.ones(ROWS, size).double()
    if kind == "box cuts in":
        low, high = low * uniform(ROWS, size), high * uniform(ROWS, size)
    elif kind == "box fully active":  # the box's far corner lies inside the ball of every norm
        low, high = low * uniform(ROWS, size) / size, high * uniform(ROWS, size) / size
    elif kind == "centre on the border":
        low, high = low * (uniform(ROWS, size) > 0.5), high * (uniform(ROWS, size) > 0.3)
    elif kind == "eps zero":
        eps = torch.zeros(ROWS).double()
        low, high = torch.zeros_like(low), torch.zeros_like(high)
    elif kind == "some coefficients zero":
        lam = lam * (uniform(ROWS, size) > 0.6)
    elif kind == "one coefficient":
        lam = lam * (torch.arange(size) == torch.randint(size, (ROWS, 1), generator=generator))
    elif kind == "coefficients far apart":
        lam = lam * 10 ** (-20 * uniform(ROWS, size))
    elif kind == "ties":
        lam = torch.randint(-1, 2, (ROWS, size), generator=generator).double()
    elif kind == "all coefficients zero":
        lam = torch.zeros_like(lam)
    return lam, low, high, eps


def least_by_linprog(lam: np.ndarray, low: np.ndarray, high: np.ndarray, eps: float) -> float:
    """d = eps (p - n) with 0 <= p <= high / eps, 0 <= n <= -low / eps and sum (p + n) <= 1."""
    size = np.abs(lam).max()
    if size == 0 or eps == 0:
        return 0.0
    bounds = [(0.0, h / eps) for h in high] + [(0.0, -l / eps) for l in low]
    c = np.concatenate([lam, -lam]) / size  # of order one: the solver's tolerances are absolute
    answer = linprog(c, np.ones((1, 2 * len(lam))), [1.0], bounds=bounds, method="highs-ds")
    assert answer.status == 0, answer.message
    return float(answer.fun) * size * eps


def least_by_bisection(lam: np.ndarray, low: np.ndarray, high: np.ndarray, eps: float) -> float:
    """Bisection on t = 1 / nu in extended precision: d(t) = clip(-t lam, low, high), whose length grows with t."""
    lam, low, high = (a.astype(np.longdouble) for a in (lam, low, high))
    far = np.where(lam > 0, low, np.where(lam < 0, high, np.longdouble(0)))
    if (far**2).sum() <= np.longdouble(eps) ** 2:
        return float((lam * far).sum())
    if eps == 0:
        return 0.0
    # at the smallest t no input is at the box and all of eps is unspent, at the largest all inputs are at the box
    live = (far != 0) & (lam != 0)
    short, long = np.longdouble(0), 2 * (np.abs(far[live]) / np.abs(lam[live])).max()
    for _ in range(400):
        t = (short + long) / 2 if short == 0 or long > 2 * short else np.sqrt(short * long)
        d = np.clip(-t * lam, low, high)
        short, long = (t, long) if (d**2).sum() <= np.longdouble(eps) ** 2 else (short, t)
    return float((lam * np.clip(-short * lam, low, high)).sum())


def reference(norm: str, lam: np.ndarray, low: np.ndarray, high: np.ndarray, eps: float) -> float:
    if norm == "inf":
        return float(np.minimum(lam * low, lam * high).sum())
    return (least_by_linprog if norm == "1" else least_by_bisection)(lam, low, high, eps)


def length(norm: str, d: np.ndarray) -> float:
    return float(np.linalg.norm(d.ravel(), {"inf": np.inf, "2": 2, "1": 1}[norm]))


def feasible(norm: str, low: np.ndarray, high: np.ndarray, eps: float, seed: int) -> np.ndarray:
    """Offsets (200, N) in the ball and the box: random directions to the border, then clipped, which only shortens."""
    random = np.random.default_rng(seed)
    d = random.standard_normal((200, len(low)))
    d[::4] *= random.random((50, len(low))) < 0.3
    size = np.linalg.norm(d, {"inf": np.inf, "2": 2, "1": 1}[norm], axis=1, keepdims=True)
    return np.clip(eps * d / np.maximum(size, 1e-300), low, high)


MINIMA = [(norm, kind, size) for norm in NORMS for kind in KINDS for size in (1, 2, 7)]


@pytest.mark.parametrize(("norm", "kind", "size"), mostly_slow(MINIMA, MINIMA[::4]))
def test_least_is_the_minimum_and_never_above_it(norm, kind, size):
    lam, low, high, eps = cases(kind, size, seed=KINDS.index(kind))
    move = least(norm, lam, low, high, eps)
    assert bool(((move.offset >= low) & (move.offset <= high)).all())
    for row in range(ROWS):
        slope, left, right = (t[row].numpy() for t in (lam, low, high))
        e = float(eps[row])
        value = float((lam[row] * move.offset[row]).sum() + move.slack[row])
        exact = reference(norm, slope, left, right, e)
        scale = e * float(lam[row].abs().sum())
        # a linear program is solved to 1e-7 or so, the others to the last digits
        assert value == pytest.approx(exact, abs=(1e-7 if norm == "1" else 1e-12) * scale + 1e-100)
        if norm != "1":
            assert value <= exact + 1e-12 * abs(exact)
        assert length(norm, move.offset[row].numpy()) <= e * (1 + 1e-12)
        sampled = feasible(norm, left, right, e, row) @ slope
        assert value <= sampled.min() + 1e-12 * abs(exact)


@pytest.mark.parametrize("seed", range(4))
def test_the_l1_minimum_is_the_best_vertex(seed):
    """Without a box the minimum over an L1 ball is at a vertex: -eps max |lam|, to the last digit."""
    lam, low, high, eps = cases("box inactive", 9, seed)
    move = least("1", lam, low, high, eps)
    value = (lam * move.offset).sum(dim=1) + move.slack
    torch.testing.assert_close(value, -eps * lam.abs().amax(dim=1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_the_l2_minimum_is_minus_eps_times_the_length(size):
    """Without a box, over many rows: where one input takes all of eps, rounding decides on which side of the box."""
    generator = torch.Generator().manual_seed(size)
    lam = torch.randn(20_000, size, generator=generator, dtype=torch.float64)
    lam[:10_000, 1:] = lam[:10_000, 1:] * (torch.rand(10_000, size - 1, generator=generator) < 0.3)
    eps = torch.rand(20_000, generator=generator, dtype=torch.float64)
    box = eps[:, None].expand_as(lam)
    move = least("2", lam, -box, box, eps)
    value = (lam * move.offset).sum(dim=1) + move.slack
    exact = -eps * lam.norm(dim=1)
    assert float(((value - exact) / exact.abs()).max()) <= 1e-12  # above the minimum: no bound at all
    assert float(((exact - value) / exact.abs()).max()) <= 1e-9


def regions(norm: Norm, dtype: torch.dtype = torch.float64, clip: Clip = (0.0, 1.0)) -> Regions:
    """Three balls: an image, one with many inputs on the border of the clip box, and another eps."""
    on_border = (3 * image(2, 5, 4, seed=1) - 1).clamp(0, 1)
    balls = [(image(2, 5, 4), 0.4), (on_border, 0.9), (image(2, 5, 4, seed=2), 0.05)]
    return Regions.of([co.Ball(x, eps, norm, clip) for x, eps in balls], dtype, CPU)


def some_rows(corners: list[tuple[int, int]], h: int, w: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients (R, 2, h, w), zero off the 5x4 image, and the same laid out on whole images (R, 2, 5, 4)."""
    generator = torch.Generator().manual_seed(seed)
    coefs = torch.randn(len(corners), 2, h, w, generator=generator, dtype=torch.float64)
    whole = torch.zeros(len(corners), 2, 5, 4, dtype=torch.float64)
    for row, (top, left) in enumerate(corners):
        for y in range(h):
            for x in range(w):
                if 0 <= top + y < 5 and 0 <= left + x < 4:
                    whole[row, :, top + y, left + x] = coefs[row, :, y, x]
                else:
                    coefs[row, :, y, x] = 0.0
    return coefs, whole


CORNERS = [(0, 0), (-2, 1), (3, 3), (2, -1), (4, 0), (-1, -1), (1, 1), (0, 0), (3, 2)]
CASE = [0, 1, 2, 1, 0, 2, 1, 2, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
@pytest.mark.parametrize("many", [1, 3])
def test_rows_of_several_regions_on_windows_that_overhang(norm, clip, many):
    """Each row against the reference on its own whole image; repeated, as windows that many rows share are cut once."""
    region = regions(norm, clip=clip)
    coefs, whole = some_rows(CORNERS * many, 3, 3)
    case = torch.tensor(CASE * many)
    found = region.minimum(coefs, Places.of(torch.tensor(CORNERS * many), case))
    for row, of in enumerate(case.tolist()):
        center, low, high = (t[of].flatten().numpy() for t in (region.center, region.lower, region.upper))
        lam = whole[row].flatten().numpy()
        exact = lam @ center + reference(norm, lam, low - center, high - center, float(region.eps[of]))
        assert float(found[row]) == pytest.approx(exact, abs=1e-7 if norm == "1" else 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_several_regions_equal_the_single_ones(norm):
    region = regions(norm)
    coefs, _ = some_rows(CORNERS, 3, 3, seed=5)
    together = region.minimum(coefs, Places.of(torch.tensor(CORNERS), torch.tensor(CASE)))
    for row, of in enumerate(CASE):
        parts = (t[of : of + 1] for t in (region.center, region.lower, region.upper, region.eps))
        alone = Regions(region.norm, *parts)
        one = alone.minimum(coefs[row : row + 1], Places.of(torch.tensor(CORNERS[row : row + 1])))
        assert float(one[0]) == pytest.approx(float(together[row]), rel=1e-13)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_the_derivative_is_the_minimiser(norm, seed):
    """d minimum / d coefs by autograd: it is a point of the region, it attains the minimum, and so do differences."""
    region = regions(norm)
    coefs, _ = some_rows([(0, 0)] * 3, 5, 4, seed)
    places = Places.of(torch.zeros(3, 2, dtype=torch.long), torch.arange(3))
    coefs.requires_grad_(True)
    value = region.minimum(coefs, places)
    (point,) = torch.autograd.grad(value.sum(), coefs)
    assert bool(((point >= region.lower) & (point <= region.upper)).all())
    for of in range(3):
        assert length(norm, (point - region.center)[of].numpy()) <= float(region.eps[of]) * (1 + 1e-12)
    torch.testing.assert_close((coefs.detach() * point).flatten(1).sum(dim=1), value.detach(), rtol=1e-12, atol=0)
    direction = torch.randn(coefs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (region.minimum(coefs + s * step * direction, places) for s in (1, -1))
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close(slope, (direction * point).flatten(1).sum(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_float32_is_close_to_float64(norm):
    double = regions(norm)
    single = double.to(torch.float32)
    assert single.eps.dtype == single.lower.dtype == torch.float32
    coefs, _ = some_rows(CORNERS, 3, 3, seed=7)
    places = Places.of(torch.tensor(CORNERS), torch.tensor(CASE))
    torch.testing.assert_close(
        single.minimum(coefs.float(), places).double(), double.minimum(coefs, places), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(regions(norm, torch.float32).center.double(), double.center, rtol=1e-7, atol=0)


def test_regions_of_balls_keep_their_boxes():
    one: Any = 1
    balls = [co.Ball(image(1, 3, 3, seed=s), eps, one) for s, eps in ((0, 0.1), (1, 0.7))]
    region = Regions.of(balls, torch.float64, CPU)
    assert len(region) == 2
    assert region.norm == "1"
    for of, ball in enumerate(balls):
        assert torch.equal(region.lower[of], ball.lower)
        assert torch.equal(region.upper[of], ball.upper)
        assert float(region.eps[of]) == ball.eps
