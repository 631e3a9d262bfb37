"""The leaves of a branch and bound tree, with the multipliers that closed them, for a certificate."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from corgi_opt.encode.expressions import Vector
from corgi_opt.encode.hull import HullPlanes
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.program import Program
from corgi_opt.search.clipping import Clipped

MOST_LEAVES_BYTES = 250_000_000
"""Memory for the leaves of one tree, about what a certificate's file holds; beyond it they are dropped, and no
certificate can be made."""


@dataclass(frozen=True, eq=False)
class Leaves:
    """L closed nodes of a tree over the U units of ``program``, in its units: all (L, U).

    ``pushes``: what is taken off mu beyond a unit's line; ``mixes``: the share of ``planes``. ``clipped``: how the
    program's intervals were clipped before; None: they were not.
    """

    program: Program
    planes: HullPlanes | None
    clipped: Clipped | None
    phases: NDArray[np.int8]
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    pushes: Vector


@dataclass(eq=False)
class Ledger:
    """Leaves of one tree, as they are closed."""

    program: Program
    planes: HullPlanes | None = None
    clipped: Clipped | None = None
    _parts: list[tuple[NDArray[np.int8], Vector, Vector, Vector]] = field(default_factory=list)
    _bytes: int = 0

    def closed(self, nodes: Nodes) -> None:
        """Records nodes that D closed at their multipliers."""
        phases = nodes.phases.T.cpu().numpy()
        slopes, pulls, mixes = (m.T.cpu().numpy() for m in nodes.multipliers)
        self._add(phases, slopes, mixes, pulls.astype(np.float64) * phases)

    def closed_by(self, phases: NDArray[np.int8], mu: Vector) -> None:
        """Records a phase pattern (U,) that a linear program closed, whose multipliers say mu (U,)."""
        program = self.program
        lam = program.outputs[[0]].toarray()[0] + program.rows.T @ mu
        here = lam[program.inputs :]
        chord = program.upper / (program.upper - program.lower)
        line = np.where(phases > 0, 1.0, np.where((phases < 0) | (here > 0), 0.0, chord))
        zeros = np.zeros((1, program.units), dtype=np.float32)
        self._add(phases[None], zeros, zeros, (line * here - mu)[None])

    def _add(self, *parts: NDArray[np.generic]) -> None:
        self._bytes += sum(part.nbytes for part in parts)
        if self._bytes <= MOST_LEAVES_BYTES:
            self._parts.append(parts)  # type: ignore[arg-type]
        else:
            self._parts.clear()

    def leaves(self) -> Leaves | None:
        """All leaves; None where there are none, or too many were closed."""
        clipped, units = self.clipped, self.program.units
        if clipped is not None and clipped.empty:  # there is nothing to split
            zeros = np.zeros((1, units), dtype=np.float32)
            return Leaves(
                self.program, self.planes, clipped, zeros.astype(np.int8), zeros, zeros, zeros.astype(np.float64)
            )
        if self._bytes > MOST_LEAVES_BYTES or not self._parts:
            return None
        phases, slopes, mixes, pushes = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if clipped is not None:  # what is so for all counterexamples is no split
            settled = clipped.phases != 0
            on = clipped.phases[settled] > 0
            phases[:, settled], slopes[:, settled], mixes[:, settled] = 0, on, 0.0
        return Leaves(self.program, self.planes, clipped, phases, slopes, mixes, pushes)
