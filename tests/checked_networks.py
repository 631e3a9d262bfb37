"""Networks as the checker sees them, with its own bounds: shared by its tests."""

from __future__ import annotations

import functools

import numpy as np
import torch
from encoding import CASES, FAR
from nets import image, network

import corgi_opt as co
from corgi_opt.answering.prover import plain_network
from corgi_opt.proof.arithmetic import Float64
from corgi_opt.proof.bounds import Bounds, Claims
from corgi_opt.proof.network import Network
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import Norm, Region

NORMS: tuple[Norm, ...] = ("inf", "2", "1")


@functools.cache
def built(case: str) -> tuple[co.CamNetwork, Network, torch.Tensor]:
    model, arguments, shape, _, seed = CASES[case]
    x = image(*shape, seed=seed).double()
    net = network(model, shape, seed, **arguments)
    return net, plain_network(net), x


def region(case: str, norm: Norm = "inf", eps: float | None = None) -> tuple[co.Ball, Region]:
    ball = co.Ball(built(case)[2], CASES[case][3] * FAR[norm] if eps is None else eps, norm, (0.0, 1.0))
    return ball, Region(ball.center[0].numpy(), ball.eps, ball.norm, ball.box)


@functools.cache
def crowned(case: str, norm: Norm = "inf") -> Bounds:
    """Intervals everywhere, and D for every ReLU whose sign they leave open."""
    _, network, _ = built(case)
    bounds = Bounds(network, region(case, norm)[1], Float64())
    sources = {n.inputs[0] for n in network.nodes if isinstance(n.op, Relu)}
    for node in range(network.features + 1):
        bounds.reach(node)
        if node in sources:
            flat = np.flatnonzero((bounds.lower[node] < 0) & (bounds.upper[node] > 0))
            bounds.take(node, Claims(flat, *bounds.neurons(node, flat, flat)))
    return bounds
