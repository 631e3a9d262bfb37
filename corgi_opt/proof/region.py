"""The images that a certificate is about, and the least value of linear functionals over them.

For ``min lam'd`` over ``||d|| <= eps`` and a box around 0, split lam = p + r: by duality ``lam'd >= -eps ||p||_dual -
sum |r_i| room_i``, room being that on the side to which r pulls, whatever p is. p is chosen in floats; an L-inf ball
needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corgi_opt.proof.arithmetic import Arithmetic, Array, Numbers
from corgi_opt.proof.tally import Tally

Norm = Literal["inf", "2", "1"]

HALVINGS = 60
"""Steps of the search for p."""

Clip = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]] | None
"""A box's two ends, each one number or one a channel."""


@dataclass(frozen=True, eq=False)
class Region:
    """``||x - center||_norm <= eps`` and, unless it is None, ``clip[0] <= x <= clip[1]``; center (C, H, W)."""

    center: Array
    eps: float
    norm: Norm
    clip: Clip

    @property
    def ends(self) -> tuple[Array, Array] | None:
        """The box as maps (C or 1, 1, 1)."""
        if self.clip is None:
            return None
        low, high = (np.array(end, dtype=np.float64).reshape(-1, 1, 1) for end in self.clip)
        return low, high

    def boxed(self, image: Array) -> bool:
        """Whether an image (C, H, W) is in the box, if there is one."""
        return self.ends is None or bool(((image >= self.ends[0]) & (image <= self.ends[1])).all())

    @property
    def lower(self) -> Array:
        """A map (C, H, W) no larger than any x of the region."""
        low = np.nextafter(self.center - self.eps, -np.inf) if self.eps > 0 else self.center
        return low if self.ends is None else np.maximum(low, self.ends[0])

    @property
    def upper(self) -> Array:
        """A map (C, H, W) no smaller than any x of the region."""
        high = np.nextafter(self.center + self.eps, np.inf) if self.eps > 0 else self.center
        return high if self.ends is None else np.minimum(high, self.ends[1])


def add_minimum(
    tally: Tally, norm: Norm, eps: float, lam: Numbers, center: Array, low: Array, high: Array, arithmetic: Arithmetic
) -> None:
    """Adds ``min lam'x`` of each row of lam (R, N) over ||x - c|| <= eps and low <= x <= high; all (R or 1, N)."""
    if norm == "inf":
        tally.add(lam * np.where(lam > 0, arithmetic.of(low), arithmetic.of(high)))
        return
    before, after = np.nextafter(center - low, np.inf), np.nextafter(high - center, np.inf)
    spread = _spread(norm, eps, np.abs(arithmetic.down(lam)), np.where(lam > 0, before, after))
    rest = lam - np.where(lam > 0, arithmetic.of(spread), arithmetic.of(-spread))
    tally.add(lam * arithmetic.of(center))
    tally.add(-np.abs(rest) * arithmetic.of(np.where(rest > 0, before, after)))
    if norm == "1":
        size = arithmetic.of(spread.max(axis=1, initial=0.0))
    else:
        count = spread.shape[1]
        squares = (arithmetic.of(spread) ** 2).sum(axis=1)
        size = arithmetic.root(squares + arithmetic.gamma(count + 2) * squares + (count + 1) * arithmetic.tiny)
    tally.add(-(size * arithmetic.of(eps))[:, None])


def _spread(norm: Norm, eps: float, size: Array, room: Array) -> Array:
    """|p| (R, N) for |lam| = ``size``, about as good as any; whatever it is, the bound holds."""
    with np.errstate(all="ignore"):
        low, high = np.zeros(len(size)), np.full(len(size), np.inf)
        high = size.max(axis=1, initial=0.0) if norm == "1" else size.max(axis=1, initial=0.0) / max(eps, 1e-300)
        high = high * (1.0 if norm == "1" else math.sqrt(max(size.shape[1], 1)))
        for _ in range(HALVINGS):
            level = (low + high) / 2
            if norm == "1":  # inputs whose |lam| is above the level are at the box
                spent = np.where(size > level[:, None], room, 0.0).sum(axis=1)
            else:  # d_i = min(room_i, |lam_i| / level)
                moved = np.minimum(room, size / level[:, None])
                spent = np.sqrt((np.where(np.isnan(moved), 0.0, moved) ** 2).sum(axis=1))
            low, high = np.where(spent > eps, level, low), np.where(spent > eps, high, level)
        spread = np.minimum(size, high[:, None] if norm == "1" else high[:, None] * room)
        return np.where(np.isfinite(spread), spread, 0.0)
