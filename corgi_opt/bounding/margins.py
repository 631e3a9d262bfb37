"""What relaxations prove about one question, at one eps or at several in one batch. Bounds only ever tighten.

Each rung bounds only the pairs that are still open, inside the receptive fields of their pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.corgi import corgi_bounds, corgi_cam_bounds
from corgi_opt.bounding.crown import Relaxed, crown_pass
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.objective import cam_bounds, pair_bounds, share_inputs
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.tolerance import below
from corgi_opt.network.cone import reach_of
from corgi_opt.problem.question import Question

SETTLED = 1e-6
"""A bound this far above zero, relative to the question's scale, in float32 is positive in float64 as well."""

PAIRS_AT_ONCE = 256
"""Most pairs that get a bound of their own at one eps, the most doubtful first."""


@dataclass(frozen=True, eq=False)
class Known:
    """What holds at one eps, and so at every smaller one.

    Bounds of pairs (1, k, R), of the slack of each top pixel (1, k), and of nodes (1, C, H, W).
    """

    lower: Tensor
    slack: Tensor
    intervals: Mapping[str, Interval] | None


class Margins:
    """Lower bounds ``lower`` (B, k, R) of ``CAM_i - CAM_j`` for top pixel i (in the order of ``question.topk.top``)
    and rival j (of ``question.topk.rivals``), over B regions of one question. ``slack`` (B, k): lower bounds of
    each top pixel's slack (:meth:`TopK.slack`), where more is known of it than its pairs say.

    ``by_relaxed``: the best that any D on this question's own relaxation gives; the triangle LP on it is no lower.
    In float64 they are proven, rounding accounted for (tolerance.py); in float32 they are estimates that steer a
    search.
    ``above``: what is known at one eps that is at least as large as all of these. ``goal``: pairs proven to differ by
    more are not looked at any further; 0 asks for signs only.
    """

    def __init__(
        self,
        question: Question,
        epses: Sequence[float],
        dtype: torch.dtype,
        device: torch.device,
        above: Known | None = None,
        goal: float = 0.0,
    ) -> None:
        self.question, self._above, self._goal = question, above, goal
        self.regions = Regions.of([question.ball(e) for e in epses], dtype, device)
        topk = question.topk
        self.lower = torch.where(topk.own, torch.inf, -torch.inf).double().repeat(len(epses), 1, 1)
        self.slack = torch.full(self.lower.shape[:2], -torch.inf, dtype=torch.float64)
        if above is not None:
            self.lower = torch.maximum(self.lower, above.lower)
            self.slack = torch.maximum(self.slack, above.slack)
        self.by_relaxed = torch.full_like(self.lower, -torch.inf)
        self.relaxed: Relaxed | None = None
        self.stats: dict[str, float] = {}
        self._net = question.net.to(dtype, device)
        self._found: dict[str, Tensor] = {}

    @property
    def margin(self) -> Tensor:
        """The best lower bound on each margin (B,)."""
        return self.per_pixel.amin(dim=1)

    @property
    def per_pixel(self) -> Tensor:
        """The best lower bound on the slack of each top pixel (B, k)."""
        return torch.maximum(self.question.topk.slack(self.lower), self.slack)

    @property
    def open(self) -> Tensor:
        """Pairs (B, k, R) that are not proven above the goal, but might be, and whose top pixel that could help."""
        unproven = ~(self.lower > self._goal) & ~(self.per_pixel > self._goal)[:, :, None]
        return unproven & ~self.question.topk.ahead

    def known(self, case: int) -> Known:
        """What is known about one region."""
        one = slice(case, case + 1)
        if self.relaxed is None:
            return Known(self.lower[one], self.slack[one], None)
        return Known(
            self.lower[one],
            self.slack[one],
            {n: Interval(b.lower[one], b.upper[one]) for n, b in self.relaxed.intervals.items()},
        )

    # --- the rungs: each returns the margins (B,) over the pairs that were open when it began -------------------
    # They raise TimeoutError; what was proven by then stays, and a rung that was cut off can be called again.

    def ibp(self, deadline: Deadline = NEVER) -> Tensor:
        """Interval arithmetic."""
        return self._once("ibp", self._ibp, deadline)

    def corgi(self, deadline: Deadline = NEVER) -> Tensor:
        """The paper's bound."""
        return self._once("corgi", self._corgi, deadline)

    def crown(self, deadline: Deadline = NEVER) -> Tensor:
        """CROWN per CAM pixel, then per pair that is still open."""
        return self._once("crown", self._crown, deadline)

    def dual(self, deadline: Deadline = NEVER) -> Tensor:
        """Dual ascent on the pairs that CROWN leaves, or on their pixels where the two share no input."""
        self.crown(deadline)
        return self._once("dual", self._dual, deadline)

    # --- how -------------------------------------------------------------------------------------------------

    def _once(self, name: str, rung: Callable[[Deadline], None], deadline: Deadline) -> Tensor:
        if name not in self._found:
            entered = self.open | self.question.topk.ahead
            with timed(self.stats, name):
                rung(deadline)
            found = self.question.topk.slack(torch.where(entered, self.lower, torch.inf)).amin(dim=1)
            # with nothing open on entry the rung had nothing to do: what is known stands
            self._found[name] = torch.where(found.isinf() & (found > 0), self.margin, found)
        return self._found[name]

    def _ibp(self, deadline: Deadline) -> None:
        deadline.check()
        known = interval_bounds(self._net.graph, self.regions)
        self._take(corgi_cam_bounds(self._net, self.question.class_idx, known[self._net.features]))

    def _corgi(self, deadline: Deadline) -> None:
        matter = reach_of(self._net.pooled, self._net.features, self._pixels_of(self.open))
        features = corgi_bounds(self._net, self.regions, matter, deadline)
        self._take(corgi_cam_bounds(self._net, self.question.class_idx, features))

    def _crown(self, deadline: Deadline) -> None:
        pixels = self._pixels_of(self.open)
        matter = reach_of(self._net.graph, self._net.features, pixels)
        above = None if self._above is None else self._above.intervals
        self.relaxed = crown_pass(self._net.graph, self.regions, matter=matter, above=above, deadline=deadline)
        self.stats["unstable_relus"] = sum(
            int((self.relaxed.intervals[n].unstable & matter[n]).sum()) for n in self._net.graph.preactivations
        )
        self._take(cam_bounds(self._net, self.question.class_idx, self.relaxed.bound, pixels.flatten(1)))
        self.stats["pairs_after_crown"] = int(self.open.sum())
        with timed(self.stats, "pair_crown"):
            self._pairs(self.relaxed.bound)
        self.stats["pairs_after_pair_crown"] = int(self.open.sum())

    def _dual(self, deadline: Deadline) -> None:
        assert self.relaxed is not None  # dual() has just computed it
        self.relaxed = replace(self.relaxed, deadline=deadline)
        self._pairs(partial(ascend, self.relaxed, enough=self._goal + SETTLED * self.question.scale))
        entries = torch.nonzero(self.open)
        apart = entries[~share_inputs(self._net, self._pixel_pairs(entries))]
        if len(apart):
            pixels = self._pixels_of(torch.zeros_like(self.open).index_put(tuple(apart.T), torch.tensor(True)))
            self._take(cam_bounds(self._net, self.question.class_idx, partial(ascend, self.relaxed), pixels.flatten(1)))
        self.stats["pairs_after_dual"] = int(self.open.sum())

    def open_pairs(self) -> list[tuple[int, int]]:
        """Flat pixel indices of the open pairs of the first region that share an input, the most doubtful first."""
        pairs = self._pixel_pairs(self._doubtful())
        return [(int(i), int(j)) for i, j in pairs[share_inputs(self._net, pairs)]]

    def _pairs(self, bound: Callable[[str, Rows], Tensor]) -> None:
        """Bounds the most doubtful open pairs that share an input (others gain nothing), each as one objective."""
        entries = self._doubtful()
        entries = entries[share_inputs(self._net, self._pixel_pairs(entries))]
        if not len(entries):
            return
        device = self.regions.eps.device
        pairs, case = self._pixel_pairs(entries).to(device), entries[:, 0].to(device)
        found = torch.full_like(self.lower, -torch.inf)
        values = pair_bounds(self._net, self.question.class_idx, bound, pairs, case)
        found[tuple(entries.T)] = values.cpu().double()
        self._keep(found)

    def _take(self, pixels: Interval) -> None:
        """Pairs' bounds from pixels' (B, P)."""
        topk = self.question.topk
        low, high = (side.cpu().double() for side in pixels)
        self._keep(below(low[:, topk.top, None] - high[:, None, topk.rivals]))

    def _keep(self, found: Tensor) -> None:
        found = torch.where(found.isnan(), -torch.inf, found)  # NaN proves nothing and must not stick
        self.lower = torch.maximum(self.lower, found)
        if self.relaxed is not None:
            self.by_relaxed = torch.maximum(self.by_relaxed, found)

    def _doubtful(self) -> Tensor:
        """Open pairs as entries (E, 3) of ``lower``, the lowest first, at most PAIRS_AT_ONCE for each region."""
        entries = []
        for case, (bounds, wanted) in enumerate(zip(self.lower, self.open, strict=True)):
            found = torch.nonzero(wanted)
            order = torch.argsort(bounds[tuple(found.T)], stable=True)[:PAIRS_AT_ONCE]
            entries.append(F.pad(found[order], (1, 0), value=case))
        return torch.cat(entries)

    def _pixel_pairs(self, entries: Tensor) -> Tensor:
        """The flat pixel indices (E, 2) of entries (E, 3) of ``lower``."""
        topk = self.question.topk
        return torch.stack([topk.top[entries[:, 1]], topk.rivals[entries[:, 2]]], dim=1)

    def _pixels_of(self, pairs: Tensor) -> Tensor:
        """The map (B, H, W) of pixels that any marked pair (B, k, R) is made of."""
        topk = self.question.topk
        height, width = self._net.map_shape
        marked = torch.zeros(len(pairs), height * width, dtype=torch.bool)
        marked[:, topk.rivals] = pairs.any(dim=1)
        marked[:, topk.top] |= pairs.any(dim=2)
        return marked.view(-1, height, width).to(self.regions.eps.device)


@contextmanager
def timed(stats: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds of a block to ``stats["seconds_<name>"]``."""
    start = time.monotonic()
    try:
        yield
    finally:
        stats[f"seconds_{name}"] = stats.get(f"seconds_{name}", 0.0) + time.monotonic() - start
