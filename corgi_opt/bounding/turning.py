"""Planes of a curved node that can be turned: a choice between several that all hold.

Of a smooth function or a product there is a plane that is best at each point of an interval, and none that is best at
all points. A mixture of planes that hold holds too. So a number in [0, 1] for every coefficient, which goes from the
plane that is best near one end of the interval to that near the other, is to a curved node what the lower line's slope
is to a ReLU: dual ascent is free to choose it (Shi et al., arXiv 2405.21063, choose the points of tangents).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corgi_opt.bounding.curves import MIDDLE, CurvePlanes, curve_planes, planes_step
from corgi_opt.bounding.dual import Interval, Rows, Step
from corgi_opt.network.graph import Node

AT = (1 / 32, 1 / 4, MIDDLE, 3 / 4, 31 / 32)
"""The shares of an interval where the planes to choose from are the best."""


class TurningPlanes:
    """The planes of one node that are best at each of AT; a choice of 0 is the first of them, 1 the last.

    ``maps`` (B, K C, H, W): those of AT one after the other, each as :class:`CurvePlanes` has them.
    """

    def __init__(self, sources: tuple[str, ...], maps: Tensor) -> None:
        self.sources, self.maps = sources, maps

    @classmethod
    def of(cls, node: Node, known: Mapping[str, Interval], middle: CurvePlanes | None = None) -> TurningPlanes:
        """From proven bounds of the node's operands; ``middle``: CROWN's planes, where they are there already."""
        choices = [middle if middle and at == MIDDLE else curve_planes(node, known, at) for at in AT]
        return cls(node.inputs, torch.cat([planes.maps for planes in choices], dim=1))

    def to(self, dtype: torch.dtype) -> TurningPlanes:
        return TurningPlanes(self.sources, self.maps.to(dtype))

    def step(self, rows: Rows, choice: Tensor) -> Step:
        """The planes that ``choice`` (R, C, h, w) picks, whatever it is; differentiable in it."""
        last = len(AT) - 1
        place = choice.clamp(0, 1) * last
        mixed = None
        for at, maps in enumerate(rows.gather(self.maps).chunk(last + 1, dim=1)):
            share = (1 - (place - at).abs()).clamp(min=0)  # neighbours' add up to one, but for a few roundings
            part = share.repeat(1, maps.shape[1] // share.shape[1], 1, 1) * maps
            mixed = part if mixed is None else mixed + part
        assert mixed is not None
        return planes_step(self.sources, rows, mixed)
