"""Cones: the part of a network that some positions of a node, CAM pixels mostly, depend on.

A walk through the graph, from that node backwards, marks in each node the positions that are read on the way. A CAM
pixel of the paper's network reads 14x14x3 inputs and 2,112 ReLUs of 55,296.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import POINTWISE, Geometry, Shape, Window, crop


def windows_of(graph: LayerGraph, node: str, window: Window) -> dict[str, Window]:
    """The window of every ancestor that ``window`` of ``node`` depends on (they may overhang the image)."""
    windows = {node: window}
    for name in reversed(graph.ancestors(node)):
        if name not in windows:
            continue
        needed = graph[name].op.geometry.window(windows[name])
        for operand in graph[name].inputs:
            windows[operand] = windows[operand].union(needed) if operand in windows else needed
    return windows


def reach_of(graph: LayerGraph, node: str, mask: Tensor) -> dict[str, Tensor]:
    """Which neurons of each ancestor can influence the positions of ``node`` marked in ``mask``.

    ``mask`` (B, H, W) marks positions, in B questions at once; the result too: {name: (B, 1, H, W)}, as all channels of
    a position share their receptive field (but for grouped convolutions, where this is an upper bound).
    """
    reach = {node: mask[:, None]}
    for name in reversed(graph.ancestors(node)):
        if name not in reach:
            continue
        for operand in graph[name].inputs:
            seen = _positions_below(graph[name].op.geometry, reach[name], graph[operand].shape)
            reach[operand] = reach[operand] | seen if operand in reach else seen
    return reach


def _positions_below(geometry: Geometry, mask: Tensor, shape: Shape) -> Tensor:
    """Positions (B, 1, H, W) of an operand of this shape that marked positions of its reader read."""
    if geometry == POINTWISE and mask.shape[2:] == shape[1:]:
        return mask
    if geometry.stride == (0, 0):
        return mask.any(dim=3).any(dim=2)[:, :, None, None].expand(-1, -1, *shape[1:])
    read = _read_by(geometry, mask)
    at = Window(-geometry.offset[0], -geometry.offset[1], shape[1], shape[2])
    return crop(read, at)


def _read_by(geometry: Geometry, mask: Tensor) -> Tensor:
    """Positions that marked positions (B, 1, h, w) read, on the window that ``geometry`` gives for theirs."""
    ones = torch.ones(1, 1, *geometry.extent, device=mask.device)
    return torch.nn.functional.conv_transpose2d(mask.float(), ones, stride=geometry.stride) > 0.5
