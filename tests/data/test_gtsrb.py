"""Reading GTSRB and its preprocessing, against references that share no code with them; the paper's own files."""

from __future__ import annotations

import colorsys
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from missing import hidden
from torch import nn

from corgi_opt.data import gtsrb
from corgi_opt.errors import InputError, MissingPackageError

h5py = pytest.importorskip("h5py")
pytest.importorskip("skimage")
Image = pytest.importorskip("PIL.Image")
signal = pytest.importorskip("scipy.signal")

HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


# -------- a small GTSRB


def write_ppm(path: Path, pixels: np.ndarray) -> None:
    """The format by hand: 'P6', width, height, 255, then the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes())


def photo(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def table(*rows: tuple[str, int | None]) -> str:
    lines = [HEADER] + [f"{name};5;6;0;0;4;5;{label}" for name, label in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def root(tmp_path):
    """Two training classes (written out of order) and three test images in an order that is not sorted."""
    train = tmp_path / "Final_Training" / "Images"
    for seed, (label, name) in enumerate([(7, "00001_00002.ppm"), (7, "00000_00001.ppm"), (2, "00003_00000.ppm")]):
        write_ppm(train / f"{label:05d}" / name, photo(seed))
    (train / "00007" / "GT-00007.csv").write_text(table(("00001_00002.ppm", 7), ("00000_00001.ppm", 7)))
    (train / "00002" / "GT-00002.csv").write_text(table(("00003_00000.ppm", 2)))
    (train / "Readme-Images.txt").write_text("as in the official archive")
    test = tmp_path / "Final_Test" / "Images"
    for seed, name in enumerate(["00000.ppm", "00001.ppm", "00002.ppm"]):
        write_ppm(test / name, photo(10 + seed))
    rows = table(("00001.ppm", 16), ("00000.ppm", 1), ("00002.ppm", 42))
    (tmp_path / "GT-final_test.csv").write_text(rows)
    return tmp_path


def test_train_is_in_the_order_of_its_paths(root):
    split = gtsrb.load_split(root, "train")
    assert [s.path.relative_to(root).as_posix() for s in split] == [
        "Final_Training/Images/00002/00003_00000.ppm",
        "Final_Training/Images/00007/00000_00001.ppm",
        "Final_Training/Images/00007/00001_00002.ppm",
    ]
    assert [s.label for s in split] == [2, 7, 7]
    assert [s.index for s in split] == [0, 1, 2]
    np.testing.assert_array_equal(split[0].raw(), photo(2))
    assert split[0].raw().dtype == np.uint8


def test_test_is_in_the_order_of_its_csv(root):
    split = gtsrb.load_split(str(root), "test")
    assert [(s.path.name, s.label, s.index) for s in split] == [
        ("00001.ppm", 16, 0),
        ("00000.ppm", 1, 1),
        ("00002.ppm", 42, 2),
    ]
    np.testing.assert_array_equal(split[0].raw(), photo(11))
    assert split[0].image().shape == (1, 3, 48, 48)


def test_a_split_is_a_sequence_whose_slices_are_splits(root):
    split = gtsrb.load_split(root, "test")
    assert len(split) == 3
    assert split[-1].path.name == "00002.ppm"
    tail = split[1:]
    assert isinstance(tail, gtsrb.Split)
    assert [s.index for s in tail] == [1, 2]
    assert split[0] in split
    assert split[0] not in tail
    assert "3 images" in repr(split)
    assert pickle.loads(pickle.dumps(split)) == split
    with pytest.raises(IndexError):
        split[3]


def test_find_takes_a_path_below_the_root(root):
    split = gtsrb.load_split(root, "test")
    assert split.find("Final_Test/Images/00000.ppm").label == 1
    assert split.find(Path("Final_Test") / "Images" / "00000.ppm").label == 1
    with pytest.raises(InputError, match=r"00000\.ppm is not among the 2 images"):
        split[::2].find("Final_Test/Images/00000.ppm")


def test_the_test_table_may_lie_beside_the_images(root):
    images = root / "Final_Test" / "Images"
    (root / "GT-final_test.csv").rename(images / "GT-final_test.csv")
    assert [s.label for s in gtsrb.load_split(root, "test")] == [16, 1, 42]


def test_the_test_archives_own_table_has_no_labels(root):
    (root / "GT-final_test.csv").unlink()
    own = root / "Final_Test" / "Images" / "GT-final_test.test.csv"
    own.write_text("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2\r\n00002.ppm;5;6;0;0;4;5\r\n")
    split = gtsrb.load_split(root, "test")
    assert [(s.path.name, s.label) for s in split] == [("00002.ppm", None)]
    np.testing.assert_array_equal(split[0].raw(), photo(12))


def test_a_listed_file_that_is_missing_is_named_when_read(root):
    split = gtsrb.load_split(root, "train")
    split[1].path.unlink()
    again = gtsrb.load_split(root, "train")
    assert len(again) == 3
    with pytest.raises(InputError, match=r"00000_00001\.ppm"):
        again[1].raw()
    with pytest.raises(InputError, match=r"00000_00001\.ppm"):
        again[1].image()


def test_a_file_that_is_no_rgb_image_is_named(root):
    split = gtsrb.load_split(root, "train")
    split[0].path.write_bytes(b"P6\n5 6\n255\nshort")
    with pytest.raises(InputError, match=r"00003_00000\.ppm"):
        split[0].raw()
    split[0].path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"00003_00000\.ppm"):
        split[0].raw()
    split[0].path.write_bytes(b"P5\n2 2\n255\n1234")
    with pytest.raises(InputError, match="RGB image is expected"):
        split[0].raw()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'Filename'"),
        ("Filename,ClassId\n00000.ppm,1\n", "line 1: no column 'Filename'"),
        (HEADER + "\n00000.ppm;5;6;0;0;4;5\n", "line 2: 7 cells where the header has 8"),
        (table(("00000.ppm", 1), ("00001.ppm", 43)), "line 3: ClassId '43' is not a class from 0 to 42"),
        (table(("00000.ppm", -1)), "line 2: ClassId '-1'"),
        (HEADER + "\n00000.ppm;5;6;0;0;4;5;stop\n", "line 2: ClassId 'stop'"),
        (HEADER + "\n00000.ppm;5;6;0;0;4;5;\n", "line 2: ClassId ''"),
        (table(("../00000.ppm", 1)), "line 2: '../00000.ppm' is not the bare name"),
        (table(("", 1)), "line 2: '' is not the bare name"),
        (table(("00000.ppm", 1), ("00000.ppm", 1)), "the same file twice"),
        (HEADER + "\n", "lists no images"),
    ],
)
def test_a_malformed_table_is_refused(root, text, message):
    (root / "GT-final_test.csv").write_text(text)
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        gtsrb.load_split(root, "test")


def test_a_table_that_is_not_text_is_refused(root):
    (root / "GT-final_test.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read .*GT-final_test\.csv"):
        gtsrb.load_split(root, "test")


def test_a_training_row_of_another_class_is_refused(root):
    csv = root / "Final_Training" / "Images" / "00002" / "GT-00002.csv"
    csv.write_text(table(("00003_00000.ppm", 3)))
    with pytest.raises(InputError, match=r"GT-00002\.csv: .* has ClassId 3 in the folder of class 2"):
        gtsrb.load_split(root, "train")
    csv.write_text("Filename\n00003_00000.ppm\n")
    with pytest.raises(InputError, match="no ClassId"):
        gtsrb.load_split(root, "train")
    csv.unlink()
    with pytest.raises(InputError, match=r"GT-00002\.csv"):
        gtsrb.load_split(root, "train")


def test_a_missing_folder_table_or_split_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="'train' or 'test'"):
        gtsrb.load_split(root, "validation")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no folder"):
        gtsrb.load_split(tmp_path / "nowhere", "train")
    (root / "GT-final_test.csv").unlink()
    with pytest.raises(InputError, match="no table of test images"):
        gtsrb.load_split(root, "test")


# -------- preprocessing


def equalised(image: np.ndarray) -> np.ndarray:
    """HSV by colorsys, a 256-bin cumulative histogram of V interpolated between bin centres, and back."""
    hsv = np.array([[colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in row] for row in image])
    value = hsv[:, :, 2]
    low, high = value.min(), value.max()
    edges = np.linspace(low, high, 257)
    counts = np.array([np.sum((value >= a) & (value < b)) for a, b in pairwise(edges)])
    counts[-1] += np.sum(value == high)
    share = np.cumsum(counts) / value.size
    hsv[:, :, 2] = np.interp(value, (edges[:-1] + edges[1:]) / 2, share)
    return np.array([[colorsys.hsv_to_rgb(*pixel) for pixel in row] for row in hsv])


@pytest.mark.parametrize(
    ("height", "width", "rows", "cols"),
    [
        (48, 48, (0, 48), (0, 48)),
        (48, 80, (0, 48), (16, 64)),
        (61, 48, (6, 54), (0, 48)),
        (49, 53, (0, 48), (2, 50)),  # an odd side loses its last row
    ],
)
def test_preprocess_equalises_the_whole_photograph_then_crops(height, width, rows, cols):
    """A crop of 48x48 needs no resize, so every pixel can be computed by hand."""
    # A coarse palette: no value then falls on the edge of a histogram bin by rounding alone.
    image = photo(height * width, height, width) // 20 * 20 + 7
    expected = equalised(image)[slice(*rows), slice(*cols)]
    result = gtsrb.preprocess(image)
    assert result.shape == (1, 3, 48, 48)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_preprocess_enlarges_bilinearly():
    """Away from the border torch's bilinear interpolation is the same function."""
    image = photo(3, 24, 24)
    small = torch.from_numpy(equalised(image)).permute(2, 0, 1)[None]
    expected = nn.functional.interpolate(small, size=(48, 48), mode="bilinear", align_corners=False)
    result = gtsrb.preprocess(image).double()
    torch.testing.assert_close(result[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6, rtol=0)


def test_preprocess_smooths_what_it_shrinks():
    """A checkerboard of single pixels averages out; plain bilinear sampling at ratio 4 would not."""
    image = np.zeros((192, 192, 3), dtype=np.uint8)
    image[::2, ::2] = image[1::2, 1::2] = 255
    inner = gtsrb.preprocess(image)[..., 4:-4, 4:-4]
    assert inner.std() < 0.01


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (31, 47), (200, 90)])
def test_preprocess_keeps_the_box(shape):
    result = gtsrb.preprocess(photo(1, *shape))
    assert result.shape == (1, 3, 48, 48)
    assert result.min() >= 0
    assert result.max() <= 1


