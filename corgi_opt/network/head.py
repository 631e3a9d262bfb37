"""The CAM head: last spatial node A (C, H, W) -> global average -> linear. Found in the graph, proven on the model.

With the map seen in the caller's own model, two things must hold for the head that was found, at several images:
``logits - bias`` is the mean of the CAM, for every class, and the derivative of every class score by A is
``W[class, c] / (H W)`` at every position, by torch's autograd. Neither shares code with how it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corgi_opt.errors import NoCamHeadError, NumericalError, ParityError
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Conv2d
from corgi_opt.network.parity import PARITY_TOLERANCE, ROUNDING, allowed
from corgi_opt.network.replay import Replay, slopes, watch


def find_head(graph: LayerGraph) -> tuple[str, Tensor]:
    """The last spatial node's name and the class weights (classes, C). Raises NoCamHeadError."""
    last = graph[graph.output]
    if not (isinstance(last.op, Conv2d) and tuple(last.op.weight.shape[2:]) == (1, 1) and last.shape[1:] == (1, 1)):
        raise NoCamHeadError(_no_head(graph, f"the last operation, {last.name!r}, is not a linear layer on a vector"))
    pool = graph[last.inputs[0]]
    while _is_global_mean(graph, pool.name) and _is_global_mean(graph, pool.inputs[0]):
        pool = graph[pool.inputs[0]]  # the average of one pixel is the pixel
    if not _is_global_mean(graph, pool.name):
        raise NoCamHeadError(
            _no_head(graph, f"what feeds the last linear layer, {pool.name!r}, is not a global average pool")
        )
    return pool.inputs[0], _dense(last.op)


def _dense(conv: Conv2d) -> Tensor:
    """The matrix (C_out, C_in) of a 1x1 convolution: in groups, each class reads the channels of its own."""
    outs, reads = conv.weight.shape[:2]
    weight = torch.zeros(outs, reads * conv.groups, dtype=conv.weight.dtype)
    per_group = outs // conv.groups
    for group in range(conv.groups):
        rows, columns = slice(group * per_group, (group + 1) * per_group), slice(group * reads, (group + 1) * reads)
        weight[rows, columns] = conv.weight[rows, :, 0, 0]
    return weight


def _is_global_mean(graph: LayerGraph, name: str) -> bool:
    op = graph[name].op
    if not isinstance(op, Conv2d) or graph[name].shape[1:] != (1, 1):
        return False
    channels, height, width = graph[graph[name].inputs[0]].shape
    if op.groups != channels or tuple(op.weight.shape) != (channels, 1, height, width) or op.padding != (0, 0):
        return False
    mean = torch.full_like(op.weight, 1.0 / (height * width))
    return op.bias is None and torch.allclose(op.weight, mean, rtol=1e-12, atol=0.0)


def _no_head(graph: LayerGraph, why: str) -> str:
    tail = " -> ".join(repr(n) for n in graph.order[-4:])
    return (
        f"no CAM head: the network must end in spatial features -> global average -> linear, but {why}. "
        f"It ends in {tail}. Networks with dense layers after the features have no CAM (Grad-CAM is not covered)."
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
    wanted = weight[:, :, None, None].expand(-1, *shape) / (shape[1] * shape[2])
    size = wanted.abs()
    tolerance = PARITY_TOLERANCE * size + torch.finfo(torch.float64).eps * size.amax(dim=1, keepdim=True)
    # the last one: a ReLU that is on at all of these images leaves two alike, and the head reads the later
    for place in reversed(same):
        if all(bool(((slopes(model, x, shape, place) - wanted).abs() <= tolerance).all()) for x in images):
            return Replay(model, shape, place, counts.pop(), means.require)
    raise NoCamHeadError(
        f"no CAM head: the class scores do not depend on the last feature map {features!r} {shape} as a linear layer "
        "on its global average does (their derivative by it is not the class weight over the number of pixels)"
    )


def _equal_maps(
    graph: LayerGraph, features: str, runs: Sequence[tuple[Tensor, list[Tensor]]], images: Sequence[Tensor]
) -> tuple[list[int], float]:
    """The places whose map is the graph's at every image, and how far the nearest other is off."""
    gaps = []
    for (_, maps), x in zip(runs, images, strict=True):
        values = graph.values(x, features)
        tolerance = allowed(graph, features, x, values)
        gaps.append([float(((m - values[features]).abs() - tolerance).max()) for m in maps])
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
