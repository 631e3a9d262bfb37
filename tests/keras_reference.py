"""What Keras computes, in plain loops over channels-last numpy arrays, as its documentation says it.

Nothing is shared with the package. ``apply`` takes a layer as a file writes it (its class, its options, its weights by
name) and inputs without a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _starts(n: int, window: int, stride: int, padding: str) -> list[int]:
    """Where windows begin along an axis. 'same': ceil(n / stride), what they lack halved, the odd one behind."""
    if padding == "valid":
        return list(range(0, n - window + 1, stride))
    count = math.ceil(n / stride)
    lacking = max((count - 1) * stride + window - n, 0)
    before = window - 1 if padding == "causal" else lacking // 2
    return [i * stride - before for i in range(count)]


Window = tuple[int, int, list[tuple[int, int, Array]]]


def _windows(
    x: Array, window: Sequence[int], stride: Sequence[int], padding: str, dilation: Sequence[int] = (1, 1)
) -> Iterator[Window]:
    """(row, column, [(row in window, column in window, pixel)]) of every window, with the pixels that there are."""
    rows = _starts(x.shape[0], dilation[0] * (window[0] - 1) + 1, stride[0], padding)
    cols = _starts(
        x.shape[1], dilation[1] * (window[1] - 1) + 1, stride[1], "valid" if padding == "causal" else padding
    )
    for (r, top), (c, left) in product(enumerate(rows), enumerate(cols)):
        inside = []
        for a, b in product(range(window[0]), range(window[1])):
            i, j = top + a * dilation[0], left + b * dilation[1]
            if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                inside.append((a, b, x[i, j]))
        yield r, c, inside


def _gathered(x: Array, channels: int, each: Callable[[list[Any]], Array], *how: Any) -> Array:
    found = [(r, c, each(inside)) for r, c, inside in _windows(x, *how)]
    out = np.zeros((1 + max(r for r, *_ in found), 1 + max(c for _, c, _ in found), channels))
    for r, c, value in found:
        out[r, c] = value
    return out


def _how(config: dict[str, Any]) -> tuple[Any, ...]:
    return (
        _pair(config["kernel_size"]),
        _pair(config.get("strides", 1)),
        config.get("padding", "valid"),
        _pair(config.get("dilation_rate", 1)),
    )


def conv2d(x: Array, kernel: Array, config: dict[str, Any]) -> Array:
    """``kernel`` (rows, columns, channels of a group, filters): filters of group g read the channels of group g."""
    groups, filters, own = config.get("groups", 1), kernel.shape[3], kernel.shape[2]

    def each(inside: list[Any]) -> Array:
        out = np.zeros(filters)
        for a, b, pixel in inside:
            for f in range(filters):
                g = f // (filters // groups)
                out[f] += pixel[g * own : (g + 1) * own] @ kernel[a, b, :, f]
        return out

    return _gathered(x, filters, each, *_how(config))


def depthwise(x: Array, kernel: Array, config: dict[str, Any]) -> Array:
    """``kernel`` (rows, columns, channels, each): ``each`` filters a channel, one after another."""
    channels, many = kernel.shape[2:]

    def each(inside: list[Any]) -> Array:
        out = np.zeros(channels * many)
        for a, b, pixel in inside:
            for c, m in product(range(channels), range(many)):
                out[c * many + m] += pixel[c] * kernel[a, b, c, m]
        return out

    return _gathered(x, channels * many, each, *_how(config))


def transposed(x: Array, kernel: Array, config: dict[str, Any]) -> Array:
    """The gradient of a convolution by its input: ``kernel`` (rows, columns, filters, channels) is laid down at every
    ``stride``-th place and summed; 'same' keeps stride times the map."""
    (kh, kw), (sh, sw), padding, (dh, dw) = _how(config)
    wh, ww = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    h, w = x.shape[:2]
    whole = np.zeros(((h - 1) * sh + max(wh, sh), (w - 1) * sw + max(ww, sw), kernel.shape[2]))
    for i, j, a, b in product(range(h), range(w), range(kh), range(kw)):
        whole[i * sh + a * dh, j * sw + b * dw] += kernel[a, b] @ x[i, j]
    if padding == "valid":
        return whole
    top, left = max(wh - sh, 0) // 2, max(ww - sw, 0) // 2
    return whole[top : top + h * sh, left : left + w * sw]


def pool(x: Array, config: dict[str, Any], how: Callable[..., Any]) -> Array:
    size = _pair(config["pool_size"])
    stride = _pair(size if config.get("strides") is None else config["strides"])
    return _gathered(
        x, x.shape[2], lambda inside: how([p for *_, p in inside], axis=0), size, stride, config.get("padding", "valid")
    )


def upsample(x: Array, config: dict[str, Any]) -> Array:
    """Nearest: every pixel as often as ``size`` says. Bilinear: between the centres of pixels, the edge beyond them."""
    a, b = _pair(config["size"])
    if config.get("interpolation", "nearest") == "nearest":
        return x.repeat(a, axis=0).repeat(b, axis=1)
    out = np.zeros((x.shape[0] * a, x.shape[1] * b, x.shape[2]))
    for i, j in product(range(out.shape[0]), range(out.shape[1])):
        y, z = (i + 0.5) / a - 0.5, (j + 0.5) / b - 0.5
        for di, dj in product((0, 1), (0, 1)):
            r, c = math.floor(y) + di, math.floor(z) + dj
            share = (1 - abs(y - r)) * (1 - abs(z - c))
            out[i, j] += share * x[min(max(r, 0), x.shape[0] - 1), min(max(c, 0), x.shape[1] - 1)]
    return out


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(np.minimum(x, 0)) - 1)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "celu": lambda x: np.maximum(x, 0) + np.expm1(np.minimum(x, 0)),
    "log_sigmoid": lambda x: -np.log1p(np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "exponential": np.exp,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
}


def relu(x: Array, config: dict[str, Any]) -> Array:
    y = np.where(x > 0, x, config.get("negative_slope", 0.0) * x)
    return y if config.get("max_value") is None else np.minimum(y, config["max_value"])


def _sides(value: Any) -> list[tuple[int, int]]:
    if isinstance(value, int):
        return [(value, value)] * 2
    return [(v, v) if isinstance(v, int) else (v[0], v[1]) for v in value]


def _affine(kind: str, config: dict[str, Any], w: dict[str, Array], x: Array) -> Array:
    if kind in ("Conv1D", "SeparableConv1D", "DepthwiseConv1D"):  # steps are rows, of one column
        stretched = [k for k in ("kernel_size", "strides", "dilation_rate") if k in config]
        one = config | {k: [*np.atleast_1d(config[k]).tolist(), 1] for k in stretched}
        tall = {name: array[:, None] if "kernel" in name else array for name, array in w.items()}
        return _affine(kind.replace("1D", "2D"), one, tall, x[:, None])[:, 0]
    if kind == "Conv2D":
        y = conv2d(x, w["kernel"], config)
    elif kind == "DepthwiseConv2D":
        y = depthwise(x, w["depthwise_kernel" if "depthwise_kernel" in w else "kernel"], config)
    elif kind == "SeparableConv2D":
        y = depthwise(x, w["depthwise_kernel"], config) @ w["pointwise_kernel"][0, 0]
    elif kind == "Conv2DTranspose":
        y = transposed(x, w["kernel"], config)
    else:
        y = x @ w["kernel"]
    return y + w["bias"] if "bias" in w else y


MERGES: dict[str, Callable[..., Any]] = {
    "Add": np.sum,
    "Multiply": np.prod,
    "Average": np.mean,
    "Maximum": np.max,
    "Minimum": np.min,
}

AFFINE = (
    "Conv1D",
    "Conv2D",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Conv2DTranspose",
    "Dense",
)


def apply(kind: str, config: dict[str, Any], weights: dict[str, Array], *inputs: Array) -> Array:
    """One layer in inference, its own activation included."""
    y = _applied(kind, config, {name: np.asarray(w, dtype=float) for name, w in weights.items()}, *inputs)
    act = config.get("activation", "linear")
    return ACTIVATIONS[act](y)


def _applied(kind: str, config: dict[str, Any], w: dict[str, Array], *inputs: Array) -> Array:
    x = inputs[0]
    if kind in AFFINE:
        return _affine(kind, config, w, x)
    if kind in MERGES:
        return MERGES[kind](np.stack(np.broadcast_arrays(*inputs)), axis=0)
    if kind.endswith("1D") and kind not in ("SpatialDropout1D",) and not kind.startswith("Global"):
        key = {"Z": "padding", "C": "cropping", "M": "pool_size", "A": "pool_size"}[kind[0]]
        one = {
            **config,
            key: [config[key], [0, 0]] if key in ("padding", "cropping") and kind[0] in "ZC" else [config[key], 1],
        }
        if config.get("strides") is not None:
            one["strides"] = [config["strides"], 1]
        return _applied(kind.replace("1D", "2D"), one, w, x[:, None])[:, 0]
    spatial = tuple(range(x.ndim - 1))
    match kind:
        case "Subtract":
            return inputs[0] - inputs[1]
        case "Concatenate":
            axis = config.get("axis", -1)
            return np.concatenate(inputs, axis - 1 if axis > 0 else axis)
        case "BatchNormalization":
            y = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + config.get("epsilon", 1e-3))
            return y * w.get("gamma", 1.0) + w.get("beta", 0.0)
        case "MaxPooling2D":
            return pool(x, config, np.max)
        case "AveragePooling2D":
            return pool(x, config, np.mean)
        case "GlobalAveragePooling1D" | "GlobalAveragePooling2D":
            return x.mean(axis=spatial, keepdims=config.get("keepdims", False))
        case "GlobalMaxPooling1D" | "GlobalMaxPooling2D":
            return x.max(axis=spatial, keepdims=config.get("keepdims", False))
        case "ZeroPadding2D":
            return np.pad(x, [*_sides(config["padding"]), (0, 0)])
        case "Cropping2D":
            (t, b), (l, r) = _sides(config["cropping"])
            return x[t : x.shape[0] - b, l : x.shape[1] - r]
        case "UpSampling2D":
            return upsample(x, config)
        case "ReLU":
            return relu(x, config)
        case "LeakyReLU":
            return np.where(x > 0, x, config.get("negative_slope", config.get("alpha", 0.3)) * x)
        case "PReLU":
            return np.where(x > 0, x, w["alpha"] * x)
        case "ELU":
            return np.where(x > 0, x, config["alpha"] * (np.exp(np.minimum(x, 0)) - 1))
        case "Softmax":
            return ACTIVATIONS["softmax"](x)
        case "Flatten":
            return x.reshape(-1)
        case "Reshape":
            return x.reshape(config["target_shape"])
        case "Permute":
            return x.transpose([d - 1 for d in config["dims"]])
        case "Rescaling":
            return x * np.asarray(config["scale"]) + np.asarray(config.get("offset", 0.0))
        case "Normalization":
            mean = w.get("mean", config.get("mean"))
            variance = w.get("variance", config.get("variance"))
            return (x - np.asarray(mean)) / np.sqrt(np.asarray(variance))
        case "InputLayer" | "Activation" | "Dropout" | "SpatialDropout2D" | "GaussianNoise" | "RandomFlip":
            return x
    raise AssertionError(f"no reference for {kind}")