def test_preprocess_takes_one_colour():
    for level in (0, 90, 255):
        assert torch.isfinite(gtsrb.preprocess(np.full((10, 10, 3), level, dtype=np.uint8))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_preprocess_of_floats_is_that_of_bytes(dtype):
    image = photo(4, 50, 50) // 8 * 8 + 3
    torch.testing.assert_close(
        gtsrb.preprocess((image / 255).astype(dtype)), gtsrb.preprocess(image), atol=5e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5), np.uint8), r"not shape \(5, 5\)"),
        (np.zeros((5, 5, 4), np.uint8), "not shape"),
        (np.zeros((1, 5, 5, 3), np.uint8), "not shape"),
        ([[[0, 0, 0]]], "not list"),
        (torch.zeros(5, 5, 3), "not Tensor"),
        (np.zeros((5, 5, 3), np.int64), "not int64"),
        (np.zeros((5, 5, 3), bool), "not bool"),
        (np.zeros((1, 5, 3), np.uint8), "at least 2x2"),
        (np.zeros((0, 5, 3), np.uint8), "at least 2x2"),
        (np.full((5, 5, 3), 1.5), r"lie in \[0, 1\]"),
        (np.full((5, 5, 3), -0.1), r"lie in \[0, 1\]"),
        (np.full((5, 5, 3), np.nan), r"lie in \[0, 1\]"),
    ],
)
def test_preprocess_refuses(image, message):
    with pytest.raises(InputError, match=message):
        gtsrb.preprocess(image)


