"""The Keras reader, against a channels-last numpy forward that shares no code with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from missing import hidden
from torch import nn

from corgi_opt.data import gtsrb
from corgi_opt.errors import InputError, MissingPackageError

h5py = pytest.importorskip("h5py")
signal = pytest.importorskip("scipy.signal")


def entry(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


def write_model(path: Path, layers: list[dict[str, Any]], weights: dict[str, dict[str, np.ndarray]], **attrs) -> Path:
    """A file as Keras 2 writes it: JSON in an attribute, arrays under model_weights/<layer>/<layer>."""
    config = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        for key, value in attrs.items():
            file.attrs[key] = value
        for layer in layers:
            name = layer["config"].get("name")
            if name is None:
                continue
            group = file.require_group(f"model_weights/{name}")
            arrays = weights.get(name, {})
            group.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                group[f"{name}/{key}:0"] = array
    return path


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tiny(height: int, width: int, seed: int):
    """A flatten model: its Keras layers, weights, numpy forward (channels last) and input shape."""
    w = {
        "c1": {"kernel": draw(seed, 3, 3, 2, 3), "bias": draw(seed + 1, 3)},
        "c2": {"kernel": draw(seed + 2, 2, 3, 3, 4)},
        "c3": {"kernel": draw(seed + 3, 3, 1, 4, 5), "bias": draw(seed + 4, 5)},
    }
    h, v = 2 * height + 1, 2 * width + 2  # after the valid 2x3 kernel and the 2x2 pool: height x width
    units = height * width * 5
    w["d1"] = {"kernel": draw(seed + 5, units, 6), "bias": draw(seed + 6, 6)}
    w["d2"] = {"kernel": draw(seed + 7, 6, 4), "bias": draw(seed + 8, 4)}
    layers = [
        entry("InputLayer", "in", batch_input_shape=[None, h, v, 2]),
        entry("Conv2D", "c1", padding="same", strides=[1, 1], activation="relu", data_format="channels_last"),
        entry("Conv2D", "c2", padding="valid", strides=[1, 1], activation="linear", use_bias=False),
        entry("Activation", "a2", activation="relu"),
        entry("MaxPooling2D", "p", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        entry("Dropout", "drop", rate=0.3),
        entry("Conv2D", "c3", padding="same", activation="linear"),
        entry("Flatten", "flat", data_format="channels_last"),
        entry("Dense", "d1", activation="relu"),
        entry("Dense", "d2", activation="softmax"),
    ]

    def forward(image: np.ndarray) -> np.ndarray:
        x = np.maximum(conv(image, w["c1"]["kernel"], "same") + w["c1"]["bias"], 0)
        x = np.maximum(conv(x, w["c2"]["kernel"], "valid"), 0)
        x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
        x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
        x = conv(x, w["c3"]["kernel"], "same") + w["c3"]["bias"]
        x = np.maximum(x.reshape(-1) @ w["d1"]["kernel"].astype(float) + w["d1"]["bias"], 0)
        return x @ w["d2"]["kernel"].astype(float) + w["d2"]["bias"]

    return layers, w, forward, (h, v, 2)


def conv(image: np.ndarray, kernel: np.ndarray, mode: str) -> np.ndarray:
    """Cross-correlation of an (h, w, in) image with an (h, w, in, out) kernel, one channel pair at a time."""
    channels = [
        sum(
            signal.correlate2d(image[:, :, i].astype(float), kernel[:, :, i, o].astype(float), mode)
            for i in range(kernel.shape[2])
        )
        for o in range(kernel.shape[3])
    ]
    return np.stack(channels, axis=-1)


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None].copy())


@pytest.mark.parametrize(("height", "width", "seed"), [(3, 4, 0), (1, 5, 10), (5, 1, 20), (1, 1, 30), (4, 4, 40)])
def test_the_flatten_model_computes_what_keras_computes(tmp_path, height, width, seed):
    layers, weights, forward, shape = tiny(height, width, seed)
    model = gtsrb.load_paper_model(write_model(tmp_path / "m.h5", layers, weights)).double()
    for trial in range(3):
        image = draw(100 + trial, *shape).astype(float)
        with torch.no_grad():
            logits = model(as_batch(image))[0].numpy()
        np.testing.assert_allclose(logits, forward(image), rtol=1e-10, atol=1e-9)


def test_the_children_bear_the_names_of_the_keras_layers(tmp_path):
    layers, weights, *_ = tiny(2, 3, 0)
    layers[4]["config"]["name"] = "p.1"
    before = torch.get_rng_state()
    model = gtsrb.load_paper_model(str(write_model(tmp_path / "m.h5", layers, weights)))
    assert list(model._modules) == [
        "c1",
        "c1_relu",
        "c2",
        "a2",
        "p_1",
        "drop",
        "c3",
        "flat",
        "d1",
        "d1_relu",
        "d2",
    ]
    assert not any(module.training for module in model.modules())
    assert isinstance(model.c2, nn.Conv2d) and model.c2.bias is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(before, torch.get_rng_state())


def test_the_pooled_model_computes_what_keras_computes(tmp_path):
    """No InputLayer (the first layer states the shape), open height and width, softmax as a layer."""
    weights = {
        "c": {"kernel": draw(0, 3, 3, 3, 4), "bias": draw(1, 4)},
        "d": {"kernel": draw(2, 4, 6), "bias": draw(3, 6)},
    }
    layers = [
        entry(
            "Conv2D",
            "c",
            padding="valid",
            strides=[2, 1],
            activation="relu",
            batch_input_shape=[None] * 3 + [3],
        ),
        entry("GlobalAveragePooling2D", "gap"),
        entry("Dense", "d", activation="linear"),
        entry("Activation", "out", activation="softmax"),
    ]
    model = gtsrb.load_paper_model(write_model(tmp_path / "m.h5", layers, weights)).double()
    assert list(model._modules) == ["c", "c_relu", "gap", "gap_flatten", "d"]
    image = draw(5, 9, 7, 3).astype(float)
    features = np.maximum(conv(image, weights["c"]["kernel"], "valid")[::2] + weights["c"]["bias"], 0)
    expected = features.mean(axis=(0, 1)) @ weights["d"]["kernel"] + weights["d"]["bias"]
    np.testing.assert_allclose(model(as_batch(image))[0].detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (3, {"class_name": "BatchNormalization"}, r"'a2' \(BatchNormalization\): this kind"),
        (3, {"activation": "tanh"}, "'a2' .*activation 'tanh' is not supported"),
        (3, {"activation": "softmax"}, "'a2' .*only read at the very end"),
        (1, {"activation": "elu"}, "'c1' .*'elu'"),
        (1, {"data_format": "channels_first"}, "'c1' .*data_format='channels_first'"),
        (1, {"dilation_rate": [2, 2]}, "'c1' .*dilation_rate"),
        (1, {"groups": 2}, "'c1' .*groups=2"),
        (1, {"strides": [2, 2]}, "'c1' .*padding='same' needs stride 1"),
        (2, {"padding": "same"}, "'c2' .*odd height and width"),
        (2, {"padding": "causal"}, "'c2' .*padding='causal'"),
        (2, {"use_bias": True}, "'c2' .*a bias of shape .4,. is expected in the file; found none"),
        (2, {"strides": 0}, "'c2' .*strides=0 is not a pair"),
        (2, {"name": "other"}, r"'other' .*a kernel with 4 axes is expected in the file; found none"),
        (4, {"padding": "same"}, "'p' .*padding='same'"),
        (4, {"pool_size": [1, 1], "strides": [1, 1]}, "'d1' .*its kernel reads 60 units, but its input has"),
        (0, {"batch_input_shape": [None, 7, 10, 3]}, "'c1' .*reads 2 channels, but its input has 3"),
        (0, {"batch_input_shape": [None, None, 10, 2]}, "'flat' .*open"),
        (0, {"batch_input_shape": [None, 20]}, "batch_input_shape"),
        (7, {"class_name": "Dropout"}, "'d1' .*reads a map"),
        (7, {"class_name": "GlobalAveragePooling2D", "keepdims": True}, "'flat' .*keepdims=True"),
        (8, {"class_name": "MaxPooling2D"}, "'d1' .*gets a vector of 60"),
        (5, {"name": "p"}, "'p' .*two layers would be called 'p'"),
        (5, {"name": None}, "no class_name or no name"),
    ],
)
def test_what_could_mean_something_else_is_refused_by_name(tmp_path, position, change, message):
    layers, weights, *_ = tiny(3, 4, 0)
    layers[position]["class_name"] = change.pop("class_name", layers[position]["class_name"])
    layers[position]["config"].update(change)
    if layers[position]["config"]["name"] is None:
        del layers[position]["config"]["name"]
    path = write_model(tmp_path / "m.h5", layers, weights)
    with pytest.raises(InputError, match=message) as caught:
        gtsrb.load_paper_model(path)
    assert str(path) in str(caught.value)


def test_a_model_that_ends_in_a_flattened_map_is_refused(tmp_path):
    layers, weights, *_ = tiny(3, 4, 0)
    with pytest.raises(InputError, match="ends in a flattened map"):
        gtsrb.load_paper_model(write_model(tmp_path / "m.h5", layers[:8], weights))


@pytest.mark.parametrize(
    "array",
    [draw(0, 6, 4).astype(np.float64), np.full((6, 4), np.nan, np.float32), np.zeros((6, 4), np.int32)],
)
def test_weights_that_are_not_finite_float32_are_refused(tmp_path, array):
    layers, weights, *_ = tiny(3, 4, 0)
    weights["d2"]["kernel"] = array
    with pytest.raises(InputError, match="'d2/kernel:0' of layer 'd2' are not finite float32"):
        gtsrb.load_paper_model(write_model(tmp_path / "m.h5", layers, weights))


def test_a_listed_array_that_is_absent_is_refused(tmp_path):
    layers, weights, *_ = tiny(3, 4, 0)
    path = write_model(tmp_path / "m.h5", layers, weights)
    with h5py.File(path, "r+") as file:
        del file["model_weights/d1/d1/bias:0"]
    with pytest.raises(InputError, match="'d1/bias:0' that layer 'd1' lists are not in the file"):
        gtsrb.load_paper_model(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[]", "lists no layers"),
        ('{"class_name": "Sequential", "config": {"layers": []}}', "lists no layers"),
        ('{"class_name": "Functional", "config": {}}', "a Keras Functional model"),
    ],
)
def test_a_file_that_is_no_sequential_model_is_refused(tmp_path, config, message):
    path = write_model(tmp_path / "m.h5", [], {}, model_config=config)
    with pytest.raises(InputError, match=message):
        gtsrb.load_paper_model(path)


def test_a_file_that_is_missing_or_no_model_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model file .*none\.h5"):
        gtsrb.load_paper_model(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        gtsrb.load_paper_model(tmp_path / "text.h5")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="no model_config"):
        gtsrb.load_paper_model(tmp_path / "weights.h5")


def test_a_missing_h5py_is_named_with_the_command(tmp_path, monkeypatch):
    model = write_model(tmp_path / "m.h5", *tiny(3, 4, 5)[:2])
    with (
        hidden(monkeypatch, "h5py"),
        pytest.raises(MissingPackageError, match=r"pip install 'corgi_opt\[gtsrb\]'") as caught,
    ):
        gtsrb.load_paper_model(model)
    assert caught.value.package == "h5py"
    gtsrb.load_paper_model(model)
