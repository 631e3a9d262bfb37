"""The network that a certificate speaks of, as plain arrays: four affine operations and ReLU, and nothing of torch.

Values are maps (C, H, W). Its SHA-256 is over operations, wiring and every weight's bits, not over names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Input:
    """The image."""


@dataclass(frozen=True, eq=False)
class Relu:
    """``max(x, 0)``."""


@dataclass(frozen=True, eq=False)
class Conv:
    """Cross-correlation with zero padding: weight (C_out, C_in/groups, kh, kw), bias (C_out,)."""

    weight: Array
    bias: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, eq=False)
class Tap:
    """``out[r, c] = in[stride*r + offset]`` per axis, zero off the map."""

    stride: Pair
    offset: Pair


@dataclass(frozen=True, eq=False)
class Combine:
    """``sum_i coefs[i] * x_i + shift``, elementwise; each coefficient (C or 1, 1, 1) or (C or 1, H, W)."""

    coefs: tuple[Array, ...]
    shift: Array


Op = Input | Relu | Conv | Tap | Combine


@dataclass(frozen=True, eq=False)
class Node:
    """An operation, its operands (places of earlier nodes) and the shape of its value."""

    op: Op
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order, the image first; the place of the last feature map; class weights (classes, C).

    ``CAM_p = sum_c weight[class, c] * features[c, p]``.
    """

    nodes: tuple[Node, ...]
    features: int
    weight: Array

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()

        def say(what: object) -> None:
            digest.update(json.dumps(what).encode() + b"\n")

        def number(values: Array) -> None:
            say(values.shape)
            digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())

        for node in self.nodes:
            op = node.op
            say([type(op).__name__, node.inputs, node.shape])
            if isinstance(op, Conv):
                say([op.stride, op.padding, op.dilation, op.groups])
                number(op.weight)
                number(op.bias)
            elif isinstance(op, Tap):
                say([op.stride, op.offset])
            elif isinstance(op, Combine):
                for part in (*op.coefs, op.shift):
                    number(part)
        say(["features", self.features])
        number(self.weight)
        return digest.hexdigest()

    def ancestors(self, node: int) -> list[int]:
        """``node`` and all it depends on, from the last to the first."""
        wanted = {node}
        for at in range(node, -1, -1):
            if at in wanted:
                wanted.update(self.nodes[at].inputs)
        return sorted(wanted, reverse=True)

    def consumers(self, node: int) -> Sequence[int]:
        return [at for at, other in enumerate(self.nodes) if node in other.inputs]
