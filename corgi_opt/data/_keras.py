"""Reads a Keras 2 ``Sequential`` image classifier from its .h5 file into torch, without Keras or TensorFlow.

Keras stores maps channels last and torch channels first, so three things change on the way:

- a convolution kernel (height, width, in, out) becomes (out, in, height, width);
- a dense kernel (in, out) becomes (out, in);
- a dense layer that reads a flattened map has its inputs permuted, since Keras flattens (h, w, c) and torch
  (c, h, w): unit ``(c*H + h)*W + w`` of torch is unit ``(h*W + w)*C + c`` of Keras.

Anything whose meaning could differ between the two (an unknown layer, an even kernel with 'same' padding, a
softmax before the end ...) is refused by name instead of being approximated.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from corgi_opt.data._optional import gtsrb_package
from corgi_opt.errors import InputError

_Children = list[tuple[str, nn.Module]]


@dataclass(frozen=True)
class _Layer:
    """One Keras layer: its class, its name, its configuration, its float32 arrays by name (kernel, bias)."""

    kind: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, NDArray[np.float32]]
    is_last: bool

    def refuse(self, why: str) -> InputError:
        """The error that names this layer, for the caller to raise."""
        return InputError(f"Keras layer {self.name!r} ({self.kind}): {why}")

    def require(self, key: str, value: object) -> None:
        """Raise InputError unless option ``key`` is ``value``, Keras's default for an absent option."""
        option = self.config.get(key, value)
        if option != value:
            raise self.refuse(f"{key}={option!r} is not supported, only {value!r}")

    def pair(self, key: str, default: object) -> tuple[int, int]:
        """Option ``key`` as two positive integers (height, width)."""
        value = self.config.get(key, default)
        match value:
            case [int(height), int(width)] if height > 0 and width > 0:
                return height, width
        raise self.refuse(f"{key}={value!r} is not a pair of positive integers")

    def kernel_and_bias(self, ndim: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The kernel, checked to have ``ndim`` axes, the last one the output, and the bias or None."""
        kernel = self.weights.get("kernel")
        if kernel is None or kernel.ndim != ndim:
            got = "none" if kernel is None else f"shape {kernel.shape}"
            raise self.refuse(f"a kernel with {ndim} axes is expected in the file; found {got}")
        if not self.config.get("use_bias", True):
            return kernel, None
        bias = self.weights.get("bias")
        if bias is None or bias.shape != kernel.shape[-1:]:
            got = "none" if bias is None else f"shape {bias.shape}"
            raise self.refuse(f"a bias of shape {kernel.shape[-1:]} is expected in the file; found {got}")
        return kernel, bias


@dataclass(frozen=True)
class _Flow:
    """What passes between two layers: a map of ``size`` (height, width, channels), or a vector (n,).

    ``order`` belongs to a flattened map: unit i of torch's vector is unit ``order[i]`` of Keras's.
    Height and width are None where the Keras model leaves them open.
    """

    size: tuple[int | None, ...]
    order: NDArray[np.intp] | None = None


_Builder = Callable[[_Layer, _Flow], tuple[_Children, _Flow]]


def _map_size(layer: _Layer, flow: _Flow) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of the map that ``layer`` reads."""
    match flow.size:
        case [height, width, int(channels)]:
            return height, width, channels
    raise layer.refuse(f"it needs an image-like map as input, but gets a vector of {flow.size[0]}")


def _windows(extent: int | None, window: int, stride: int, pad: int) -> int | None:
    """How many windows fit along an axis of ``extent``, with ``pad`` zeros on either side."""
    return None if extent is None else (extent + 2 * pad - window) // stride + 1


def _activation(layer: _Layer, child: str) -> _Children:
    """The module of the layer's activation, named ``child``; none for 'linear' and for the final softmax.

    The final softmax is dropped because certificates are about logits.
    """
    name = layer.config.get("activation", "linear")
    if name == "linear" or (name == "softmax" and layer.is_last):
        return []
    if name == "relu":
        return [(child, nn.ReLU())]
    hint = "; a softmax is only read at the very end" if name == "softmax" else ""
    raise layer.refuse(f"activation {name!r} is not supported, only 'relu' and 'linear'{hint}")


def _set(module: nn.Conv2d | nn.Linear, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
    """Give ``module``, which was made on the meta device, its parameters.

    Made there, a module draws no random initial weights, so loading a model leaves the user's RNG alone.
    """
    module.weight = nn.Parameter(torch.tensor(weight))
    if bias is not None:
        module.bias = nn.Parameter(torch.tensor(bias))


def _conv(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    layer.require("data_format", "channels_last")
    layer.require("dilation_rate", [1, 1])
    layer.require("groups", 1)
    height, width, channels = _map_size(layer, flow)
    kernel, bias = layer.kernel_and_bias(ndim=4)
    rows, cols, c_in, c_out = kernel.shape
    if c_in != channels:
        raise layer.refuse(f"its kernel reads {c_in} channels, but its input has {channels}")
    stride = layer.pair("strides", [1, 1])
    pad = (0, 0)
    if layer.config.get("padding", "valid") == "same":
        # With a stride or an even kernel Keras pads one side more than the other, which nn.Conv2d cannot say.
        if stride != (1, 1) or rows % 2 == 0 or cols % 2 == 0:
            raise layer.refuse("padding='same' needs stride 1 and a kernel of odd height and width")
        pad = (rows // 2, cols // 2)
    else:
        layer.require("padding", "valid")
    has_bias = bias is not None
    module = nn.Conv2d(c_in, c_out, (rows, cols), stride=stride, padding=pad, bias=has_bias, device="meta")
    _set(module, kernel.transpose(3, 2, 0, 1), bias)
    size = (_windows(height, rows, stride[0], pad[0]), _windows(width, cols, stride[1], pad[1]), c_out)
    return [(layer.name, module), *_activation(layer, f"{layer.name}_relu")], _Flow(size)


def _relu_layer(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    return _activation(layer, layer.name), flow


def _max_pool(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    layer.require("data_format", "channels_last")
    layer.require("padding", "valid")
    height, width, channels = _map_size(layer, flow)
    window = layer.pair("pool_size", [2, 2])
    stride = layer.pair("strides", list(window))
    size = (_windows(height, window[0], stride[0], 0), _windows(width, window[1], stride[1], 0), channels)
    return [(layer.name, nn.MaxPool2d(window, stride=stride))], _Flow(size)


def _dropout(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    return [(layer.name, nn.Dropout(float(layer.config.get("rate", 0.5))))], flow


def _global_average(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    layer.require("data_format", "channels_last")
    layer.require("keepdims", False)
    _, _, channels = _map_size(layer, flow)
    children: _Children = [(layer.name, nn.AdaptiveAvgPool2d(1)), (f"{layer.name}_flatten", nn.Flatten())]
    return children, _Flow((channels,))


def _flatten(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    layer.require("data_format", "channels_last")
    height, width, channels = _map_size(layer, flow)
    if height is None or width is None:
        raise layer.refuse("the model leaves the height or width of its input open; state both")
    keras_units = np.arange(height * width * channels).reshape(height, width, channels)
    order = keras_units.transpose(2, 0, 1).reshape(-1)
    return [(layer.name, nn.Flatten())], _Flow((order.size,), order)


def _dense(layer: _Layer, flow: _Flow) -> tuple[_Children, _Flow]:
    if len(flow.size) != 1:
        raise layer.refuse("it reads a map; put a Flatten or GlobalAveragePooling2D layer before it")
    kernel, bias = layer.kernel_and_bias(ndim=2)
    if kernel.shape[0] != flow.size[0]:
        raise layer.refuse(f"its kernel reads {kernel.shape[0]} units, but its input has {flow.size[0]}")
    ordered = kernel if flow.order is None else kernel[flow.order]
    module = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bias is not None, device="meta")
    _set(module, ordered.T, bias)
    return [(layer.name, module), *_activation(layer, f"{layer.name}_relu")], _Flow((kernel.shape[1],))


_BUILDERS: Mapping[str, _Builder] = {
    "Conv2D": _conv,
    "Activation": _relu_layer,
    "MaxPooling2D": _max_pool,
    "Dropout": _dropout,
    "GlobalAveragePooling2D": _global_average,
    "Flatten": _flatten,
    "Dense": _dense,
}


def _input_size(layer: Mapping[str, Any]) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of the model's input, from the configuration of its first layer."""
    shape = layer["config"].get("batch_input_shape")
    match shape:
        case [_, (int() | None) as height, (int() | None) as width, int(channels)]:
            return height, width, channels
    raise InputError(f"batch_input_shape={shape!r} is not [batch, height, width, channels]")


def _layer_list(raw: str | bytes) -> Sequence[Mapping[str, Any]]:
    """The layers of the JSON ``model_config``, each a mapping with ``class_name`` and ``config``."""
    try:
        model = json.loads(raw)
    except ValueError as error:
        raise InputError(f"its model_config is not JSON: {error}") from error
    match model:
        case {"class_name": "Sequential", "config": {"layers": [_, *_] as layers}}:
            pass
        case {"class_name": str(kind)} if kind != "Sequential":
            raise InputError(f"it is a Keras {kind} model; only Sequential models are read")
        case _:
            raise InputError("its model_config lists no layers; a Keras 2 Sequential model is expected")
    for layer in layers:
        match layer:
            case {"class_name": str(), "config": {"name": str()}}:
                pass
            case _:
                raise InputError(f"a layer of its model_config has no class_name or no name: {layer!r}")
    return list(layers)


def _weights(file: Any, name: str) -> dict[str, NDArray[np.float32]]:
    """The finite float32 arrays of layer ``name`` by bare name: ``dense_2/kernel:0`` is ``kernel``."""
    if "model_weights" not in file or name not in file["model_weights"]:
        return {}
    group = file["model_weights"][name]
    arrays: dict[str, NDArray[np.float32]] = {}
    for raw in group.attrs.get("weight_names", ()):
        path = raw.decode() if isinstance(raw, bytes) else str(raw)
        if path not in group:
            raise InputError(f"the weights {path!r} that layer {name!r} lists are not in the file")
        array = np.asarray(group[path])
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise InputError(f"the weights {path!r} of layer {name!r} are not finite float32 numbers")
        arrays[path.rsplit("/", 1)[-1].split(":")[0]] = array
    return arrays


def _build(file: Any) -> nn.Sequential:
    """The torch model of an open .h5 file."""
    if "model_config" not in file.attrs:
        raise InputError("it has no model_config: the weights alone were saved; save the whole Keras 2 model")
    layers = _layer_list(file.attrs["model_config"])
    flow = _Flow(_input_size(layers[0]))
    if layers[0]["class_name"] == "InputLayer":
        layers = layers[1:]
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for position, entry in enumerate(layers):
        kind, config = entry["class_name"], entry["config"]
        name = config["name"]
        layer = _Layer(kind, name, config, _weights(file, name), position == len(layers) - 1)
        if kind not in _BUILDERS:
            raise layer.refuse(f"this kind of layer is not read; known are {', '.join(_BUILDERS)}")
        added, flow = _BUILDERS[kind](layer, flow)
        for child, module in added:
            safe = child.replace(".", "_")  # a dot separates module paths in torch
            if safe in children:
                raise layer.refuse(f"two layers would be called {safe!r}")
            children[safe] = module
    if flow.order is not None:
        raise InputError("it ends in a flattened map, whose order differs between Keras and torch")
    return nn.Sequential(children)


def read_sequential(path: str | PathLike[str]) -> nn.Sequential:
    """The Keras 2 Sequential model saved at ``path`` as a float32 torch model in eval mode, returning logits.

    Input (N, channels, height, width), output (N, classes). Children bear the names of the Keras layers; an
    activation inside a layer follows it as ``<layer>_relu``, and a global average pool is followed by
    ``<layer>_flatten``. Raises InputError when the file is missing, is not such a model, or holds a layer or
    option outside the family, naming it; MissingPackageError without h5py.
    """
    h5py = gtsrb_package("h5py", "h5py", "Reading a Keras .h5 model")
    where = Path(path)
    if not where.is_file():
        raise InputError(f"there is no model file {where}")
    try:
        file = h5py.File(where, "r")
    except OSError as error:
        raise InputError(f"{where} is not a readable HDF5 file: {error}") from error
    with file:
        try:
            return _build(file).eval()
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
