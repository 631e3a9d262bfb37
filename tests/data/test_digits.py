"""The demo's images, split and network, and the script that trains it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn import datasets

from corgi_opt.data import digits

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return digits.load_digits()


def test_images_and_labels_are_scikit_learns(data):
    images, labels = data
    reference = datasets.load_digits()
    assert images.shape == (digits.N_IMAGES, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    # 0..16 over 16 is exact in float32, so the flat table of scikit-learn must come back exactly.
    np.testing.assert_array_equal((images * 16).reshape(-1, 64).numpy(), reference.data)
    np.testing.assert_array_equal(labels.numpy(), reference.target)
    assert images.min() == 0
    assert images.max() == 1


def test_the_split_is_a_fixed_partition_with_every_class():
    train, test = digits.digits_split()
    assert len(train) == 1437
    assert len(test) == 360
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(digits.N_IMAGES))
    again = digits.digits_split()
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
    # numpy's global state has no say.
    state = np.random.get_state()
    np.random.seed(7)
    assert torch.equal(test, digits.digits_split()[1])
    np.random.set_state(state)


def test_both_parts_hold_every_digit(data):
    _, labels = data
    for part in digits.digits_split():
        assert torch.bincount(labels[part], minlength=10).min() >= len(part) / 20


def test_the_bundled_network_reads_unseen_digits(data):
    images, labels = data
    _, test = digits.digits_split()
    with torch.no_grad():
        predicted = digits.digits_model()(images[test]).argmax(dim=1)
    assert (predicted == labels[test]).float().mean() >= 0.93


def test_the_bundled_network_is_frozen_in_time_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = digits.digits_model(), digits.digits_model()
    assert torch.equal(before, torch.get_rng_state())
    assert not first.training
    assert not any(parameter.is_meta for parameter in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert {p.dtype for p in first.parameters()} == {torch.float32}


def test_the_head_is_a_cam_head(data):
    """Logits = mean of the class's CAM over the 64 positions + bias, computed here from the parts."""
    images, _ = data
    model = digits.digits_model().double()
    x = images[:5].double()
    with torch.no_grad():
        features = model.features(x)
        cams = torch.einsum("ck,nkhw->nchw", model.classify.weight, features)
        logits = cams.mean(dim=(2, 3)) + model.classify.bias
        assert features.shape == (5, 12, 8, 8)
        torch.testing.assert_close(model(x), logits)


def test_cams_of_the_demo_are_not_degenerate(data):
    """A certificate asks which pixels are brightest, so the maps must vary and be free of ties at the top."""
    images, _ = data
    model = digits.digits_model()
    with torch.no_grad():
        weights = model.classify.weight[model(images).argmax(dim=1)]
        cams = torch.einsum("nk,nkhw->nhw", weights, model.features(images)).flatten(1)
    ranked = cams.sort(dim=1, descending=True).values
    for k in (1, 3, 5, 10):
        gap = ranked[:, k - 1] - ranked[:, k]
        assert (gap > 1e-4).float().mean() > 0.98


def test_the_network_fits_in_the_package():
    file = Path(digits.__file__).with_name("digits_cam.safetensors")
    assert file.stat().st_size < 30_000


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_digits", REPO / "examples" / "train_digits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_is_deterministic_and_learns(script, data):
    images, labels = data[0][:128], data[1][:128]
    with torch.random.fork_rng():
        first, second, other = (script.train(images, labels, epochs=40, seed=seed) for seed in (0, 0, 1))
    weights = [model.classify.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert script.accuracy(first, images, labels) > 0.5  # chance is 0.1


def test_the_training_script_writes_weights_that_load(script, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "digits.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--epochs", "1", "--seed", "3", "--out", str(out)])
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            script.main()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert "test accuracy" in capsys.readouterr().out
    weights = safetensors.torch.load_file(out)
    shipped = digits.digits_model().state_dict()
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in shipped.items()}


@pytest.mark.parametrize("epochs", ["0", "-1", "few"])
def test_the_training_script_refuses_a_bad_count(script, monkeypatch, capsys, epochs):
    monkeypatch.setattr(sys, "argv", ["train_digits.py", f"--epochs={epochs}"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_data_imports_without_the_optional_packages():
    """A fresh interpreter in which none of the gtsrb extra can be imported."""
    code = (
        "import sys\n"
        "for name in ('h5py', 'skimage'): sys.modules[name] = None\n"
        "from corgi_opt.data import digits, gtsrb\n"
        "digits.digits_model()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True, text=True)
