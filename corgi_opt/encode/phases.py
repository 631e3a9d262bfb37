"""D(mu) of one program under many phase patterns at once: the bounds of a branch and bound on ReLU phases.

A *phase* fixes an unstable ReLU: on (z >= 0, so relu(z) = z) or off (z <= 0, so relu(z) = 0). With the rows of a
program ``z = rows @ [t, s] + constants``, walking its units backwards, ``lambda`` the coefficient that reaches a unit:

    open:  mu = slope lambda where lambda >= 0 (slope in [0, 1]), else u/(u-l) lambda, and D += -u l/(u-l) lambda
           (or a share of lambda < 0 by a plane above relu(z) over all its inputs, encode/hull.py)
    on:    mu = lambda - pull          (pull >= 0: the multiplier of z >= 0)
    off:   mu = pull                   (of z <= 0)

and in the end D += min over the region of lambda_t' t. Slopes are those of alpha-CROWN (Xu et al., arXiv 2011.13824),
pulls the beta of beta-CROWN (Wang et al., arXiv 2103.06624): any of them give a lower bound over the images that a
phase pattern allows; ascent only makes it better. The image that attains the last minimum, carried forwards through the
relaxed units, gives the derivatives (Danskin), and shows where the relaxation is wrong, which is where to branch.

All maps are (variables, N), N nodes side by side, so that the sparse rows of a program multiply contiguous memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from corgi_opt.bounding.adam import Adam
from corgi_opt.bounding.budget import in_parts
from corgi_opt.bounding.regions import Move, least
from corgi_opt.encode.hull import HullPlanes, layers
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.program import Program
from corgi_opt.problem.region import Norm

SPARSE = 0.2
"""Rows with a smaller share of nonzeros are multiplied as sparse ones."""

MKL: bool = torch.backends.mkl.is_available()

AT_ONCE, AT_ONCE_ON_GPU = 128, 4096
"""Nodes that ``descend`` bounds in one pass. On a CPU few, so that they stay in its cache; on a GPU many, so that it is
busy (fewer where its memory does not suffice)."""

RATE, LAST = 0.02, 0.2
"""Adam's first step (objectives are scaled to a largest coefficient of 1); the share of it that the last step has."""

FALLS, LENGTHS = 5, (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.003)
"""Steps from an image towards a lower one, and the shares of the way that are tried in each."""

SEEN = 1e-7
"""Smallest slack of rows that counts in float32, in units of their intervals."""

MOST = (1.0, None, 1.0)
"""Largest slope, pull (None: no limit) and mix; the least is 0."""

SLOWEST, FASTEST = 1 / 64, 2.0
"""Least and greatest pace of a node's ascent; it begins with the greatest."""


@dataclass(frozen=True, eq=False)
class Bound:
    """D of N nodes: ``value`` (N,), and the coefficients ``lam`` (n+U, N) that reached the variables."""

    value: Tensor
    lam: Tensor

    def __getitem__(self, part: Tensor) -> Bound:
        return Bound(self.value[part], self.lam[:, part])


@dataclass(frozen=True, eq=False)
class Point:
    """The minimisers of N relaxations: ``variables`` (n+U, N), and the pre-activations ``z`` (U, N).

    ``gain`` (U, N): how far a unit's plane is above its chord there.
    """

    variables: Tensor
    z: Tensor
    gain: Tensor

    def __getitem__(self, part: Tensor) -> Point:
        return Point(self.variables[:, part], self.z[:, part], self.gain[:, part])


@dataclass(frozen=True, eq=False)
class Below:
    """Lower bounds ``coefs' t + constants`` of R functionals of the image: (n, R), (R,)."""

    coefs: Tensor
    constants: Tensor

    def to(self, dtype: torch.dtype) -> Below:
        return Below(self.coefs.to(dtype), self.constants.to(dtype))


