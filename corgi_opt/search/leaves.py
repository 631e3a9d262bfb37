"""The rows of a branch and bound tree, with the multipliers that closed or narrowed them, for a certificate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.hull import HullPlanes
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.program import Program
from corgi_opt.search.clipping import Clipped
from corgi_opt.search.narrowing import Narrowed

MOST_LEAVES_BYTES = 250_000_000
"""Memory for the rows of one tree, about what a certificate's file holds; beyond it they are dropped, and no
certificate can be made."""

Phases = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Rows:
    """L nodes of a tree over the U units of a program, in its units: closed ones, and those that others come from.

    All (L, U): ``phases`` by splits; ``slopes``; ``mixes``, the share of planes; ``pushes``, what is taken off mu
    beyond a unit's line. ``parents`` (L,): the row that each comes from, -1: none. ``sides`` (E,): ends of units that
    rows narrowed, a unit's number for its lower one and U more for its upper one; ``shares`` (E,): g (narrowing.py);
    ``counts`` (L,): so many of them are each row's.
    """

    phases: Phases
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    pushes: Vector
    parents: NDArray[np.int32]
    counts: NDArray[np.int32]
    sides: NDArray[np.int32]
    shares: NDArray[np.float32]

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in vars(self).values())

    @staticmethod
    def joined(several: list[Rows]) -> Rows:
        """All rows of several."""
        return Rows(*(np.concatenate(some) for some in zip(*(vars(rows).values() for rows in several), strict=True)))


@dataclass(frozen=True, eq=False)
class Leaves:
    """What proves that the first output of ``program`` is above a threshold: ``rows``, of which those that no other
    comes from are leaves. ``clipped``: how the program's intervals were clipped before; None: they were not."""

    program: Program
    planes: HullPlanes | None
    clipped: Clipped | None
    rows: Rows


@dataclass(eq=False)
class Ledger:
    """Rows of one tree, as nodes are closed and narrowed."""

    program: Program
    planes: HullPlanes | None = None
    clipped: Clipped | None = None
    _parts: list[Rows] = field(default_factory=list)
    _splits: list[Phases] = field(default_factory=list)  # of each row (U,)
    _known: dict[int, Phases] = field(default_factory=dict)  # of a narrowed row, what intervals tell besides
    _bytes: int = 0

    def closed(self, nodes: Nodes) -> None:
        """Records nodes that D closed at their multipliers."""
        self._record(nodes, *_nothing(len(nodes)))

    def narrowed(self, nodes: Nodes, narrowed: Narrowed) -> Nodes:
        """Records N nodes at the multipliers that narrowed them; what they became, which is said to come from them."""
        first = len(self._splits)
        every = narrowed.shares.permute(2, 0, 1).flatten(1).cpu().numpy()  # (N, 2T)
        units = narrowed.units.cpu().numpy()
        sides = np.broadcast_to(np.concatenate([units, units + self.program.units]), every.shape)
        found = every >= 0
        counts = found.sum(axis=1).astype(np.int32)
        if not self._record(nodes, counts, sides[found].astype(np.int32), every[found]):
            return narrowed.nodes
        for row, phases in enumerate(narrowed.nodes.phases.T.cpu().numpy(), first):
            self._known[row] = phases
        rows = torch.arange(first, first + len(nodes), device=nodes.recorded.device)
        return replace(narrowed.nodes, recorded=rows)

    def closed_by(self, node: Nodes, mu: Vector) -> None:
        """Records a node (N=1) that a linear program closed, whose multipliers say mu (U,)."""
        program = self.program
        lam = program.outputs[[0]].toarray()[0] + program.rows.T @ mu
        here, phases = lam[program.inputs :], node.phases[:, 0].cpu().numpy()
        low, high = (program.lower, program.upper) if node.ends is None else node.ends[:, :, 0].double().cpu().numpy()
        line = np.where(phases > 0, 1.0, np.where((phases < 0) | (here > 0), 0.0, high / (high - low)))
        zeros = torch.zeros_like(node.slopes)
        self._record(node.at([zeros, zeros, zeros]), *_nothing(1), pushes=(line * here - mu)[None])

    def _record(
        self,
        nodes: Nodes,
        counts: NDArray[np.int32],
        sides: NDArray[np.int32],
        shares: NDArray[np.float32],
        pushes: Vector | None = None,
    ) -> bool:
        """Adds a row for each node, as long as there is room for them."""
        if self._bytes > MOST_LEAVES_BYTES:
            return False
        phases, parents = nodes.phases.T.cpu().numpy(), nodes.recorded.cpu().numpy()
        slopes, pulls, mixes = (m.T.cpu().numpy() for m in nodes.multipliers)
        # of a unit that intervals tell, line and chord are one, also where they tell a hair less to who does it again
        known = phases != 0
        rows = Rows(
            phases=self._by_splits(phases, parents),
            slopes=np.where(known, phases > 0, slopes).astype(np.float32),
            mixes=np.where(known, 0, mixes).astype(np.float32),
            pushes=pulls.astype(np.float64) * phases if pushes is None else pushes,
            parents=parents.astype(np.int32),
            counts=counts,
            sides=sides,
            shares=shares,
        )
        self._bytes += rows.bytes
        if self._bytes > MOST_LEAVES_BYTES:
            self._parts.clear()
            return False
        self._parts.append(rows)
        self._splits.extend(rows.phases)
        return True

    def _by_splits(self, phases: Phases, parents: NDArray[np.int64]) -> Phases:
        """Phases (N, U) of nodes, without what intervals told of their units."""
        none = np.zeros(self.program.units, dtype=np.int8)
        root = none if self.clipped is None else self.clipped.phases
        known = [root if row < 0 else self._known[row] for row in parents.tolist()]
        before = [none if row < 0 else self._splits[row] for row in parents.tolist()]
        return np.where(np.stack(known) == 0, phases, np.stack(before))

    def leaves(self) -> Leaves | None:
        """All rows; None where there are none, or too many."""
        clipped, parts = self.clipped, self._parts
        if clipped is not None and clipped.empty:  # there is nothing to split
            zeros = np.zeros((1, self.program.units), dtype=np.float32)
            parents = np.full(1, -1, dtype=np.int32)
            parts = [Rows(zeros.astype(np.int8), zeros, zeros, zeros.astype(np.float64), parents, *_nothing(1))]
        return Leaves(self.program, self.planes, clipped, Rows.joined(parts)) if parts else None


def _nothing(count: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Counts, sides and shares of so many nodes that narrow nothing."""
    return np.zeros(count, dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
