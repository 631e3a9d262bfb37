"""Files that are damaged or made to harm: an error of ours that says why, soon, and with little memory."""

from __future__ import annotations

import copy
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_files import (
    Net,
    batch_norm,
    conv,
    dense,
    functional,
    h5py,
    opened,
    plain,
    pooling,
    sequential,
    write,
    write_h5,
    write_keras,
)

import corgi_opt as co
from corgi_opt.data.keras import torch_model
from corgi_opt.data.keras.reader import built
from corgi_opt.data.keras.store import Store

SECONDS, MEGABYTES = 10, 400


def victim() -> Net:
    return functional(
        (8, 6, 2),
        conv("c", 2, 4, 3, 2, ("in",), padding="same", strides=[2, 2], activation="relu"),
        batch_norm("b", 4, ("c",)),
        plain("ZeroPadding2D", "z", ("b",), padding=[[0, 1], [1, 0]], data_format="channels_last"),
        pooling("MaxPooling2D", "p", 2, strides=[1, 1]).reading("z"),
        plain("Add", "m", ("p", "b")),
        plain("Dropout", "o", ("m",), rate=0.5),
        plain("GlobalAveragePooling2D", "g", ("o",), data_format="channels_last"),
        dense("d", 4, 3, ("g",), activation="softmax"),
    )


