"""Exact answers about tiny networks, from their linear regions. Nothing here imports the package.

On a region the question is to minimise a maximum of few affine forms over a polytope within a ball: a linear program
(scipy's linprog) or, in L2, a sequence of least-distance problems (Lawson and Hanson 1974, chapter 23, scipy's nnls).
Whatever a solver says, ``Answer.lower`` comes from multipliers, by weak duality evaluated in closed form, and
``Answer.upper`` from running the network at a point of X; only rounding (of the order 1e-12) is not accounted for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from linear_regions import Affine, Array, Ball, Clip, Region, lengths, linear_regions
from scipy.optimize import linprog
from torch import Tensor, nn

TOLERANCE = 1e-10
"""Regions that cannot lower the minimum by more than this are not looked at."""
CLASS_TOLERANCE = 1e-10
"""A point whose logit is below another by no more than this counts as one that keeps its class."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The minimum lies in [lower, upper]; ``upper`` is the value at ``point``, an image of X."""

    lower: float
    upper: float
    point: Tensor
    regions: int

    @property
    def stable(self) -> bool | None:
        """Whether the minimum is positive; None where that is too close to tell.

        None includes exact ties, say of two pixels that are dead at ``point``: there ``upper <= 0``, so that nothing
        may be certified.
        """
        return True if self.lower > TOLERANCE else False if self.upper < -TOLERANCE else None


def exact_margin(
    model: nn.Module, x: Tensor, *, eps: float, norm: str, clip: Clip, k: int, class_idx: int | None = None
) -> Answer:
    """The least ``CAM_i - CAM_j`` over X, i of the k brightest pixels at x and j of the others."""
    return _answer(model, x, eps, norm, clip, class_idx, k, None, False)


def exact_within_margin(
    model: nn.Module, x: Tensor, *, eps: float, norm: str, clip: Clip, k1: int, k2: int, class_idx: int | None = None
) -> Answer:
    """The least of ``CAM_i - (the k2-th largest among all other pixels)`` over X, i of the k1 brightest at x.

    Positive iff every such i stays among the k2 largest. ``k1 <= k2 < pixels``.
    """
    return _answer(model, x, eps, norm, clip, class_idx, k1, k2, False)


def exact_margin_keep_class(
    model: nn.Module,
    x: Tensor,
    *,
    eps: float,
    norm: str,
    clip: Clip,
    k: int,
    within: int | None = None,
    class_idx: int | None = None,
) -> Answer:
    """:func:`exact_margin`, or with ``within`` :func:`exact_within_margin`, over the images of X where the logit of
    the class predicted at x is not below any other.
    """
    return _answer(model, x, eps, norm, clip, class_idx, k, within, True)


def exact_class_margin(model: nn.Module, x: Tensor, *, eps: float, norm: str, clip: Clip) -> Answer:
    """The least of ``logit_c - (the largest other logit)`` over X, c predicted at x."""
    net, ball = Affine.of(model, x, None), Ball.around(x, eps, norm, clip)
    order = np.argsort(-(net.logits @ net.values(np.zeros((1, net.inputs)))[:, 0]), kind="stable").tolist()
    return _Search(replace(net, cam=net.logits), ball, None, {order[0]: order[1:]}, 1).run(x)


def _answer(
    model: nn.Module,
    x: Tensor,
    eps: float,
    norm: str,
    clip: Clip,
    class_idx: int | None,
    k: int,
    k2: int | None,
    keep: bool,
) -> Answer:
    net, ball = Affine.of(model, x, class_idx), Ball.around(x, eps, norm, clip)
    center = net.values(np.zeros((1, net.inputs)))[:, 0]
    order = np.argsort(-(net.cam @ center), kind="stable").tolist()
    rivals = {i: order[k:] if k2 is None else [j for j in order if j != i] for i in order[:k]}
    kept = int((net.logits @ center).argmax()) if keep else None
    return _Search(net, ball, kept, rivals, 1 if k2 is None else k2).run(x)


