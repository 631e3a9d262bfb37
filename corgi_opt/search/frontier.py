"""The open nodes of a branch and bound, in arrays that grow: put many, take the most doubtful many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.encode.nodes import Nodes

MOST_BYTES = 2_000_000_000
"""Memory for open nodes; from half of it on, nodes nearest to being closed are taken first, so that few are added."""


@dataclass(frozen=True, eq=False)
class Likely:
    """For each of N nodes K open ``units`` that it may be split by, and ``lam``, the coefficients that reach them."""

    units: Tensor
    lam: Tensor

    def __getitem__(self, part: Tensor) -> Likely:
        return Likely(self.units[part], self.lam[part])


class Frontier:
    """Open nodes by their bounds, and the units that each may be split by."""

    def __init__(self, units: int, tries: int, device: torch.device) -> None:
        def column(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(0, width, dtype=dtype, device=device)

        self._value = torch.full((0,), torch.inf, device=device)  # infinite: an empty slot
        self._goal = torch.empty(0, dtype=torch.long, device=device)
        self._pace = torch.empty(0, device=device)
        self._recorded = torch.empty(0, dtype=torch.long, device=device)
        self._units, self._lam = column(tries, torch.long), column(tries, torch.float32)
        self._phases = column(units, torch.int8)
        self._ends = column(0, torch.float32)  # as wide as that of the first nodes
        self._slopes, self._pulls, self._mixes = (column(units, torch.float32) for _ in range(3))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, nodes: Nodes, value: Tensor, likely: Likely) -> None:
        """Adds N nodes with their bounds ``value`` (N,), which are finite."""
        ends = nodes.pace.new_empty(0, len(nodes)) if nodes.ends is None else nodes.ends.flatten(0, 1)
        if not self._count and ends.shape[0] != self._ends.shape[1]:
            self._ends = self._ends.new_empty(len(self._value), ends.shape[0])
        missing = self._count + len(nodes) - len(self._value)
        if missing > 0:
            self._grow(max(missing, len(self._value), 256))
        slots = torch.nonzero(self._value.isinf()).flatten()[: len(nodes)]
        self._value[slots], self._goal[slots], self._pace[slots] = value, nodes.goal, nodes.pace
        self._recorded[slots] = nodes.recorded
        self._units[slots], self._lam[slots] = likely.units, likely.lam
        self._phases[slots], self._slopes[slots] = nodes.phases.T, nodes.slopes.T
        self._pulls[slots], self._mixes[slots], self._ends[slots] = nodes.pulls.T, nodes.mixes.T, ends.T
        self._count += len(nodes)

    def take(self, most: int) -> tuple[Nodes, Tensor, Likely]:
        """Removes and returns up to ``most`` nodes with their bounds: those with the lowest, while memory allows."""
        if self.bytes > MOST_BYTES / 2:
            slots = torch.where(self._value.isinf(), -torch.inf, self._value).topk(min(most, self._count)).indices
        else:
            slots = self._value.topk(min(most, self._count), largest=False).indices
        value = self._value[slots]
        self._value[slots] = torch.inf
        self._count -= len(slots)
        return self._nodes(slots), value, Likely(self._units[slots], self._lam[slots])

    def every(self) -> Nodes:
        """All nodes; they stay."""
        return self._nodes(torch.nonzero(~self._value.isinf()).flatten())

    @property
    def bytes(self) -> int:
        """Memory that its nodes take."""
        return self._count * self._slot_bytes

    def _nodes(self, slots: Tensor) -> Nodes:
        parts = (self._phases, self._slopes, self._pulls, self._mixes)
        phases, slopes, pulls, mixes = (part[slots].T.contiguous() for part in parts)
        ends = self._ends[slots].T.contiguous().unflatten(0, (2, -1)) if self._ends.shape[1] else None
        of_each = self._goal[slots], self._pace[slots], self._recorded[slots]
        return Nodes(phases, slopes, pulls, mixes, *of_each, ends)

    def _grow(self, more: int) -> None:
        self._value = torch.cat([self._value, self._value.new_full((more,), torch.inf)])
        for name in (
            "_goal",
            "_pace",
            "_recorded",
            "_units",
            "_lam",
            "_phases",
            "_slopes",
            "_pulls",
            "_mixes",
            "_ends",
        ):
            part: Tensor = getattr(self, name)
            setattr(self, name, torch.cat([part, part.new_empty(more, *part.shape[1:])]))

    @property
    def _slot_bytes(self) -> int:
        return 13 * self._phases.shape[1] + 4 * self._ends.shape[1] + 12 * self._units.shape[1] + 24
