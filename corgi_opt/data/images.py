"""Image files and saved arrays as the tensors a network takes: the right values, or a refusal that says what to do.

What an image file holds is scaled to [0, 1] by the largest value of its kind (255, or 65535). Whatever else is done to
it (a colour space changed, an opaque alpha channel left out) is told to ``note``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corgi_opt.errors import CorgiError, InputError, MissingPackageError

Note = Callable[[str], None]

AS_ARRAY = "read it with a program that knows its values and save them with np.save as floats (C, H, W) in a .npy file"


def to_stderr(text: str) -> None:
    """Prints a note to standard error; standard output holds answers only."""
    print(f"note: {text}", file=sys.stderr)


def read_array(path: Path, note: Note = to_stderr) -> Tensor:
    """A .npy array (1, C, H, W), (C, H, W) or (H, W) in its own precision: a float64 counterexample stays exact.

    Raises InputError.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise InputError(f"{path} is not a .npy array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} must hold real numbers, got {array.dtype}: save it .astype(float)")
    if not 2 <= array.ndim <= 4 or (array.ndim == 4 and len(array) != 1) or not array.size:
        raise InputError(f"{path} must have shape (1, C, H, W), (C, H, W) or (H, W), got {array.shape}")
    if array.dtype.kind in "iu" and (array.min() < 0 or array.max() > 1):
        said = f"integers in [{array.min()}, {array.max()}] are taken as they are"
        note(f"{path}: {said}; if the network takes [0, 1], save the array divided by its largest possible value")
    return torch.from_numpy(array.astype(np.float64, order="C")[(None,) * (4 - array.ndim)])


