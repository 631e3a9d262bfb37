"""``check_model``: what of a model is not supported; of one that builds, how large it is and which methods answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corgi_opt._ambient import pinned
from corgi_opt.bounding.budget import chunk_bytes
from corgi_opt.bounding.screening import generator_bytes
from corgi_opt.drawing.tables import print_table
from corgi_opt.methods import TABLE, listed
from corgi_opt.network.cam import CamNetwork, examined
from corgi_opt.network.cone import reach_of
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ingest import Unsupported

CHUNKS, BYTES = 24, 160
"""What a float64 CROWN pass takes beside the network: so many chunks, and so many bytes for every value of every node
(131 MiB at 192,000 values, 154 MiB at 355,000; a single chunk holds 5 MB on a CPU)."""

FEW = 200
"""ReLUs that exact methods decide within seconds even where all of them are open."""


@dataclass(frozen=True)
class NetworkSize:
    """``image`` (C, H, W), ``map`` (H, W), and the numbers of classes, nodes and ReLUs.

    ``cone``: ReLUs that the CAM pixel in the middle depends on; exact methods see those of two pixels at once.
    ``values``: of all nodes together. ``memory``: roughly what one float64 CROWN pass takes on a CPU, in bytes.
    ``curved``: the layers that no exact method takes.
    """

    image: tuple[int, int, int]
    map: tuple[int, int]
    classes: int
    nodes: int
    relus: int
    cone: int
    values: int
    memory: int
    curved: tuple[str, ...]

    @classmethod
    def of(cls, net: CamNetwork) -> NetworkSize:
        graph, values = net.graph, sum(_count(net.graph, net.graph.order))
        return cls(
            image=net.input_shape,
            map=net.map_shape,
            classes=net.classes,
            nodes=len(graph),
            relus=sum(_count(graph, graph.relus)),
            cone=_cone(net),
            values=values,
            memory=CHUNKS * chunk_bytes(torch.device("cpu")) + BYTES * values + generator_bytes(graph),
            curved=net.curved,
        )

    @property
    def reach(self) -> dict[str, str]:
        """Of every method, whether it answers questions about this network, and when."""
        return {name: self._reach_of(name) for name in TABLE}

    def _reach_of(self, name: str) -> str:
        row = TABLE[name]
        if row.solve is None:
            return f"yes, about {self.memory / 2**20:,.0f} MiB" if name in ("crown", "dual") else "yes"
        if self.curved and not row.curves:
            return "no: there are curved layers" if row.bent is None else f"as {row.bent!r}: there are curved layers"
        norms = "" if len(row.norms) == 3 else f" (norms {' and '.join(map(repr, row.norms))})"
        if not row.exact or 2 * self.cone <= FEW:
            return f"yes{norms}"
        return f"where eps leaves at most about {FEW} of the ReLUs of two cones open{norms}"


class ModelCheck(tuple[Unsupported, ...]):
    """Every unsupported operation of a model; empty when it builds, and then ``size`` says how large the network is."""

    size: NetworkSize | None

    def __new__(cls, problems: Iterable[Unsupported], size: NetworkSize | None) -> ModelCheck:
        made = super().__new__(cls, problems)
        made.size = size
        return made

    def show(self) -> None:
        """Prints a table: the operations and what to do about each; or sizes, and what is within reach."""
        if self.size is None:
            rows = [(p.call or "-", p.node, p.op, p.hint) for p in self]
            print_table("not supported", ("node", "module", "operation", "what to do"), rows)
        else:
            print_table("the model builds", ("", ""), _sizes(self.size))

    def __repr__(self) -> str:
        if self.size is None:
            return f"ModelCheck({len(self)} unsupported: {', '.join(p.op for p in self)})"
        return f"ModelCheck(builds: {self.size.nodes} nodes, {self.size.relus:,} ReLUs)"


@pinned
def check_model(
    model: nn.Module, example: Tensor, *, target_layer: str | nn.Module | None = None, show: bool = True
) -> ModelCheck:
    """Whether a model builds: a table is printed (unless ``show`` is False), and what it says is returned.

    The result is a tuple of every unsupported operation: ``call`` (its node in the exported graph), ``node`` (its
    module path), ``op``, ``hint`` (what to do about it). It is empty when the model builds; ``size`` then says how
    large the network is and ``size.reach`` which methods are within reach. ``example``: an image (1, C, H, W).

    Raises what :func:`corgi_opt.from_torch` raises, but for unsupported operations, which are returned.
    """
    seen = examined(model, example, target_layer)
    found = ModelCheck(seen, None) if isinstance(seen, tuple) else ModelCheck((), NetworkSize.of(seen))
    if show:
        found.show()
    return found


def _count(graph: LayerGraph, names: Iterable[str]) -> list[int]:
    return [torch.Size(graph[name].shape).numel() for name in names]


def _cone(net: CamNetwork) -> int:
    """ReLUs that the CAM pixel in the middle depends on."""
    height, width = net.map_shape
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, height // 2, width // 2] = True
    reach = reach_of(net.graph, net.features, mask)
    return sum(int(reach[name].sum()) * net.graph[name].shape[0] for name in net.graph.relus if name in reach)


def _sizes(size: NetworkSize) -> list[tuple[str, str]]:
    channels, height, width = size.image
    return [
        ("image", f"{channels}x{height}x{width}"),
        ("class activation map", f"{size.map[0]}x{size.map[1]}, {size.classes} classes"),
        ("nodes", f"{size.nodes}, {size.values:,} values"),
        ("ReLUs", f"{size.relus:,}; one pixel of the map depends on {size.cone:,}"),
        *([("curved layers", listed(size.curved))] if size.curved else []),
        *((f"method {name!r}", said) for name, said in size.reach.items()),
    ]
