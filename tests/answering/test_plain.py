"""A network as the checker has it computes what torch computes, and holds the very weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import Deep, Everything, Pooled, Residual, image, seeded

import corgi_opt as co
from corgi_opt.answering.plain import array, plain_network
from corgi_opt.proof.network import Network
from corgi_opt.proof.operations import Combine, Conv, Input, Relu, Tap

CASES = [
    (Everything, {}, (3, 6, 6)),
    (Residual, {}, (1, 7, 5)),
    (Deep, {}, (1, 8, 6)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 9, 8)),
]


def slow_conv(op: Conv, x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A cross-correlation, product by product."""
    found = np.zeros(shape)
    each, per_group = shape[0] // op.groups, op.weight.shape[1]
    for c, row, column in np.ndindex(*shape):
        total = op.bias[c]
        for d, i, j in np.ndindex(*op.weight.shape[1:]):
            y, z = (
                at * s - p + o * w
                for at, s, p, o, w in zip((row, column), op.stride, op.padding, (i, j), op.dilation, strict=True)
            )
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                total += op.weight[c, d, i, j] * x[c // each * per_group + d, y, z]
        found[c, row, column] = total
    return found


def slow_values(network: Network, x: np.ndarray) -> np.ndarray:
    """The last feature map, node by node, by definitions alone."""
    values: list[np.ndarray] = []
    for node in network.nodes:
        op, given = node.op, [values[i] for i in node.inputs]
        if isinstance(op, Input):
            found = x
        elif isinstance(op, Relu):
            found = np.maximum(given[0], 0.0)
        elif isinstance(op, Conv):
            found = slow_conv(op, given[0], node.shape)
        elif isinstance(op, Tap):
            found = np.zeros(node.shape)
            for c, row, column in np.ndindex(*node.shape):
                y, z = row * op.stride[0] + op.offset[0], column * op.stride[1] + op.offset[1]
                if 0 <= y < given[0].shape[1] and 0 <= z < given[0].shape[2]:
                    found[c, row, column] = given[0][c, y, z]
        else:
            assert isinstance(op, Combine)
            found = op.shift + sum(coef * value for coef, value in zip(op.coefs, given, strict=True))
        values.append(np.broadcast_to(found, node.shape))
    return values[network.features]


@pytest.mark.parametrize(("build", "arguments", "shape"), CASES)
def test_it_computes_the_logits_of_the_model(build, arguments, shape):
    model, x = seeded(build, 3, **arguments), image(*shape, seed=5)
    network = plain_network(co.from_torch(model, x))
    features = slow_values(network, x[0].double().numpy())
    logits = network.weight @ features.mean(axis=(1, 2)) + network.bias
    with torch.no_grad():
        np.testing.assert_allclose(logits, copy.deepcopy(model).double()(x.double())[0].numpy(), rtol=1e-9, atol=1e-9)


def test_bias_and_weights_of_the_head_are_in_it():
    model, x = seeded(Residual, 3), image(1, 7, 5)
    network = plain_network(co.from_torch(model, x))
    np.testing.assert_array_equal(network.weight, model.fc.weight.detach().double().numpy())
    np.testing.assert_array_equal(network.bias, model.fc.bias.detach().double().numpy())


def test_arrays_are_the_very_values():
    values = torch.rand(3, 4, dtype=torch.float32)
    assert array(values).dtype == np.float64
    assert (array(values) == values.double().numpy()).all()
