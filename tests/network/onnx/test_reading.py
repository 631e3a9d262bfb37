"""Files that are missing, damaged, hostile or too large are refused with an error of ours, before it costs much."""

from __future__ import annotations

import os
import random
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from damage import damaged_bytes
from onnx import TensorProto, helper
from onnx_damage import damaged_model, whole
from onnx_models import Array, node, proto, weights

import corgi_opt as co
from corgi_opt.network.onnx import limits, reading, tensors
from corgi_opt.network.onnx.network import read_onnx

X = (1, 2, 4, 4)


def small(**given: Any) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[2, 3], keepdims=0)]
    return proto(nodes, weights(0, w=(3, 2, 2, 2)), **{"image": X, "output": {"y": (1, 3)}, **given})


def test_what_is_no_file_is_refused(tmp_path):
    for wrong in (tmp_path / "gone.onnx", tmp_path, "a\0b.onnx", ""):
        with pytest.raises(co.InputError, match=r"no such file|cannot read"):
            read_onnx(wrong)
    for wrong in (None, 3, b"bytes", torch.zeros(1), small().graph):
        with pytest.raises(co.InputError, match=r"path of an ONNX file or an onnx\.ModelProto"):
            read_onnx(wrong)


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    for data, why in ((b"", "names 0 versions"), (b"no model at all", "no ONNX file"), (os.urandom(2000), "no ")):
        path.write_bytes(data)
        with pytest.raises(co.InputError, match=why):
            read_onnx(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(limits.MOST_BYTES + 1)  # of zeros that take no room
    with pytest.raises(co.InputError, match="are not read"):
        read_onnx(path)


def test_a_model_is_not_written_to(tmp_path):
    model = whole()
    before = model.SerializeToString()
    read_onnx(model)
    assert model.SerializeToString() == before
    beside(tmp_path, model := small(), "data.bin")
    before = model.SerializeToString()
    with pytest.raises(co.InputError, match="pass the model's path"):
        read_onnx(model)
    assert model.SerializeToString() == before


# --- external data


def beside(folder: Path, model: onnx.ModelProto, location: str, write: bool = True, **entries: object) -> Path:
    """The model with its weight in another file; the path of the model."""
    weight = model.graph.initializer[0]
    if write:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_data_beside_the_file_is_read(tmp_path):
    x = torch.rand(X, dtype=torch.float64)
    written: tuple[tuple[str, dict[str, Any]], ...] = (
        ("data.bin", {}),
        ("parts/data.bin", {"offset": 0, "length": 96}),
    )
    for location, entries in written:
        found = read_onnx(beside(tmp_path, small(), location, **entries))
        assert torch.equal(found(x), read_onnx(small())(x))
        assert found.origin.compared
    data = (tmp_path / "data.bin").read_bytes()
    (tmp_path / "data.bin").write_bytes(b"\xff" * 64 + data + b"\xff")
    found = read_onnx(beside(tmp_path, small(), "data.bin", write=False, offset=64, length=96))
    assert torch.equal(found(x), read_onnx(small())(x))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a/../../secret",
        "a\\..\\..\\secret",
        "C:\\secret",
        "\0",
        "gone",
        "link",
        "a" * 5000,
    ],
)
def test_data_elsewhere_is_not_read(tmp_path, location):
    (tmp_path / "secret").write_bytes(b"\0" * 96)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(co.InputError, match="names the file"):
        read_onnx(beside(folder, small(), location, write=False))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 1},
        {"offset": -1},
        {"length": 95},
        {"length": "much"},
        {"offset": 2**62},
        {"offset": "1e3"},
        {"length": 97},
    ],
)
def test_data_must_be_what_the_tensor_takes(tmp_path, entries):
    with pytest.raises(co.InputError, match=r"takes 96 bytes|number of bytes"):
        read_onnx(beside(tmp_path, small(), "data.bin", **entries))


# --- sizes


