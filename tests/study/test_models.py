"""Networks of a study: built again from a name, and known by all that they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets import Plain, seeded
from safetensors.torch import save_file
from torch import nn

from corgi_opt.errors import InputError
from corgi_opt.study.models import ModelSource, SourcedModel, model_sha256

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3, 3)
        self.slope = {slope}

    def forward(self, x):
        return self.head((self.body(x) * {factor}).relu().mean((2, 3)))

def build():
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return Net().eval()
"""


def write(folder: Path, name: str = "own.py", slope: float = 0.1, factor: int = 1) -> ModelSource:
    (folder / name).write_text(CODE.format(slope=slope, factor=factor))
    return ModelSource.of(f"{name}:build", folder, "models.m")


def test_the_same_network_has_the_same_hash_wherever_its_file_stands(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = write(tmp_path), write(tmp_path / "other", "copy.py")
    assert first.sourced("a").sha256 == second.sourced("b").sha256
    assert first.build == f"{(tmp_path / 'own.py').resolve()}:build"


@pytest.mark.parametrize("change", [{"slope": 0.2}, {"factor": 2}])
def test_attributes_and_code_are_part_of_it(change, tmp_path):
    (tmp_path / "other").mkdir()
    assert write(tmp_path).sourced("a").sha256 != write(tmp_path / "other", **change).sourced("a").sha256


def test_every_weight_and_buffer_is_part_of_it():
    hashes = {model_sha256(seeded(Plain))}
    for name in seeded(Plain).state_dict():
        model = seeded(Plain)
        values = model.state_dict()[name].flatten()
        values[-1] = torch.nextafter(values[-1], torch.tensor(9.0))
        hashes.add(model_sha256(model))
    assert len(hashes) == 1 + len(seeded(Plain).state_dict())
    norms = [nn.BatchNorm2d(2, eps=eps).eval() for eps in (1e-5, 1e-3)]
    assert norms[0].running_mean is not None
    norms[0].running_mean[1] = 0.5
    assert len({model_sha256(n) for n in (*norms, nn.BatchNorm2d(2).eval())}) == 3


def test_layers_in_another_order_are_another_network():
    a, b = nn.Conv2d(1, 1, 1), nn.ReLU()
    assert model_sha256(nn.Sequential(a, b)) != model_sha256(nn.Sequential(b, a))


def test_weights_are_read_from_their_file(tmp_path):
    plain = write(tmp_path)
    state = {name: values + 1 for name, values in plain.built().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    source = ModelSource.of({"build": "own.py:build", "weights": "w.safetensors"}, tmp_path, "models.m")
    for name, values in source.built().state_dict().items():
        assert torch.equal(values, state[name])
    assert source.sourced("m").sha256 != plain.sourced("m").sha256


def test_one_that_is_another_by_now_is_not_built(tmp_path):
    source = write(tmp_path)
    good = source.sourced("m")
    assert isinstance(good.built(), nn.Module)
    with pytest.raises(InputError, match="builds another network than when the study began"):
        SourcedModel("m", source, "0" * 64).built()


@pytest.mark.parametrize("entry", [3, None, {}, {"build": 3}, {"build": "digits", "wieghts": "a"}, {"weights": "a"}])
def test_what_names_no_network_is_refused_with_its_place(entry, tmp_path):
    with pytest.raises(InputError, match=r"models\.m needs build"):
        ModelSource.of(entry, tmp_path, "models.m")
    with pytest.raises(InputError, match="a module object cannot be given"):
        ModelSource.of(nn.ReLU(), tmp_path, "models.m")
