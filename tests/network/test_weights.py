"""Weights are read from files, and nothing else is."""

from __future__ import annotations

import pickle
import random
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from damage import damaged_bytes
from nets import Everything, Plain, Residual, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.network import weights


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".PTH"])
def test_weights_come_back_as_they_were(tmp_path, suffix):
    wanted, other = seeded(Residual, 1), seeded(Residual, 2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(wanted.state_dict(), path)
    else:
        torch.save(wanted.state_dict(), path)
    assert not same(wanted, other)
    found = co.load_weights(other.train(), path)
    assert found is other and same(wanted, other) and not other.training


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_file_is_never_run(tmp_path, suffix):
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"body.0.weight": Bomb(mark)}
    torch.save(content, path)
    with pytest.raises(co.InputError, match="cannot read weights"):
        co.load_weights(seeded(Plain), path)
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(co.InputError, match="cannot read weights"):
        co.load_weights(seeded(Plain), path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(content))  # the mark is left where somebody does unpickle it
    assert mark.exists()


def test_whole_models_and_other_things_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(seeded(Plain), path)
    with pytest.raises(co.InputError, match="cannot read weights"):
        co.load_weights(seeded(Plain), path)
    for content in ([1, 2], {"a": 1}, {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(co.InputError, match="no state dict"):
            co.load_weights(seeded(Plain), path)


def test_other_models_weights_and_other_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(co.InputError, match="no such file"):
        co.load_weights(seeded(Plain), path)
    safetensors.torch.save_file(seeded(Residual).state_dict(), path)
    with pytest.raises(co.InputError, match="not this model's"):
        co.load_weights(seeded(Plain), path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(co.InputError, match="cannot read weights"):
        co.load_weights(seeded(Plain), path)
    monkeypatch.setattr(weights, "MOST_BYTES", 10)
    with pytest.raises(co.InputError, match="50 bytes"):
        co.load_weights(seeded(Plain), path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(co.InputError, match="are read from"):
        co.load_weights(seeded(Plain), tmp_path / "weights.bin")


def test_a_model_whose_file_is_refused_has_its_own_weights_still(tmp_path):
    """Of a state dict that fits in part torch has copied that part when it raises."""
    path, model = tmp_path / "weights.safetensors", seeded(Plain, 1)
    state = seeded(Plain, 2).state_dict()
    safetensors.torch.save_file({**state, "head.weight": torch.zeros(1, 1)}, path)
    with pytest.raises(co.InputError, match="not this model's") as raised:
        co.load_weights(model, path)
    assert "head.weight" in str(raised.value) and same(model, seeded(Plain, 1))
    torch.save({**state, "head.weight": state["head.weight"].to_sparse()}, tmp_path / "weights.pt")
    with pytest.raises(co.InputError, match="weights"):
        co.load_weights(model, tmp_path / "weights.pt")
    assert same(model, seeded(Plain, 1))


def refused(model: torch.nn.Module, path: Path) -> str:
    with pytest.raises(co.InputError) as raised:
        co.load_weights(model, path)
    return str(raised.value)


def test_an_error_names_what_is_missing_what_is_more_and_what_has_another_shape(tmp_path):
    path, state = tmp_path / "weights.pt", seeded(Everything).state_dict()
    torch.save({f"other.{name}": value for name, value in state.items()}, path)
    said = refused(seeded(Everything), path)
    names = sorted(state)
    assert said.startswith(f"the weights in {path} are not this model's: {len(state)} missing in the file: ")
    assert f"missing in the file: {', '.join(names[:4])} and {len(state) - 4} more; " in said
    assert f"{len(state)} not in the model: other.{names[0]}, " in said and "another shape" not in said
    torch.save({**state, names[0]: torch.zeros(7)}, path)
    said = refused(seeded(Everything), path)
    shape = tuple(state[names[0]].shape)
    assert said.endswith(f"model's: 1 of another shape: {names[0]} is (7,) in the file and {shape} in the model")


def test_what_data_parallel_saved_is_read_without_its_prefix(tmp_path):
    path, wanted, model = tmp_path / "weights.pt", seeded(Plain, 1), seeded(Plain, 2)
    torch.save(torch.nn.DataParallel(wanted).state_dict(), path)
    assert same(co.load_weights(model, path), wanted)
    whole = {f"module.{name}": value for name, value in seeded(Plain, 3).state_dict().items()}
    first, *_ = whole
    torch.save({name: value for name, value in whole.items() if name != first}, path)
    said = refused(model, path)
    assert "(read without the 'module.' that DataParallel puts before every name): 1 missing in the file" in said
    assert first.removeprefix("module.") in said and same(model, wanted)


def test_a_prefix_that_some_names_have_is_left_and_said(tmp_path):
    path, model, state = tmp_path / "weights.pt", seeded(Plain, 2), seeded(Plain, 1).state_dict()
    torch.save({f"module.{name}" if "head" in name else name: value for name, value in state.items()}, path)
    said = refused(model, path)
    assert "2 not in the model: module.head.bias, module.head.weight" in said
    assert said.endswith("save model.module.state_dict() instead")
    torch.save(torch.nn.DataParallel(seeded(Plain, 1)).module.state_dict(), path)  # as it says
    assert same(co.load_weights(model, path), seeded(Plain, 1))


def test_a_model_that_has_a_module_called_module_keeps_its_names(tmp_path):
    path, wanted = tmp_path / "weights.pt", torch.nn.DataParallel(seeded(Plain, 1))
    torch.save(wanted.state_dict(), path)
    assert same(co.load_weights(torch.nn.DataParallel(seeded(Plain, 2)), path), wanted)
    torch.save(wanted.module.state_dict(), path)
    assert "6 missing in the file: module." in refused(torch.nn.DataParallel(seeded(Plain, 2)), path)


def test_a_counter_that_old_batch_norms_lack_may_be_missing(tmp_path):
    path, wanted = tmp_path / "weights.safetensors", torch.nn.BatchNorm2d(3)
    torch.nn.init.normal_(wanted.weight)
    state = {name: value for name, value in wanted.state_dict().items() if name != "num_batches_tracked"}
    safetensors.torch.save_file(state, path)
    assert torch.equal(co.load_weights(torch.nn.BatchNorm2d(3), path).weight, wanted.weight)  # type: ignore[arg-type]


def test_a_checkpoint_says_what_it_holds(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "state_dict": seeded(Plain).state_dict()}, path)
    assert "(it holds 'epoch', 'state_dict'); save model.state_dict() alone" in refused(seeded(Plain), path)


def saved(folder: Path, kind: str) -> Path:
    """Weights in one of three formats; torch's old one is a pickle without an archive around it."""
    state, path = seeded(Everything).state_dict(), folder / f"whole{'.safetensors' if kind == 'safetensors' else '.pt'}"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize(
    ("kind", "count"),
    mostly_slow(
        [(kind, count) for kind in ("safetensors", "zip", "old") for count in (100, 700)],
        [("safetensors", 100), ("zip", 100), ("old", 100)],
    ),
)
def test_damaged_files_give_errors_of_ours(tmp_path, kind, count):
    """What says where things are stands at the beginning, and is damaged in every second file."""
    path, found = saved(tmp_path, kind), Counter[str]()
    data, model = path.read_bytes(), seeded(Everything)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in range(count):
        rng, begun = random.Random(at), time.process_time()
        path.write_bytes(damaged_bytes(rng, data) if at % 2 else damaged_bytes(rng, data[:3000]) + data[3000:])
        try:
            co.load_weights(model, path)
            found["read"] += 1
        except co.CorgiError as error:
            found[type(error).__name__] += 1
        assert time.process_time() - begun < 10, at
    assert set(found) == {"read", "InputError"} and found["InputError"] > count // 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
