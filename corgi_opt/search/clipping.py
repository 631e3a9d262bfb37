"""Output-constraint clipping: intervals of units that hold for counterexamples alone.

Only an image whose output is at most the goal can break an atom, so every pre-activation may be bounded over those
images only. Let ``f(x) >= lam't + kappa`` be a bound of the output and ``z(x) >= a't + alpha`` one of a pre-activation
(or of a negated one), t the image's variables. For any g >= 0 and any image with f(x) <= goal

    z(x) >= z(x) + g (f(x) - goal) >= alpha + g (kappa - goal) + min over the region of (a + g lam)'t,

which is concave in g (over a box the minimum is ``-||a + g lam||_1``). g is searched for in float32, and any g will do:
what counts is the value there, in float64 and less what its own sums round. Narrower intervals give better lines and
planes, these better lam and a, so that it is done again while it helps.

Intervals that are clipped hold for the counterexamples of one output at one goal and for nothing else. So they live in
a :class:`Clipped` alone, which a search for these counterexamples takes, and whose bounds of the output count up to the
goal only: of an image above the goal they say nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.hull import HullPlanes, hull_planes
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.phases import Below, PhaseBounds
from corgi_opt.encode.program import NARROW, Program, scaled

BEYOND = 1e-6
"""An image counts as a counterexample up to this far above the threshold, in units of the output's largest coefficient:
where there is none, the output is proven to be above the threshold."""

ROUNDS, CLIPS = 3, 4
"""Times that planes are searched for again; times that intervals are clipped for each."""

ROOT_STEPS, PLANE_STEPS = 30, 60
"""Steps of ascent for the bound of the output, and for planes that go on from others."""

WORTH = 0.03
"""A clip that takes less than this share off what the bound lacks is the last of its round."""

GAIN = 1e-4
"""A side of an interval that clipping moves by no more than this share of its width stays as it is."""

HALVINGS, SPREAD = 14, 1e6
"""Halvings of the interval in which the best g is searched for; the ratio of its ends."""

MOST_BYTES = 1_000_000_000
"""Memory for the bounds of all units over the image; larger programs are not clipped."""


@dataclass(frozen=True, eq=False)
class Step:
    """How all units of a program were clipped once, for who does it again: the multipliers of the output's bound,
    ``slopes`` and ``mixes`` (U,), and ``shares`` (2, U), the g of every pre-activation and of every negated one (-1: it
    stays as it is), for outputs and pre-activations as the network has them."""

    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    shares: Vector


@dataclass(frozen=True, eq=False)
class Clipped:
    """A program, and its ``planes``, whose intervals hold for images with a first output of at most ``goal``, in units
    of its scale.

    ``phases`` (U,): 1 or -1 for units that are on or off in all of these images. ``empty``: there is no such image.
    ``steps``: how the intervals were clipped.
    """

    program: Program
    planes: HullPlanes
    goal: float
    phases: NDArray[np.int8]
    empty: bool = False
    steps: tuple[Step, ...] = ()

    @property
    def root(self) -> Tensor:
        """The phases as those of one node (U, 1)."""
        return torch.from_numpy(self.phases)[:, None]

    def capped(self, lower: float) -> float:
        """A lower bound of the output over the whole region, from one over the images that this is about."""
        return min(lower, self.goal)


def clip(program: Program, planes: HullPlanes, threshold: float, device: torch.device, deadline: Deadline) -> Clipped:
    """Clips the units of a program for the images that may be at or below ``threshold``, while that helps."""
    clipped = Clipped(program, planes, threshold + BEYOND, np.zeros(program.units, dtype=np.int8))
    if 16 * program.units * program.inputs > MOST_BYTES:
        return clipped
    lacks = math.inf
    for _ in range(ROUNDS):
        before = lacks
        clipped, lacks = _round(clipped, lacks, CLIPS, device, deadline)
        if clipped.empty or not lacks > 0 or deadline.over or lacks > (1 - 2 * WORTH) * before:
            break
        planes = hull_planes(clipped.program, clipped.goal, deadline, PLANE_STEPS, clipped.planes)
        clipped = replace(clipped, planes=planes)
    return clipped


def clip_again(program: Program, clipped: Clipped, device: torch.device, deadline: Deadline) -> Clipped:
    """What ``clip`` made of ``program``, by its last planes alone: a certificate has these only."""
    if not clipped.steps:
        return clipped
    rows = program.rows
    shares = clipped.planes.slopes.data / clipped.program.rows.data
    slopes = sparse.csr_array((shares * rows.data, rows.indices, rows.indptr), rows.shape)
    planes = replace(clipped.planes, slopes=slopes).over(program)
    start = Clipped(program, planes, clipped.goal, np.zeros(program.units, dtype=np.int8))
    return _round(start, math.inf, ROUNDS * CLIPS, device, deadline)[0]


def _round(
    clipped: Clipped, lacks: float, most: int, device: torch.device, deadline: Deadline
) -> tuple[Clipped, float]:
    """Clips at most so many times while that takes something off what the root's bound ``lacks``, which is returned."""
    nodes = None
    for _ in range(most):
        nodes, value = _root(clipped, nodes, device)
        helped = clipped.goal - value <= (1 - WORTH) * lacks
        lacks = clipped.goal - value
        if not lacks > 0 or not helped or deadline.over:
            break
        clipped = _once(clipped, nodes, device)
        if clipped.empty:
            break
    return clipped, lacks


