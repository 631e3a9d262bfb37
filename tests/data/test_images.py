"""Image files and arrays: right values for every kind of file, or a refusal whose way out works when it is followed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Small, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.data.images import fitted, read_array, read_image

Pillow = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (6, 7, 3)).astype(np.uint8)
WORDS = RNG.integers(0, 65536, (6, 7)).astype(np.uint16)


class Notes(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(name: str, size: int | None = None) -> tuple[np.ndarray, str]:
    """Pixels (C, H, W) and what was noted."""
    notes = Notes()
    x = read_image(Path(name), size, notes)
    assert x.dtype == torch.float32 and x.shape[0] == 1 and x.is_contiguous()
    return x[0].numpy(), "; ".join(notes)


def refusal(name: str, size: int | None = None) -> str:
    with pytest.raises(co.InputError) as caught:
        read_image(Path(name), size, Notes())
    assert name in str(caught.value)
    return str(caught.value)


def png16(values: np.ndarray, more: bytes = b"") -> bytes:
    """A PNG of 16 bits, written by hand (H, W, 1 to 4 channels)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def transparent_grey(value: int) -> bytes:
    content = struct.pack(">H", value)
    return struct.pack(">I", 2) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))


# --- the right values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.bmp", "x.pgm", "x.webp"])
def test_grey_of_8_bits(name):
    Pillow.fromarray(BYTES).save(name, **({"lossless": True} if name == "x.webp" else {}))
    found, _ = read(name)
    np.testing.assert_allclose(found, np.broadcast_to(BYTES / 255, found.shape), atol=1e-6)


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.bmp", "x.ppm"])
def test_colour_of_8_bits(name):
    Pillow.fromarray(COLOUR).save(name)
    found, noted = read(name)
    np.testing.assert_allclose(found, COLOUR.transpose(2, 0, 1) / 255, atol=1e-6)
    assert not noted


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm"])
def test_grey_of_16_bits(name):
    Pillow.fromarray(WORDS).save(name)
    found, noted = read(name)
    np.testing.assert_allclose(found[0], WORDS / 65535, atol=1e-6)
    assert not noted


def test_grey_of_16_bits_in_the_other_byte_order():
    big = Pillow.new("I;16B", (7, 6))
    big.frombytes(WORDS.astype(">u2").tobytes())
    big.save("x.tiff")
    np.testing.assert_allclose(read("x.tiff")[0][0], WORDS / 65535, atol=1e-6)
    Path("x.png").write_bytes(png16(WORDS[:, :, None]))
    np.testing.assert_allclose(read("x.png")[0][0], WORDS / 65535, atol=1e-6)


def test_one_bit():
    for name in ("x.png", "x.tiff", "x.bmp", "x.pbm"):
        Pillow.fromarray(BYTES > 127).save(name)
        np.testing.assert_array_equal(read(name)[0][0], BYTES > 127)


def test_floats_in_the_unit_interval():
    values = (BYTES / 255).astype(np.float32)
    Pillow.fromarray(values).save("x.tiff")
    found, noted = read("x.tiff")
    np.testing.assert_array_equal(found[0], values)
    assert "floats in [0, 1]" in noted


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.webp"])
def test_an_opaque_alpha_channel_is_left_out_and_that_is_said(mode, name):
    levels = BYTES[:, :, None] if mode == "LA" else COLOUR
    full = np.concatenate([levels, np.full((6, 7, 1), 255, np.uint8)], axis=2)
    Pillow.fromarray(full, mode).save(name, **({"lossless": True} if name == "x.webp" else {}))
    found, noted = read(name)
    np.testing.assert_allclose(found, np.broadcast_to(levels.transpose(2, 0, 1) / 255, found.shape), atol=1e-6)
    assert "alpha channel" in noted or name == "x.webp"


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.tiff"])
def test_a_palette_is_looked_up(name):
    picture = Pillow.fromarray((BYTES % 4).astype(np.uint8), "P")
    colours = RNG.integers(0, 256, (4, 3))
    picture.putpalette(colours.flatten().tolist())
    picture.save(name)
    np.testing.assert_allclose(read(name)[0], colours[BYTES % 4].transpose(2, 0, 1) / 255, atol=1e-6)


def test_an_opaque_palette_with_alpha():
    picture = Pillow.fromarray(COLOUR).convert("P").convert("PA")
    picture.save("x.tiff")
    found, noted = read("x.tiff")
    np.testing.assert_allclose(found, np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255, atol=1e-6)
    assert "alpha channel" in noted


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_are_made_rgb_and_that_is_said(mode):
    Pillow.new("RGB", (6, 6), (255, 0, 0)).convert(mode).save("x.tif")
    found, noted = read("x.tif")
    assert found.shape == (3, 6, 6) and found[0].min() > 0.95 and found[1:].max() < 0.05
    assert f"made RGB of {mode}" in noted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_exif_orientations_are_followed_and_that_is_said(orientation, mode):
    levels = np.kron(np.array([[0, 80, 160], [240, 120, 40]], np.uint8), np.ones((16, 16), np.uint8))
    right = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.T,
        6: np.rot90(levels, -1),
        7: np.rot90(levels.T, 2),
        8: np.rot90(levels),
    }[orientation]
    picture = Pillow.fromarray(levels).convert(mode)
    exif = picture.getexif()
    exif[0x0112] = orientation
    for name in ("x.jpg", "x.png"):
        picture.save(name, exif=exif)
        found, noted = read(name)
        assert np.abs(found - right / 255).max() < 0.02
        assert ("EXIF" in noted) == (orientation > 1)


