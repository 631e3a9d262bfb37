"""Whether our reading of a model is the model: every node against torch, and the CAM against the caller's own model.

A difference means something only beside the size of the sums it comes from. Two such sizes are used: of one step, from
the values it really read, and of all steps since the image (sums of absolute terms; each float64 operation adds at most
a few units in the last place of its own: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from corgi_opt.errors import ParityError
from corgi_opt.network.exported import Exported
from corgi_opt.network.graph import LayerGraph, Node
from corgi_opt.network.ingest import Ingested
from corgi_opt.network.ops import Input, Weighted
from corgi_opt.network.smooth import Curved

STEP_TOLERANCE = 1e-11
"""Largest difference of one operation's value from torch's in float64, relative to the sum of its absolute terms."""

PARITY_TOLERANCE = 1e-9
"""Largest difference of a channel from the caller's model, relative to the largest such sum of its last step."""

ROUNDING = 1e-13
"""Rounding error of float64 on the way from the image, relative to the sum of absolute terms of all steps."""

MOST_ROUNDING = 1e-3
"""The share of a map's own size up to which rounding may explain a difference when a model is read."""


def size_of_step(graph: LayerGraph, name: str, values: Mapping[str, Tensor]) -> Tensor:
    """The sum of the absolute terms of one node's last affine step, at the values that it read."""
    node = graph[name]
    sums = isinstance(node.op, Weighted)
    return _size(node, [values[i].abs() if sums else size_of_step(graph, i, values) for i in node.inputs], values[name])


def size_from_image(graph: LayerGraph, name: str, x: Tensor) -> Tensor:
    """The sum of the absolute terms of all steps from images x (N, C, H, W) to a node."""
    return graph.followed(name, lambda node, operands: _size(node, operands, x))


def _size(node: Node, operands: list[Tensor], value: Tensor) -> Tensor:
    op = node.op
    if isinstance(op, Input):
        return value.abs()
    if isinstance(op, Curved):
        return op.terms(operands)
    return (op.absolute() if isinstance(op, Weighted) else op).apply(operands)


def probes(example: Tensor) -> Iterator[Tensor]:
    """Images (1, C, H, W) in float64 at which a reading is checked: the example, images near it, of the default box
    [0, 1] (its inside and a corner), and of no box."""
    generator = torch.Generator().manual_seed(0)
    x = example.detach().to("cpu", torch.float64, copy=True)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    spread = float(x.std()) if x.numel() > 1 else 1.0
    yield x
    for part in (1e-3, 0.1):
        yield x + part * (spread or 1.0) * normal
    yield noise
    yield (noise > 0.5).double()
    yield normal


AT_ONCE = 1 << 26
"""Values of all steps that are held at once, when several images are gone through together."""


def in_lots(graph: LayerGraph, images: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The images in their order, as many together as there is room for."""
    count = max(1, AT_ONCE // sum(torch.Size(graph[name].shape).numel() for name in graph.order))
    for first in range(0, len(images), count):
        yield list(images[first : first + count])


def check_steps(exported: Exported, ingested: Ingested, example: Tensor) -> None:
    """Compares every operation of the graph with torch's, each on the values that torch's own run has for its operands.

    Raises ParityError.
    """
    for images in in_lots(ingested.graph, list(probes(example))):
        _check_steps(exported, ingested, images)


def _check_steps(exported: Exported, ingested: Ingested, images: list[Tensor]) -> None:
    theirs = [{fx: made for fx, made in exported.values(x).items() if fx in ingested.held} for x in images]
    calls: dict[str, list[tuple[object, Tensor]]] = {}
    for fx, (name, order) in ingested.held.items():
        calls.setdefault(name, []).append((fx, order))
    values: dict[str, Tensor] = {}
    for name in ingested.graph.order:
        node = ingested.graph[name]
        ours = torch.cat(images) if isinstance(node.op, Input) else node.op.apply([values[i] for i in node.inputs])
        values[name] = ours
        if name not in calls:
            continue
        own = size_of_step(ingested.graph, name, values)
        for fx, order in calls[name]:
            reference = torch.empty(len(images), len(order), dtype=torch.float64)
            reference[:, order] = torch.stack([one[fx].flatten() for one in theirs])
            reference = reference.view(ours.shape)
            require_equal(f"{name!r} ({type(node.op).__name__})", ours, reference, STEP_TOLERANCE * own)
            values[name] = reference


def allowed(
    graph: LayerGraph, name: str, x: Tensor, values: Mapping[str, Tensor], most_rounding: float = MOST_ROUNDING
) -> Tensor:
    """How far a node's value at x (N, C, H, W) may be from the caller's model, channel by channel (N, C, 1, 1)."""
    own, rounding = (
        size.amax(dim=(2, 3), keepdim=True)
        for size in (size_of_step(graph, name, values), ROUNDING * size_from_image(graph, name, x))
    )
    if math.isfinite(most_rounding):  # else infinite, but for a channel of zeros alone, whose share is no number
        rounding = torch.minimum(rounding, most_rounding * own)
    return torch.maximum(PARITY_TOLERANCE * own, rounding)


def near(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two maps are equal relative to their values alone, which no sum of absolute terms is smaller than."""
    return bool(((ours - theirs).abs() <= PARITY_TOLERANCE * ours.abs().amax(dim=(2, 3), keepdim=True)).all())


def require_equal(what: str, ours: Tensor, theirs: Tensor, tolerance: Tensor) -> None:
    """Raises ParityError where two maps differ by more than ``tolerance``, which broadcasts to them."""
    if ours.shape != theirs.shape:
        raise ParityError(f"the layer graph's {what} has shape {tuple(ours.shape)}, torch's {tuple(theirs.shape)}")
    gap = (ours - theirs).abs()
    if not bool((gap <= tolerance + torch.finfo(torch.float64).tiny).all()):
        raise ParityError(
            f"the layer graph's {what} differs from the torch model's by {float(gap.max()):.3g} (scale "
            f"{float(theirs.abs().max()):.3g}); please report the model: nothing was certified"
        )
