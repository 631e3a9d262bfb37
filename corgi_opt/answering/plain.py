"""A network as the checker has it: the same graph, of arrays and operations of proof/ instead of torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch

from corgi_opt.network import movement, ops, smooth
from corgi_opt.network.cam import CamNetwork
from corgi_opt.proof.arithmetic import Array
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Channels, Combine, Conv, Curved, Input, Move, Op, Relu, Tap


def plain_network(net: CamNetwork) -> Network:
    """The network up to its last feature map, as arrays; what certificates hash."""
    names = net.graph.ancestors(net.features)
    place = {name: at for at, name in enumerate(names)}
    nodes = []
    for name in names:
        node = net.graph[name]
        nodes.append(Node(PLAIN[type(node.op)](node.op), tuple(place[i] for i in node.inputs), node.shape))
    return Network(tuple(nodes), place[net.features], array(net.weight), array(net.bias))


def array(values: torch.Tensor) -> Array:
    """Values as they are, in float64."""
    found: Array = values.double().cpu().numpy()
    return found


def _map(values: torch.Tensor | None) -> Array:
    """A coefficient as a map (C or 1, H or 1, W or 1)."""
    found = np.zeros(1) if values is None else array(values)
    return found.reshape((1,) * (3 - found.ndim) + found.shape)


def _stacked(index: Sequence[torch.Tensor]) -> Array:
    """Indices of operands, one below the other."""
    return np.stack([one.cpu().numpy() for one in index])


def _conv(op: ops.Conv2d) -> Conv:
    bias = np.zeros(len(op.weight)) if op.bias is None else array(op.bias)
    return Conv(array(op.weight), bias, op.stride, op.padding, op.dilation, op.groups)


PLAIN: dict[type[ops.Op], Callable[[Any], Op]] = {
    ops.Input: lambda op: Input(),
    ops.ReLU: lambda op: Relu(),
    ops.Conv2d: _conv,
    ops.Tap: lambda op: Tap(op.stride, op.offset),
    movement.Channels: lambda op: Channels(_stacked(op.index), np.array(op.counts)),
    movement.Move: lambda op: Move(_stacked(op.index), np.array(op.shapes)),
    smooth.Smooth: lambda op: Curved(type(op.function).__name__, astuple(op.function)),
    smooth.Product: lambda op: Curved("Product", ()),
    ops.Combine: lambda op: Combine(tuple(_map(c) for c in op.coefs), _map(op.shift)),
}
"""What each operation of a lowered network is there; one that is not here has no certificates."""
