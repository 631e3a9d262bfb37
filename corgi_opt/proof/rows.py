"""Linear functionals of one node's map, many at once, each on a window of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from corgi_opt.proof.arithmetic import Numbers

Shape = tuple[int, int, int]
"""Shape (C, H, W) of a map."""

Corners = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Coefficients (R, C, h, w) on windows whose top left positions are ``corners`` (R, 2)."""

    coefs: Numbers
    corners: Corners

    def __len__(self) -> int:
        return len(self.coefs)

    def part(self, start: int, count: int) -> Rows:
        return Rows(self.coefs[start : start + count], self.corners[start : start + count])

    def gather(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Maps (K, H, W) on the windows (R, K, h, w), zero off the map."""
        (h, w), (height, width) = self.coefs.shape[2:], maps.shape[1:]
        (top, left), (bottom, right) = self.corners.min(axis=0), self.corners.max(axis=0)
        pads = (max(0, -top), max(0, bottom + h - height)), (max(0, -left), max(0, right + w - width))
        windows = sliding_window_view(np.pad(maps, ((0, 0), *pads)), (h, w), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
        if top == bottom and left == right:  # one window for all rows
            one: NDArray[Any] = np.ascontiguousarray(windows[top + pads[0][0], left + pads[1][0]])
            return np.broadcast_to(one, (len(self), *one.shape))
        many: NDArray[Any] = windows[self.corners[:, 0] + pads[0][0], self.corners[:, 1] + pads[1][0]]
        return many

    def over(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Maps (K, H, W) on the windows; those that are the same everywhere, (K, 1, 1), as they are, to broadcast."""
        return maps if maps.shape[1:] == (1, 1) else self.gather(maps)

    def on(self, shape: Shape) -> Rows:
        """The same functionals where neurons exist: zero off the map, no axis longer than the map's."""
        rows = self
        for axis in (0, 1):
            if rows.coefs.shape[2 + axis] > shape[1 + axis]:
                rows = rows.laid_out(axis, shape[1 + axis])
        h, w = rows.coefs.shape[2:]
        (top, left), (bottom, right) = rows.corners.min(axis=0), rows.corners.max(axis=0)
        if min(top, left) >= 0 and bottom + h <= shape[1] and right + w <= shape[2]:
            return rows
        there = rows.gather(np.ones((1, *shape[1:]), dtype=np.int64))
        return replace(rows, coefs=rows.coefs * there)

    def laid_out(self, axis: int, length: int) -> Rows:
        """On windows that hold positions 0 to length-1 along one axis (0 rows, 1 columns)."""
        source = np.arange(length) - self.corners[:, axis, None]
        held = (source >= 0) & (source < self.coefs.shape[2 + axis])
        along = np.s_[:, None, :, None] if axis == 0 else np.s_[:, None, None, :]
        index = source.clip(0, self.coefs.shape[2 + axis] - 1)[along]
        corners = self.corners.copy()
        corners[:, axis] = 0
        return Rows(np.take_along_axis(self.coefs, index, axis=2 + axis) * held[along], corners)

    def plus(self, other: Rows, shape: Shape) -> Rows:
        """The sum of two functionals of one node of this shape."""
        apart = other.corners - self.corners
        if (apart != apart[0]).any():
            # one was laid out on the map on its way down (corners of both move alike otherwise): lay out both
            mine, theirs = (r.laid_out(0, shape[1]).laid_out(1, shape[2]) for r in (self, other))
            return Rows(mine.coefs + theirs.coefs, mine.corners)
        shift = np.minimum(apart[0], 0)
        corners = self.corners + shift
        starts = [-shift, apart[0] - shift]
        parts = [self.coefs, other.coefs]
        h, w = (max(int(s[a]) + p.shape[2 + a] for s, p in zip(starts, parts, strict=True)) for a in (0, 1))
        total = np.zeros((*self.coefs.shape[:2], h, w), dtype=self.coefs.dtype)
        for (y, x), part in zip(starts, parts, strict=True):
            total[:, :, y : y + part.shape[2], x : x + part.shape[3]] += part
        return Rows(total, corners)
