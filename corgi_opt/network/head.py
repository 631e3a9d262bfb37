"""The CAM head: last spatial node A (C, H, W) -> an affine map that is the same at every pixel. Found in the graph,
proven on the model.

Class scores are ``W mean(A) + b``, however that is spelt: a mean or a sum over pixels, a pool, two means one after the
other; then any number of linear layers, 1x1 convolutions and batch norms, or none. What decides is what the graph
computes. With the map seen in the caller's own model, two things must hold for the head that was found, at several
images: ``logits - bias`` is the mean of the CAM, for every class, and the derivative of every class score by A is
``W[class, c] / (H W)`` at every position, by torch's autograd. They share nothing with how it was found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corgi_opt.errors import NoCamHeadError, NumericalError, ParityError
from corgi_opt.network.graph import GraphBuilder, LayerGraph
from corgi_opt.network.ops import Affine, Conv2d, Shape, Weighted
from corgi_opt.network.parity import PARITY_TOLERANCE, ROUNDING, allowed, in_lots
from corgi_opt.network.replay import Replay, slopes, watch

UNIFORM = 1e-11
"""How far the slopes of a class score may differ from pixel to pixel, relative to the largest."""

AT_ONCE = 1 << 22
"""Values of maps that go through the end of a network at once."""


@dataclass(frozen=True, eq=False)
class Head:
    """Class scores are ``weight @ mean over pixels of features + bias``; weight (classes, C), bias (classes,)."""

    features: str
    weight: Tensor
    bias: Tensor


def find_head(graph: LayerGraph, target: str | None = None, halves: Collection[str] = ()) -> Head:
    """The last map that all class scores come from, each by one affine form that is the same at every pixel; of those
    that the module ``target`` computes, where one is named. Raises NoCamHeadError.

    ``halves``: nodes that are sums or means over one axis of a map. Two of them are a mean over both, and what is
    between them is not the map that is meant.
    """
    tails = list(_tails(graph))
    if target is not None:
        tails = [tail for tail in tails if _is_of(graph[tail[0]].module, target)]
        if not tails:
            raise NoCamHeadError(_no_target(graph, target))
    spatial = [tail for tail in tails if graph[tail[0]].shape[1:] != (1, 1) and _is_uniform(graph, *tail)]
    kept = [tail for at, tail in enumerate(spatial) if not (tail[0] in halves and spatial[at + 1 :])]
    # the average of one pixel is the pixel: only a mean that is written down says that there is a map
    kept = kept or [tail for tail in tails if graph[tail[0]].shape[1:] == (1, 1) and _is_mean_of(graph, *tail)][-1:]
    if not kept:
        raise NoCamHeadError(_no_head(graph) if target is None else _no_target(graph, target))
    features, nodes = kept[0]
    return Head(features, *_form(graph, features, nodes))


def with_head(graph: LayerGraph, head: Head) -> LayerGraph:
    """The graph up to the features, then their mean, then one linear layer (as it is, where it ends so)."""
    last = graph[graph.output]
    dense = isinstance(last.op, Conv2d) and tuple(last.op.weight.shape[2:]) == (1, 1)
    if dense and graph[last.inputs[0]].inputs == (head.features,) and _is_global_mean(graph, last.inputs[0]):
        return graph
    builder = GraphBuilder()
    for name in graph.ancestors(head.features):
        node = graph[name]
        builder.add(name, node.op, node.inputs, node.shape, node.module, node.pooled)
    channels, height, width = graph[head.features].shape
    mean = torch.full((channels, 1, height, width), 1.0 / (height * width), dtype=torch.float64)
    pooled = builder.add("mean", Conv2d(mean, None, groups=channels), (head.features,), (channels, 1, 1))
    linear = Conv2d(head.weight[:, :, None, None], head.bias)
    return builder.build(builder.add("scores", linear, (pooled,), (len(head.weight), 1, 1)))


def _tails(graph: LayerGraph) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Nodes that every path to the class scores leads through, from the last to the first, and the nodes after each: as
    far as all of these are affine."""
    nodes = graph.ancestors(graph.output)
    for name in graph.gates(graph.output)[1:]:
        upstream = set(graph.ancestors(name))
        after = tuple(n for n in nodes if n not in upstream)
        if not all(isinstance(graph[n].op, Affine) for n in after):
            return
        yield name, after


