"""Layers that act on every value by itself: activations, rescaling, and what does nothing in inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt.data.keras import modules
from corgi_opt.data.keras.layer import Built, Flow, Layer

_BY_NAME: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_tanh": nn.Hardtanh,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "log_sigmoid": nn.LogSigmoid,
    "softsign": modules.Softsign,
    "exponential": modules.Exponential,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}
"""With Keras's defaults. Those that cannot be bounded are read here and refused by name when the network is built."""

IN_THE_END = ("softmax", "sigmoid")
"""Left out at the very end: certificates are about logits, whose order these keep (of one logit, its sign)."""

_OBJECTS = ("ReLU", "LeakyReLU", "ELU", "Softmax")


def activation(layer: Layer, *, one_pixel: bool) -> list[tuple[str, nn.Module]]:
    """The module of the layer's ``activation``, named after both; none for 'linear' and for one at the very end.

    ``one_pixel``: what the layer gives is a vector, or a map of one pixel.
    """
    found = layer.option("activation", None)
    name = _name_of(layer, found)
    if name is None:
        made, _ = by_kind(replace(layer, kind=found["class_name"], config=found["config"], _read=set()), [Flow((1,))])
        return [(f"{layer.path}_{found['class_name'].lower()}", module) for _, module in made]
    return [(f"{layer.path}_{name}", module) for module in _named(layer, name, one_pixel)]


def _name_of(layer: Layer, found: Any) -> str | None:
    """The activation's name; None where it is a layer of its own."""
    match found:
        case None:
            return "linear"
        case str():
            return found
        case {"class_name": "function", "config": str(name), "module": "keras.activations" | "builtins"}:
            return name
        case {"class_name": str(kind), "config": {}} if kind in _OBJECTS:
            return None
    raise layer.unsupported(f"with activation={str(found)[:80]}", "Only activations of Keras's own are read.")


def _named(layer: Layer, name: str, one_pixel: bool) -> list[nn.Module]:
    if name == "linear" or (name in IN_THE_END and layer.is_last and one_pixel):
        return []
    if name == "softmax":
        return [nn.Softmax(dim=1)]
    if name == "hard_sigmoid":
        return [nn.Hardsigmoid() if layer.major >= 3 else modules.HardSigmoid2()]
    if name not in _BY_NAME:
        raise layer.unsupported(f"with activation {name!r}", f"Known are linear, softmax, {', '.join(_BY_NAME)}.")
    return [_BY_NAME[name]()]