def endure(read: Callable[[], object], what: object) -> str:
    """How reading ends: "read", or the name of an error of ours; any other error fails, and so does taking long."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        read()
        ended = "read"
    except (co.InputError, co.UnsupportedOpError) as error:
        ended = type(error).__name__
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - began + (after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime)
    assert spent < SECONDS, what
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024, what
    return ended


# --- bytes -------------------------------------------------------------------------------------------------------


def damaged(whole: bytes, seed: int) -> bytes:
    """Cut off, or with some bytes flipped, overwritten, or moved."""
    draws, data = random.Random(seed), bytearray(whole)
    if draws.random() < 0.15:
        return bytes(data[: draws.randrange(len(data))])
    within = len(data) if draws.random() < 0.5 else min(len(data), 4000)  # the front is mostly structure
    for _ in range(draws.choice([1, 1, 2, 5, 20, 100])):
        at = draws.randrange(within)
        data[at] = draws.choice([data[at] ^ (1 << draws.randrange(8)), draws.randrange(256), 255, 0])
    return bytes(data)


def fuzz(tmp_path: Path, seeds: range) -> dict[str, int]:
    """Half of them .h5, half .keras, of which half have sound zips around damaged weights."""
    net, ended = victim(), dict[str, int]()
    h5 = write(net, tmp_path / "a", "keras2.h5").read_bytes()
    zipped = write(net, tmp_path / "a", "keras3.keras").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        inner = archive.read("model.weights.h5")
    for seed in seeds:
        path = tmp_path / ("b.h5" if seed % 2 else "b.keras")
        if seed % 4 == 2:
            write_keras(path, net.config(3, typed=True), net.units, model_weights_h5=damaged(inner, seed))
        else:
            path.write_bytes(damaged(h5 if seed % 2 else zipped, seed))
        how = endure(partial(torch_model, path), seed)
        ended[how] = ended.get(how, 0) + 1
    return ended


def test_damaged_files(tmp_path):
    assert fuzz(tmp_path, range(12)).get("InputError", 0) >= 3


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    ended = fuzz(tmp_path, range(1000, 1600))
    assert ended["InputError"] >= 150 and ended["read"] >= 50, ended


# --- configurations ----------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        10**9,
        10**30,
        -(10**9),
        0.5,
        -3.5,
        1e308,
        "",
        "x",
        "same",
        "relu",
        "softmax",
    ),
    *(
        [],
        {},
        [0, 0],
        [10**9, 10**9],
        [[1, 2], [3, 4]],
        [None, 8, 6, 2],
        [[["c", 0, 0, {}]]],
        [[["d", 0, 0, {}]]],
        ["in", 0, 0],
    ),
    *(
        {"class_name": "Lambda", "config": {}},
        {"class_name": "LeakyReLU", "config": {}},
        [[]] * 3,
        "Conv2D",
        "Reshape",
        "Flatten",
    ),
    *(
        "UpSampling2D",
        "Permute",
        "Sequential",
        "Functional",
        "channels_first",
        "valid",
        "causal",
        [[[["c", 0, 0, {}]]]],
        [-1],
    ),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*path, key))


def mutated(config: Any, seed: int) -> Any:
    """With one to four of its parts replaced, left out, repeated or renamed."""
    draws, config = random.Random(seed), copy.deepcopy(config)
    for _ in range(draws.choice([1, 1, 1, 2, 4])):
        path = draws.choice([p for p in places(config) if p])
        holder = config
        for key in path[:-1]:
            holder = holder[key]
        how = draws.randrange(6)
        if how == 0 and isinstance(holder, dict):
            del holder[path[-1]]
        elif how == 1 and isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
        elif how == 2 and isinstance(holder, dict):
            holder[f"{path[-1]}_of_old"] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(draws.choice(VALUES))
    return config


def mutate(seeds: range) -> dict[str, int]:
    ended: dict[str, int] = {}
    stores = [opened(victim(), 2), opened(victim(), 3)]
    for seed in seeds:
        store = stores[seed % 2]
        broken = Store(mutated(store.config, seed), store.major, store.names, store.arrays, store.zipped)
        how = endure(partial(built, broken), seed)
        ended[how] = ended.get(how, 0) + 1
    return ended


def test_configurations_that_contradict_themselves():
    ended = mutate(range(300))
    assert ended["InputError"] >= 50 and ended["UnsupportedOpError"] >= 10 and ended["read"] >= 10, ended


@pytest.mark.slow
def test_many_configurations_that_contradict_themselves():
    assert mutate(range(1000, 6000))["InputError"] >= 1000


# --- made to harm ------------------------------------------------------------------------------------------------


def refuse(read: Callable[[], object], words: str) -> None:
    def reading() -> None:
        with pytest.raises((co.InputError, co.UnsupportedOpError), match=words) as caught:
            read()
        raise caught.value

    assert endure(reading, words) != "read"


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (plain("UpSampling2D", "u", size=[10**6, 10**6]), "'u' .*larger than any"),
        (plain("ZeroPadding2D", "u", padding=[10**7, 10**7]), "'u' .*larger than any"),
        (plain("Reshape", "u", target_shape=[10**9, 10**9]), "'u' .*96 values have no shape"),
        (plain("Dense", "u", units=10**9, activation="linear", use_bias=True), "'u' .*kernel of shape .2, 1000000000."),
        (conv("u", 2, 4).with_(kernel_size=[10**9, 10**9]), "'u' .*kernel of shape .1000000000, 1000000000, 2, 4."),
        (conv("u", 2, 4).with_(dilation_rate=[10**9, 10**9]), "'u' .*does not fit"),
        (conv("u", 2, 4).with_(strides=[10**99, 1]), "'u' .*is not a pair"),
        (pooling("MaxPooling2D", "u", 10**9), "'u' .*does not fit"),
    ],
    ids=["upsampling", "padding", "reshape", "dense", "kernel", "dilation", "stride", "pool"],
)
def test_huge_sizes(unit, words):
    refuse(lambda: built(opened(sequential((8, 6, 2), unit), 2)), words)


def test_a_huge_image():
    for shape in [(10**6, 10**6, 3), (10**9, 10**9, 10**9), (None, None, 10**9)]:
        refuse(partial(built, opened(sequential(shape, plain("Flatten", "f")), 2)), "larger than any")


def test_a_map_that_grows_without_a_size_stays_small():
    """Where height and width are open, the size is known when it runs."""
    ups = [
        plain("UpSampling2D", f"u{i}", size=[1000, 1000], data_format="channels_last", interpolation="nearest")
        for i in range(4)
    ]
    model, _ = built(opened(sequential((None, None, 1), *ups), 2))
    refuse(lambda: model(torch.ones(1, 1, 2, 2)), "more than .* values")


def test_circles():
    a, b = plain("Add", "a", ("in", "b")), plain("ReLU", "b", ("a",))
    for major in (2, 3):
        refuse(partial(built, opened(functional((8, 6, 2), a, b), major)), "circle")
    refuse(lambda: built(opened(functional((8, 6, 2), plain("ReLU", "a", ("a",))), 2)), "circle")


def nested(depth: int, calls: int) -> dict[str, Any]:
    """A model in a model, each called so often by the one around it."""
    model = sequential((8, 6, 2), plain("ReLU", "r")).config(2, typed=False)
    for at in range(depth):
        inner = {**model, "name": f"n{at}", "config": {**model["config"], "name": f"n{at}"}}
        nodes = [[["in", 0, 0, {}]], *([[f"n{at}", 1 + i, 0, {}]] for i in range(calls - 1))]
        layers = [
            {
                "class_name": "InputLayer",
                "name": "in",
                "config": {"name": "in", "batch_input_shape": [None, 8, 6, 2]},
                "inbound_nodes": [],
            },
            {**inner, "inbound_nodes": nodes},
        ]
        ends = {"input_layers": [["in", 0, 0]], "output_layers": [[f"n{at}", calls, 0]]}
        model = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **ends}}
    return model


@pytest.mark.parametrize(("depth", "calls", "words"), [(60, 1, "nested deeper"), (15, 3, "calls more than")])
def test_models_in_models(depth, calls, words):
    refuse(lambda: built(Store(nested(depth, calls), 2, {}, {}, False)), words)
    assert endure(lambda: built(Store(nested(4, 2), 2, {}, {}, False)), "a few") == "read"


def test_deep_and_long_json(tmp_path):
    write_h5(tmp_path / "a.h5", "[" * 1_000_000, {})
    refuse(lambda: torch_model(tmp_path / "a.h5"), "not JSON")
    write_h5(tmp_path / "a.h5", '{"class_name": "Sequential", "config": NaN}', {})
    refuse(lambda: torch_model(tmp_path / "a.h5"), "NaN is no number")
    layers = [{"class_name": "ReLU", "config": {"name": f"r{i}"}} for i in range(20_000)]
    refuse(
        lambda: built(Store({"class_name": "Sequential", "config": {"layers": layers}}, 2, {}, {}, False)),
        "more than 10,000",
    )


def test_zip_bombs(tmp_path):
    net = victim()
    for member, words in (("config.json", "config.json holds"), ("model.weights.h5", "unpack to")):
        with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("config.json", "metadata.json", "model.weights.h5"):
                whole = json.dumps(net.config(3, typed=True)).encode() if name == "config.json" else b"{}"
                archive.writestr(name, b" " * 200_000_000 if name == member else whole)
        refuse(lambda: torch_model(tmp_path / "a.keras"), words)


def test_a_zip_without_its_parts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    refuse(lambda: torch_model(tmp_path / "a.keras"), "no .keras file, or a damaged one")


def test_arrays_that_are_not_there(tmp_path):
    """Numbers of nothing, packed numbers, numbers of another file, links, and circles of links."""
    net = sequential((8, 6, 2), plain("Flatten", "f"), dense("d", 96, 3))
    path = write(net, tmp_path / "a", "keras2.h5")
    outside = tmp_path / "secret"
    outside.write_bytes(b"\0" * 4 * 96 * 3)
    kernel = "model_weights/d/d/kernel:0"

    def changed(change: Callable[[Any], object]) -> Callable[[], object]:
        file_path = write(net, tmp_path / "a", "keras2.h5")
        with h5py.File(file_path, "r+") as file:
            change(file)
        return lambda: torch_model(path)

    def replaced(**how: Any) -> Callable[[Any], None]:
        def change(file: Any) -> None:
            del file[kernel]
            file.create_dataset(kernel, dtype="f4", **how)

        return change

    refuse(changed(replaced(shape=(10**6, 10**6), chunks=(100, 100))), "more numbers than a file of this size")
    refuse(changed(replaced(data=np.zeros((4000, 4000), "f4"), compression="gzip")), "more numbers than a file")
    refuse(changed(replaced(shape=(96, 3), external=[(str(outside), 0, 4 * 96 * 3)])), "from another file")
    refuse(
        changed(lambda f: [f.__delitem__(kernel), f.__setitem__(kernel, h5py.SoftLink("/model_weights"))]),
        "link to somewhere",
    )
    refuse(
        changed(lambda f: [f.__delitem__(kernel), f.__setitem__(kernel, h5py.ExternalLink(str(outside), "/"))]),
        "link to somewhere",
    )
    refuse(changed(lambda f: f["model_weights/d"].__setitem__("loop", f["model_weights"])), "nested deeper")

    def twice(file):
        file["model_weights/d/one"] = file["model_weights"]
        file["model_weights/d/two"] = file["model_weights"]

    refuse(changed(twice), "nested deeper")


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    """A Lambda's bytecode, a class of somebody's own, a function by name: refused, and nothing is imported."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\nclass Layer: pass\n")
    code = ["4wAAAAAAAAAA", None, None]
    units = [
        (plain("Lambda", "l", function=code, function_type="lambda", module="evil"), {}),
        (plain("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": code[0]}}), {}),
        (plain("Layer", "l"), {"module": "evil", "registered_name": "evil>Layer"}),
        (plain("ReLU", "l"), {"module": "evil", "registered_name": None}),
        (plain("ReLU", "l"), {"module": "keras.layers", "registered_name": "evil>ReLU"}),
        (plain("Activation", "l", activation={"module": "evil", "class_name": "function", "config": "Layer"}), {}),
        (plain("Add", "l"), {"module": "keras.src.ops.numpy", "registered_name": None}),
    ]
    for unit, given in units:
        store = opened(sequential((8, 6, 2), unit), 2)
        store.config["config"]["layers"][1].update(given)
        refuse(partial(built, store), "Keras layer 'l'")
    assert not Path("ran").exists()
