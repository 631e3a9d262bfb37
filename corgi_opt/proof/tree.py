"""A functional on a region that is cut by the signs of some ReLUs: a tree whose leaves are bounded one by one.

What a file says of one: who checks takes it for hints (program.py, leaves.py), but for that its leaves leave nothing
out, which is looked at here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Array
from corgi_opt.proof.bounds import Indices


@dataclass(frozen=True, eq=False)
class Clips:
    """K times that the intervals of U units are clipped, for images where the functional is at most ``goal``.

    Each time from a bound of the functional, by ``slopes`` and ``mixes`` (K, U) as those of a leaf without phases, and
    bounds of units at CROWN's lines: ``z + g (functional - goal)`` is no more than z there, for any g >= 0. ``shares``
    (K, 2, U): g for every pre-activation and for every negated one; negative: it stays as it is. Hints, all of them.
    """

    goal: float
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    shares: Array


@dataclass(frozen=True, eq=False)
class Descent:
    """How L rows of a tree take over and narrow the intervals of units, where the functional is at most the goal.

    ``parents`` (L,): a row takes over those of this earlier one; -1: those of the root. Rows that others take over from
    are no leaves. Each may then clip some, as in :class:`Clips`, by a bound of the functional at its own multipliers:
    of the E ``sides`` (a unit u, or U + u for its negative) and ``shares`` (the g of each), row after row, so many are
    its own as ``counts`` (L,) says.
    """

    parents: NDArray[np.int32]
    counts: NDArray[np.int32]
    sides: NDArray[np.int32]
    shares: NDArray[np.float32]

    @property
    def leaves(self) -> NDArray[np.bool_]:
        """Which rows (L,) are leaves."""
        found = np.ones(len(self.parents), dtype=bool)
        found[self.parents[self.parents >= 0]] = False
        return found

    def depths(self) -> Indices:
        """How many rows (L,) each takes over from."""
        found = np.zeros(len(self.parents), dtype=np.int64)
        for row, parent in enumerate(self.parents.tolist()):
            found[row] = found[parent] + 1 if parent >= 0 else 0
        return found


@dataclass(frozen=True, eq=False)
class Tree:
    """L leaves over U units: ReLU nodes ``node`` (U,), flat places in their maps ``flat`` (U,), ordered by both.

    ``phases`` (L, U) int8: 1 on, -1 off, 0 either. Hints, all (L, U): ``slopes`` of the line below an open unit, in
    [0, 1]; ``mixes``, the share of lam < 0 that goes to the unit's plane; ``pushes``, taken off mu. ``inputs`` (n,):
    flat places in the image; ``shares`` (U, n + U): of a unit's row, what its plane's slopes are; None: no planes.
    ``clips``: how the units' intervals are clipped before leaves are bounded; None: not at all. ``descent``: how those
    of rows are narrowed then, not all of which are leaves; None: not at all.
    """

    node: Indices
    flat: Indices
    phases: NDArray[np.int8]
    slopes: NDArray[np.float32]
    mixes: NDArray[np.float32]
    pushes: Array
    inputs: Indices
    shares: NDArray[np.float32] | None
    clips: Clips | None = None
    descent: Descent | None = None

    def require_whole(self) -> None:
        """Raises ProofError where leaves leave some sign pattern out, or a row takes over what does not hold for it."""
        leaves = self.phases
        if self.descent is not None:
            parents = self.descent.parents
            if (parents < -1).any() or (parents >= np.arange(len(parents))).any():
                raise ProofError("a row of a tree takes over from none, or from a later one")
            if self.clips is None:
                raise ProofError("a tree's intervals are narrowed for no goal")
            below = np.flatnonzero(parents >= 0)
            said = leaves[parents[below]]
            if ((said != 0) & (said != leaves[below])).any():
                raise ProofError("a row of a tree takes over from one of other signs")
            if self.descent.depths().max() > leaves.shape[1] + 1:  # each that others come from is split once more
                raise ProofError("a tree is deeper than it has units")
            leaves = leaves[self.descent.leaves]
        if not covers(leaves):
            raise ProofError("the leaves of a tree leave some sign pattern out")


def covers(phases: NDArray[np.int8]) -> bool:
    """Whether leaves (L, U) leave no sign pattern out: one that is all open, or both halves of a split by some unit.

    Leaves of a tree are split by its root's unit, all of them; so are those of each half.
    """
    pending = [np.arange(len(phases))]
    done = [np.zeros(phases.shape[1], dtype=bool)]
    while pending:
        part, split = pending.pop(), done.pop()
        if not len(part):
            return False
        here = phases[part][:, ~split]
        if (here == 0).all(axis=1).any():
            continue
        by = np.flatnonzero((here != 0).all(axis=0))
        if not len(by):
            return False
        unit = int(np.flatnonzero(~split)[by[0]])
        split = split.copy()
        split[unit] = True
        for side in (1, -1):
            pending.append(part[phases[part, unit] == side])
            done.append(split)
    return True
