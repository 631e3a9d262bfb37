"""A network's hash is of all that it computes and of nothing else; its wires are found both ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest

from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Combine, Conv, Input, Relu, Tap

ONE = (1, 1)


def network() -> Network:
    """conv, a selection of its map, the difference of both, ReLU."""
    rng = np.random.default_rng(0)
    conv = Conv(rng.normal(size=(2, 2, 2, 2)), rng.normal(size=2), ONE, ONE, ONE, 1)
    ones = np.ones((1, 1, 1))
    nodes = (
        Node(Input(), (), (2, 3, 3)),
        Node(conv, (0,), (2, 4, 4)),
        Node(Tap(ONE, (0, 1)), (1,), (2, 4, 4)),
        Node(Combine((ones, -ones), np.zeros((1, 1, 1))), (1, 2), (2, 4, 4)),
        Node(Relu(), (3,), (2, 4, 4)),
    )
    return Network(nodes, 4, rng.normal(size=(3, 2)))


def with_node(at: int, **changes: Any) -> Network:
    net = network()
    nodes = list(net.nodes)
    nodes[at] = replace(nodes[at], **changes)
    return replace(net, nodes=tuple(nodes))


def with_op(at: int, **changes: Any) -> Network:
    op: Any = network().nodes[at].op
    return with_node(at, op=replace(op, **changes))


def moved(values: np.ndarray) -> np.ndarray:
    """The next floats."""
    return np.nextafter(values, np.inf)


CONV: Any = network().nodes[1].op
COMBINE: Any = network().nodes[3].op
OTHERS = {
    "a weight": with_op(1, weight=moved(CONV.weight)),
    "the last weight": with_op(1, weight=np.where(np.arange(16).reshape(2, 2, 2, 2) == 15, 0.0, CONV.weight)),
    "a bias": with_op(1, bias=moved(CONV.bias)),
    "a stride": with_op(1, stride=(2, 1)),
    "strides the other way": with_op(1, stride=(1, 2)),
    "a padding": with_op(1, padding=(1, 0)),
    "a dilation": with_op(1, dilation=(2, 1)),
    "groups": with_op(1, groups=2),
    "an offset": with_op(2, offset=(1, 0)),
    "a coefficient": with_op(3, coefs=(COMBINE.coefs[0], moved(COMBINE.coefs[1]))),
    "coefficients the other way": with_op(3, coefs=COMBINE.coefs[::-1]),
    "a shift": with_op(3, shift=COMBINE.shift + 1e-9),
    "a wire": with_node(3, inputs=(2, 1)),
    "a shape": with_node(4, shape=(2, 4, 5)),
    "an operation": with_node(4, op=Input()),
    "the last feature map": replace(network(), features=3),
    "the class weights": replace(network(), weight=moved(network().weight)),
    "a node more": replace(network(), nodes=(*network().nodes, Node(Relu(), (4,), (2, 4, 4)))),
}


def test_the_same_network_has_the_same_hash():
    assert network().sha256 == network().sha256
    assert len(network().sha256) == 64
    held = replace(network(), weight=np.asfortranarray(network().weight))
    assert held.sha256 == network().sha256  # however it is held in memory


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_changes_what_it_computes_changes_its_hash(what):
    others = {name: net.sha256 for name, net in OTHERS.items()}
    assert others[what] != network().sha256
    assert list(others.values()).count(others[what]) == 1


def test_a_bias_of_the_head_matters_to_logits_alone():
    biased = replace(network(), bias=np.array([0.0, 0.0, 1e-300]))
    assert biased.sha256 == network().sha256
    assert biased.sha256_of_logits != network().sha256_of_logits
    assert network().bias.tolist() == [0.0, 0.0, 0.0]


def test_ancestors_are_those_of_the_graph():
    net = network()
    graph = nx.DiGraph([(i, at) for at, node in enumerate(net.nodes) for i in node.inputs])
    for at in range(len(net.nodes)):
        assert net.ancestors(at) == sorted(nx.ancestors(graph, at) | {at}, reverse=True)


def test_what_is_neither_array_nor_setting_is_not_passed_over():
    net = with_op(1, groups=None)
    with pytest.raises(TypeError, match=r"Conv\.groups is neither arrays nor a setting"):
        _ = net.sha256
