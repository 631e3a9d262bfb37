"""Images by name: arrays, image files, bundled digits. Models by name: see tests/cli, which runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import image

import corgi_opt as co
from corgi_opt.data import digits, sources


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_saved_array_keeps_its_precision_and_may_lack_leading_axes():
    x = image(1, 6, 6).double() / 3
    for name, array in (("full", x), ("chw", x[0]), ("hw", x[0, 0])):
        np.save(f"{name}.npy", array.numpy())
        assert torch.equal(sources.load_image(f"{name}.npy", None, bundled=False), x)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_file_is_scaled_to_one(mode):
    pillow = pytest.importorskip("PIL.Image")
    channels = len(mode)
    levels = (255 * image(6, 6, channels)[0]).byte().numpy()
    pillow.fromarray(levels.squeeze(), mode).save("x.png")
    x = sources.load_image("x.png", None, bundled=False)
    assert x.shape == (1, channels, 6, 6)
    np.testing.assert_allclose(x[0].permute(1, 2, 0) * 255, levels, atol=1e-4)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (6, 6), (255, 0, 0)).convert(mode).save("x.tif")
    x = sources.load_image("x.tif", None, bundled=False)
    assert x.shape == (1, 3, 6, 6)
    assert float(x[0, 0].min()) > 0.9 and float(x[0, 1:].max()) < 0.1


def test_size_resizes_an_image_file():
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("L", (20, 30), 51).save("x.png")
    x = sources.load_image("x.png", 6, bundled=False)
    assert x.shape == (1, 1, 6, 6)
    assert torch.allclose(x, torch.tensor(0.2))


@pytest.mark.parametrize("number", [0, 7, 1796])
def test_a_bundled_image_has_the_number_that_it_has_in_python(number):
    images, _ = digits.load_digits()
    assert torch.equal(sources.load_image(str(number), None, bundled=True), images[number : number + 1])
    assert len(images) == digits.N_IMAGES == 1797


def test_a_function_is_found_by_file_or_module():
    with open("mine.py", "w") as file:
        file.write("def seven():\n    return 7\n\nnothing = 3\n")
    assert sources.find_function("a thing", "mine.py:seven")() == 7
    for name, message in (
        ("mine.py", "a thing must be"),
        ("mine.py:nothing", "no function"),
        ("gone.py:f", "no such file"),
        ("no.such.module:f", "cannot import"),
        ("not a name:f", "neither a .py file nor"),
    ):
        with pytest.raises(co.InputError, match=message):
            sources.find_function("a thing", name)
