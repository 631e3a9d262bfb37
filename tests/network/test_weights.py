"""Weights are read from files, and nothing else is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nets import Plain, Residual, seeded

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
