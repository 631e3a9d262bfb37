"""Branch and bound on ReLU phases: is a program's output above a threshold on the whole region?

Nodes are bounded many at once by D(mu) (encode/phases.py), in float32; one is closed only by its bound in float64. A
node is split by one of the units that mislead its bound most (|lambda| times the error of the relaxed unit at the image
where the bound is attained) and were worth most where they were tried before (pseudo-costs, Benichou et al. 1971),
whichever of a few does most for the weaker child (strong branching, Applegate et al. 1995). Where no open unit misleads
the bound, the node is a linear program and is solved as one: a multiplier of a phase may need more than a few steps of
ascent. The solver's word proves nothing; its multipliers do, by a bound less its rounding errors.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from corgi_solvers import Backend, Problem, Solution, proves_infeasible, safe_bound
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.hull import HullPlanes, hull_planes
from corgi_opt.encode.leaf import leaf, leaf_multipliers
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.phases import Bound, PhaseBounds, Point
from corgi_opt.encode.program import Program
from corgi_opt.search.clipping import Clipped, clip, clip_again
from corgi_opt.search.frontier import Frontier, Likely
from corgi_opt.search.leaves import Leaves, Ledger
from corgi_opt.search.narrowing import Narrowing, narrows

LOG = logging.getLogger(__name__)

BATCH, LOOKAHEAD = 128, 8
"""Nodes that are split at once; units that are tried for each."""

ROOT_STEPS, STEPS = 30, 8
"""Steps of ascent at the root, and at every other node."""

STARTS = 4
"""So many of the images that bounds are attained at, the lowest, are where lower ones are looked for."""

FIRST_NODES = 200
"""Nodes of the tree without planes: about as long as it takes to find planes."""

CLEARLY = 1e-4
"""How far above the threshold, in units of the output's largest coefficient, a bound in float32 is enough."""

MOST_LOOKED_AT = 30_000
"""Open nodes whose bounds are evaluated in float64 when a search ends undecided."""

SETTLED = 1e-7
"""A unit that misleads its bound by less, in units of the output's largest coefficient, is not worth a split."""

FEW = 3
"""Trials by which a unit's own pseudo-cost comes to weigh as much as that of all units."""

TIME_LIMIT, NODE_LIMIT = "time limit", "node limit"
TOO_CLOSE = "too close to zero for float arithmetic"
NOT_A_NUMBER = "the search's float32 arithmetic overflows"
UNSOLVED = "a leaf's linear program is not solved well enough to prove anything"
"""Reasons why a search ends undecided."""

CLOSE = 1e-6
"""A leaf's proven bound and the lowest value met are close where they differ by no more, in units of the output's
largest coefficient (solvers work to 1e-9 of that)."""

PENALTIES = (10.0, 1e3, 1e5)
"""Penalties of violating a phase in a leaf's linear program; the next is tried where the optimum pays the last."""


@dataclass(frozen=True, eq=False)
class Searched:
    """``lower`` <= the output's minimum <= ``upper``, its value at ``image`` ([t], (n,)); units of its scale.

    ``nodes`` that were bounded; ``leaves`` that took a linear program; ``reason``: why it is not decided. ``tree``: the
    leaves that prove ``lower`` to be above the threshold, where they were kept.
    """

    lower: float
    upper: float
    image: Vector
    nodes: int
    leaves: int
    reason: str
    tree: Leaves | None = None


