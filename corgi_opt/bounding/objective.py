"""What is bounded in the end: CAM pixels and pairs of them, as functionals of the last feature map.

The class weights are part of the functional (the fused head), so one backward pass sees the whole objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.fields import fields_of

Bound = Callable[[str, Rows], Tensor]
"""Lower bounds (R,) of R functionals of a node."""


def pixel_rows(net: CamNetwork, class_idx: int, pixels: Tensor, case: Tensor) -> Rows:
    """CAM pixels (R,), flat indices, of regions ``case`` (R,)."""
    width = net.map_shape[1]
    coefs = net.weight[class_idx][None, :, None, None].expand(len(pixels), -1, 1, 1)
    return Rows.at(coefs, torch.stack([pixels // width, pixels % width], dim=1), case)


def cam_bounds(net: CamNetwork, class_idx: int, bound: Bound, wanted: Tensor) -> Interval:
    """Bounds (B, P) of the CAM pixels marked in ``wanted`` (B, P); infinite elsewhere."""
    case, pixels = torch.nonzero(wanted, as_tuple=True)
    rows = pixel_rows(net, class_idx, pixels, case)
    low, high = bound(net.features, rows.with_negatives()).chunk(2)
    unknown = torch.full(wanted.shape, torch.inf, dtype=low.dtype, device=low.device)
    return Interval((-unknown).index_put((case, pixels), low), unknown.index_put((case, pixels), -high))


def pair_bounds(net: CamNetwork, class_idx: int, bound: Bound, pairs: Tensor, case: Tensor) -> Tensor:
    """Lower bounds (Q,) of ``CAM_i - CAM_j`` for pairs (Q, 2) of flat pixel indices, each as one objective."""
    bounds = net.weight.new_empty(len(pairs))
    for group, rows in pair_rows(net, class_idx, pairs, case):
        bounds[group] = bound(net.features, rows)
    return bounds


def pair_rows(net: CamNetwork, class_idx: int, pairs: Tensor, case: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Pairs as functionals on the rectangles that span both pixels, with their indices in ``pairs``.

    They come in groups of like rectangle, so that each group is one batch; its common rectangle has zeros where a
    pair does not reach.
    """
    width = net.map_shape[1]
    weight = net.weight[class_idx]
    y, x = pairs // width, pairs % width
    corners = torch.stack([y.min(dim=1).values, x.min(dim=1).values], dim=1)
    span = torch.stack([(y[:, 0] - y[:, 1]).abs(), (x[:, 0] - x[:, 1]).abs()], dim=1)
    size = _rounded(span + 1)
    for h, w in torch.unique(size, dim=0).tolist():
        group = torch.nonzero((size == torch.tensor([h, w], device=size.device)).all(dim=1)).flatten()
        coefs = weight.new_zeros(len(group), len(weight), h, w)
        row = torch.arange(len(group), device=coefs.device)
        for side, sign in ((0, 1.0), (1, -1.0)):
            dy, dx = y[group, side] - corners[group, 0], x[group, side] - corners[group, 1]
            coefs[row, :, dy, dx] = sign * weight
        yield group, Rows.at(coefs, corners[group], case[group])


def _rounded(size: Tensor) -> Tensor:
    """Rectangle sides rounded up to a few values: fewer, larger batches."""
    steps = torch.tensor([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], device=size.device)
    index = torch.searchsorted(steps, size.contiguous())
    return torch.where(index < len(steps), steps[index.clamp(max=len(steps) - 1)], size)


def share_inputs(net: CamNetwork, pairs: Tensor) -> Tensor:
    """Which pairs (Q, 2) have receptive fields that meet (Q,); one whose fields do not is bounded pixel by pixel."""
    return fields_of(net.graph, net.features).share(pairs)
