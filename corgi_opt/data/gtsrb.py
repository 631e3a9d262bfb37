"""The paper's case study: German traffic signs (GTSRB), preprocessing, networks and published numbers.

Needs ``pip install 'corgi_opt[gtsrb]'`` (scikit-image, pillow, h5py) and the data in a folder of yours, here
called ``root``:

- ``root/Final_Training/Images/<5-digit class>/*.ppm`` with ``GT-<class>.csv``: the official training archive;
- ``root/Final_Test/Images/*.ppm`` with ``GT-final_test.csv`` there or in ``root``: the official test archive
  and its labels, which are a separate download;
- ``root/paper/*.json``: the numbers of Gu et al., arXiv 2301.11324, for :func:`load_paper_image_496` and
  :func:`load_paper_test_images`. The networks are the ``model_*.h5`` of the authors' repository
  minimario/CORGI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corgi_opt._ambient import pinned, pinned_as_given
from corgi_opt.data._optional import package
from corgi_opt.data.keras.reader import read
from corgi_opt.errors import InputError

N_CLASSES = 43
IMAGE_SIDE = 48

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One photograph: its file, its class (None if the csv has no labels), its place in the whole split."""

    path: Path
    label: int | None
    index: int

    def raw(self) -> NDArray[np.uint8]:
        """The photograph as stored: (height, width, 3), RGB, 0..255.

        Raises InputError when the file is missing or is no RGB image; MissingPackageError without pillow.
        """
        pil_image = package("PIL.Image", "pillow", "Reading a GTSRB photograph", "gtsrb")
        if not self.path.is_file():
            raise InputError(f"there is no image file {self.path}, though its csv lists it")
        try:
            with pil_image.open(self.path) as opened:
                if opened.mode != "RGB":
                    raise InputError(f"an RGB image is expected, not mode {opened.mode!r}")
                return np.array(opened, dtype=np.uint8)
        except (OSError, ValueError) as error:  # ValueError covers InputError and pillow's header errors
            raise InputError(f"cannot read the image {self.path}: {error}") from error

    @pinned
    def image(self) -> Tensor:
        """The input of the network, (1, 3, 48, 48) float32 in [0, 1]. Raises what :meth:`raw` does.

        See :func:`preprocess`.
        """
        return preprocess(self.raw())


@dataclass(frozen=True)
class Split(Sequence[Sample]):
    """The training or the test images, in a fixed order. Pixels are read on use.

    A slice is again a Split, whose samples keep their ``index`` in the whole.
    """

    root: Path
    name: str
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, item: int) -> Sample: ...
    @overload
    def __getitem__(self, item: slice) -> Split: ...
    def __getitem__(self, item: int | slice) -> Sample | Split:
        if isinstance(item, slice):
            return Split(self.root, self.name, self.samples[item])
        return self.samples[item]

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} images, root={str(self.root)!r})"

    def find(self, relative_path: str | PurePath) -> Sample:
        """The sample at ``relative_path`` below the root, as in ``Final_Test/Images/00000.ppm``.

        Raises InputError when this split does not hold it.
        """
        wanted = self.root / relative_path
        for sample in self.samples:
            if sample.path == wanted:
                return sample
        raise InputError(f"{relative_path} is not among the {len(self)} images of {self!r}")


