"""Layers that look at where values lie: pooling, padding, resizing, reshaping, and merging of several maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from corgi_opt.data.keras import modules
from corgi_opt.data.keras.affine import out_spatial, pair
from corgi_opt.data.keras.layer import Built, Flow, Layer, spatial_of

_OPEN = "the model leaves the height or width of its input open; state both"


# --- pooling -----------------------------------------------------------------------------------------------------


def pool(layer: Layer, flows: Sequence[Flow], rank: int, *, largest: bool) -> Built:
    """MaxPooling1D, MaxPooling2D, AveragePooling1D, AveragePooling2D."""
    (flow,) = flows
    layer.channels_last()
    spatial = spatial_of(layer, flow, rank)
    window = layer.sizes("pool_size", rank, [2] * rank)
    stride = layer.sizes("strides", rank, window) if layer.option("strides", None) is not None else window
    padding = layer.choice("padding", ("valid", "same"), "valid")
    out = Flow((*out_spatial(layer, spatial, window, stride, padding), flow.channels))
    module: nn.Module
    if padding == "same":
        module = (modules.SameMaxPool2d if largest else modules.SameAvgPool2d)(pair(window), pair(stride))
    else:
        module = (nn.MaxPool2d if largest else nn.AvgPool2d)(pair(window), stride=pair(stride))
    return [(layer.path, module)], out


def global_pool(layer: Layer, flows: Sequence[Flow], rank: int, *, largest: bool) -> Built:
    (flow,) = flows
    layer.channels_last()
    spatial_of(layer, flow, rank)
    made: list[tuple[str, nn.Module]] = [(layer.path, modules.GlobalMax() if largest else nn.AdaptiveAvgPool2d(1))]
    if layer.flag("keepdims", False):
        return made, Flow((*[1] * rank, flow.channels))
    return [*made, (f"{layer.path}_flatten", nn.Flatten())], Flow((flow.channels,))


# --- padding, cropping, resizing ---------------------------------------------------------------------------------


def _sides(margins: Sequence[tuple[int, int]]) -> modules.Sides:
    (top, bottom), (left, right) = margins if len(margins) == 2 else ((0, 0), margins[0])
    return left, right, top, bottom


def zero_padding(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    (flow,) = flows
    layer.channels_last()
    margins = layer.margins("padding", rank, [1] * rank)
    spatial = spatial_of(layer, flow, rank)
    out = [None if n is None else n + a + b for n, (a, b) in zip(spatial, margins, strict=True)]
    return [(layer.path, modules.Pad(_sides(margins)))], Flow((*out, flow.channels))


def cropping(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    (flow,) = flows
    layer.channels_last()
    margins = layer.margins("cropping", rank, [1] * rank)
    spatial = spatial_of(layer, flow, rank)
    out = [None if n is None else n - a - b for n, (a, b) in zip(spatial, margins, strict=True)]
    if any(n is not None and n < 1 for n in out):
        raise layer.damaged(f"it cuts more than there is of a map of {tuple(spatial)}")
    return [(layer.path, modules.Crop(_sides(margins)))], Flow((*out, flow.channels))


def upsampling(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    (flow,) = flows
    layer.channels_last()
    spatial, factor = spatial_of(layer, flow, rank), layer.sizes("size", rank, [2] * rank)
    mode = layer.choice("interpolation", ("nearest", "bilinear"), "nearest")
    out = [None if n is None else n * f for n, f in zip(spatial, factor, strict=True)]
    module = modules.Upsample(pair(factor), "nearest" if mode == "nearest" else "bilinear")
    return [(layer.path, module)], Flow((*out, flow.channels))


# --- reshaping ---------------------------------------------------------------------------------------------------


def flatten(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    layer.channels_last()
    made, flat = flattened(layer, flow)
    return [(layer.path, module) for _, module in made], flat


def reshape(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    count = math.prod(_closed(layer, flow))
    target = _target(layer, count)
    made, flat = flattened(layer, flow)
    if len(target) == 1:
        return made, flat
    # where in torch's vector the unit of Keras's that comes next to torch's target stands
    order = np.arange(count) if flat.order is None else flat.order
    index = np.argsort(order)[_laid_out(target, np.arange(count))]
    return [*made, *_put_in_order(layer.path, index, _torch_shape(target))], Flow(target)


def _target(layer: Layer, count: int) -> tuple[int, ...]:
    target = layer.option("target_shape", None)
    if not isinstance(target, list) or not 1 <= len(target) <= 3 or not all(type(t) is int for t in target):
        raise layer.damaged(f"target_shape={str(target)[:80]} is no shape of a vector, a sequence or a map")
    known = math.prod(t for t in target if t != -1)
    if target.count(-1) == 1 and known > 0 and count % known == 0:
        target = [count // known if t == -1 else t for t in target]
    if any(t < 1 for t in target) or math.prod(target) != count:
        raise layer.damaged(f"{count} values have no shape {tuple(target)}")
    return tuple(target)


def permute(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    dims, size = layer.option("dims", None), _closed(layer, flow)
    if not isinstance(dims, list) or sorted(dims) != list(range(1, len(size) + 1)):
        raise layer.damaged(f"dims={str(dims)[:80]} do not order its {len(size)} axes")
    if len(size) == 1:
        return [], flow
    target = tuple(size[d - 1] for d in dims)
    places = np.arange(math.prod(size)).reshape(size).transpose([d - 1 for d in dims])  # of Keras's units
    where = np.argsort(_laid_out(size, np.arange(math.prod(size))))
    index = where[_laid_out(target, places)]
    return [(f"{layer.path}_flatten", nn.Flatten()), *_put_in_order(layer.path, index, _torch_shape(target))], Flow(
        target
    )


def flattened(layer: Layer, flow: Flow) -> Built:
    """The modules that make a vector of whatever passes, in torch's order, if it is none."""
    if len(flow.size) == 1:
        return [], flow
    size = _closed(layer, flow)
    order = _laid_out(size, np.arange(math.prod(size)))
    return [(f"{layer.path}_flatten", nn.Flatten())], Flow((order.size,), None if _is_counting(order) else order)