# --- sizes ----------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 32)[None, :] * np.ones((32, 1))


@pytest.mark.parametrize("kind", ["L", "RGB", "16", "float", "1", "P", "LA", "RGBA"])
def test_sizes_are_right_for_every_kind(kind):
    grey = Pillow.fromarray((255 * RAMP).round().astype(np.uint8))
    made = {
        "16": lambda: Pillow.fromarray((65535 * RAMP).round().astype(np.uint16)),
        "float": lambda: Pillow.fromarray(RAMP.astype(np.float32)),
        "1": lambda: Pillow.fromarray(RAMP > 0.5),
    }.get(kind, lambda: grey.convert(kind))()
    made.save("x.tiff")
    found, _ = read("x.tiff", 8)
    assert found.shape[1:] == (8, 8) and found.min() >= 0 and found.max() <= 1
    truth, near = (RAMP > 0.5, 0.1) if kind == "1" else (RAMP, 0.03)
    means = truth.reshape(8, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(found, np.broadcast_to(means, found.shape), atol=near)


def test_a_size_that_changes_proportions_says_so():
    Pillow.fromarray(BYTES).save("x.png")
    assert "7 x 6 pixels are made 5 x 5" in read("x.png", 5)[1]


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_refused_and_the_way_out_works(channels):
    values = RNG.integers(0, 65536, (6, 7, channels))
    values[:, :, -1 if channels in (2, 4) else 0] |= 0xFF00
    Path("x.png").write_bytes(png16(values))
    said = refusal("x.png")
    assert "more than 8 bits, which would be lost" in said and "np.save" in said and "(C, H, W)" in said
    np.save("x.npy", values.transpose(2, 0, 1) / 65535)
    notes = Notes()
    assert torch.equal(read_array(Path("x.npy"), notes)[0], torch.from_numpy(values.transpose(2, 0, 1) / 65535))
    assert not notes


def test_what_stands_for_transparent_in_16_bits_is_refused():
    Path("x.png").write_bytes(png16(WORDS[:, :, None], transparent_grey(int(WORDS[0, 0]))))
    assert "transparent" in refusal("x.png")


@pytest.mark.parametrize("values", [1.0 * BYTES, BYTES / 255 - 0.5, np.where(BYTES > 9, BYTES / 255, np.nan)])
def test_floats_of_another_range_are_refused(values):
    Pillow.fromarray(values.astype(np.float32)).save("x.tiff")
    said = refusal("x.tiff")
    assert "what is black and white is not said" in said and "np.save" in said


def test_integers_of_32_bits_are_refused():
    Pillow.fromarray(WORDS.astype(np.int32)).save("x.tiff")
    assert "more than 8 bits" in refusal("x.tiff")


def test_lab_is_refused():
    Pillow.new("LAB", (4, 4)).save("x.tiff")
    assert "mode 'LAB'" in refusal("x.tiff")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_transparent_pixels_are_refused_and_the_way_out_works(mode):
    alpha = np.where(BYTES > 100, 255, 7).astype(np.uint8)
    base = Pillow.fromarray(np.dstack([COLOUR, alpha]), "RGBA")
    made = base.convert("LA") if mode == "LA" else base
    if mode == "PA":
        made = Pillow.fromarray(COLOUR).convert("P").convert("PA")
        made.putalpha(Pillow.fromarray(alpha))
    made.save("x.tiff")
    said = refusal("x.tiff")
    assert "transparent pixels" in said
    code = said[said.index("im = PIL") :].replace("open(file)", "open('x.tiff')")
    exec(code, {"PIL": __import__("PIL")})
    found, noted = read("flat.png")
    assert found.shape == (3, 6, 7) and not noted


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparent(mode):
    picture = Pillow.fromarray((BYTES % 4 * 60).astype(np.uint8)).convert(mode)
    shown = picture.getpixel((0, 0))
    picture.save("x.png", transparency=shown)
    assert "transparent pixels" in refusal("x.png")
    if mode != "P":
        picture.save("x.png", transparency=7 if mode == "L" else (7, 7, 7))  # which no pixel is
        assert "opaque" in read("x.png")[1]


@pytest.mark.parametrize("name", ["x.gif", "x.tiff", "x.webp", "x.png"])
def test_several_pictures_are_refused_and_the_way_out_works(name):
    pictures = [Pillow.fromarray(np.roll(COLOUR, 40 * i, axis=0) ^ (16 * i)) for i in range(3)]
    pictures[0].save(name, save_all=True, append_images=pictures[1:])
    said = refusal(name)
    assert "it holds 3 pictures" in said
    code = said[said.index("im = PIL") :].replace("open(file)", f"open('{name}')").replace("seek(number)", "seek(1)")
    exec(code + "; im.close()", {"PIL": __import__("PIL")})
    assert read("one.png")[0].shape == (3, 6, 7)


def test_damaged_and_huge_files_are_refused(monkeypatch):
    Pillow.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save("whole.png")
    content = Path("whole.png").read_bytes()
    for cut in (0, 5, 40, 60, len(content) // 2, len(content) - 30):
        Path("x.png").write_bytes(content[:cut])
        assert "cannot read x.png as an image" in refusal("x.png")
    Path("x.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00\x20Exif\0\0" + b"\xff" * 60)
    refusal("x.jpg")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 3000)
    assert "too many pixels" in refusal("whole.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    assert "too many pixels" in refusal("whole.png", 8)


# --- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_layout(dtype, order):
    values = (COLOUR / 255).transpose(2, 0, 1).astype(dtype)
    np.save("x.npy", np.asarray(values, order=order))
    x = read_array(Path("x.npy"))
    assert x.dtype == torch.float64 and x.is_contiguous()
    np.testing.assert_array_equal(x[0].numpy(), values.astype(np.float64))


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "<i8"])
def test_integers_are_taken_as_they_are_and_that_is_said(dtype):
    np.save("x.npy", BYTES.astype(dtype))
    notes = Notes()
    assert torch.equal(read_array(Path("x.npy"), notes)[0, 0], torch.from_numpy(BYTES.astype(np.float64)))
    assert "taken as they are" in notes[0] and "divided by its largest" in notes[0]
    np.save("x.npy", (BYTES > 9).astype(dtype))
    assert not read_array(Path("x.npy"), Notes()).gt(1).any()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (BYTES > 9, "bool: save it .astype(float)"),
        (BYTES.astype(complex), "complex128"),
        (np.array(3.0), "got ()"),
        (np.zeros(5), "got (5,)"),
        (np.zeros((2, 1, 4, 4)), "got (2, 1, 4, 4)"),
        (np.zeros((1, 0, 4, 4)), "got (1, 0, 4, 4)"),
        (np.array([["a"]]), "<U1"),
        (np.zeros((2, 2), "M8[s]"), "datetime64"),
        (np.zeros((2, 2), [("a", "f4")]), "real numbers"),
    ],
)
def test_no_image_arrays(values, word):
    np.save("x.npy", values)
    with pytest.raises(co.InputError) as caught:
        read_array(Path("x.npy"))
    assert word in str(caught.value)


