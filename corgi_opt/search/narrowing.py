"""Clipped intervals in the nodes of a tree: a node's own bound of the output clips the units that mislead bounds most.

The formula is that of clipping.py. Lines below the units are those of the root (what holds for all images holds for a
node's), the line below the output is the node's. So nothing has to be bounded anew: a node costs two products of rows
that are kept. The units are the same for all nodes of a batch, so that their rows are gathered once.

Of g a few values are tried, as shares of ``2 |a| / lacks``, beyond which none is better than 0 (``lacks``: how far the
node's bound is below the goal). The best one lies between 0.02 and 0.13 (nine in ten, on a pair of a ResNet-8), and a
tenth alone finds nine tenths of what the best would.

All is computed in float32, whose rounding is taken off: sums go by runs of ``RUN`` terms, and then in float64.

Regions are boxes, where the least value of ``c't`` is ``-||c||_1``. That of another norm's ball in a box is a sort for
every unit, which cost more than it gained (docs/design-notes.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corgi_opt.bounding.budget import chunk_bytes, in_parts
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.phases import Below, PhaseBounds
from corgi_opt.encode.program import NARROW
from corgi_opt.search.clipping import Clipped

TRIED = 256
"""Units that are clipped in the nodes of a batch: more gain nothing, half as many cost up to a quarter more nodes."""

SHARES = (0.05, 0.1)
"""The g that are tried."""

GAIN = 1e-2
"""A side of an interval moves by more than this share of the root's, or stays as it is: a certificate says which."""

RUN = 128
"""Terms that are added up in float32."""


@dataclass(frozen=True, eq=False)
class Narrowed:
    """Nodes whose intervals are narrower, and which of them (N,) are ``possible``, so that they may hold a
    counterexample. ``units`` (T,) were tried; ``shares`` (2, T, N): g of every pre-activation and of every negated one,
    -1 where it stays as it was."""

    nodes: Nodes
    possible: Tensor
    units: Tensor
    shares: Tensor


class Narrowing:
    """Narrower intervals, and phases, for nodes of a tree that searches for the counterexamples of ``clipped`` in a
    box."""

    def __init__(self, clipped: Clipped, device: torch.device) -> None:
        program = clipped.program
        self._goal, self._device = clipped.goal, device
        self._bounds = PhaseBounds(program, clipped.planes, torch.float64, device)
        lines = PhaseBounds(program, None, torch.float64, device)
        below = lines.below_units(replace(lines.root(), phases=clipped.root.to(device)))
        self._constants = below.constants.view(2, -1)
        self._sizes = below.coefs.abs().sum(dim=0).view(2, -1)
        self._rows = _in_runs(below.coefs.t()).unflatten(0, (2, -1))
        # of each term (two coefficients, a product, a sum), and of sums in float64
        self._rounding = gamma(4, torch.float32, 0) + gamma(program.inputs)
        self._lost = 4 * program.inputs * torch.finfo(torch.float32).tiny  # terms too small for float32
        lower, upper = (torch.from_numpy(side).to(device) for side in (program.lower, program.upper))
        self._ends = torch.stack([_down(lower), -_down(-upper)])[:, :, None]

    def root(self, node: Nodes) -> Nodes:
        """A node (N=1) with intervals of its own, those of the program."""
        return replace(node, ends=self._ends)

    def narrowed(self, nodes: Nodes, lam: Tensor, doubt: Tensor) -> Narrowed:
        """Narrows intervals by the nodes' own bounds at their multipliers.

        ``lam`` (U, N): the coefficients that reached the units; ``doubt`` (U, N): how much each weakens the bound.
        """
        assert nodes.ends is not None  # as of the root
        units = doubt.sum(dim=1).topk(min(TRIED, len(doubt))).indices
        found, shares = self._found(units, self._bounds.below_outputs(nodes.to(torch.float64)))
        known = torch.stack([nodes.ends[0, units], -nodes.ends[1, units]])
        better = found > known + GAIN
        low, above = torch.where(better, found, known)
        # around zero and wide enough for float arithmetic, whatever the phase says
        kept = torch.stack([low.clamp(max=-NARROW), (-above).clamp(min=NARROW)])
        phases = ((low >= 0).to(torch.int8) - (above >= 0).to(torch.int8)) * (nodes.phases[units] == 0)
        fixed = nodes.fixed(units[:, None].expand(-1, len(nodes)), phases, lam[units])
        narrower = replace(fixed, ends=nodes.ends.index_copy(1, units, kept))
        return Narrowed(narrower, ~(low > -above).any(dim=0), units, torch.where(better, shares, -1.0))

    def _found(self, units: Tensor, output: Below) -> tuple[Tensor, Tensor]:
        """Lower bounds (2, T, N) in float32 of units (T,), and of their negatives, over counterexamples of N nodes; the
        g that give them."""
        lam, away = _in_runs(output.coefs.t()), output.constants - self._goal
        length, size = output.coefs.abs().sum(dim=0), output.constants.abs() + abs(self._goal)
        lacks = (length - away).clamp(min=1e-12)
        rows, constants, sizes = (m[:, None, units] for m in (self._rows, self._constants, self._sizes))

        def part(start: int, count: int) -> Tensor:
            some = slice(start, start + count)
            best, at = constants.new_full((), -torch.inf), constants.new_zeros(())
            for share in SHARES:
                single = (share * 2 * sizes / lacks[some, None]).float()
                g = single.double()
                moved = torch.addcmul(rows, single[..., None, None], lam[some, None])
                least = -moved.abs_().sum(dim=-1).double().sum(dim=-1)
                value = constants + g * away[some, None] + least
                value -= self._rounding * (sizes + g * length[some, None]) + gamma(RUN, torch.float32) * least.abs()
                value -= gamma(4) * (constants.abs() + g * size[some, None]) + self._lost
                at = torch.where(value > best, g, at)
                best = torch.fmax(best, value)
            return torch.stack([torch.nan_to_num(best, nan=-torch.inf), at], dim=1)

        at_once = chunk_bytes(self._device) // max(1, rows.numel() * rows.element_size())
        found, shares = torch.cat(in_parts(len(away), at_once, part), dim=2).transpose(2, 3).unbind(1)
        return _down(found), shares.float()


def narrows(clipped: Clipped) -> bool:
    """Whether nodes of a tree for these counterexamples narrow their intervals: in a box, where clipping gained
    something at the root."""
    return clipped.program.norm == "inf" and bool(clipped.steps) and not clipped.empty and clipped.program.units > 0


def _in_runs(rows: Tensor) -> Tensor:
    """Rows (R, n) in float32 by runs of terms (R, n / RUN, RUN), filled up with zeros."""
    runs = -(-rows.shape[1] // RUN)
    held = rows.new_zeros(len(rows), runs * RUN, dtype=torch.float32)
    held[:, : rows.shape[1]] = rows
    return held.view(len(rows), runs, RUN)


def _down(values: Tensor) -> Tensor:
    """No larger in float32."""
    single = values.float()
    return torch.nextafter(single, torch.full_like(single, -torch.inf))