def _read_table(path: Path) -> list[tuple[str, int | None]]:
    """(file name, label) of every row of a GTSRB csv; labels are None where the table has no ClassId column.

    Raises InputError, with the file and the line, for anything that is not such a table.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    header = lines[0].split(";") if lines else []
    if "Filename" not in header:
        raise InputError(f"{path}, line 1: no column 'Filename' (columns are separated by ';')")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        cells = line.split(";")  # no cell of these tables is quoted
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells where the header has {len(header)}")
        try:
            rows.append(_read_row(dict(zip(header, cells, strict=True))))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return rows


def _read_row(cells: Mapping[str, str]) -> tuple[str, int | None]:
    name = cells["Filename"]
    if not name or PurePath(name).name != name:
        raise InputError(f"{name!r} is not the bare name of a file")
    if "ClassId" not in cells:
        return name, None
    text = cells["ClassId"]
    if not text.isdecimal() or int(text) >= N_CLASSES:
        raise InputError(f"ClassId {text!r} is not a class from 0 to {N_CLASSES - 1}")
    return name, int(text)


def _train_rows(images: Path) -> list[tuple[Path, int | None]]:
    rows: list[tuple[Path, int | None]] = []
    for folder in images.iterdir():
        if not (folder.is_dir() and len(folder.name) == 5 and folder.name.isdecimal()):
            continue
        table = folder / f"GT-{folder.name}.csv"
        for name, label in _read_table(table):
            if label != int(folder.name):
                got = "no ClassId" if label is None else f"ClassId {label}"
                raise InputError(f"{table}: {name} has {got} in the folder of class {int(folder.name)}")
            rows.append((folder / name, label))
    return sorted(rows)


def _test_rows(root: Path, images: Path) -> list[tuple[Path, int | None]]:
    # The labelled table is preferred: the test archive's own GT-final_test.test.csv has no ClassId.
    labelled, unlabelled = "GT-final_test.csv", "GT-final_test.test.csv"
    tables = [root / labelled, images / labelled, images / unlabelled, root / unlabelled]
    for table in tables:
        if table.is_file():
            return [(images / name, label) for name, label in _read_table(table)]
    raise InputError(f"there is no table of test images: none of {', '.join(map(str, tables))}")


def load_split(root: str | PathLike[str], name: Literal["train", "test"]) -> Split:
    """The official training or test images below ``root``, or any subset laid out and listed the same way.

    Training images come in the order of their sorted paths, test images in the order of their csv. Every row
    of a csv is a sample; one whose file is missing raises InputError when its pixels are asked for. Raises
    InputError for an unknown split, a missing folder or csv, or a malformed csv (with the file and the line).
    """
    base = Path(root)
    folders = {"train": base / "Final_Training" / "Images", "test": base / "Final_Test" / "Images"}
    if name not in folders:
        raise InputError(f"unknown split {name!r}; choose 'train' or 'test'")
    images = folders[name]
    if not images.is_dir():
        raise InputError(f"there is no folder {images}; root must hold the official GTSRB layout")
    rows = _train_rows(images) if name == "train" else _test_rows(base, images)
    if not rows:
        raise InputError(f"{images} lists no images")
    if len({path for path, _ in rows}) < len(rows):
        raise InputError(f"a csv of {images} lists the same file twice")
    return Split(base, name, tuple(Sample(path, label, index) for index, (path, label) in enumerate(rows)))


@pinned_as_given
def preprocess(image: NDArray[Any]) -> Tensor:
    """A photograph as the authors feed it to their networks: (1, 3, 48, 48), float32, in [0, 1].

    ``image`` is RGB of shape (height, width, 3): uint8, or floating point in [0, 1]. In this order: to HSV;
    histogram equalisation of V over the whole photograph; back to RGB; the central square of side
    ``2 * (min(height, width) // 2)`` around (height // 2, width // 2); bilinear resize to 48x48, smoothed
    first when it shrinks. All in float64, then rounded to float32.

    Raises InputError for another shape or type, for numbers outside [0, 1], and for a side below 2 pixels;
    MissingPackageError without scikit-image.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        got = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"an image is a numpy array of shape (height, width, 3), not {got}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"an image is uint8, or floating point in [0, 1], not {image.dtype}")
    height, width = image.shape[:2]
    if min(height, width) < 2:
        raise InputError(f"an image needs at least 2x2 pixels, not {height}x{width}")
    # `not all(inside)` rather than `any(outside)`: it also refuses NaN.
    if image.dtype != np.uint8 and not bool(((image >= 0) & (image <= 1)).all()):
        raise InputError("a floating-point image must lie in [0, 1]; convert one in 0..255 to uint8")

    color = package("skimage.color", "scikit-image", "Preprocessing a GTSRB photograph", "gtsrb")
    exposure = package("skimage.exposure", "scikit-image", "Preprocessing a GTSRB photograph", "gtsrb")
    transform = package("skimage.transform", "scikit-image", "Preprocessing a GTSRB photograph", "gtsrb")

    wide = image if image.dtype == np.uint8 else image.astype(np.float64)
    hsv = color.rgb2hsv(wide)
    hsv[:, :, 2] = exposure.equalize_hist(hsv[:, :, 2])
    rgb = color.hsv2rgb(hsv)
    half = min(height, width) // 2
    row, col = height // 2, width // 2
    square = rgb[row - half : row + half, col - half : col + half]
    resized = np.asarray(transform.resize(square, (IMAGE_SIDE, IMAGE_SIDE)))
    channels_first = np.ascontiguousarray(resized.transpose(2, 0, 1)[np.newaxis])
    return torch.from_numpy(channels_first).to(torch.float32)


@pinned
def load_paper_model(path: str | PathLike[str]) -> nn.Sequential:
    """One of the authors' Keras networks (``model_gtsrb.h5``, ``model_dense.h5``) as a torch model.

    Float32, eval mode; input (N, 3, 48, 48), output (N, 43) logits: the final softmax is dropped. Children
    bear the names of the Keras layers. Raises what :func:`corgi_opt.from_keras` raises of a file, and InputError for
    a network whose layers are no chain.
    """
    model, _ = read(Path(path), "gtsrb")
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"{path} is none of the paper's networks, whose layers are a chain; corgi_opt.from_keras reads it"
        )
    return model


