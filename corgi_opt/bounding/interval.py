"""Interval arithmetic (IBP): each node's bounds from its operands' bounds (Gowal et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping

from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.tolerance import Rounding
from corgi_opt.errors import NumericalError
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Conv2d, Input, Op


def propagate(
    graph: LayerGraph,
    name: str,
    known: Mapping[str, Interval],
    regions: Regions,
    rounding: Rounding | None = None,
) -> Interval:
    """One node's interval (B, C, H, W) from its operands'.

    A node that is a pool's maximum is also bounded as one; a convolution of the image is bounded by the region's own
    norm and not only by the box around it. With ``rounding``, which has learnt of the operands, the interval is proven.
    Raises NumericalError where it is not finite.
    """
    node = graph[name]
    if isinstance(node.op, Input):
        return Interval(regions.lower, regions.upper)
    interval = _image(node.op, [known[i] for i in node.inputs])
    if isinstance(node.op, Conv2d) and node.inputs == (graph.input,) and regions.norm != "inf":
        interval = interval.meet(_convolve_image(node.op, regions))
    if rounding is not None:
        error = rounding.interval(name)
        interval = interval if error is None else Interval(interval.lower - error, interval.upper + error)
        # a sum of all finds what is not finite in one pass
        if not bool((interval.upper.sum() - interval.lower.sum()).isfinite()):
            raise NumericalError(
                f"values of node {name!r} overflow float64 over this region; take a smaller eps or a clip box"
            )
    if node.pooled is not None and node.pooled.source in known:
        interval = interval.meet(_image(node.pooled.pool, [known[node.pooled.source]]))
    return interval


def interval_bounds(graph: LayerGraph, regions: Regions) -> dict[str, Interval]:
    """Intervals (B, C, H, W) of all nodes over B regions, by name; graph must be on their device in their dtype."""
    known: dict[str, Interval] = {}
    rounding = regions.rounding(graph)
    for name in graph.order:
        known[name] = propagate(graph, name, known, regions, rounding)
        if rounding is not None:
            rounding.learn(name, *known[name])
    return known


def _image(op: Op, inputs: list[Interval]) -> Interval:
    return Interval(*op.interval([i.lower for i in inputs], [i.upper for i in inputs]))


def _convolve_image(op: Conv2d, regions: Regions) -> Interval:
    """``w' c -+ eps * (dual norm of w)``: the L2 norm of a filter for an L2 ball, its largest weight for an L1 ball.

    Looser than the exact minimum at the border and near the box, which the interval of the box takes in.
    """
    middle = op.apply([regions.center])
    size = op.weight.abs().flatten(1)
    dual_norm = size.amax(dim=1) if regions.norm == "1" else size.norm(dim=1)
    spread = regions.eps[:, None, None, None] * dual_norm[None, :, None, None]
    return Interval(middle - spread, middle + spread)
