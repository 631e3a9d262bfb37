"""Cones: the part of a network that one CAM pixel, or a pair of them, really depends on.

Walking the graph backwards with window arithmetic (padding included) gives each node the window that a given
window of the last node reads. A CAM pixel of the paper's network sees 14x14x3 inputs and 2,112 ReLUs of 55,296.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import POINTWISE, Affine, Geometry, Places, ReLU, Shape, Window, crop, inside


def windows_of(graph: LayerGraph, node: str, window: Window) -> dict[str, Window]:
    """The window of every ancestor that ``window`` of ``node`` depends on (they may overhang the image)."""
    found = {node: window}
    for name in reversed(graph.ancestors(node)):
        if name not in found:
            continue
        needed = graph[name].op.geometry.window(found[name])
        for operand in graph[name].inputs:
            found[operand] = found[operand].union(needed) if operand in found else needed
    return found


@dataclass(frozen=True, eq=False)
class Cone:
    """The network below one window of ``node``: a window per ancestor, and which neurons in it matter.

    ``reach[name]`` (C, h, w) is True for a neuron on the image whose value can influence the objective: the union
    of the receptive fields of the objective's nonzero entries, not their bounding box.
    """

    graph: LayerGraph
    node: str
    windows: Mapping[str, Window]
    reach: Mapping[str, Tensor]
    objective: Tensor

    @classmethod
    def of(cls, graph: LayerGraph, node: str, window: Window, objective: Tensor) -> Cone:
        """The cone of ``sum objective * value`` with objective (C, h, w) on ``window`` of ``node``."""
        windows = windows_of(graph, node, window)
        reach = {name: _nothing(graph, name, win) for name, win in windows.items()}
        reach[node] = objective != 0
        for name in reversed(graph.ancestors(node)):
            if name not in windows:
                continue
            reach[name] &= _on_image(graph, name, windows[name], reach[name].device)
            if name == graph.input:
                continue
            source = graph[name].op.geometry.window(windows[name])
            for operand, seen in zip(graph[name].inputs, _spread(graph, name, reach[name]), strict=True):
                reach[operand] |= place(seen, source, windows[operand])
        return cls(graph, node, windows, reach, objective)

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(n for n in self.graph.ancestors(self.node) if n in self.windows)

    def apply(self, name: str, values: Mapping[str, Tensor], bias: bool) -> Tensor:
        """An affine node's window (N, C, h, w) from its operands' windows; zero outside the image."""
        node, window = self.graph[name], self.windows[name]
        assert isinstance(node.op, Affine)
        needed = node.op.geometry.window(window)
        inputs = [place(values[i], self.windows[i], needed) for i in node.inputs]
        out = node.op.apply_window(inputs, window, node.shape, bias)
        return out * _on_image(self.graph, name, window, out.device)

    def forward(self, image: Tensor) -> Tensor:
        """The objective (N,) on images (N, C, H, W)."""
        values = {self.graph.input: crop(image, self.windows[self.graph.input])}
        for name in self.order:
            if isinstance(self.graph[name].op, ReLU):
                values[name] = values[self.graph[name].inputs[0]].relu()
            elif name != self.graph.input:
                values[name] = self.apply(name, values, bias=True)
        return (values[self.node] * self.objective).sum(dim=(1, 2, 3))


def place(values: Tensor, source: Window, target: Window) -> Tensor:
    """Values (..., h, w) on the window ``source`` seen through the window ``target``; zero where they miss."""
    return crop(values, Window(target.y - source.y, target.x - source.x, target.h, target.w))


def _nothing(graph: LayerGraph, name: str, window: Window) -> Tensor:
    return torch.zeros(graph[name].shape[0], window.h, window.w, dtype=torch.bool)


def _on_image(graph: LayerGraph, name: str, window: Window, device: torch.device) -> Tensor:
    place_ = Places.of(torch.tensor([[window.y, window.x]], device=device))
    mask = inside(graph[name].shape, place_, window.h, window.w)
    return torch.ones(1, 1, 1, dtype=torch.bool, device=device) if mask is None else mask[0]


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
    read = _read_by(geometry, mask)
    at = Window(-geometry.offset[0], -geometry.offset[1], shape[1], shape[2])
    return crop(read, at)


def _read_by(geometry: Geometry, mask: Tensor) -> Tensor:
    """Positions that marked positions (B, 1, h, w) read, on the window that ``geometry`` gives for theirs."""
    ones = torch.ones(1, 1, *geometry.extent, device=mask.device)
    return torch.nn.functional.conv_transpose2d(mask.float(), ones, stride=geometry.stride) > 0.5


def _spread(graph: LayerGraph, name: str, reach: Tensor) -> list[Tensor]:
    """Which entries of each operand's needed window feed the True entries of ``reach`` (C, h, w)."""
    node = graph[name]
    if not isinstance(node.op, Affine):
        return [reach]
    # The positions only: a zero weight still counts as reached, which is sound and keeps the rule one line.
    seen = _read_by(node.op.geometry, reach.any(dim=0, keepdim=True)[None])[0]
    return [seen.expand(graph[i].shape[0], -1, -1) for i in node.inputs]