class _Search:
    """Minimises ``min_i CAM_i - (the size-th largest CAM_j of the rivals j of i)``: over i and sets S of ``size``
    rivals, the minimum of the maximum over j in S of the affine forms ``CAM_i - CAM_j``.
    """

    def __init__(self, net: Affine, ball: Ball, kept: int | None, rivals: dict[int, list[int]], size: int) -> None:
        self.net, self.ball, self.kept, self.rivals, self.size = net, ball, kept, rivals, size
        self.upper, self.best = np.inf, np.zeros(net.inputs)

    def run(self, x: Tensor) -> Answer:
        self.meet(np.zeros((1, self.net.inputs)))
        lower, count = self.upper, 0
        if self.ball.eps > 0:
            self.meet(self.ball.sample(300, np.random.default_rng(0)))
            for region in linear_regions(self.net, self.ball):
                count += 1
                lower = min(lower, self.least_in(region))
            lower = min(lower, self.upper - TOLERANCE)
        point = x.detach().double() + torch.tensor(self.best).reshape(x.shape)
        return Answer(lower, self.upper, point, count)

    def meet(self, d: Array) -> None:
        """Runs the network at displacements (count, n) of the ball and keeps the best that does not change class."""
        v = self.net.values(d)
        cam, logits = self.net.cam @ v, self.net.logits @ v
        value = np.min([np.sort(cam[i] - cam[js], axis=0)[self.size - 1] for i, js in self.rivals.items()], axis=0)
        if self.kept is not None:
            value[logits.max(axis=0) > logits[self.kept] + CLASS_TOLERANCE] = np.inf
        if value.min() < self.upper:
            self.upper, self.best = float(value.min()), d[value.argmin()]

    @property
    def target(self) -> float:
        """Values from here on are of no interest."""
        return self.upper - TOLERANCE

    def least_in(self, region: Region) -> float:
        """A lower bound of the minimum in a region, tight where that is below ``target``."""
        lower, rows = np.inf, region.rows
        if self.kept is not None:
            rows = np.vstack([rows, np.delete(region.logits, self.kept, axis=0) - region.logits[self.kept]])
        for i, others in self.rivals.items():
            forms = region.cam[i] - region.cam[others]
            bounds = self.ball.least(forms)
            order = [j for j in np.argsort(bounds) if bounds[j] < self.target]  # sets with others are above it
            for chosen in map(list, itertools.combinations(order, self.size)):
                below = np.vstack([rows, forms[chosen] - self.target * np.eye(1, forms.shape[1])])
                if bounds[chosen].max() < self.target and not self.ball.empty(below):
                    least = self.by_newton if self.ball.norm == "2" else self.by_lp
                    lower = min(lower, least(rows, forms[chosen]))
        return lower

    def by_lp(self, rows: Array, forms: Array) -> float:
        """``min max forms`` where ``rows <= 0``, in an L-infinity or L1 ball: an LP in w and the maximum t."""
        ball = self.ball
        size, scale = lengths(rows), lengths(forms).max()
        t = np.concatenate([np.zeros(len(rows)), -np.ones(len(forms)), np.zeros(len(ball.inner))])
        all_forms = np.vstack([rows / size[:, None], forms / scale])
        table = np.column_stack([np.vstack([all_forms[:, 1:] @ ball.lift, ball.inner]), t])
        rhs = np.concatenate([-all_forms[:, 0], ball.inner_rhs]) / ball.eps
        answer = linprog(np.eye(1, table.shape[1], table.shape[1] - 1)[0], table, rhs, bounds=(None, None))
        if answer.status == 2:  # a region that touches the ball, or misses it by rounding
            return np.inf
        assert answer.status == 0, answer.message
        self.meet(ball.project(ball.lift @ answer.x[:-1] * ball.eps)[None])
        u = np.maximum(-answer.ineqlin.marginals[: len(all_forms)], 0)
        return float(ball.least(u @ all_forms) * scale / u[len(rows) :].sum())

    def by_newton(self, rows: Array, forms: Array) -> float:
        """The same in an L2 ball: the least t at which ``rows <= 0, forms <= t`` has a point within eps. The distance
        is convex in t, so Newton's method from below, which is what multipliers give, ends there.
        """
        lower = float(self.ball.least(forms).max())
        for _ in range(100):
            level = (lower + 0.1 * TOLERANCE) * np.eye(1, forms.shape[1])
            point, u = self.ball.closest(np.vstack([rows, forms - level]))
            parts, weight = u[:, None] * np.vstack([rows, forms]), u[len(rows) :].sum()
            found = float(self.ball.least(parts.sum(axis=0)) - 1e-14 * np.abs(parts).sum())
            if weight <= 0 and found > 0:  # the region misses the ball
                return np.inf
            if weight <= 0 or found <= weight * (lower + 0.1 * TOLERANCE):
                break
            lower = found / weight
        if point is not None:
            self.meet(self.ball.project(point)[None])
        return lower