def in_keras_order(name: str, flow: Flow) -> Built:
    """The modules that put a vector in Keras's order, if it is not."""
    if flow.order is None:
        return [], flow
    return _put_in_order(name, np.argsort(flow.order), (flow.channels,)), Flow(flow.size)


def _put_in_order(name: str, index: NDArray[np.intp], shape: tuple[int, ...]) -> list[tuple[str, nn.Module]]:
    """The vector of those units, as ``shape`` in torch."""
    if _is_counting(index):
        return [(name, modules.View(shape))]
    return [(name, modules.Reorder(torch.from_numpy(np.ascontiguousarray(index)), shape))]


def _laid_out(size: Sequence[int], units: NDArray[np.intp]) -> NDArray[np.intp]:
    """Keras's units of a map of this size, one after another as torch has them."""
    return np.ascontiguousarray(np.moveaxis(units.reshape(tuple(size)), -1, 0)).reshape(-1)


def _is_counting(order: NDArray[np.intp]) -> bool:
    return bool((order == np.arange(order.size)).all())


def _torch_shape(size: Sequence[int]) -> tuple[int, ...]:
    """Without the batch."""
    if len(size) == 1:
        return (size[0],)
    return (size[-1], *pair(size[:-1]))


def _closed(layer: Layer, flow: Flow) -> tuple[int, ...]:
    sides = tuple(s for s in flow.size if s is not None)
    if len(sides) < len(flow.size):
        raise layer.damaged(_OPEN)
    return sides


# --- merging -----------------------------------------------------------------------------------------------------


def merge(layer: Layer, flows: Sequence[Flow]) -> Built:
    """Add, Subtract, Multiply, Average, Maximum, Minimum of several of one shape; an axis of one pixel may stand for
    more."""
    kind = layer.kind
    assert kind in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
    if len(flows) < 2 or (kind == "Subtract" and len(flows) > 2):
        raise layer.damaged(f"it merges {len(flows)} maps")
    if len({len(f.size) for f in flows}) > 1 or not all(
        _one_size(axis) for axis in zip(*(f.size for f in flows), strict=True)
    ):
        raise layer.damaged(f"its inputs differ in shape: {', '.join(str(f.size) for f in flows)}")
    size = tuple(
        max((s for s in axis if s is not None), default=None) for axis in zip(*(f.size for f in flows), strict=True)
    )
    return [(layer.path, modules.Merge(kind))], Flow(size, flows[0].order)  # type: ignore[arg-type]


def _one_size(axis: Sequence[int | None]) -> bool:
    return len({s for s in axis if s is not None} - {1}) <= 1


def concatenate(layer: Layer, flows: Sequence[Flow]) -> Built:
    axis, rank = layer.option("axis", -1), len(flows[0].size)
    if type(axis) is not int or not (-rank <= axis <= -1 or 1 <= axis <= rank):
        raise layer.damaged(f"axis={axis!r} is no axis of its inputs")
    at = axis - 1 if axis > 0 else axis + rank
    others = {(*f.size[:at], *f.size[at + 1 :]) for f in flows}
    if len({len(f.size) for f in flows}) > 1 or any(len(set(a) - {None}) > 1 for a in zip(*others, strict=True)):
        raise layer.damaged(f"its inputs differ in shape: {', '.join(str(f.size) for f in flows)}")
    along = [f.size[at] for f in flows]
    whole = None if None in along else sum(s for s in along if s is not None)
    size = (*flows[0].size[:at], whole, *flows[0].size[at + 1 :])
    dim = 1 if at == rank - 1 else at + 2 if rank == 3 else 3
    return [(layer.path, modules.Concatenate(dim))], Flow(size, _orders(flows) if rank == 1 else None)


def _orders(flows: Sequence[Flow]) -> NDArray[np.intp] | None:
    """Of vectors one after another."""
    if all(f.order is None for f in flows):
        return None
    starts = np.cumsum([0, *(f.channels for f in flows)])
    own = [np.arange(f.channels) if f.order is None else f.order for f in flows]
    return np.concatenate([start + order for start, order in zip(starts, own, strict=False)])


def dot(layer: Layer, flows: Sequence[Flow]) -> Built:
    raise layer.unsupported("", "Products are read value by value only (Multiply), and not summed over an axis.")


def code(layer: Layer, flows: Sequence[Flow]) -> Built:
    raise layer.unsupported(
        "",
        "It is code inside the file, and code from a file is never run here; write the step as layers of Keras's own.",
    )
