"""The network of a certificate as plain arrays, without torch: affine operations (operations.py) and ReLU.

Values are maps (C, H, W). Its SHA-256 is over operations, wiring and every weight's bits, not over names.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from corgi_opt.proof.arithmetic import Array
from corgi_opt.proof.operations import Op
from corgi_opt.proof.rows import Shape


@dataclass(frozen=True, eq=False)
class Node:
    """An operation, its operands (places of earlier nodes) and the shape of its value."""

    op: Op
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order, the image first; the place of the last feature map; class weights (classes, C) and
    biases (classes,), zero if they are left out.

    ``CAM_p = sum_c weight[class, c] * features[c, p]``, and the logit is its mean over p plus the bias.
    """

    nodes: tuple[Node, ...]
    features: int
    weight: Array
    bias: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not len(self.bias):
            object.__setattr__(self, "bias", np.zeros(len(self.weight)))

    @property
    def sha256_of_logits(self) -> str:
        """The hash of all that logits depend on, the bias included."""
        return hashlib.sha256(self.sha256.encode() + np.ascontiguousarray(self.bias, dtype="<f8").tobytes()).hexdigest()

    @property
    def sha256(self) -> str:
        """The hash of all that CAMs depend on: the bias plays no part in them and is left out."""
        digest = hashlib.sha256()

        def say(what: object) -> None:
            digest.update(json.dumps(what).encode() + b"\n")

        def number(values: Array) -> None:
            say(values.shape)
            digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())

        for node in self.nodes:
            say([type(node.op).__name__, node.inputs, node.shape])
            settings, arrays = _held(node.op)
            if settings:
                say(settings)
            for array in arrays:
                number(array)
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


def _held(op: Op) -> tuple[list[object], list[Array]]:
    """All fields of an operation, so that none is left out of the hash: its settings, and its arrays one by one.

    Raises TypeError for what is neither.
    """
    settings, arrays = list[object](), list[Array]()
    for name, value in vars(op).items():
        if isinstance(value, np.ndarray):
            arrays.append(value)
        elif isinstance(value, tuple) and any(isinstance(part, np.ndarray) for part in value):
            arrays.extend(value)
        elif isinstance(value, (int, float, str, tuple)):
            settings.append(value)
        else:
            raise TypeError(f"{type(op).__name__}.{name} is neither arrays nor a setting: {type(value).__name__}")
    return settings, arrays
