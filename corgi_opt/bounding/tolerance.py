"""What float64 may hide: the one account of rounding, which every bound that is claimed in plain floats goes through.

A bound is about the exact network whose weights these floats are. What float64 makes of it differs, and by how much is
known beforehand (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, section 3.1): a sum of n
products, in any order, with or without fused operations, is off by at most

    gamma_n * sum of the absolute terms,      gamma_n = n v / (1 - n v),   v = 2^-53.

**Backwards** (D, and expressions of an encoding). Coefficients ``lam`` of a node's operand are computed as ``M' mu``,
to within ``gamma |M|'|mu|``; that is worth ``gamma |mu|'(|M| size)``, where ``size`` is the largest magnitude that the
operand takes *over the region* (not at the image). The bias' share is off by ``gamma |mu|'|b|``. A ReLU's or a pooling
window's line costs a few roundings relative to ``|lam|`` times the magnitude before it, which the reader's ``|M| size``
holds as well if ``size`` of a ReLU is that of its input, and that of a curved node holds the terms of its planes:
``|s| size(z) + |t|`` for ``s z + t``, which is at most three times ``terms`` (network/smooth.py), as a slope is no
steeper than the function and a shift no larger than the value and the slope's share. What the function's own value may
be off by is in the planes' shifts (curves.py). So a row is off by at most

    gamma * ( |q|' size(start) + sum over affine nodes of |mu|' worth ),     worth = |M| size + |b|,

with mu as it was computed: magnitudes go through one ``|M|`` at a time and do not grow with depth, while a cancellation
between layers is seen. (``worth`` is taken at its largest over the positions of a channel, so that a pass gathers
nothing more.) This also covers the ends of the region, which are a rounding off themselves, and the minimum over it.

**Forwards** (intervals): ``gamma * (|M| size + |b|)`` for each neuron, and of a curved node what its operation says
(``error``, from the magnitudes of its operands). Where every product is exactly zero, nothing was
rounded: a pre-activation that is constant keeps a point for an interval.

**Programs** (the rows of an LP, a MILP or a tree) carry what their expressions may be off by, and what D on them may
be, as ``slack`` of a row and ``residue`` of an output (encode/program.py).

gamma is taken at more than twice the number of terms: that pays for computing the account itself in floats. What it
does not cover: results below ``FLOOR``, where products may underflow, and algorithms other than sums of products (FFT,
Winograd, TF32), which torch does not use in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Input, ReLU, Weighted
from corgi_opt.network.smooth import Curved

UNIT = 2.0**-53
"""Relative error of one rounding in float64."""

FLOOR = 1e-280
"""Nothing is claimed of smaller differences: products may have underflowed on the way."""

ONCE = 64
"""Most roundings of a result besides those of its longest sum."""


def gamma(terms: int, dtype: torch.dtype = torch.float64, once: int = ONCE) -> float:
    """The relative error of a sum of so many products, and of ``once`` roundings besides, twice over."""
    share = (terms + once) * torch.finfo(dtype).eps  # twice the error of one rounding
    return share / (1 - share)


def below(values: Tensor) -> Tensor:
    """Floats below the exact values that one rounding took to these."""
    return torch.nextafter(values, torch.full_like(values, -torch.inf))


class Rounding:
    """How far rounding may move bounds of one graph's nodes over B regions. :meth:`learn` is called with the bounds of
    each node, in the graph's order."""

    def __init__(self, graph: LayerGraph) -> None:
        self._graph = graph
        self._size: dict[str, Tensor] = {}
        self._worth: dict[str, Tensor] = {}

    @classmethod
    def of(cls, graph: LayerGraph, intervals: Mapping[str, tuple[Tensor, Tensor]]) -> Rounding:
        """The account of the nodes whose bounds (C, H, W) over one region are known."""
        rounding = cls(graph)
        for name in graph.order:
            if name in intervals:
                rounding.interval(name)
                rounding.learn(name, *(side[None] for side in intervals[name]))
        return rounding

    def interval(self, name: str) -> Tensor | None:
        """How far a node's interval (B, C, H, W), computed from its operands', may be off; None: it is exact."""
        node, op = self._graph[name], self._graph[name].op
        sizes = [self._size[i] for i in node.inputs]
        if isinstance(op, Curved):
            return op.error(sizes)
        if not isinstance(op, Weighted):
            return None
        products, bias = op.linear().absolute().apply(sizes), op.bias_map()
        whole = products if bias is None else products + bias.abs()
        self._worth[name] = whole.amax(dim=(2, 3))
        return torch.where(products > 0, gamma(op.terms * len(sizes)) * whole, 0.0)

    def learn(self, name: str, lower: Tensor, upper: Tensor) -> None:
        """Takes in proven bounds (B, C, H, W) of a node."""
        node, op = self._graph[name], self._graph[name].op
        if isinstance(op, ReLU):
            # a ReLU that is always off passes nothing on
            before = self._size[node.inputs[0]]
            size = torch.where(upper > 0, before, torch.zeros_like(before))
        elif isinstance(op, Curved):
            size = self._planes(name)
        elif isinstance(op, (Weighted, Input)):
            size = torch.maximum(lower.abs(), upper.abs())
        else:  # a selection passes values on as they are
            size = op.apply([self._size[i] for i in node.inputs])
        if node.pooled is not None and node.pooled.source in self._size:
            size = torch.maximum(size, node.pooled.pool.apply([self._size[node.pooled.source]]))
        self._size[name] = size

    def at_start(self, name: str, coefs: Tensor, case: Tensor) -> Tensor:
        """The error (R,), before gamma, of a node's functionals ``coefs`` (R, C, h, w) over regions ``case`` (R,)."""
        if name in self._size:
            size = self._size[name]
        elif isinstance(self._graph[name].op, Curved):
            size = self._planes(name)
        else:  # a node that is just being bounded is affine: ``through`` counts it
            return coefs.new_zeros(len(coefs))
        return self._weighed(size.amax(dim=(2, 3)), coefs, case)

    def through(self, name: str, coefs: Tensor, case: Tensor) -> Tensor:
        """The error (R,), before gamma, of passing functionals of an affine node on to its operands."""
        if name not in self._worth:
            return coefs.new_zeros(len(coefs))
        return self._weighed(self._worth[name], coefs, case)

    def _planes(self, name: str) -> Tensor:
        """What the terms of a curved node's planes come to (B, C, H, W)."""
        node = self._graph[name]
        assert isinstance(node.op, Curved)
        return 3 * node.op.terms([self._size[i] for i in node.inputs])

    @staticmethod
    def _weighed(worth: Tensor, coefs: Tensor, case: Tensor) -> Tensor:
        size = coefs.abs().sum(dim=(2, 3))
        return size @ worth[0] if len(worth) == 1 else (size * worth[case]).sum(dim=1)
