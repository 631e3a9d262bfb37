"""Layers with kernels: convolutions of all kinds, dense layers, batch norm.

Keras stores maps channels last and torch channels first, so a kernel (height, width, in, out) becomes (out, in, height,
width). A dense kernel (in, out) becomes (out, in); where it reads a flattened map its inputs are permuted, since Keras
flattens (h, w, c) and torch (c, h, w). A sequence is a map of one row, and its kernels have one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corgi_opt.data.keras.layer import Built, Flow, Layer, spatial_of
from corgi_opt.data.keras.modules import Pair, SameConv2d, TransposedConv2d
from corgi_opt.data.keras.pointwise import activation


def pair(values: Sequence[int], fill: int = 1) -> Pair:
    """Rows and columns; a sequence has one row."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def windows(extent: int | None, window: int, stride: int, padding: str) -> int | None:
    """How many windows there are along an axis of ``extent``."""
    if extent is None:
        return None
    return -(-extent // stride) if padding in ("same", "causal") else (extent - window) // stride + 1


def out_spatial(
    layer: Layer, spatial: Sequence[int | None], window: Sequence[int], stride: Sequence[int], padding: str
) -> tuple[int | None, ...]:
    """Rows and columns of what windows give. Raises InputError where none fits."""
    out = [windows(n, k, s, padding) for n, k, s in zip(spatial, window, stride, strict=True)]
    if any(n is not None and n < 1 for n in out):
        raise layer.damaged(f"its window {tuple(window)} does not fit into a map of {tuple(spatial)}")
    return tuple(out)


def put(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give ``module``, which was made on the meta device, its parameters.

    Made there, a module draws no random initial weights, so loading a model leaves the user's RNG alone.
    """
    module.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias)


def _as_torch(kernel: Tensor) -> Tensor:
    """(height, width, in, out) or (steps, in, out) -> (out, in, height, width)."""
    return (kernel[None] if kernel.ndim == 3 else kernel).permute(3, 2, 0, 1)


def _convolve(
    layer: Layer, spatial: Sequence[int | None], weight: Tensor, bias: Tensor | None, groups: int
) -> tuple[list[tuple[str, nn.Module]], tuple[int | None, ...]]:
    """The modules of one convolution (out, in, height, width), and rows and columns of what it gives."""
    rank = len(spatial)
    kernel = layer.sizes("kernel_size", rank)
    stride = layer.sizes("strides", rank, [1] * rank)
    dilation = layer.sizes("dilation_rate", rank, [1] * rank)
    padding = layer.choice("padding", ("valid", "same", "causal") if rank == 1 else ("valid", "same"), "valid")
    window = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    out = out_spatial(layer, spatial, window, stride, padding)
    c_out, c_in = weight.shape[0], weight.shape[1] * groups
    made: list[tuple[str, nn.Module]] = []
    kind, pad = nn.Conv2d, (0, 0)
    if padding == "causal":
        made.append((f"{layer.path}_pad", nn.ZeroPad2d((window[0] - 1, 0, 0, 0))))
    elif padding == "same":
        if all(s == 1 and k % 2 for s, k in zip(stride, window, strict=True)):
            pad = pair([k // 2 for k in window], 0)
        else:
            kind = SameConv2d
    module = kind(
        c_in,
        c_out,
        pair(kernel),
        stride=pair(stride),
        padding=pad,
        dilation=pair(dilation),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    put(module, weight, bias)
    return [*made, (layer.path, module)], out


def conv(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    """Conv1D, Conv2D."""
    (flow,) = flows
    layer.channels_last()
    spatial, filters, groups = spatial_of(layer, flow, rank), layer.integer("filters"), layer.integer("groups", 1)
    if flow.channels % groups or filters % groups:
        raise layer.damaged(f"{groups} groups do not divide its {flow.channels} channels and {filters} filters")
    shapes = {"kernel": (*layer.sizes("kernel_size", rank), flow.channels // groups, filters)}
    if layer.flag("use_bias", True):
        shapes["bias"] = (filters,)
    found = layer.weights(**shapes)
    made, out = _convolve(layer, spatial, _as_torch(found["kernel"]), found.get("bias"), groups)
    return [*made, *activation(layer, one_pixel=out == (1,) * rank)], Flow((*out, filters))


def _by_channel(kernel: Tensor) -> Tensor:
    """A depthwise kernel (height, width, in, each) or (steps, in, each) as (in * each, 1, height, width)."""
    rows = kernel[None] if kernel.ndim == 3 else kernel
    height, width, c_in, each = rows.shape
    return rows.permute(2, 3, 0, 1).reshape(c_in * each, 1, height, width)


def depthwise(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    """DepthwiseConv1D, DepthwiseConv2D. Its kernel is called depthwise_kernel in Keras 2, kernel in Keras 3."""
    (flow,) = flows
    layer.channels_last()
    layer.require("groups", 1)
    spatial, each = spatial_of(layer, flow, rank), layer.integer("depth_multiplier", 1)
    name = "kernel" if layer.major >= 3 else "depthwise_kernel"
    shapes = {name: (*layer.sizes("kernel_size", rank), flow.channels, each)}
    if layer.flag("use_bias", True):
        shapes["bias"] = (flow.channels * each,)
    found = layer.weights(**shapes)
    made, out = _convolve(layer, spatial, _by_channel(found[name]), found.get("bias"), flow.channels)
    return [*made, *activation(layer, one_pixel=out == (1,) * rank)], Flow((*out, flow.channels * each))


def separable(layer: Layer, flows: Sequence[Flow], rank: int) -> Built:
    """SeparableConv1D, SeparableConv2D: each channel by itself, then a 1x1 convolution."""
    (flow,) = flows
    layer.channels_last()
    layer.require("groups", 1)
    spatial, each = spatial_of(layer, flow, rank), layer.integer("depth_multiplier", 1)
    filters, middle = layer.integer("filters"), flow.channels * each
    shapes = {
        "depthwise_kernel": (*layer.sizes("kernel_size", rank), flow.channels, each),
        "pointwise_kernel": (*[1] * rank, middle, filters),
    }
    if layer.flag("use_bias", True):
        shapes["bias"] = (filters,)
    found = layer.weights(**shapes)
    made, out = _convolve(layer, spatial, _by_channel(found["depthwise_kernel"]), None, flow.channels)
    made[-1] = (f"{layer.path}_depthwise", made[-1][1])
    point = nn.Conv2d(middle, filters, 1, bias="bias" in found, device="meta")
    put(point, _as_torch(found["pointwise_kernel"]), found.get("bias"))
    made.append((layer.path, point))
    return [*made, *activation(layer, one_pixel=out == (1,) * rank)], Flow((*out, filters))


def transposed(layer: Layer, flows: Sequence[Flow]) -> Built:
    """Conv2DTranspose."""
    (flow,) = flows
    layer.channels_last()
    layer.require("output_padding", None)
    layer.require("groups", 1)
    spatial, filters = spatial_of(layer, flow, 2), layer.integer("filters")
    kernel, stride = layer.sizes("kernel_size", 2), layer.sizes("strides", 2, [1, 1])
    dilation = layer.sizes("dilation_rate", 2, [1, 1])
    same = layer.choice("padding", ("valid", "same"), "valid") == "same"
    shapes = {"kernel": (*kernel, filters, flow.channels)}
    if layer.flag("use_bias", True):
        shapes["bias"] = (filters,)
    found = layer.weights(**shapes)
    bias = found.get("bias")
    module = TransposedConv2d(
        flow.channels, filters, pair(kernel), pair(stride), pair(dilation), bias is not None, same
    )
    put(module, found["kernel"].permute(3, 2, 0, 1), bias)
    out: list[int | None] = []
    for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True):
        out.append(None if n is None else n * s if same else n * s + max(d * (k - 1) + 1 - s, 0))
    return [(layer.path, module), *activation(layer, one_pixel=out == [1, 1])], Flow((*out, filters))


def dense(layer: Layer, flows: Sequence[Flow]) -> Built:
    """Dense: of a vector, or of every pixel of a map, which is a 1x1 convolution."""
    (flow,) = flows
    units = layer.integer("units")
    shapes: dict[str, tuple[int, ...]] = {"kernel": (flow.channels, units)}
    if layer.flag("use_bias", True):
        shapes["bias"] = (units,)
    found = layer.weights(**shapes)
    kernel, bias = found["kernel"], found.get("bias")
    module: nn.Conv2d | nn.Linear
    if len(flow.size) == 1:
        ordered = kernel if flow.order is None else kernel[torch.from_numpy(flow.order)]
        module = nn.Linear(flow.channels, units, bias=bias is not None, device="meta")
        put(module, ordered.T, bias)
    else:
        module = nn.Conv2d(flow.channels, units, 1, bias=bias is not None, device="meta")
        put(module, kernel.T[:, :, None, None], bias)
    made = [(layer.path, module), *activation(layer, one_pixel=flow.one_pixel)]
    return made, Flow((*flow.spatial, units))


def batch_norm(layer: Layer, flows: Sequence[Flow]) -> Built:
    """BatchNormalization over the last axis, in inference."""
    (flow,) = flows
    axis = layer.option("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(flow.size)):
        raise layer.unsupported(f"with axis={axis!r}", "Only the last axis, the channels, is normalised here.")
    layer.require("renorm", False)
    layer.require("virtual_batch_size", None)
    layer.require("adjustment", None)
    eps, names = layer.number("epsilon", 1e-3), []
    names += ["gamma"] if layer.flag("scale", True) else []
    names += ["beta"] if layer.flag("center", True) else []
    found = layer.weights(**dict.fromkeys([*names, "moving_mean", "moving_variance"], (flow.channels,)))
    if eps < 0 or not bool((found["moving_variance"] + eps > 0).all()):
        raise layer.damaged("its moving_variance is negative")
    if flow.order is not None:
        order = torch.from_numpy(flow.order)
        found = {name: values[order] for name, values in found.items()}
    kind = nn.BatchNorm1d if len(flow.size) == 1 else nn.BatchNorm2d
    module = kind(flow.channels, eps=eps)
    module.running_mean, module.running_var = found["moving_mean"], found["moving_variance"]
    module.weight = nn.Parameter(found.get("gamma", torch.ones(flow.channels)))
    module.bias = nn.Parameter(found.get("beta", torch.zeros(flow.channels)))
    return [(layer.path, module)], flow