def test_preprocess_leaves_its_input_alone():
    image = np.random.default_rng(0).random((9, 9, 3))
    copy = image.copy()
    gtsrb.preprocess(image)
    np.testing.assert_array_equal(image, copy)


# -------- missing packages


@pytest.mark.parametrize(("package", "pip_name"), [("PIL", "pillow"), ("skimage", "scikit-image")])
def test_a_missing_package_is_named_with_the_command(root, monkeypatch, package, pip_name):
    sample = gtsrb.load_split(root, "train")[0]
    use = sample.raw if package == "PIL" else lambda: gtsrb.preprocess(photo(0))
    with (
        hidden(monkeypatch, package),
        pytest.raises(MissingPackageError, match=r"pip install 'corgi_opt\[gtsrb\]'") as caught,
    ):
        use()
    assert caught.value.package == pip_name
    use()


# -------- published numbers


def test_published_numbers_that_are_malformed_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"image_496\.json"):
        gtsrb.load_paper_image_496(tmp_path)
    (tmp_path / "paper").mkdir()
    for text in ("{", "[]", '{"source": "x"}', "{}"):
        (tmp_path / "paper" / "image_496.json").write_text(text)
        (tmp_path / "paper" / "test_images_k15.json").write_text(text)
        with pytest.raises(InputError, match=r"image_496\.json"):
            gtsrb.load_paper_image_496(tmp_path)
        with pytest.raises(InputError, match=r"test_images_k15\.json"):
            gtsrb.load_paper_test_images(tmp_path)