def activation_layer(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    made = activation(layer, one_pixel=flow.one_pixel)
    return [(layer.path, module) for _, module in made], flow


def relu(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    top = layer.option("max_value", None)
    slope = layer.number("negative_slope", 0.0) if layer.option("negative_slope", 0.0) is not None else 0.0
    if layer.option("threshold", 0.0) is not None and layer.number("threshold", 0.0) != 0.0:
        raise layer.unsupported("with a threshold", "It jumps there; only threshold=0 is read.")
    if top is None:
        return [(layer.path, nn.LeakyReLU(slope) if slope else nn.ReLU())], flow
    most = layer.number("max_value", None)
    if most <= 0 or slope < 0:
        raise layer.damaged(f"max_value={most} and negative_slope={slope} are no ReLU")
    if slope:
        return [(layer.path, modules.ClippedLeakyReLU(slope, most))], flow
    return [(layer.path, nn.ReLU6() if most == 6 else nn.Hardtanh(0.0, most))], flow


def leaky_relu(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"  # of Keras 2
    return [(layer.path, nn.LeakyReLU(layer.number(key, 0.3)))], flow


def elu(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    return [(layer.path, nn.ELU(layer.number("alpha", 1.0)))], flow


def softmax(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    axis = layer.option("axis", -1)
    if axis not in (-1, len(flow.size), [-1]):
        raise layer.unsupported(f"with axis={axis!r}", "Only the last axis, the channels, is read.")
    return [(layer.path, module) for module in _named(layer, "softmax", flow.one_pixel)], flow


def prelu(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    shared = layer.option("shared_axes", None) or []
    if not isinstance(shared, list) or not all(a in range(1, len(flow.size) + 1) for a in shared):
        raise layer.damaged(f"shared_axes={shared!r} are no axes of its input")
    size = [1 if at in shared else s for at, s in enumerate(flow.size, start=1)]
    sides = [s for s in size if s is not None]
    if len(sides) < len(size):
        raise layer.damaged("the model leaves the height or width of its input open; state both")
    slope = layer.weights(alpha=sides)["alpha"]
    if flow.order is not None:
        slope = slope[torch.from_numpy(flow.order)] if len(slope) > 1 else slope
    return [(layer.path, modules.PReLU(channels_first(slope)))], flow


def channels_first(values: Tensor) -> Tensor:
    """(rows, columns, channels), (steps, channels) or (n,) as torch has them."""
    if values.ndim == 1:
        return values
    return (values[None] if values.ndim == 2 else values).permute(2, 0, 1).contiguous()


def nothing(layer: Layer, flows: Sequence[Flow]) -> Built:
    """What does nothing in inference: dropout, noise, augmentation."""
    (flow,) = flows
    layer._read.update(layer.config)  # whatever it does, it does it in training
    return [(layer.path, nn.Identity())], flow


def rescaling(layer: Layer, flows: Sequence[Flow]) -> Built:
    (flow,) = flows
    scale, offset = layer.option("scale", None), layer.option("offset", 0.0)
    if not isinstance(scale, list) and not isinstance(offset, list):
        return [(layer.path, modules.Rescale(layer.number("scale", None), layer.number("offset", 0.0)))], flow
    values = [_one_a_channel(layer, flow, v) for v in (scale, offset)]
    return [(layer.path, modules.RescaleChannels(*values))], flow


def _one_a_channel(layer: Layer, flow: Flow, values: Any) -> Tensor:
    """A number or a list of one a channel, as it broadcasts in torch. Raises InputError."""
    try:
        found = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise layer.damaged(f"{str(values)[:80]} are no numbers") from error
    if found.numel() not in (1, flow.channels) or not bool(torch.isfinite(found).all()):
        raise layer.damaged(f"it has {found.numel()} numbers for {flow.channels} channels")
    found = found.reshape(-1)
    if flow.order is not None and len(found) > 1:
        found = found[torch.from_numpy(flow.order)]
    return found if len(flow.size) == 1 else found[:, None, None]


def normalization(layer: Layer, flows: Sequence[Flow]) -> Built:
    """Normalization with the mean and variance that it was given or has learned."""
    (flow,) = flows
    axis = layer.option("axis", -1)
    axes = [axis] if isinstance(axis, int) else [] if axis is None else axis
    if axes not in ([], [-1], [len(flow.size)]):
        raise layer.unsupported(f"with axis={axis!r}", "Only the last axis, the channels, or none is read.")
    mean, variance = layer.option("mean", None), layer.option("variance", None)
    if mean is None and variance is None:
        shape = () if not axes else (flow.channels,)
        found = layer.weights(mean=shape, variance=shape)
        mean, variance = found["mean"].tolist(), found["variance"].tolist()
    values = [_one_a_channel(layer, flow, v) for v in (mean, variance)]
    if not bool((values[1] >= 0).all()):
        raise layer.damaged("its variance is negative")
    return [(layer.path, modules.Normalize(values[0], values[1], layer.flag("invert", False)))], flow


by_kind_table: dict[str, Callable[[Layer, Sequence[Flow]], Built]] = {
    "ReLU": relu,
    "LeakyReLU": leaky_relu,
    "ELU": elu,
    "Softmax": softmax,
}


def by_kind(layer: Layer, flows: Sequence[Flow]) -> Built:
    """A layer that is another layer's activation."""
    made = by_kind_table[layer.kind](layer, flows)
    layer.finish()
    return made
