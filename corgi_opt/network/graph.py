"""LayerGraph: a network as a directed acyclic graph of affine operations and ReLUs, or of curved operations too
(smooth.py), over a networkx.DiGraph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import networkx as nx
import torch
from torch import Tensor

from corgi_opt._ambient import pinned, pinned_with_grad
from corgi_opt.network.movement import Move
from corgi_opt.network.ops import Input, MaxPool2d, Op, ReLU, Selection, Shape
from corgi_opt.network.smooth import Curved


@dataclass(frozen=True)
class Pooled:
    """Says that a node is the maximum of ``source`` over the windows of ``pool``: a window may be bounded as one."""

    source: str
    pool: MaxPool2d


@dataclass(frozen=True, eq=False)
class Node:
    """One named operation: its operands by name, its output shape (C, H, W) and the module it came from."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: Shape
    module: str = ""
    pooled: Pooled | None = None


class LayerGraph:
    """Named nodes in topological order, over a ``networkx.DiGraph``. Immutable.

    Node attributes of :meth:`to_networkx`: ``op`` (class name), ``shape`` (C, H, W), ``module`` (module path in
    the torch model).
    """

    def __init__(self, nodes: Iterable[Node], output: str) -> None:
        self._graph = nx.DiGraph()
        for node in nodes:
            self._graph.add_node(node.name, node=node)
        for name, node in self._graph.nodes(data="node"):
            for operand in node.inputs:
                self._graph.add_edge(operand, name)
        self.order: tuple[str, ...] = tuple(nx.topological_sort(self._graph))
        self.output = output
        self._moved: dict[tuple[torch.dtype, torch.device], LayerGraph] = {}
        (self.input,) = (n for n in self.order if isinstance(self[n].op, Input))
        self.relus: tuple[str, ...] = tuple(n for n in self.order if isinstance(self[n].op, ReLU))
        # dict.fromkeys: two ReLUs may read one node; it is bounded once.
        self.preactivations: tuple[str, ...] = tuple(dict.fromkeys(self[n].inputs[0] for n in self.relus))
        self.curved: tuple[str, ...] = tuple(n for n in self.order if isinstance(self[n].op, Curved))
        self.measured: frozenset[str] = self._measured()

    def __getitem__(self, name: str) -> Node:
        node: Node = self._graph.nodes[name]["node"]
        return node

    def __contains__(self, name: object) -> bool:
        return name in self._graph

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        units = sum(torch.Size(self[n].shape).numel() for n in self.relus)
        return f"LayerGraph({len(self)} nodes, {units:,} ReLUs, input {self[self.input].shape}, output {self.output!r})"

    def consumers(self, name: str) -> tuple[str, ...]:
        return tuple(self._graph.successors(name))

    def ancestors(self, name: str) -> tuple[str, ...]:
        """``name`` and everything it depends on, in topological order."""
        wanted = nx.ancestors(self._graph, name) | {name}
        return tuple(n for n in self.order if n in wanted)

    def _measured(self) -> frozenset[str]:
        """Affine nodes whose values, and not only signs, bounds depend on: what curved nodes read, be it rectified or
        moved on the way."""
        found, seen = set[str](), set[str]()
        left = [operand for name in self.curved for operand in self[name].inputs]
        while left:
            name = left.pop()
            op = self[name].op
            if name in seen or isinstance(op, (Curved, Input)):
                continue
            seen.add(name)
            if isinstance(op, (ReLU, MaxPool2d, Selection, Move)):
                left += self[name].inputs
            else:
                found.add(name)
        return frozenset(found)

    @pinned
    def gates(self, name: str) -> tuple[str, ...]:
        """``name``, and the nodes that every path from the image to it leads through, from the last to the first."""
        above = nx.immediate_dominators(self._graph, self.input)
        found = [name]
        while found[-1] != self.input:
            found.append(above[found[-1]])
        return tuple(found)

    @pinned_with_grad
    def forward(self, x: Tensor, until: str | None = None) -> Tensor:
        """The value (N, C, H, W) of node ``until`` (default: the output) on images x (N, C, H, W)."""

        def applied(node: Node, operands: list[Tensor]) -> Tensor:
            return x if node.name == self.input else node.op.apply(operands)

        return self.followed(until or self.output, applied)

    @pinned_with_grad
    def followed(self, until: str, step: Callable[[Node, list[Tensor]], Tensor]) -> Tensor:
        """What ``step`` makes of node ``until``, from what it made of each node's operands. What nobody reads any more
        is let go."""
        names = self.ancestors(until)
        last = {operand: name for name in names for operand in self[name].inputs}
        made: dict[str, Tensor] = {}
        for name in names:
            made[name] = step(self[name], [made[i] for i in self[name].inputs])
            for operand in set(self[name].inputs):
                if last[operand] == name:
                    del made[operand]
        return made[until]

    @pinned_with_grad
    def values(self, x: Tensor, until: str | None = None) -> Mapping[str, Tensor]:
        """The values of ``until`` (default: the output) and of all nodes that it depends on, by name."""
        values = {self.input: x}
        for name in self.ancestors(until or self.output):
            node = self[name]
            if name != self.input:
                values[name] = node.op.apply([values[i] for i in node.inputs])
        return values

    @pinned
    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> LayerGraph:
        """This graph in another precision or on another device (kept for reuse)."""
        key = (dtype, torch.device(device))
        if key not in self._moved:
            moved = [replace(self[n], op=self[n].op.to(*key)) for n in self.order]
            self._moved[key] = LayerGraph(moved, self.output)
        return self._moved[key]

    def to_networkx(self) -> nx.DiGraph:
        """A plain copy for analysis and drawing; editing it does not touch this network."""
        copy = nx.DiGraph()
        for name in self.order:
            node = self[name]
            copy.add_node(name, op=type(node.op).__name__, shape=node.shape, module=node.module)
        copy.add_edges_from(self._graph.edges)
        return copy


class GraphBuilder:
    """Collects nodes under unique names; ``build`` gives the immutable graph."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def add(
        self,
        name: str,
        op: Op,
        inputs: tuple[str, ...],
        shape: Shape,
        module: str = "",
        pooled: Pooled | None = None,
    ) -> str:
        unique, n = name, 1
        while unique in self.nodes:
            n += 1
            unique = f"{name}#{n}"
        self.nodes[unique] = Node(unique, op, inputs, shape, module, pooled)
        return unique

    def build(self, output: str) -> LayerGraph:
        graph = LayerGraph(self.nodes.values(), output)
        used = set(graph.ancestors(output))
        return LayerGraph((n for n in self.nodes.values() if n.name in used or n.name == graph.input), output)