class Branching:
    """Searches until every node is closed, an image at or below the threshold is met, or time is over; one that was cut
    off goes on where it was.

    ``threshold`` in units of the first output's scale; ``solver`` solves the linear programs of leaves. A small tree
    comes first; where it does not suffice, one whose units also have planes above them (encode/hull.py), in intervals
    that hold for counterexamples alone (clipping.py) and that nodes narrow (narrowing.py). ``starts``: images that
    lower ones are looked for from; none where only some images count, which the lowest seldom is among.
    """

    def __init__(
        self,
        program: Program,
        threshold: float,
        solver: Backend,
        device: torch.device,
        keep_leaves: bool = False,
        starts: int = STARTS,
    ) -> None:
        self._program, self._threshold, self._solver, self._device = program, threshold, solver, device
        self._keep_leaves, self._starts = keep_leaves, starts
        ledger = Ledger(program) if keep_leaves else None
        self._first = _Tree(program, None, threshold, solver, device, ledger, starts=starts)
        self._planes: HullPlanes | None = None
        self._second: _Tree | None = None

    def run(self, deadline: Deadline) -> Searched:
        """What is known by then; ``nodes`` and ``leaves`` of this run."""
        begun = self._first.nodes + (0 if self._second is None else self._second.nodes)
        LOG.info("tree of %d units: %s", self._program.units, f"resumed after {begun} nodes" if begun else "begun")
        first = self._first.search(deadline, FIRST_NODES)
        if first.lower > self._threshold or met(self._program, first.upper, self._threshold) or deadline.over:
            return first
        tree = self._second or self._larger_tree(deadline)
        second = tree.search(deadline, math.inf)
        upper, image = min(((s.upper, s.image) for s in (first, second)), key=lambda pair: pair[0])
        nodes, leaves = first.nodes + second.nodes, first.leaves + second.leaves
        return Searched(max(first.lower, second.lower), upper, image, nodes, leaves, second.reason, second.tree)

    @property
    def bytes(self) -> int:
        """Memory that its open nodes take."""
        return self._first.frontier.bytes + (0 if self._second is None else self._second.frontier.bytes)

    def _larger_tree(self, deadline: Deadline) -> _Tree:
        """Planes and intervals that time was over for are searched for again in the next run."""
        program, threshold = self._program, self._threshold
        planes = self._planes or hull_planes(program, threshold + CLEARLY, deadline)
        if not deadline.over:
            self._planes = planes
        LOG.info("larger tree: planes above %d units found%s", program.units, "" if self._planes else ", cut off")
        clipped, ledger = clip(program, planes, threshold, self._device, deadline), None
        if self._keep_leaves:
            clipped = clip_again(program, clipped, self._device, deadline)
            ledger = Ledger(clipped.program, clipped.planes, clipped)
        about = clipped.program, clipped.planes, threshold
        tree = _Tree(*about, self._solver, self._device, ledger, clipped, self._starts)
        if not deadline.over:
            self._second = tree
        return tree


def met(program: Program, value: float, threshold: float) -> bool:
    """Whether an image of this ``value`` is at or below the threshold, up to the residue that bounds are lowered by."""
    return value - float(program.residue[0]) <= threshold


class PseudoCosts:
    """What splits by each of the units were worth so far: the mean share of a node's gap that they closed."""

    def __init__(self, units: int, device: torch.device) -> None:
        self._sum, self._count = torch.zeros(units, device=device), torch.zeros(units, device=device)

    def learn(self, units: Tensor, share: Tensor) -> None:
        """Takes in that splits by ``units`` (T,) closed ``share`` (T,) of their nodes' gaps."""
        self._sum.index_add_(0, units, share.to(self._sum.dtype))
        self._count.index_add_(0, units, torch.ones_like(units, dtype=self._count.dtype))

    @property
    def mean(self) -> Tensor:
        """The mean shares (U,); a unit with few trials is drawn to the mean of all units."""
        if not bool(self._count.any()):
            return torch.ones_like(self._sum)
        return (self._sum + FEW * self._sum.sum() / self._count.sum()) / (self._count + FEW)


def children(
    bounds: PhaseBounds, nodes: Nodes, value: Tensor, likely: Likely, threshold: float, costs: PseudoCosts
) -> Nodes:
    """Both children of each node, whose bound is ``value`` (N,), by the best of its likely units; ``costs`` learns.

    A split is worth what it does for the weaker child, and a tenth of what it does for the other; nothing counts beyond
    the threshold.
    """
    count, tried = likely.units.shape
    every = nodes[torch.arange(count, device=value.device).repeat(tried)]
    units, lam = likely.units.T.flatten(), likely.lam.T.flatten()
    values = bounds.descend(every.split(units, lam)).view(2, tried, count)
    gain = (values.clamp(max=threshold) - value).clamp(min=0)
    worth = gain.amin(dim=0) + 0.1 * gain.amax(dim=0)
    costs.learn(units, (worth / (threshold - value).clamp(min=SETTLED)).flatten())
    settled = every.phases.gather(0, units[None]).view(tried, count) != 0
    choice = worth.masked_fill(settled, -1.0).argmax(dim=0)[:, None]
    return nodes.split(likely.units.gather(1, choice)[:, 0], likely.lam.gather(1, choice)[:, 0])