def _root(clipped: Clipped, start: Nodes | None, device: torch.device) -> tuple[Nodes, float]:
    """The root at the best multipliers that ascent finds in float32, and its bound of the output."""
    bounds = PhaseBounds(clipped.program, clipped.planes, torch.float32, device)
    nodes = replace(bounds.root() if start is None else start, phases=clipped.root.to(device))
    nodes, bound, _ = bounds.ascend(nodes, ROOT_STEPS, clipped.goal)
    return nodes, float(bound.value[0])


def _once(clipped: Clipped, nodes: Nodes, device: torch.device) -> Clipped:
    """Every interval clipped once, by the bound of the output that the root's multipliers give."""
    program, phases = clipped.program, clipped.root.to(device)
    exact = PhaseBounds(program, clipped.planes, torch.float64, device)
    output = exact.below_outputs(nodes.to(torch.float64))
    lines = PhaseBounds(program, None, torch.float64, device)
    units = lines.below_units(replace(lines.root(), phases=phases))
    fast = PhaseBounds(program, None, torch.float32, device)
    shares = best_shares(fast, units.to(torch.float32), output.to(torch.float32), clipped.goal).double()
    found = clipped_below(lines, units, output, clipped.goal, shares).cpu().numpy().reshape(2, -1)
    known = np.stack([program.lower, -program.upper])
    gains = found > known + GAIN
    lower, above = np.where(gains, found, known)
    every = np.where(gains, shares.cpu().numpy().reshape(2, -1) * program.widths / program.scales[0], -1.0)
    slopes, mixes = (m[:, 0].cpu().numpy() for m in (nodes.slopes, nodes.mixes))
    # units that are on or off are so by their intervals for who does it again
    slopes, mixes = np.where(clipped.phases == 0, slopes, clipped.phases > 0), np.where(clipped.phases == 0, mixes, 0)
    slopes, mixes = slopes.astype(np.float32), mixes.astype(np.float32)
    return replace(narrowed(clipped, lower, -above), steps=(*clipped.steps, Step(slopes, mixes, every)))


def best_shares(bounds: PhaseBounds, units: Below, output: Below, goal: float) -> Tensor:
    """The g (R,) that clip R functionals best, by halving on the sign of the derivative in g.

    That is ``kappa - goal + lam't`` at the region's t where ``(a + g lam)'t`` is least (Danskin).
    """
    lam, away = output.coefs, float(output.constants[0]) - goal
    lacks = -(away + float(bounds.least(lam)[0]))
    most = (2 * units.coefs.abs().sum(dim=0) / max(lacks, 1e-12)).clamp(min=1e-12)  # beyond it, no g is better than 0
    low, high = (most / SPREAD).log(), most.log()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rises = away + (lam * bounds.lowest(units.coefs + middle.exp() * lam)).sum(dim=0) > 0
        low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
    return low.exp()


def clipped_below(bounds: PhaseBounds, units: Below, output: Below, goal: float, shares: Tensor) -> Tensor:
    """Lower bounds (R,) of the functionals over images with an output of at most ``goal``; in float64 proven."""
    away = output.constants[0] - goal
    coefs = units.coefs + shares * output.coefs
    value = units.constants + shares * away + bounds.least(coefs)
    # what these sums round: of n products with variables of at most 1, and of constants
    size = (units.coefs.abs() + shares * output.coefs.abs()).sum(dim=0)
    size = size + units.constants.abs() + shares * (output.constants[0].abs() + abs(goal))
    return torch.nan_to_num(value - gamma(len(coefs) + 8) * size, nan=-math.inf)


def narrowed(clipped: Clipped, lower: Vector, upper: Vector) -> Clipped:
    """The same with units' intervals met with ``lower``, ``upper`` (U,), in units of their width so far."""
    program = clipped.program
    low, high = np.maximum(lower, program.lower), np.minimum(upper, program.upper)
    low = np.where(clipped.phases > 0, np.maximum(low, 0.0), low)
    high = np.where(clipped.phases < 0, np.minimum(high, 0.0), high)
    if (low > high).any():
        return replace(clipped, empty=True)
    phases = np.where(low >= 0, 1, np.where(high <= 0, -1, 0)).astype(np.int8)
    # around zero and wide enough for float arithmetic, whatever the phase says
    low, high = np.minimum(low, -NARROW), np.maximum(high, NARROW)
    narrower = program.within(low, high)
    width = high - low
    slopes = scaled(clipped.planes.slopes, 1 / width, np.concatenate([np.ones(program.inputs), width]))
    planes = replace(clipped.planes, slopes=slopes).over(narrower)
    return replace(clipped, program=narrower, planes=planes, phases=phases)