@dataclass(frozen=True)
class PaperImage:
    """What the authors published about one training image; radii in units of the network's input.

    ``image`` and ``model`` are paths below the root. ``cam_sorted`` is the CAM of ``class_idx``, largest
    value first. Radii are keyed by k, and by k2 for the relaxed property with ``k1``.
    ``corgi_radius_by_k[13]`` is the cap of the authors' search, not a bound.
    """

    source: str
    image: str
    model: str
    class_idx: int
    norm: str
    cam_sorted: tuple[float, ...]
    corgi_radius_by_k: Mapping[int, float]
    attack_radius_by_k: Mapping[int, float]
    k1: int
    relaxed_corgi_radius_by_k2: Mapping[int, float]


@dataclass(frozen=True)
class PaperTestImage:
    """One test image: row ``index`` of the csv, its file name, the authors' certified and attacked radius."""

    index: int
    file: str
    corgi_radius: float
    attack_radius: float


@dataclass(frozen=True)
class PaperTestImages:
    """The authors' radii for the test images that the network classifies correctly, for the true class.

    The bound ignores the box [0, 1]; the attack stays inside it. ``corgi_bisection_step`` is the last step of
    the search for ``corgi_radius``; ``model`` is a path below the root.
    """

    source: str
    model: str
    k: int
    norm: str
    corgi_bisection_step: float
    images: tuple[PaperTestImage, ...]


def _read_json(path: Path, build: Callable[[Any], _T]) -> _T:
    """``build`` of the parsed JSON file; whatever is missing or of the wrong type becomes an InputError."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the published numbers {path}: {error!r}") from error


def _by_int(table: Mapping[str, float]) -> dict[int, float]:
    return {int(key): float(value) for key, value in table.items()}


@pinned
def load_paper_image_496(root: str | PathLike[str]) -> PaperImage:
    """The published numbers of training image 496, ``root/paper/image_496.json``. Raises InputError."""

    def build(data: Any) -> PaperImage:
        return PaperImage(
            source=str(data["source"]),
            image=str(data["image"]),
            model=str(data["model"]),
            class_idx=int(data["class_idx"]),
            norm=str(data["norm"]),
            cam_sorted=tuple(map(float, data["cam_sorted_descending"])),
            corgi_radius_by_k=_by_int(data["corgi_radius_by_k"]),
            attack_radius_by_k=_by_int(data["attack_radius_by_k"]),
            k1=15,  # part of the table's name in the file
            relaxed_corgi_radius_by_k2=_by_int(data["relaxed_corgi_radius_k1_15_by_k2"]),
        )

    return _read_json(Path(root) / "paper" / "image_496.json", build)


@pinned
def load_paper_test_images(root: str | PathLike[str]) -> PaperTestImages:
    """The published radii of the test images, ``root/paper/test_images_k15.json``. Raises InputError."""

    def build(data: Any) -> PaperTestImages:
        return PaperTestImages(
            source=str(data["source"]),
            model=str(data["model"]),
            k=int(data["k"]),
            norm=str(data["norm"]),
            corgi_bisection_step=float(data["corgi_bisection_step"]),
            images=tuple(
                PaperTestImage(
                    index=int(row["index"]),
                    file=str(row["file"]),
                    corgi_radius=float(row["corgi_radius"]),
                    attack_radius=float(row["attack_radius"]),
                )
                for row in data["images"]
            ),
        )

    return _read_json(Path(root) / "paper" / "test_images_k15.json", build)