# -------- the paper's own data


@pytest.fixture(scope="module")
def paper_root():
    default = Path(__file__).parents[2].parent / "shared" / "gtsrb"
    folder = Path(os.environ.get("CORGI_GTSRB_DIR", default))
    if not (folder / "models").is_dir():
        pytest.skip(f"the paper's data is not at {folder} (set CORGI_GTSRB_DIR)")
    return folder


@pytest.fixture(scope="module")
def paper_model(paper_root):
    return gtsrb.load_paper_model(paper_root / "models" / "model_gtsrb.h5")


@pytest.mark.gtsrb
def test_the_cam_of_image_496_is_the_published_one(paper_root, paper_model):
    published = gtsrb.load_paper_image_496(paper_root)
    sample = gtsrb.load_split(paper_root, "train").find(published.image)
    assert sample.label == published.class_idx == 17
    children = list(paper_model.children())
    pool = next(i for i, child in enumerate(children) if isinstance(child, nn.AdaptiveAvgPool2d))
    with torch.no_grad():
        features = nn.Sequential(*children[:pool])(sample.image())
        cam = torch.einsum("k,khw->hw", children[-1].weight[published.class_idx], features[0])
    assert cam.shape == (24, 24)
    ranked = cam.flatten().sort(descending=True).values.numpy()
    # Both are float32 sums of a few thousand products: 1e-5 of the largest value leaves room for their order.
    np.testing.assert_allclose(ranked, published.cam_sorted, rtol=0, atol=1e-5 * published.cam_sorted[0])
    assert paper_model(sample.image()).argmax() == 17


@pytest.mark.gtsrb
def test_the_listed_test_images_are_classified_correctly(paper_root, paper_model):
    listed = gtsrb.load_paper_test_images(paper_root)
    split = gtsrb.load_split(paper_root, "test")
    assert len(listed.images) == 54
    samples = [split.find(f"Final_Test/Images/{row.file}") for row in listed.images]
    assert [s.index for s in samples] == [row.index for row in listed.images]
    with torch.no_grad():
        predicted = paper_model(torch.cat([s.image() for s in samples])).argmax(dim=1)
    assert predicted.tolist() == [s.label for s in samples]


@pytest.mark.gtsrb
def test_the_other_six_test_images_are_misclassified(paper_root, paper_model):
    """The list holds the correctly classified images only, so this is one more check of the whole."""
    listed = {row.file for row in gtsrb.load_paper_test_images(paper_root).images}
    others = [s for s in gtsrb.load_split(paper_root, "test") if s.path.name not in listed]
    assert len(others) == 6
    with torch.no_grad():
        predicted = paper_model(torch.cat([s.image() for s in others])).argmax(dim=1)
    assert all(p != s.label for p, s in zip(predicted.tolist(), others, strict=True))


@pytest.mark.gtsrb
def test_the_grad_cam_variant_classifies_too(paper_root):
    model = gtsrb.load_paper_model(paper_root / "models" / "model_dense.h5")
    samples = list(gtsrb.load_split(paper_root, "test"))
    with torch.no_grad():
        predicted = model(torch.cat([s.image() for s in samples])).argmax(dim=1)
    correct = sum(p == s.label for p, s in zip(predicted.tolist(), samples, strict=True))
    assert correct >= 0.85 * len(samples)  # a wrong flatten order would leave chance, 1 in 43


@pytest.mark.gtsrb
def test_the_published_tables_have_their_shape(paper_root):
    image = gtsrb.load_paper_image_496(paper_root)
    assert set(image.corgi_radius_by_k) == set(image.attack_radius_by_k) == set(range(1, 51))
    assert set(image.relaxed_corgi_radius_by_k2) == set(range(16, 101))
    assert (image.k1, image.norm, len(image.cam_sorted)) == (15, "inf", 576)
    assert list(image.cam_sorted) == sorted(image.cam_sorted, reverse=True)
    assert image.corgi_radius_by_k[15] == pytest.approx(9.0137e-4, rel=1e-4)
    # What is certified can not be broken.
    assert all(image.corgi_radius_by_k[k] < image.attack_radius_by_k[k] for k in range(1, 51))
    tests = gtsrb.load_paper_test_images(paper_root)
    assert (tests.k, tests.norm) == (15, "inf")
    assert all(0 < row.corgi_radius < row.attack_radius for row in tests.images)
    assert (paper_root / tests.model).is_file()
    assert (paper_root / image.model).is_file()
    with pytest.raises(AttributeError):
        image.k1 = 3  # type: ignore[misc]
