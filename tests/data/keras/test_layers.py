"""Every layer that is read, against plain loops that share no code with it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from keras_files import (
    Net,
    Unit,
    assert_computes,
    batch_norm,
    conv,
    dense,
    depthwise,
    draw,
    functional,
    opened,
    plain,
    pooling,
    separable,
    sequential,
    transposed,
)
from keras_reference import ACTIVATIONS

from corgi_opt.data.keras.reader import built

MAP = (7, 6, 3)
PADDED = list(product(("valid", "same"), (1, 2, 3), (1, 2, 3, 4)))
"""Padding, stride and window. At 7 x 6, 'same' pads on one side only for some, on both for others, or nothing."""


def check(net: Net, major: int = 2) -> torch.nn.Module:
    model, _ = built(opened(net, major))
    assert_computes(model, net)
    return model


@pytest.mark.parametrize(("padding", "stride", "size"), PADDED)
def test_convolutions(padding, stride, size):
    given = {"padding": padding, "strides": [stride, 3 - stride if stride < 3 else 1]}
    check(sequential(MAP, conv("c", 3, 2, [size, 2], **given)))
    given["strides"] = [stride, stride]
    check(sequential(MAP, depthwise("c", 3, 2, size, **given)))
    check(sequential(MAP, separable("c", 3, 4, size, 2, **given)))
    check(sequential((4, 3, 3), transposed("c", 3, 2, [size, 3], **given)))


@pytest.mark.parametrize(("padding", "stride", "size"), PADDED)
def test_pools(padding, stride, size):
    """Where a window lacks pixels, a mean is over those that there are, and a maximum sees no zero."""
    for kind in ("MaxPooling2D", "AveragePooling2D"):
        net = sequential(MAP, pooling(kind, "p", [size, 3], padding=padding, strides=[stride, 2]))
        model = check(net)
        below = -1.0 - torch.rand(1, 3, 7, 6, dtype=torch.float64)
        assert float(model(below).max()) < -1.0


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_dilation_and_groups(padding):
    check(sequential(MAP, conv("c", 3, 2, 3, dilation_rate=[2, 2], padding=padding)))
    check(sequential(MAP, conv("c", 3, 2, 2, dilation_rate=[2, 3], padding=padding)))
    check(sequential(MAP, depthwise("c", 3, 1, 3, dilation_rate=[2, 1], padding=padding, use_bias=False)))
    check(sequential((5, 4, 4), conv("c", 4, 6, 3, groups=2, padding=padding, strides=[2, 2])))
    check(sequential((4, 3, 3), transposed("c", 3, 2, 2, dilation_rate=[2, 2], padding=padding)))


def test_a_kernel_of_keras_3_has_another_name_in_a_depthwise_layer():
    check(sequential(MAP, depthwise("c", 3, 2, key="kernel")), major=3)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_sequences(padding):
    net = sequential(
        (9, 3),
        conv("c", 3, 4, 3, 1, padding=padding),
        batch_norm("b", 4),
        plain("MaxPooling1D", "m", pool_size=2, strides=2, padding="same", data_format="channels_last"),
        separable("s", 4, 3, 2, 2, 1, padding="same"),
        plain("AveragePooling1D", "a", pool_size=3, strides=1, padding="same", data_format="channels_last"),
        plain("Flatten", "f", data_format="channels_last"),
    )
    size = net.forward(np.zeros((9, 3))).size
    check(Net(net.shape, (*net.units, dense("d", size, 2, ("f",)))))


def test_shapes_of_sequences():
    net = sequential(
        (9, 3),
        plain("ZeroPadding1D", "z", padding=[1, 2]),
        plain("Cropping1D", "c", cropping=[2, 1]),
        plain("Permute", "p", dims=[2, 1]),
        plain("Permute", "q", dims=[2, 1]),
        plain("GlobalMaxPooling1D", "g", data_format="channels_last", keepdims=True),
        plain("Reshape", "r", target_shape=[3]),
        dense("d", 3, 2),
    )
    check(net)
    check(sequential((9, 3), plain("GlobalAveragePooling1D", "g", data_format="channels_last", keepdims=False)))


@pytest.mark.parametrize(
    "unit",
    [
        batch_norm("b", 3),
        batch_norm("b", 3, axis=[3], epsilon=0.01, center=False),
        batch_norm("b", 3, axis=3, scale=False),
        plain("ZeroPadding2D", "z", padding=[[0, 1], [2, 3]], data_format="channels_last"),
        plain("ZeroPadding2D", "z", padding=[2, 1]),
        plain("ZeroPadding2D", "z", padding=2),
        plain("Cropping2D", "c", cropping=[[0, 2], [3, 1]], data_format="channels_last"),
        plain("UpSampling2D", "u", size=[2, 3], data_format="channels_last", interpolation="nearest"),
        plain("UpSampling2D", "u", size=[3, 2], data_format="channels_last", interpolation="bilinear"),
        plain("ReLU", "r", max_value=None, negative_slope=0.0, threshold=0.0),
        plain("ReLU", "r", max_value=6.0, negative_slope=0.0, threshold=0.0),
        plain("ReLU", "r", max_value=0.75, negative_slope=0.0, threshold=0.0),
        plain("ReLU", "r", max_value=0.75, negative_slope=0.25, threshold=0.0),
        plain("ReLU", "r", max_value=None, negative_slope=0.25, threshold=0.0),
        plain("LeakyReLU", "r", alpha=0.125),
        plain("LeakyReLU", "r", negative_slope=0.375),
        plain("LeakyReLU", "r"),
        plain("ELU", "r", alpha=0.5),
        Unit("PReLU", "r", {"shared_axes": None}, {"alpha": draw(0, *MAP)}),
        Unit("PReLU", "r", {"shared_axes": [1, 2]}, {"alpha": draw(0, 1, 1, 3)}),
        Unit("PReLU", "r", {"shared_axes": [1]}, {"alpha": draw(0, 1, 6, 3)}),
        plain("Softmax", "s", axis=-1),
        plain("GlobalAveragePooling2D", "g", data_format="channels_last", keepdims=False),
        plain("GlobalAveragePooling2D", "g", data_format="channels_last", keepdims=True),
        plain("GlobalMaxPooling2D", "g", data_format="channels_last", keepdims=False),
        plain("GlobalMaxPooling2D", "g", data_format="channels_last", keepdims=True),
        plain("Dropout", "d", rate=0.5, noise_shape=None, seed=None),
        plain("SpatialDropout2D", "d", rate=0.5, data_format="channels_last"),
        plain("GaussianNoise", "d", stddev=1.0, seed=3),
        plain("RandomFlip", "d", mode="horizontal_and_vertical", seed=None),
        plain("Rescaling", "s", scale=1 / 127.5, offset=-1.0),
        plain("Rescaling", "s", scale=[1.0, 2.0, 0.5], offset=[0.25, 0.5, -0.125]),
        plain("Rescaling", "s", scale=[1.0, 2.0, 0.5], offset=0.5),
        plain("Normalization", "n", axis=[-1], mean=[0.25, 0.5, 1.0], variance=[0.25, 4.0, 1.0], invert=False),
        plain("Normalization", "n", axis=None, mean=0.25, variance=4.0, invert=False),
        Unit(
            "Normalization",
            "n",
            {"axis": [-1], "mean": None, "variance": None},
            {"mean": draw(0, 3), "variance": draw(1, 3) ** 2, "count": np.array(9)},
        ),
        plain("Reshape", "r", target_shape=[6, 7, 3]),
        plain("Reshape", "r", target_shape=[2, 9, -1]),
        plain("Permute", "p", dims=[2, 1, 3]),
        plain("Permute", "p", dims=[3, 1, 2]),
        plain("Permute", "p", dims=[2, 3, 1]),
        dense("d", 3, 4),
    ],
    ids=lambda u: f"{u.kind}-{'-'.join(f'{k}={v}' for k, v in u.config.items() if k not in ('data_format', 'mean'))}"[
        :60
    ],
)
def test_a_layer(unit):
    """What follows reads channels, rows and columns, so that none of them may be another."""
    net = sequential(MAP, conv("before", 3, 3, 1), unit)
    check(net)
    out = net.forward(np.zeros(MAP))
    if out.ndim == 3:
        size = [min(2, n) for n in out.shape[:2]]
        check(Net(net.shape, (*net.units, conv("after", out.shape[2], 2, size, 2, (unit.name,)))))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_by_name(name):
    """Of a layer, and as a layer; not at the end, where softmax and sigmoid are left out."""
    tail = conv("tail", 4, 2, 1)
    check(sequential(MAP, conv("c", 3, 4, activation=name), tail))
    check(sequential(MAP, conv("c", 3, 4), plain("Activation", "a", activation=name), tail))


def test_hard_sigmoid_is_another_function_in_keras_3():
    net = sequential(MAP, plain("Activation", "a", activation="hard_sigmoid"))
    x = torch.linspace(-4, 4, 126, dtype=torch.float64).view(1, 3, 7, 6)
    for major, expected in ((2, (0.2 * x + 0.5).clamp(0, 1)), (3, ((x + 3) / 6).clamp(0, 1))):
        torch.testing.assert_close(built(opened(net, major))[0](x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "as_object",
    [
        {"class_name": "LeakyReLU", "config": {"negative_slope": 0.5}},
        {"class_name": "ReLU", "config": {"max_value": 0.5}},
    ],
)
def test_an_activation_may_be_a_layer(as_object):
    inner, config = as_object["class_name"], as_object["config"]
    net = sequential(MAP, conv("c", 3, 4), plain(inner, "c2", **config))
    written = sequential(MAP, conv("c", 3, 4, activation=as_object))
    assert_computes(built(opened(written, 3))[0], net)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"])
def test_merging(kind):
    branches = [conv(f"c{i}", 3, 4, 1, 2, ("in",), activation="relu" if i else "linear") for i in range(3)]
    two = plain(kind, "m", ("c0", "c1"))
    for major in (2, 3):
        check(functional(MAP, *branches[:2], two, conv("tail", 4, 2, 2, 2, ("m",))), major)
    if kind != "Subtract":
        check(functional(MAP, *branches, plain(kind, "m", ("c0", "c1", "c2"))))


@pytest.mark.parametrize(("axis", "shape"), [(-1, None), (3, None), (1, (2, 6, 3)), (2, (7, 2, 3)), (-2, (7, 2, 3))])
def test_concatenation(axis, shape):
    cut = [0, 0] if shape is None else [7 - shape[0], 6 - shape[1]]
    other = plain("Cropping2D", "other", ("in",), cropping=[[cut[0], 0], [cut[1], 0]])
    check(
        functional(
            MAP,
            other,
            plain("Concatenate", "m", ("in", "other"), axis=axis),
            conv("tail", 6 if shape is None else 3, 2, 2, 2, ("m",)),
        )
    )


# --- flattened maps: Keras's order of units is another than torch's ----------------------------------------------


FLAT = (plain("Flatten", "f", ("in",), data_format="channels_last"), 3 * 4 * 2)


@pytest.mark.parametrize(
    "units",
    [
        (dense("d", 24, 3, ("f",)),),
        (batch_norm("b", 24, ("f",)), dense("d", 24, 3, ("b",))),
        (Unit("PReLU", "p", {"shared_axes": None}, {"alpha": draw(0, 24)}, ("f",)), dense("d", 24, 3, ("p",))),
        (plain("Rescaling", "s", ("f",), scale=draw(1, 24).tolist(), offset=0.5), dense("d", 24, 3, ("s",))),
        (plain("Activation", "a", ("f",), activation="relu"), dense("d", 24, 3, ("a",))),
        (dense("e", 24, 24, ("f",)), plain("Add", "m", ("f", "e")), dense("d", 24, 3, ("m",))),
        (dense("e", 24, 5, ("f",)), plain("Concatenate", "m", ("e", "f"), axis=-1), dense("d", 29, 3, ("m",))),
        (plain("Reshape", "r", ("f",), target_shape=[4, 3, 2]), conv("c", 2, 3, 2, 2, ("r",))),
        (plain("Reshape", "r", ("f",), target_shape=[3, 4, 2]), conv("c", 2, 3, 2, 2, ("r",))),
        (plain("Reshape", "r", ("in",), target_shape=[24]), dense("d", 24, 3, ("r",))),
        (plain("Reshape", "r", ("in",), target_shape=[12, 2]), conv("c", 2, 3, 2, 1, ("r",))),
        (
            dense("e", 24, 8, ("f",)),
            plain("Reshape", "r", ("e",), target_shape=[2, 4, 1]),
            conv("c", 1, 3, 2, 2, ("r",)),
        ),
    ],
    ids=lambda units: "-".join(u.kind for u in units),
)
def test_flattened_maps(units):
    check(functional((3, 4, 2), FLAT[0], *units))


def test_a_map_of_one_pixel_is_a_vector_in_any_order():
    net = sequential(
        (3, 4, 2),
        conv("c", 2, 5, [3, 4]),
        plain("Flatten", "f"),
        plain("Reshape", "r", target_shape=[1, 1, 5]),
        plain("Flatten", "g"),
        dense("d", 5, 3),
    )
    check(net)