class _Tree:
    """One search: the open nodes, the lowest bound of a closed one, and the lowest value met."""

    def __init__(
        self,
        program: Program,
        planes: HullPlanes | None,
        threshold: float,
        solver: Backend,
        device: torch.device,
        ledger: Ledger | None = None,
        clipped: Clipped | None = None,
        starts: int = STARTS,
    ) -> None:
        self.program, self.threshold, self.solver, self.ledger = program, threshold, solver, ledger
        self.clipped, self.starts = clipped, starts
        self.bounds = PhaseBounds(program, planes, torch.float32, device)
        self.exact = PhaseBounds(program, planes, torch.float64, device)
        self.tries = min(LOOKAHEAD, program.units)
        self.frontier, self.costs = Frontier(program.units, self.tries, device), PseudoCosts(program.units, device)
        self.closed, self.upper, self.image = math.inf, math.inf, np.zeros(program.inputs)
        self.nodes = self.leaves = 0
        self.reason = ""
        self.root = self.bounds.root()
        self.narrowing: Narrowing | None = None
        if clipped is not None:
            self.root = replace(self.root, phases=clipped.root.to(device))
            if narrows(clipped):
                self.narrowing = Narrowing(clipped, device)
                self.root = self.narrowing.root(self.root)

    def search(self, deadline: Deadline, most_nodes: float) -> Searched:
        """Goes on until it is decided, time is over, or so many nodes have been bounded in all."""
        nodes, leaves = self.nodes, self.leaves
        if self.reason in (TIME_LIMIT, NODE_LIMIT):
            self.reason = ""
        if not self.nodes and not self.empty:
            self._bound(self.root, torch.full((1,), -1e30, device=self.root.goal.device), ROOT_STEPS, deadline)
        while len(self.frontier) and not self.met and not self.reason:
            if deadline.over or self.nodes >= most_nodes:
                self.reason = TIME_LIMIT if deadline.over else NODE_LIMIT
                break
            some, value, likely = self.frontier.take(BATCH)
            both = children(self.bounds, some, value, likely, self.threshold, self.costs)
            self._bound(both, value.repeat(2), STEPS, deadline)
        lower = min(self._lowest_open(), self.closed)
        if self.clipped is not None:
            lower = self.clipped.capped(lower)
        elif lower == math.inf:  # all nodes empty, which no region is: nothing is claimed
            lower = -math.inf
        tree = None if self.ledger is None or not lower > self.threshold else self.ledger.leaves()
        nodes, leaves = self.nodes - nodes, self.leaves - leaves
        LOG.debug(
            "tree: %d nodes and %d leaves more, in [%.4g, %.4g] %s", nodes, leaves, lower, self.upper, self.reason
        )
        return Searched(lower, self.upper, self.image, nodes, leaves, self.reason, tree)

    @property
    def empty(self) -> bool:
        """Whether there is no image that this is about."""
        return self.clipped is not None and self.clipped.empty

    @property
    def met(self) -> bool:
        return met(self.program, self.upper, self.threshold)

    def _lowest_open(self) -> float:
        """The lowest bound of an open node, in float64; the root's where there are too many to look at."""
        if not len(self.frontier):
            return math.inf
        every = self.root if len(self.frontier) > MOST_LOOKED_AT else self.frontier.every()
        return float(self.exact.descend(every.to(torch.float64)).min())

    def _bound(self, nodes: Nodes, known: Tensor, steps: int, deadline: Deadline) -> None:
        """Bounds nodes whose parents' bounds are ``known`` (N,), closes what can be closed and keeps the rest."""
        self.nodes += len(nodes)
        nodes, bound, point = self.bounds.ascend(nodes, steps, self.threshold + CLEARLY)
        if not bool(bound.value.isfinite().all()):
            self.closed, self.reason = -math.inf, NOT_A_NUMBER  # nothing is known of these nodes
            return
        self._meet(point.variables[: self.program.inputs])
        nodes, bound, point, known = self._left(nodes, bound, point, known)
        if self.narrowing is not None and len(nodes):
            doubt = self.bounds.doubt(nodes, bound, point)
            narrowed = self.narrowing.narrowed(nodes, bound.lam[self.program.inputs :], doubt)
            nodes = narrowed.nodes if self.ledger is None else self.ledger.narrowed(nodes, narrowed)
            nodes, known = nodes[narrowed.possible], known[narrowed.possible]
            nodes, bound, point, known = self._left(nodes, *self.bounds.relaxed(nodes), known)
        self._keep(nodes, bound, point, known, deadline)

    def _left(self, nodes: Nodes, bound: Bound, point: Point, known: Tensor) -> tuple[Nodes, Bound, Point, Tensor]:
        """Those of N nodes that their bounds do not close."""
        left = torch.nonzero(~self._closed(nodes, bound.value)).flatten()
        return nodes[left], bound[left], point[left], known[left]

    def _keep(self, nodes: Nodes, bound: Bound, point: Point, known: Tensor, deadline: Deadline) -> None:
        """Keeps open nodes with the units that they may be split by; closes those by their linear program that no unit
        misleads."""
        doubt = self.bounds.doubt(nodes, bound, point)
        units = (doubt.sqrt() * self.costs.mean[:, None]).topk(self.tries, dim=0).indices
        value = torch.where(bound.value > known, bound.value, known).clamp(max=self.threshold)
        kept = torch.ones_like(value, dtype=torch.bool)
        for k in torch.nonzero(~(doubt > SETTLED).any(dim=0)).flatten().tolist():
            if self.met or self.reason:
                break
            unit = self._leaf(nodes[torch.tensor([k], device=value.device)], deadline)
            kept[k] = unit is not None
            units[:, k] = unit or 0
        likely = Likely(units.T, bound.lam[self.program.inputs :].gather(0, units).T)
        self.frontier.put(nodes[kept], value[kept], likely[kept])

    def _closed(self, nodes: Nodes, value: Tensor) -> Tensor:
        """Which nodes (N,), of float32 bounds ``value``, are above the threshold in float64."""
        closed = value > self.threshold
        if bool(closed.any()):
            proven = self.exact.descend(nodes[closed].to(torch.float64))
            holds = proven > self.threshold
            self.closed = min(self.closed, float(torch.where(holds, proven, torch.inf).min()))
            closed[closed.clone()] = holds
            if self.ledger is not None:
                self.ledger.closed(nodes[closed])
        return closed

    def _meet(self, images: Tensor) -> None:
        """Evaluates the output at images (n, N), and near the lowest of them, and keeps the lowest value."""
        goal = torch.zeros(images.shape[1], dtype=torch.long, device=images.device)
        values = self.bounds.values(images, goal)
        if self.starts:
            lowest = values.topk(min(self.starts, len(goal)), largest=False).indices
            images, values = self.bounds.fall(images[:, lowest], goal[lowest])
        image = self.exact.inside(images[:, values.argmin(), None].double())
        value = float(self.exact.values(image, goal[:1]))
        if value < self.upper:
            self.upper, self.image = value, image[:, 0].cpu().numpy()

    def _leaf(self, node: Nodes, deadline: Deadline) -> int | None:
        """Closes a node (N=1) by its linear program (None), or names an open unit to split it by."""
        phases = node.phases[:, 0].cpu().numpy()
        self.leaves += 1
        inputs, units = self.program.inputs, self.program.units
        for penalty in PENALTIES:
            problem = leaf(self.program, 0, phases, penalty)
            solution = self.solver.solve(problem, time_limit=deadline.left)
            proven = self._proven(problem, solution)
            if proven > self.threshold:
                self.closed = min(self.closed, proven)
                if self.ledger is not None and solution.row_dual is not None:
                    self.ledger.closed_by(node, leaf_multipliers(self.program, phases, solution.row_dual))
                return None
            if solution.x is None:
                ended = f"a leaf's linear program ended {solution.report.raw_status}"
                self.reason = TIME_LIMIT if deadline.over else ended
                return 0
            x = solution.x
            if x[inputs + units : inputs + 2 * units].max(initial=0.0) <= 1e-7:
                break
        point = torch.from_numpy(x[: inputs + units])[:, None].to(self.exact.device)
        self._meet(point[:inputs].float())
        error = (point[inputs:] - self.exact.before(point).relu()).abs()[:, 0].cpu().numpy() * (phases == 0)
        if not self.met and not error.max(initial=0.0) > 1e-9:
            self.reason = TOO_CLOSE if self.upper - proven <= CLOSE else UNSOLVED
        return int(error.argmax()) if units else 0

    def _proven(self, problem: Problem, solution: Solution) -> float:
        """The bound that the multipliers of a leaf's linear program prove under its phases, less rounding and residue;
        infinity where no image has these phases."""
        if solution.row_dual is None:
            return -math.inf
        # images that have these phases pay no penalty
        kept = slice(self.program.inputs + self.program.units, self.program.inputs + 2 * self.program.units)
        most = problem.col_upper.copy()
        most[kept] = 0.0
        strict = replace(problem, col_upper=most)
        if proves_infeasible(strict, solution.row_dual):
            return math.inf
        return safe_bound(strict, solution.row_dual) - float(self.program.residue[0])
