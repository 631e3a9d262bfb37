"""A graph of nodes made by hand: order, wires and values against networkx and torch, and nothing that changes it."""

from __future__ import annotations

import weakref

import networkx as nx
import pytest
import torch
import torch.nn.functional as F

from corgi_opt.network.graph import GraphBuilder, LayerGraph, Node
from corgi_opt.network.ops import Combine, Conv2d, Input, ReLU

ONE = torch.ones(1, 1, 1, dtype=torch.float64)
SHAPE = (2, 4, 3)
WEIGHT = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BIAS = torch.tensor([0.5, -0.25], dtype=torch.float64)


def nodes() -> list[Node]:
    """``relu(conv(x)) + 2 x``, and a ReLU of that; a second ReLU reads the convolution too."""
    conv = Conv2d(WEIGHT, BIAS, (1, 1), (1, 1), (1, 1), 1)
    return [
        Node("image", Input(), (), SHAPE),
        Node("conv", conv, ("image",), SHAPE, "body.0"),
        Node("on", ReLU(), ("conv",), SHAPE, "body.1"),
        Node("twin", ReLU(), ("conv",), SHAPE),
        Node("sum", Combine((ONE, 2 * ONE)), ("on", "image"), SHAPE),
        Node("last", ReLU(), ("sum",), SHAPE),
    ]


def plain() -> nx.DiGraph:
    return nx.DiGraph([(i, n.name) for n in nodes() for i in n.inputs])


def by_torch(x: torch.Tensor) -> torch.Tensor:
    return F.relu(F.relu(F.conv2d(x, WEIGHT, BIAS, padding=1)) + 2 * x)


def test_it_computes_what_torch_computes():
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = LayerGraph(nodes(), "last")
    torch.testing.assert_close(graph.forward(x), by_torch(x))
    torch.testing.assert_close(graph.forward(x, "conv"), F.conv2d(x, WEIGHT, BIAS, padding=1))
    assert set(graph.values(x, "on")) == {"image", "conv", "on"}


def test_what_nobody_reads_any_more_is_let_go():
    """At every step only what a later one reads is alive: a long chain takes the room of two maps."""
    length, alive = 20, list[int]()
    chain = [Node("0", Input(), (), SHAPE)] + [Node(str(n), ReLU(), (str(n - 1),), SHAPE) for n in range(1, length)]
    made: list[weakref.ref[torch.Tensor]] = []

    def step(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
        value = torch.zeros(1, *SHAPE) if node.name == "0" else operands[0] + 1
        made.append(weakref.ref(value))
        alive.append(sum(ref() is not None for ref in made))
        return value

    last = LayerGraph(chain, str(length - 1)).followed(str(length - 1), step)
    assert bool((last == length - 1).all()) and max(alive) == 2


def test_in_whatever_order_nodes_are_given_operands_come_first():
    graph = LayerGraph(nodes()[::-1], "last")
    at = {name: place for place, name in enumerate(graph.order)}
    assert all(at[a] < at[b] for a, b in plain().edges)
    assert (graph.input, set(graph.relus)) == ("image", {"on", "twin", "last"})
    assert sorted(graph.preactivations) == ["conv", "sum"]  # the one that two read, once


def test_wires_are_found_both_ways():
    graph = LayerGraph(nodes(), "last")
    for name in graph.order:
        assert set(graph.consumers(name)) == set(plain().successors(name))
        assert set(graph.ancestors(name)) == nx.ancestors(plain(), name) | {name}
    assert "conv" in graph and "nothing" not in graph and len(graph) == 6


def test_gradients_go_through():
    x = torch.rand(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(LayerGraph(nodes(), "last").forward(x).sum(), x)
    (theirs,) = torch.autograd.grad(by_torch(x).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_in_another_precision_it_is_made_once_and_the_first_stays():
    graph = LayerGraph(nodes(), "last")
    single = graph.to(torch.float32)
    assert single is graph.to(torch.float32)
    assert single.forward(torch.rand(1, *SHAPE)).dtype == torch.float32
    conv = graph["conv"].op
    assert isinstance(conv, Conv2d) and conv.weight.dtype == torch.float64


def test_a_copy_for_drawing_is_a_copy():
    graph = LayerGraph(nodes(), "last")
    copy = graph.to_networkx()
    assert nx.is_isomorphic(copy, plain()) and set(copy.edges) == set(plain().edges)
    assert copy.nodes["conv"] == {"op": "Conv2d", "shape": SHAPE, "module": "body.0"}
    copy.remove_node("conv")
    assert "conv" in graph


def test_a_builder_gives_unique_names_and_leaves_out_what_nothing_reads():
    builder = GraphBuilder()
    image = builder.add("x", Input(), (), SHAPE)
    names = [builder.add("relu", ReLU(), (image,), SHAPE) for _ in range(3)]
    assert len(set(names)) == 3
    graph = builder.build(names[1])
    assert set(graph.order) == {"x", names[1]} and graph.output == names[1]


def test_there_is_one_image():
    with pytest.raises(ValueError, match="unpack"):
        LayerGraph([*nodes(), Node("other", Input(), (), SHAPE)], "last")
