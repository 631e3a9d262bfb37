"""Nodes of a branch and bound on ReLU phases: patterns of phases, and the multipliers that bound them (phases.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Nodes:
    """N phase patterns, and the multipliers to bound them with: (U, N) each.

    ``phases`` (int8): 1 on, -1 off, 0 open. ``mixes``: the share of planes, in [0, 1]. ``goal`` (N,): which output of
    the program each is about. ``pace`` (N,): the factor of ascent's steps, see PhaseBounds.ascend. ``ends``
    (2, U, N): least and largest pre-activations, where nodes have intervals of their own; None: those of the program.
    ``recorded`` (N,): the row of the node that they come from in a ledger (search/leaves.py); -1: none.
    """

    phases: Tensor
    slopes: Tensor
    pulls: Tensor
    mixes: Tensor
    goal: Tensor
    pace: Tensor
    recorded: Tensor
    ends: Tensor | None = None

    def __len__(self) -> int:
        return len(self.goal)

    def __getitem__(self, part: Tensor) -> Nodes:
        phases, slopes, pulls, mixes = (m[:, part] for m in (self.phases, self.slopes, self.pulls, self.mixes))
        ends = None if self.ends is None else self.ends[:, :, part]
        of_each = self.goal[part], self.pace[part], self.recorded[part]
        return Nodes(phases, slopes, pulls, mixes, *of_each, ends)

    def to(self, dtype: torch.dtype) -> Nodes:
        ends = None if self.ends is None else self.ends.to(dtype)
        return replace(self.at(m.to(dtype) for m in self.multipliers), pace=self.pace.to(dtype), ends=ends)

    @property
    def multipliers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.slopes, self.pulls, self.mixes

    def at(self, multipliers: Iterable[Tensor]) -> Nodes:
        """The same nodes at other multipliers."""
        slopes, pulls, mixes = multipliers
        return replace(self, slopes=slopes, pulls=pulls, mixes=mixes)

    def split(self, units: Tensor, lam: Tensor) -> Nodes:
        """Both children (2N) of each node by one open unit (N,): first all with it on, then all with it off; ``lam``
        (N,): the objective's coefficient that reached the unit."""
        return Nodes.joined(
            [self.fixed(units[None], torch.full_like(units[None], side), lam[None]) for side in (1, -1)]
        )

    def fixed(self, units: Tensor, phases: Tensor, lam: Tensor) -> Nodes:
        """The nodes with phases (T, N) of units (T, N) that are open; 0 leaves a unit open.

        ``lam`` (T, N): the objective's coefficients that reached the units. Where one is positive, its pull is such
        that mu stays what it was, so that the bound starts from what it was.
        """
        slope, positive = self.slopes.gather(0, units), lam.clamp(min=0)
        pulls = torch.where(phases > 0, (1 - slope) * positive, slope * positive)
        known, old = phases != 0, self.phases.gather(0, units)
        return replace(
            self,
            phases=self.phases.scatter(0, units, torch.where(known, phases.to(old.dtype), old)),
            pulls=self.pulls.scatter(0, units, torch.where(known, pulls, self.pulls.gather(0, units))),
        )

    @staticmethod
    def joined(several: Sequence[Nodes]) -> Nodes:
        """All nodes of several."""
        maps = zip(*((n.phases, *n.multipliers) for n in several), strict=True)
        phases, slopes, pulls, mixes = (torch.cat(some, dim=1) for some in maps)
        single = zip(*((n.goal, n.pace, n.recorded) for n in several), strict=True)
        goal, pace, recorded = (torch.cat(some) for some in single)
        own = [n.ends for n in several if n.ends is not None]
        return Nodes(phases, slopes, pulls, mixes, goal, pace, recorded, torch.cat(own, dim=2) if own else None)