@dataclass(frozen=True, eq=False)
class _Block:
    """Units ``first`` to ``last``, none of which reads another: their rows (B, n+first), and the transpose.

    Where there are planes, their slopes are as many rows more.
    """

    first: int
    last: int
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class _Lines:
    """How N nodes relax their units: mu = above lambda or below lambda by its sign, less ``push``; ``plane`` lambda < 0
    goes to the planes; all (U, N). ``chord``: slope and shift of the chords alone, (U, N) or (U, 1)."""

    open: Tensor
    above: Tensor
    below: Tensor
    shift: Tensor
    push: Tensor
    plane: Tensor
    phases: Tensor
    chord: tuple[Tensor, Tensor]


class PhaseBounds:
    """The bounds of one program's outputs, in units of their scales, under phases; in one dtype, on one device."""

    def __init__(self, program: Program, planes: HullPlanes | None, dtype: torch.dtype, device: torch.device) -> None:
        def tensor(values: object) -> Tensor:
            return torch.as_tensor(np.asarray(values)).to(device, dtype)

        self.inputs, self.units, self.device = program.inputs, program.units, device
        self.norm: Norm = program.norm
        self._blocks = [_block(program, planes, first, last, dtype, device) for first, last in layers(program)]
        self._constants = tensor(program.constants)[:, None]
        lower, upper = tensor(program.lower)[:, None], tensor(program.upper)[:, None]
        self._chord = _chord(lower, upper)
        # float32 proves nothing, so what float64 may hide does not matter there
        counts = dtype == torch.float64 or program.slack.max(initial=0.0) > SEEN
        self._slack = tensor(program.slack)[:, None] if counts else None
        self._costs, self._offsets = tensor(program.outputs.toarray().T), tensor(program.output_constants)
        self._residue = tensor(program.residue)
        self._planes = None if planes is None else tensor(planes.shifts)[:, None]
        crown = (self._chord[0] > 0.5).to(dtype)
        self._below = crown if planes is None else tensor(planes.below)[:, None]
        self._mixes = torch.zeros_like(crown) if planes is None else tensor(planes.mixes)[:, None]
        # a region's offsets from its centre, in units of eps: reach * t + shift
        self._reach, self._center = tensor(program.reach), tensor(program.shift)
        self._low = (self._center - self._reach).clamp(max=0)
        self._high = (self._center + self._reach).clamp(min=0)

    def root(self, goals: int = 1) -> Nodes:
        """One node for each of the first outputs, all units open, at CROWN's slopes or those of the planes."""
        slopes, mixes = (start.repeat(1, goals) for start in (self._below, self._mixes))
        phases = torch.zeros(self.units, goals, dtype=torch.int8, device=self.device)
        goal = torch.arange(goals, device=self.device)
        pace = slopes.new_full((goals,), FASTEST)
        return Nodes(phases, slopes, torch.zeros_like(slopes), mixes, goal, pace, torch.full_like(goal, -1))

    def descend(self, nodes: Nodes) -> Tensor:
        """D (N,) at the nodes' multipliers."""
        every = torch.arange(len(nodes), device=self.device)

        def value(start: int, count: int) -> Tensor:
            part = nodes[every[start : start + count]]
            return self._descend(part.goal, self._lines(part, self._chord_of(part))).value

        return torch.cat(in_parts(len(nodes), AT_ONCE if self.device.type == "cpu" else AT_ONCE_ON_GPU, value))

    def below_outputs(self, nodes: Nodes) -> Below:
        """Lower bounds of the outputs of N nodes, each over the images of its phases."""
        bound = self._descend(nodes.goal, self._lines(nodes, self._chord_of(nodes)))
        coefs = bound.lam[: self.inputs]
        return Below(coefs, bound.value - self.least(coefs))

    def below_units(self, node: Nodes) -> Below:
        """Lower bounds of the pre-activations of all units, and then of all of them negated (R = 2U), over the region,
        at the lines of one node."""
        lines = self._lines(node, self._chord_of(node))
        lines = replace(lines, push=torch.zeros_like(lines.push))  # what a phase allows is no part of this
        coefs = self._constants.new_empty(self.inputs, 2, self.units)
        constants = self._constants.new_empty(2, self.units)
        for at, block in enumerate(self._blocks):
            count, rows = block.last - block.first, block.rows.to_dense()
            for start in range(0, count, AT_ONCE):
                some = slice(start, min(start + AT_ONCE, count))
                mine = slice(block.first + some.start, block.first + some.stop)
                lam = torch.cat([rows[some].T, -rows[some].T], dim=1)
                value = self._walk(self._blocks[:at], lam, lines)
                signed = torch.cat([self._constants[mine, 0], -self._constants[mine, 0]])
                value = value + signed
                if self._slack is not None:
                    value = value - self._slack[mine, 0].repeat(2)
                coefs[:, :, mine] = lam[: self.inputs].view(self.inputs, 2, -1)
                constants[:, mine] = value.view(2, -1)
        return Below(coefs.flatten(1), constants.flatten())

    def values(self, images: Tensor, goal: Tensor) -> Tensor:
        """The outputs (N,) at images ``t`` (n, N), up to their residue; no bound is above these less that."""
        variables = self._variables(images)
        return (variables * self._costs[:, goal]).sum(dim=0) + self._offsets[goal]

    def fall(self, images: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Images near ``images`` (n, N), at least as low in their outputs, and their values (N,), up to residue.

        Each step goes towards the image that is lowest if all ReLUs stay as they are (Frank & Wolfe 1956), as far as is
        best of a few lengths.
        """
        values = self.values(images, goal)
        many, count = len(LENGTHS), len(goal)
        lengths = torch.tensor(LENGTHS, dtype=images.dtype, device=images.device).repeat_interleave(count)
        for _ in range(FALLS):
            towards = self.lowest(self._slopes_at(images, goal)) - images
            tried = self.inside(images.repeat(1, many) + lengths * towards.repeat(1, many))
            found, at = self.values(tried, goal.repeat(many)).view(many, count).min(dim=0)
            lower = found < values
            if not bool(lower.any()):
                break
            best = tried[:, at * count + torch.arange(count, device=images.device)]
            images, values = torch.where(lower, best, images), torch.where(lower, found, values)
        return images, values

    def inside(self, images: Tensor) -> Tensor:
        """Images ``t`` (n, N), moved towards the region's centre where rounding has taken them out of the region."""
        images = images.clamp(-1, 1)
        if self.norm == "inf":
            return images
        reach, center = self._reach[:, None], self._center[:, None]
        offset = reach * images + center
        size = offset.abs().sum(dim=0) if self.norm == "1" else offset.square().sum(dim=0).sqrt()
        offset = offset / size.clamp(min=1)
        return ((offset - center) / reach).clamp(-1, 1)

    def ascend(self, nodes: Nodes, steps: int, enough: float = math.inf) -> tuple[Nodes, Bound, Point]:
        """The nodes at the best multipliers that a few steps of Adam meet, and their bounds.

        ``enough``: what bounds are to reach. A step goes no farther than ``pace`` times as far as would carry its node
        there if D were linear (Polyak 1969): near the goal, full steps only jump from side to side over kinks of D. A
        node that gained gets twice the pace for its next ascent, one that did not half of it.
        """
        best, chord = nodes, self._chord_of(nodes)
        lines = self._lines(nodes, chord)
        bound = self._descend(nodes.goal, lines)
        start = value = bound.value
        memory = [Adam(nodes.slopes) for _ in range(3)]
        for step in range(steps):
            point = self._rise(bound.lam, lines)
            open_ = lines.open * bound.lam[self.inputs :]
            gradients = (open_.clamp(min=0) * point.z, -lines.phases * point.z, open_.clamp(max=0) * point.gain)
            rate = RATE * LAST ** (step / max(1, steps - 1))
            full = [
                (old + rate * adam.step(g)).clamp_(0, most).sub_(old)
                for adam, g, old, most in zip(memory, gradients, nodes.multipliers, MOST, strict=True)
            ]
            rise = torch.stack([(g * s).sum(dim=0) for g, s in zip(gradients, full, strict=True)]).sum(dim=0)
            share = (nodes.pace * (enough - bound.value).clamp(min=0) / rise.clamp(min=1e-30)).clamp(max=1)
            nodes = nodes.at(old + share * s for old, s in zip(nodes.multipliers, full, strict=True))
            lines = self._lines(nodes, chord)
            bound = self._descend(nodes.goal, lines)
            better = bound.value > value
            value = torch.where(better, bound.value, value)
            both = zip(nodes.multipliers, best.multipliers, strict=True)
            best = best.at(torch.where(better, new, old) for new, old in both)
        pace = torch.where(value > start, 2 * best.pace, best.pace / 2).clamp(SLOWEST, FASTEST)
        best = replace(best, pace=pace)
        return best, *self.relaxed(best)

    def relaxed(self, nodes: Nodes) -> tuple[Bound, Point]:
        """The nodes' bounds at their multipliers, and the minimisers of their relaxations."""
        lines = self._lines(nodes, self._chord_of(nodes))
        bound = self._descend(nodes.goal, lines)
        return bound, self._rise(bound.lam, lines)

    def doubt(self, nodes: Nodes, bound: Bound, point: Point) -> Tensor:
        """How much each open unit (U, N) weakens the bound: |lambda| times its relaxation's error at the minimiser."""
        error = point.variables[self.inputs :] - point.z.relu()
        return (bound.lam[self.inputs :] * error).abs() * (nodes.phases == 0)

    def before(self, variables: Tensor) -> Tensor:
        """The pre-activations (U, N) at variables (n+U, N)."""
        return torch.cat([self._read(block, variables)[0] for block in self._blocks] or [variables[:0]])

    # --- how -------------------------------------------------------------------------------------------------

    def _slopes_at(self, images: Tensor, goal: Tensor) -> Tensor:
        """The derivatives (n, N) of outputs at images."""
        on = (self._variables(images)[self.inputs :] > 0).to(images.dtype)
        nothing = torch.zeros_like(on)
        lam = self._costs.index_select(1, goal)
        self._walk(self._blocks, lam, _Lines(nothing, on, on, nothing, nothing, nothing, nothing, self._chord))
        return lam[: self.inputs]

    def _variables(self, images: Tensor) -> Tensor:
        """All variables (n+U, N) at images ``t`` (n, N)."""
        variables = self._new(images.shape[1])
        variables[: self.inputs] = images
        for block in self._blocks:
            part = slice(self.inputs + block.first, self.inputs + block.last)
            variables[part] = self._read(block, variables)[0].relu()
        return variables

    def _new(self, count: int) -> Tensor:
        return self._constants.new_empty(self.inputs + self.units, count)

    def _read(self, block: _Block, variables: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pre-activations (B, N) of a block, and its planes' values (B, N) if there are planes."""
        part, count = slice(block.first, block.last), block.last - block.first
        read: Tensor = block.rows @ variables[: self.inputs + block.first]
        if self._planes is None:
            return read + self._constants[part], None
        return read[:count] + self._constants[part], read[count:] + self._planes[part]

    def _chord_of(self, nodes: Nodes) -> tuple[Tensor, Tensor]:
        """Slope and shift of the nodes' chords."""
        return self._chord if nodes.ends is None else _chord(*nodes.ends)

    def _lines(self, nodes: Nodes, chord: tuple[Tensor, Tensor]) -> _Lines:
        phases = nodes.phases.to(self._constants.dtype)
        on, open_ = phases.clamp(min=0), 1 - phases.abs()
        share = open_ if self._planes is None else open_ * (1 - nodes.mixes)
        return _Lines(
            open=open_,
            above=share * chord[0] + on,
            below=open_ * nodes.slopes + on,
            shift=share * chord[1],
            push=nodes.pulls * phases,
            plane=open_ - share,
            phases=phases,
            chord=chord,
        )

    def _descend(self, goal: Tensor, lines: _Lines) -> Bound:
        alike = self._costs.shape[1] == 1
        lam = self._costs.repeat(1, len(goal)) if alike else self._costs.index_select(1, goal)
        value = self._walk(self._blocks, lam, lines)
        return Bound(value + self._offsets[goal] - self._residue[goal] + self.least(lam[: self.inputs]), lam)

    def _walk(self, blocks: Sequence[_Block], lam: Tensor, lines: _Lines) -> Tensor:
        """Takes functionals ``lam`` (n+U, N) down through blocks to the inputs, in place; the constants (N,) met."""
        value = lam.new_zeros(lam.shape[1])
        for block in reversed(blocks):
            part = slice(block.first, block.last)
            here = lam[self.inputs + block.first : self.inputs + block.last]
            positive = here.clamp(min=0)
            negative = here - positive
            mu = positive * lines.below[part] + negative * lines.above[part] - lines.push[part]
            value = value + (negative * lines.shift[part] + mu * self._constants[part]).sum(dim=0)
            if self._slack is not None:
                value = value - (mu.abs() * self._slack[part]).sum(dim=0)
            if self._planes is not None:
                planes = negative * lines.plane[part]
                value = value + (planes * self._planes[part]).sum(dim=0)
                mu = torch.cat([mu, planes])
            lam[: self.inputs + block.first].addmm_(block.columns, mu)
        return value

    def _rise(self, lam: Tensor, lines: _Lines) -> Point:
        variables, z = self._new(lam.shape[1]), lam.new_empty(self.units, lam.shape[1])
        gain = torch.zeros_like(z)
        variables[: self.inputs] = self.lowest(lam[: self.inputs])
        for block in self._blocks:
            part = slice(block.first, block.last)
            here, plane = self._read(block, variables)
            helps = lam[self.inputs + block.first : self.inputs + block.last] > 0
            line = torch.where(helps, lines.below[part], lines.above[part]) * here + ~helps * lines.shift[part]
            if plane is not None:
                line = line + ~helps * lines.plane[part] * plane
                slope, shift = (line[part] for line in lines.chord)
                gain[part] = plane - slope * here - shift
            variables[self.inputs + block.first : self.inputs + block.last] = line
            z[part] = here
        return Point(variables, z, gain)

    def least(self, lam: Tensor) -> Tensor:
        """The minimum of ``lam' t`` (N,) over the region, for lam (n, N)."""
        if self.norm == "inf":
            return -lam.abs().sum(dim=0)
        move = self._move(lam)
        return (lam * self._moved(move)).sum(dim=0) + move.slack

    def lowest(self, lam: Tensor) -> Tensor:
        """The ``t`` (n, N) of the region where ``lam' t`` is least."""
        return lam.sign().neg_() if self.norm == "inf" else self._moved(self._move(lam))

    def _move(self, lam: Tensor) -> Move:
        low, high = (side.expand(lam.shape[1], -1) for side in (self._low, self._high))
        return least(self.norm, (lam / self._reach[:, None]).T, low, high, lam.new_ones(lam.shape[1]))

    def _moved(self, move: Move) -> Tensor:
        return ((move.offset - self._center) / self._reach).T


def _chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and shift of the line through a ReLU's values at both ends of an interval around zero."""
    slope = upper / (upper - lower)
    return slope, -slope * lower


def _block(
    program: Program, planes: HullPlanes | None, first: int, last: int, dtype: torch.dtype, device: torch.device
) -> _Block:
    parts = [program.rows] if planes is None else [program.rows, planes.slopes]
    rows = sparse.csr_array(sparse.vstack([part[first:last, : program.inputs + first] for part in parts]))
    # on a GPU dense rows win, and without MKL there is no product of a sparse and a dense matrix in place
    if rows.nnz > SPARSE * math.prod(rows.shape) or device.type != "cpu" or not MKL:
        dense = torch.from_numpy(rows.toarray()).to(device, dtype)
        return _Block(first, last, dense, dense.T.contiguous())
    return _Block(first, last, _sparse(rows, dtype), _sparse(sparse.csr_array(rows.T), dtype))


def _sparse(rows: sparse.csr_array, dtype: torch.dtype) -> Tensor:
    ends, columns = (torch.from_numpy(part).long() for part in (rows.indptr, rows.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        # torch 2.11 and 2.12 say so even where checks are asked for
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(
            ends, columns, torch.from_numpy(rows.data).to(dtype), rows.shape, check_invariants=True
        )
