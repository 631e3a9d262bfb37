"""Branch and bound on intervals: never above what images have, and as close to it as pieces are many."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from asking import ask
from curved_nets import BUILT, Line, read
from nets import image
from oracles import points_in
from patience import mostly_slow
from relaxing import relaxed
from torch import Tensor

import corgi_opt as co
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.objective import Objectives, atom_bounds, objectives
from corgi_opt.search import splitting
from corgi_opt.search.splitting import GAINS_LITTLE, NO_CLOSER, TIME_LIMIT, Piece, SplitSolver, split


class Setting:
    """A question about one region, relaxed, and its atoms' values at many images."""

    def __init__(self, net: co.CamNetwork, x: Tensor, eps: float, points: Tensor | None = None, **about) -> None:
        self.net, self.question = net, ask(net, x, **about)
        self.relaxed = relaxed(net, self.question.ball(eps))
        if points is None:
            regions = self.relaxed.regions
            points = points_in(regions.lower[0], regions.upper[0], 4000, 1)
        parts = torch.cat([self.question.values(part) for part in points.split(500)])
        groups = self.question.groups
        self.least = (parts[:, groups.terms] * groups.coefs).sum(dim=2).amin(dim=0)

    def objective(self, atom: int) -> Objectives:
        groups, case = self.question.groups, torch.zeros(1, dtype=torch.long)
        (found,) = objectives(self.net, groups.parts, groups.terms[[atom]], groups.coefs[[atom]], case)
        return found

    def split(self, atom: int, goal: float, deadline: Deadline = NEVER) -> splitting.Split:
        return split(self.relaxed, self.net.features, self.objective(atom), goal, deadline)

    @functools.cached_property
    def dual(self) -> Tensor:
        atoms = torch.arange(len(self.question.groups))
        bound = functools.partial(ascend, self.relaxed)
        return atom_bounds(self.net, self.question.groups, bound, atoms, torch.zeros_like(atoms))


@functools.cache
def line(seed: int, eps: float) -> Setting:
    """One input: the fine grid is an oracle of minima."""
    torch.manual_seed(seed)
    net = co.from_torch(Line().eval(), torch.rand(1, 1, 1, 1))
    x = center(seed)
    points = torch.linspace(float(x) - eps, float(x) + eps, 4001, dtype=torch.float64).view(-1, 1, 1, 1)
    return Setting(net, x, eps, points, k=1, class_idx=0, clip=None)


def center(seed: int) -> Tensor:
    return torch.tensor([[[[0.3 + 0.1 * seed]]]], dtype=torch.float64)


@pytest.mark.parametrize("seed", mostly_slow(range(4), [1, 3]))
def test_minima_of_one_input_are_found_to_a_hundredth(seed):
    """Two of three where dual ascent is not that close, and much of the way to the others: what pieces are worth."""
    shares = []
    for eps in (0.1, 0.4):
        setting = line(seed, eps)
        for atom, (least, dual) in enumerate(zip(setting.least.tolist(), setting.dual.tolist(), strict=True)):
            goal = least - 0.01 * (abs(least) + 0.1)
            found = setting.split(atom, goal)
            assert found.lower <= least and (found.lower > goal) == (found.reason == "")
            if dual < goal:
                shares.append((min(found.lower, goal) - dual) / (goal - dual))
    closed = sum(share == 1 for share in shares)
    assert len(shares) >= 3 and 3 * closed >= 2 * len(shares) and min(shares) > 0.2, shares