def read_image(path: Path, size: int | None, note: Note = to_stderr) -> Tensor:
    """An image file as (1, 1, H, W) or (1, 3, H, W) float32 in [0, 1], resized to ``size`` x ``size`` pixels if given.

    Raises InputError, MissingPackageError.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("pillow", "reading image files", "pip install 'corgi_opt[gtsrb]'") from error

    def said(text: str) -> None:
        note(f"{path}: {text}")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                array = _values(opened, size, said)
    except CorgiError as error:
        raise InputError(f"{path}: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{path} has too many pixels to be read: make it smaller ({error})") from error
    except Exception as error:  # every format's reader has errors of its own for a damaged file
        raise InputError(f"cannot read {path} as an image: {error}") from error
    channels_first = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels_first))[None]


def _values(picture: Any, size: int | None, note: Note) -> NDArray[np.float32]:
    """Pixels (H, W) or (H, W, 3) in [0, 1]. Raises InputError for a file that has none, or several pictures."""
    from PIL import ImageOps

    _require_one_picture(picture, note)
    deep = _bits(picture)
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.size != picture.size or not np.array_equal(np.asarray(upright), np.asarray(picture)):
        note("turned as its EXIF orientation says")
    if deep == "unknown" or (deep == "16" and not picture.mode.startswith("I")):
        raise InputError(f"its values have more than 8 bits, which would be lost; {AS_ARRAY}")
    if deep in ("16", "float"):
        if "transparency" in picture.info:
            raise InputError(f"one of its values stands for transparent; {AS_ARRAY}")
        return _resized_floats(_deep(upright, deep, note), size)
    flat = _without_alpha(upright, note)
    if size is not None:
        if flat.width != flat.height:
            note(f"its {flat.width} x {flat.height} pixels are made {size} x {size}, so its proportions change")
        flat = flat.resize((size, size))
    return np.asarray(np.asarray(flat, dtype=np.float32) / np.float32(255))


def _require_one_picture(picture: Any, note: Note) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format == "MPO":
        note(f"the first of its {frames} pictures is taken")
    elif frames > 1:
        raise InputError(
            f"it holds {frames} pictures; save the one that is meant: "
            "im = PIL.Image.open(file); im.seek(number); im.convert('RGB').save('one.png')"
        )


def _bits(picture: Any) -> str:
    """ "8" or less, "16", "float", or "unknown": what a value of the file has, whatever Pillow makes of it."""
    raw = " ".join(str(tile[3]) for tile in picture.tile)  # how the file's samples are packed
    tags = getattr(picture, "tag_v2", {})
    bits, inverted = set(tags.get(258, ())), tags.get(262) == 0  # TIFF: BitsPerSample, PhotometricInterpretation
    if picture.mode == "F":
        return "float"
    if picture.mode.startswith("I"):  # a 16-bit file of Pillow's older releases is mode I
        sixteen = ";16" in raw and "S" not in raw.replace("LSB", "") and not bits - {16} and not inverted
        return "16" if sixteen or (picture.mode.startswith("I;16") and not tags) else "unknown"
    return "16" if ";16" in raw or bits - {1, 2, 4, 8} else "8"


def _deep(picture: Any, deep: str, note: Note) -> NDArray[np.float32]:
    """The values (H, W) of a picture of 16 bits or floats. Raises InputError for floats outside [0, 1]."""
    values = np.asarray(picture).astype(np.float64)
    if deep == "16":
        return (values / 65535).astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError(
            f"its values are floats in [{values.min():.6g}, {values.max():.6g}], and what is black and white is not "
            f"said; {AS_ARRAY}"
        )
    note("its values are floats in [0, 1] and taken as they are")
    return values.astype(np.float32)


def _resized_floats(values: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    from PIL import Image

    if size is None:
        return values
    resized = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)  # as 8 bits are: it may overshoot


def _without_alpha(picture: Any, note: Note) -> Any:
    """The picture in mode L or RGB. Raises InputError for transparent pixels and other colour spaces."""
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            raise InputError(
                "it has transparent pixels, whose colour depends on what is behind them; lay it on a background: "
                "im = PIL.Image.open(file).convert('RGBA'); back = PIL.Image.new('RGBA', im.size, 'white'); "
                "PIL.Image.alpha_composite(back, im).convert('RGB').save('flat.png')"
            )
        note("its alpha channel, all opaque, is left out")
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.mode in ("CMYK", "YCbCr", "HSV"):
        note(f"made RGB of {picture.mode} by the plain formula, without a colour profile")
    elif not grey and picture.mode not in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        raise InputError(f"images of mode {picture.mode!r} are not read; {AS_ARRAY}")
    wanted = "L" if grey else "RGB"
    if picture.mode in ("La", "RGBa"):  # premultiplied: there is only one way out
        picture = picture.convert("LA" if grey else "RGBA")
    return picture if picture.mode == wanted else picture.convert(wanted)


def fitted(module: nn.Module, x: Tensor, note: Note = to_stderr) -> Tensor:
    """The image (1, C, H, W) as the network takes it: grey on three channels, RGB as grey, or channels moved to the
    front, where the network refuses it as it is and takes it so; ``note`` is told. Else the image as it is."""
    if refusal(module, x) is None:
        return x
    for what, other in _others(x):
        if refusal(module, other) is None:
            note(f"the network does not take an image {tuple(x.shape)}: {what}")
            return other
    return x


def _others(x: Tensor) -> list[tuple[str, Tensor]]:
    """Other readings of an image (1, C, H, W), each with words for what was done."""
    others = []
    if x.shape[1] == 1:
        others.append(("its grey values are given to all three channels", x.expand(-1, 3, -1, -1).contiguous()))
    if x.shape[1] == 3:
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype).view(1, 3, 1, 1)  # ITU-R BT.601, as Pillow's
        others.append(("it is made grey, .299 R + .587 G + .114 B", (x * luma).sum(dim=1, keepdim=True)))
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        others.append(("its last axis is taken for the channels", x.permute(0, 3, 1, 2).contiguous()))
    return others


def refusal(module: nn.Module, x: Tensor) -> Exception | None:
    """The network's error on an image; None where it takes it, or is in training mode (then it is not run)."""
    if any(m.training for m in module.modules()):
        return None
    parameter = next(module.parameters(), x)
    try:
        with torch.no_grad():
            module(x.clone().to(parameter.device, parameter.dtype))
    except Exception as error:  # whatever a user's model raises
        return error
    return None