def test_objects_and_damaged_arrays_are_refused():
    np.save("x.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    with pytest.raises(co.InputError, match=r"is not a \.npy array"):
        read_array(Path("x.npy"))
    np.save("x.npy", BYTES)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-3])
    with pytest.raises(co.InputError, match=r"is not a \.npy array"):
        read_array(Path("x.npy"))


# --- the network's channels -----------------------------------------------------------------------------------


def test_what_the_network_takes_is_left_alone():
    for channels in (1, 3):
        x, notes = image(channels, 6, 6), Notes()
        assert fitted(seeded(Small, 0, channels=channels), x, notes) is x and not notes


def test_grey_for_three_channels_and_colour_for_one():
    grey, colour, notes = image(1, 6, 6), image(3, 6, 6), Notes()
    assert torch.equal(fitted(seeded(Small, 0, channels=3), grey, notes), grey.expand(1, 3, 6, 6))
    made = fitted(seeded(Small, 0), colour.double(), notes)
    levels = Pillow.fromarray((255 * colour[0].permute(1, 2, 0)).round().byte().numpy()).convert("L")
    np.testing.assert_allclose(made[0, 0], np.asarray(levels) / 255, atol=0.006)
    assert "all three channels" in notes[0] and "made grey" in notes[1] and made.dtype == torch.float64


def test_channels_at_the_end_are_moved_where_the_network_says_so():
    x, notes = image(6, 5, 3), Notes()
    assert torch.equal(fitted(seeded(Small, 0, channels=3), x, notes), x.permute(0, 3, 1, 2))
    assert "last axis" in notes[0]
    assert fitted(seeded(Small, 0, channels=6), x, Notes()) is x  # six channels are meant


class Counting(nn.Module):
    """Has its state changed by a forward pass in training mode, and writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.relu_()).mean((2, 3))


def test_trying_a_network_changes_neither_it_nor_the_image():
    model, x = Counting().train(), image(1, 4, 4) - 0.5
    before, kept = {n: t.clone() for n, t in model.state_dict().items()}, x.clone()
    fitted(model, x)
    fitted(model.eval(), x)
    assert torch.equal(x, kept) and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