def peak() -> int:
    """The most memory this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def bomb(*nodes: onnx.NodeProto, **constants: object) -> onnx.ModelProto:
    held = {name: np.asarray(value) for name, value in constants.items()}
    return proto(nodes, held, X, {"y": (1, 3)})


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


HUGE, LONG = 2**40, 2**20
KERNEL = [node("Pad", ["x", "s"], ["z"]), node("ConstantOfShape", ["k"], ["w"]), node("Conv", ["z", "w"], ["y"])]
STRIDE = [node("ConstantOfShape", ["k"], ["w"]), node("ConvTranspose", ["x", "w"], ["y"], strides=[HUGE, 1])]
LINES = [node("ConstantOfShape", ["a"], ["l"]), node("ConstantOfShape", ["b"], ["r"])]
BOMBS = {
    "expand": bomb(node("Expand", ["x", "s"], ["y"]), s=ints(HUGE, 2, 4, 4)),
    "tile": bomb(node("Tile", ["x", "s"], ["y"]), s=ints(1, LONG, LONG, 1)),
    "map": bomb(node("Tile", ["x", "s"], ["y"]), s=ints(1, 2 * LONG, 1, 1)),
    "pad": bomb(node("Pad", ["x", "s"], ["y"]), s=ints(0, 0, 0, 0, 0, 0, HUGE, 0)),
    "resize": bomb(node("Resize", ["x", "", "s"], ["y"]), s=np.array([1, 1, 1e9, 1], np.float32)),
    "range": bomb(
        *(node("Range", ["a", "b", "c"], ["r"]), node("Gather", ["x", "r"], ["y"])),
        a=np.int64(0),
        b=np.int64(2**62),
        c=np.int64(1),
    ),
    "constant": bomb(node("ConstantOfShape", ["s"], ["w"]), node("Add", ["x", "w"], ["y"]), s=ints(HUGE, HUGE)),
    "many": bomb(
        *(node("ConstantOfShape", ["s"], [f"w{i}"]) for i in range(64)),
        node("Sum", ["x", *(f"w{i}" for i in range(64))], ["y"]),
        s=ints(2**22),
    ),
    "kernel": bomb(*KERNEL, s=ints(0, 0, 0, 0, 0, 0, 3000, 3000), k=ints(1, 2, 1500, 1500)),
    "stride": bomb(*STRIDE, k=ints(2, 1, 2, 2)),
    "sum": bomb(*LINES, node("Sum", ["x", "l", "r"], ["y"]), a=ints(LONG, 1), b=ints(1, LONG)),
    "product": bomb(
        *(*LINES, node("MatMul", ["l", "r"], ["w"]), node("Add", ["x", "w"], ["y"])),
        a=ints(LONG, 1),
        b=ints(1, LONG),
    ),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_few_bytes_do_not_ask_for_much_memory(name):
    before, begun = peak(), time.process_time()
    with pytest.raises(co.CorgiError, match=r"not made|too much memory|malformed"):
        read_onnx(BOMBS[name])
    assert peak() - before < 1500
    assert time.process_time() - begun < 10


def test_declared_sizes_are_held_against_the_bytes_that_are_there():
    for dims in ((2**40,), (2**31, 2**31), (-1, 4), (3, 2, 2, 3), (3, 2, 2), (1,) * 40):
        model = small()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        with pytest.raises(co.InputError, match=r"shape|malformed|no valid"):
            read_onnx(model)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, 0, 99, -1])
def test_tensors_that_hold_no_numbers_are_refused(kind):
    model = small()
    model.graph.initializer[0].data_type = kind
    with pytest.raises(co.UnsupportedOpError, match="type number"):
        read_onnx(model)


def test_values_are_the_same_however_they_are_written():
    for kind, values in (
        (TensorProto.FLOAT, [0.5, -1.25, 3e38]),
        (TensorProto.DOUBLE, [0.1, -1e300]),
        (TensorProto.FLOAT16, [0.5, -1.25, 65504]),
        (TensorProto.INT64, [2**62, -(2**62)]),
        (TensorProto.INT32, [2**31 - 1, -5]),
        (TensorProto.UINT32, [2**32 - 1, 5]),
        (TensorProto.INT16, [-32768, 5]),
        (TensorProto.UINT16, [65535, 5]),
        (TensorProto.INT8, [-128, 5]),
        (TensorProto.UINT8, [255, 5]),
        (TensorProto.BOOL, [True, False]),
    ):
        listed = helper.make_tensor("t", kind, [len(values)], values)
        array = np.array(values).astype(helper.tensor_dtype_to_np_dtype(kind))
        raw = helper.make_tensor("t", kind, [len(values)], array.tobytes(), raw=True)
        for made in (listed, raw):
            assert tensors.tensor(made, "t").tolist() == array.tolist()


# --- chains and rings


def test_a_ring_of_nodes_is_refused(monkeypatch):
    nodes = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    with pytest.raises(co.InputError, match="no valid ONNX model"):
        read_onnx(proto(nodes, {}, X, {"y": (1, 3)}))
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)  # as if it had let it through
    with pytest.raises(co.InputError, match="before it is calculated"):
        read_onnx(proto(nodes, {}, X, {"y": (1, 3)}))


def test_a_long_chain_is_read():
    """Nothing here goes deeper for every node."""
    nodes = [node("Identity", [f"v{at}" if at else "x"], [f"v{at + 1}"]) for at in range(1000)]
    model = proto([*nodes, node("Relu", ["v1000"], ["y"])], {}, X, {"y": X})
    assert len(list(read_onnx(model).steps())) == 1001


def test_a_graph_inside_a_graph_is_refused():
    inner = helper.make_graph([node("Relu", ["x"], ["i"])], "inner", [], [helper.make_tensor_value_info("i", 1, X)])
    choice = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = proto([choice], {"c": np.bool_(True)}, X, {"y": X})
    with pytest.raises(co.UnsupportedOpError, match=r"ONNX If.*fixed sequence"):
        read_onnx(model)


def test_two_tensors_of_one_name_are_refused():
    twice = small()
    twice.graph.initializer.append(twice.graph.initializer[0])
    with pytest.raises(co.InputError, match=r"two tensors of one name|no valid"):
        read_onnx(twice)


# --- fuzz


def fuzzed(seed: int, times: int, folder: Path) -> Counter[str]:
    """How often a damaged model was read, and how often it was refused, by what."""
    model, path = whole(), folder / "damaged.onnx"
    data, found = model.SerializeToString(), Counter[str]()
    for at in range(times):
        rng = random.Random(seed * 10_000_019 + at)
        source: Path | onnx.ModelProto = path
        if at % 3:
            source = damaged_model(rng, model)
        else:
            path.write_bytes(damaged_bytes(rng, data))
        begun, before = time.process_time(), peak()
        try:
            read_onnx(source)
            found["read"] += 1
        except co.CorgiError as error:
            found[type(error).__name__] += 1
        assert time.process_time() - begun < 10, at
        assert peak() - before < 1500, at
    return found


def require_spread(found: Counter[str], times: int) -> None:
    assert found["read"] > times // 50 and found["InputError"] > times // 3
    assert found["UnsupportedOpError"] > times // 100
    assert set(found) <= {"read", "InputError", "UnsupportedOpError"}


def test_damaged_files_give_errors_of_ours(tmp_path):
    require_spread(fuzzed(1, 240, tmp_path), 240)


@pytest.mark.slow
def test_many_damaged_files_give_errors_of_ours(tmp_path):
    require_spread(fuzzed(2, 6000, tmp_path), 6000)


def test_errors_that_are_not_ours_become_ours():
    with (
        pytest.raises(co.InputError, match=r"the file is malformed: ZeroDivisionError: division"),
        reading.malformed("the file"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(co.ParityError), reading.malformed("the file"):
        raise co.ParityError("kept as it is")
