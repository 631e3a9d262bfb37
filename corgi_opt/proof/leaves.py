"""Lower bounds of a tree's functional, leaf by leaf.

Leaves say mu and p (program.py) by slopes, shares of planes and pushes, which are hints and prove nothing; the signs
that a leaf stands for are what ``phi`` is over. Intervals are clipped (clips.py) before: for all leaves, and then row
by row on the way down to each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from corgi_opt.proof.arithmetic import Array
from corgi_opt.proof.bounds import Bounds, Indices, crown_slopes
from corgi_opt.proof.clips import Below, Ends, Narrowing, clip
from corgi_opt.proof.program import Lines, Program
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.threads import at_once
from corgi_opt.proof.tree import Tree


class Leaves:
    """The leaves of a tree about a functional ``rows`` of a node. ``shift``: what the tree's goal counts beside it.

    ``program``: with intervals as they are clipped for all leaves, unless they have ``crossed``. Raises ProofError for
    a malformed tree, or one that takes more memory than a check may.
    """

    @np.errstate(all="ignore")  # what overflows ends as a bound of -inf
    def __init__(self, bounds: Bounds, tree: Tree, node: int, rows: Rows, shift: float = 0.0) -> None:
        self.program, self.tree = Program(bounds, tree, node, rows), tree
        self.goal, self.crossed = np.inf, False
        if tree.clips is not None:
            self.goal = tree.clips.goal - shift
            self.crossed = not clip(self.program, tree.clips, self.goal)
        self._narrowing = None
        if tree.descent is not None and not self.crossed:
            self._narrowing = Narrowing(self.program, tree.descent, self.goal)

    @np.errstate(all="ignore")
    def lower(self) -> Array:
        """Bounds (L,) of the functional in each row, infinity where it is no leaf; where intervals are clipped, no
        higher than the goal of that."""
        tree, found = self.tree, np.full(len(self.tree.phases), np.inf)
        if not self.crossed:
            for rows, ends in self._levels():
                parts = list(self.program.parts(len(rows)))
                bounded = at_once(self._bounded, [(rows[some], ends[some]) for some in parts])
                for some, (bound, narrower) in zip(parts, bounded, strict=True):
                    found[rows[some]], ends.low[some], ends.high[some] = bound, narrower.low, narrower.high
        if tree.descent is not None:
            found[~tree.descent.leaves] = np.inf
        return np.asarray(np.minimum(found, self.goal))

    def _levels(self) -> Iterator[tuple[Indices, Ends]]:
        """Rows that take over intervals from those of the level before, and these, which the caller narrows."""
        program, descent = self.program, self.tree.descent
        root = Ends(program.low[None], program.high[None])
        if descent is None:
            count = len(self.tree.phases)
            for some in program.parts(count):
                yield np.arange(count)[some], root.repeated(some.stop - some.start)
            return
        depth = descent.depths()
        widths = np.bincount(depth)
        program.keep(0, 4 * int(widths.max()) * program.units * 8)
        ends, place = root, np.zeros(len(depth), dtype=np.int64)
        for level, rows in enumerate(np.split(np.argsort(depth, kind="stable"), np.cumsum(widths)[:-1])):
            ends = root.repeated(len(rows)) if level == 0 else ends[place[descent.parents[rows]]]
            yield rows, ends
            place[rows] = np.arange(len(rows))

    def _bounded(self, part: tuple[Indices, Ends]) -> tuple[Array, Ends]:
        """Bounds (R,) of the functional in some rows that take over intervals, and what these become."""
        program, (rows, ends) = self.program, part
        ends = ends.under(self.tree.phases[rows])
        lines, functional = self._lines(rows, ends), program.functional(len(rows))
        lam, tally = program.descend(functional, lines, ends.low, ends.high)
        if self._narrowing is not None and self._narrowing.any(rows):
            ends = self._narrowing.narrowed(rows, Below.of(program, lam, tally), ends)
        program.add_minimum(tally, lam[:, : program.inputs])
        return np.where(ends.crossed, np.inf, tally.lower), ends  # a sign that a unit cannot have

    def _lines(self, rows: Indices, ends: Ends) -> Lines:
        """As the hints of rows say."""
        tree = self.tree
        slopes, mixes, pushes = (m[rows].astype(np.float64) for m in (tree.slopes, tree.mixes, tree.pushes))
        below, chord = crown_slopes(ends.low, ends.high)
        return Lines(np.where(ends.open, slopes, below), chord, np.where(ends.open, mixes, 0.0), pushes)