@pytest.mark.parametrize("name", mostly_slow(BUILT, ["gelu", "elu", "squeezed"]))
def test_no_image_is_below(name):
    """Goals that no bound can reach: the search ends with a bound of every image."""
    setting = Setting(read(name), image(1, 6, 6, seed=3), 0.05, k=4, class_idx=1)
    better = 0
    for atom in (0, len(setting.least) // 2):
        least = float(setting.least[atom])
        found = setting.split(atom, least + 1e-9, Deadline(1.5))
        assert found.lower <= least and found.reason in (GAINS_LITTLE, TIME_LIMIT, NO_CLOSER)
        better += found.lower > float(setting.dual[atom]) + 1e-6 * abs(least)
    assert better >= 1


@pytest.mark.parametrize(
    ("norm", "eps", "atom"),
    mostly_slow(
        [(*ball, atom) for ball in (("2", 0.2), ("1", 0.5)) for atom in (0, -1)], [("2", 0.2, 0), ("1", 0.5, -1)]
    ),
)
def test_other_norms_keep_to_their_region(norm, eps, atom):
    net, x = read("mixed"), image(1, 6, 6, seed=3)
    setting = Setting(net, x, eps, x.double(), k=4, class_idx=1, norm=norm)
    offsets = torch.randn(3000, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size = offsets.flatten(1).norm(p=float(norm), dim=1)[:, None, None, None]
    points = (x.double() + eps * offsets / size).clamp(0, 1)
    groups, parts = setting.question.groups, setting.question.values(points)
    least = (parts[:, groups.terms] * groups.coefs).sum(dim=2).amin(dim=0).tolist()
    found = setting.split(range(len(least))[atom], least[atom], Deadline(2.0))
    assert -math.inf < found.lower <= least[atom]


def test_halves_are_the_whole():
    setting = line(0, 0.4)
    cutter = splitting._Cutter(setting.relaxed, setting.net.features, setting.objective(0))
    left, seen = [Piece({})], 0
    for _ in range(5):
        (piece, *left) = cutter.bounded(left, math.inf)
        assert piece.worst is not None
        unit, at = piece.worst
        low, high = piece.cuts.get(unit) or cutter._exact.range_of(unit)
        first, second = cutter.halves(piece)
        assert (first.cuts[unit], second.cuts[unit]) == ((low, at), (at, high)) and low < at < high
        assert {u: c for u, c in first.cuts.items() if u != unit} == {u: c for u, c in piece.cuts.items() if u != unit}
        left, seen = [*left, first, second], seen + 1
    assert seen == 5


def test_a_search_that_is_cut_off_keeps_what_it_has():
    setting = line(1, 0.4)
    goal = float(setting.least[0]) + 1.0
    over = setting.split(0, goal, Deadline(1e-9))
    assert (over.lower, over.reason) == (-math.inf, TIME_LIMIT) or over.lower <= float(setting.least[0])
    some = setting.split(0, goal, Deadline(1.0))
    assert -math.inf < some.lower <= float(setting.least[0]) and some.reason


def test_what_cannot_be_cut_ends_the_search():
    """A region of one image has nothing to be cut."""
    setting = line(2, 0.4)
    point = Setting(setting.net, center(2), 0.0, center(2), k=1, class_idx=0, clip=None)
    least = float(point.least[0])
    found = point.split(0, least + 1.0)
    assert found.reason == NO_CLOSER and found.pieces == 1
    assert least - 1e-9 <= found.lower <= least


def test_a_solver_answers_with_the_bound_alone():
    setting = line(3, 0.4)
    goal = float(setting.least[0]) - 0.01 * (abs(float(setting.least[0])) + 0.1)
    (answer,) = SplitSolver(setting.question).attempts(0, setting.relaxed, NEVER, goal)
    assert answer.lower > goal and answer.image is None and not answer.passes and answer.nodes >= 1


def test_it_certifies_what_dual_ascent_cannot():
    """On the network of one input, at eps between both radii."""
    setting = line(2, 0.4)
    x = center(2)
    asked: dict[str, Any] = {"k": 1, "class_idx": 0, "clip": None}
    dual, best = (co.radius(setting.net, x, method=m, rtol=0.002, **asked) for m in ("dual", "split"))
    assert dual.ratio > 1.02 and best.ratio < 1.003
    v = co.verify(setting.net, x, eps=0.999 * best.lower, method="bab", **asked)
    assert (v.status, v.method, v.proof) == ("certified", "split", "float64")