def _is_uniform(graph: LayerGraph, features: str, nodes: tuple[str, ...]) -> bool:
    """Whether random sums of class scores have slopes by the features that are the same at every pixel."""
    shape = graph[features].shape
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(3, torch.Size(graph[graph.output].shape).numel(), generator=generator, dtype=torch.float64)
    with torch.enable_grad():
        zero = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        scores = _through(graph, features, nodes, zero).flatten()
        for mix in mixed:
            (slope,) = torch.autograd.grad(scores @ mix, zero, retain_graph=True)
            apart = slope - slope.mean(dim=(2, 3), keepdim=True)
            if not bool((apart.abs() <= UNIFORM * slope.abs().max()).all()):
                return False
    return True


def _is_mean_of(graph: LayerGraph, features: str, nodes: tuple[str, ...]) -> bool:
    """Whether all that reads the features is a mean over the pixels that there are."""
    return [n for n in nodes if features in graph[n].inputs] == [nodes[0]] and _is_global_mean(graph, nodes[0])


def _form(graph: LayerGraph, features: str, nodes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The matrix (classes, C) and bias (classes,) of class scores in the mean of the features."""
    shape = graph[features].shape
    bias = _through(graph, features, nodes, torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    start = features
    while nodes and _is_mean_of(graph, start, nodes):
        start, nodes = nodes[0], nodes[1:]  # what is left reads the mean: nothing is rounded on the way there
        shape = graph[start].shape
    last = graph[nodes[0]].op if len(nodes) == 1 else None
    plain = isinstance(last, Conv2d) and (last.groups, last.padding) == (1, (0, 0))
    if isinstance(last, Conv2d) and plain and shape[1:] == last.weight.shape[2:] == (1, 1):
        return last.weight.flatten(1), bias
    channels = torch.eye(shape[0], dtype=torch.float64)
    rows = []
    for some in channels.split(max(1, AT_ONCE // torch.Size(shape).numel())):
        ones = some[:, :, None, None].expand(-1, -1, *shape[1:]).contiguous()
        rows.append(_through(graph, start, nodes, ones, linear=True).flatten(1))
    return torch.cat(rows).T.contiguous(), bias


def _through(graph: LayerGraph, start: str, nodes: Sequence[str], value: Tensor, linear: bool = False) -> Tensor:
    """What the last of the nodes gives where ``start`` has this value (N, C, H, W); ``linear``: without biases."""
    values = {start: value}
    for name in nodes:
        op = graph[name].op
        op = op.linear() if linear and isinstance(op, Weighted) else op
        values[name] = op.apply([values[i] for i in graph[name].inputs])
    return values[nodes[-1]] if nodes else value


def _is_global_mean(graph: LayerGraph, name: str) -> bool:
    op = graph[name].op
    if not isinstance(op, Conv2d) or graph[name].shape[1:] != (1, 1):
        return False
    channels, height, width = graph[graph[name].inputs[0]].shape
    if op.groups != channels or tuple(op.weight.shape) != (channels, 1, height, width) or op.padding != (0, 0):
        return False
    mean = torch.full_like(op.weight, 1.0 / (height * width))
    return op.bias is None and torch.allclose(op.weight, mean, rtol=1e-12, atol=0.0)


def _is_of(module: str, target: str) -> bool:
    return module == target or module.startswith(f"{target}.")


def _no_head(graph: LayerGraph) -> str:
    tail = " -> ".join(repr(n) for n in graph.order[-4:])
    return (
        "no CAM head: the network must end in spatial features -> global average -> linear, but its class scores are "
        f"no affine function, the same at every pixel, of the last map that they all come from. It ends in "
        f"{tail}. Networks with dense layers after the features have no CAM (Grad-CAM is not covered)."
    )


def _no_target(graph: LayerGraph, target: str) -> str:
    modules = dict.fromkeys(graph[n].module for n in graph.order if graph[n].module)
    known = ", ".join(repr(m) for m in list(modules)[-6:])
    return (
        f"no CAM head on {target!r}: class scores must be an affine function of that module's map, the same at every "
        f"pixel, and of nothing else. Leave target_layer out for the last such map; the last modules are {known}"
    )


def find_in_model(
    model: nn.Module, graph: LayerGraph, features: str, weight: Tensor, images: Sequence[Tensor]
) -> Replay:
    """How to replay the caller's model: which map of a run is the last feature map, with the head proven there.

    Raises ParityError where no map is the graph's, NoCamHeadError where the class scores are not ``weight`` times the
    mean of that map, plus a bias.
    """
    shape = graph[features].shape
    runs = [watch(model, x, shape) for x in images]
    counts = {len(maps) for _, maps in runs}
    if len(counts) != 1:
        raise ParityError("the model takes different paths through its operations for different images")
    same, nearest = _equal_maps(graph, features, runs, images)
    if not same:
        raise ParityError(
            f"the layer graph's last feature map, {features!r}, differs from every map {shape} that the torch model "
            f"computes (by {nearest:.3g} from the nearest); please report the model: nothing was certified"
        )
    means = _Means.of(features, weight, [(logits, maps[same[-1]]) for logits, maps in runs])
    # the last one: a ReLU that is on at all of these images leaves two alike, and the head reads the later
    for place in reversed(same):
        if all(_as_wanted(slopes(model, x, shape, place), weight, shape) for x in images):
            return Replay(model, shape, place, counts.pop(), means.require)
    raise NoCamHeadError(
        f"no CAM head: the class scores do not depend on the last feature map {features!r} {shape} as a linear layer "
        "on its global average does (their derivative by it is not the class weight over the number of pixels)"
    )


def _as_wanted(found: Iterator[Tensor], weight: Tensor, shape: Shape) -> bool:
    """Whether the derivative of each class score is the class weight over the number of pixels, at every position."""
    eps = torch.finfo(torch.float64).eps
    for slope, row in zip(found, weight[:, :, None, None] / (shape[1] * shape[2]), strict=True):
        tolerance = PARITY_TOLERANCE * row.abs() + eps * row.abs().amax()
        if not bool(((slope - row).abs() <= tolerance).all()):
            return False
    return True


def _equal_maps(
    graph: LayerGraph, features: str, runs: Sequence[tuple[Tensor, list[Tensor]]], images: Sequence[Tensor]
) -> tuple[list[int], float]:
    """The places whose map is the graph's at every image, and how far the nearest other is off."""
    gaps = list[list[float]]()
    for some in in_lots(graph, images):
        x = torch.cat(some)
        values = graph.values(x, features)
        for ours, tolerance in zip(values[features], allowed(graph, features, x, values), strict=True):
            _, maps = runs[len(gaps)]
            gaps.append([float(((m[0] - ours).abs() - tolerance).max()) for m in maps])
    worst = [max(column) for column in zip(*gaps, strict=True)]
    return [place for place, gap in enumerate(worst) if gap <= 0], min(worst, default=float("inf"))


@dataclass(frozen=True, eq=False)
class _Means:
    """Class scores are the mean of the CAM plus ``bias`` (classes,), which is known to within ``doubt`` (classes,)."""

    weight: Tensor
    bias: Tensor
    doubt: Tensor

    @classmethod
    def of(cls, features: str, weight: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> _Means:
        """From the class scores and last feature maps of several images. Raises NoCamHeadError where they differ."""
        left = torch.stack([logits - _mean(weight, a) for logits, a in seen])
        size = torch.stack([_mean(weight.abs(), a.abs()) for _, a in seen]).amax(dim=0)
        if not bool(((left - left[0]).abs() <= PARITY_TOLERANCE * (size + left.abs().amax(dim=0))).all()):
            raise NoCamHeadError(
                f"no CAM head: the class scores are not the mean of the CAM of {features!r} plus a bias; something "
                "else leads from the image to them"
            )
        return cls(weight, left[0], PARITY_TOLERANCE * left[0].abs() + ROUNDING * size)

    def require(self, logits: Tensor, features: Tensor) -> None:
        """Raises ParityError where a feature map (1, C, H, W) is not the one that these class scores come from,
        NumericalError where they are no numbers."""
        if not bool(logits.isfinite().all() and features.isfinite().all()):
            raise NumericalError("the model overflows float64 at an image of the region; nothing can be said there")
        off = (logits - _mean(self.weight, features) - self.bias).abs()
        if not bool((off <= self.doubt + PARITY_TOLERANCE * _mean(self.weight.abs(), features.abs())).all()):
            raise ParityError(
                f"the torch model's class scores differ from the mean of its CAM by {float(off.max()):.3g} more than "
                "when it was read; please report the model: nothing was certified"
            )


def _mean(weight: Tensor, features: Tensor) -> Tensor:
    """The mean (classes,) over the pixels of every class' CAM."""
    return torch.einsum("kc,nchw->k", weight, features) / features[0, 0].numel()
