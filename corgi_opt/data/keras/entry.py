"""The way in: a Keras file, or a model that is in memory, as a network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt._ambient import pinned
from corgi_opt.data.keras.reader import Size, read
from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.network.names import checked_names


@pinned
def from_keras(
    source: str | PathLike[str] | Any, example: Tensor | None = None, *, classes: Sequence[str] | None = None
) -> CamNetwork:
    """Reads a Keras model with a CAM head, as :func:`from_torch` does a torch model, and checks the graph against it.

    ``source``: a .h5, .hdf5 or .keras file of Keras 2 or 3, or a Keras model, which is saved to a temporary file by its
    own ``save``. ``example``: one image (1, C, H, W), channels first as everywhere here; needed where the model leaves
    height or width open. A model of sequences (steps, channels) reads images (1, C, 1, steps). What comes after the
    class scores (a final softmax or sigmoid) is left out. Nothing in a file is run. ``classes``: names of the classes,
    as in :func:`from_torch`.

    Raises what :func:`from_torch` raises; InputError for a file that is missing, damaged or no model,
    UnsupportedOpError for a layer or an option that is not read, both naming the layer; MissingPackageError without
    h5py.
    """
    checked_names(classes)  # before any file is read
    model, size = _read(source)
    return from_torch(model, _image(size) if example is None else example, classes=classes)


@pinned
def torch_model(source: str | PathLike[str] | Any) -> nn.Module:
    """The torch model (float32, eval mode) that :func:`from_keras` makes a network of.

    Input (N, C, H, W), output logits. Children bear the names of the Keras layers. Raises what :func:`from_keras`
    raises of a file.
    """
    return _read(source)[0]


def _read(source: Any) -> tuple[nn.Module, Size]:
    if isinstance(source, (str, PathLike)):
        return read(Path(source))
    if not callable(getattr(source, "save", None)) or not callable(getattr(source, "get_config", None)):
        raise InputError(f"source must be a Keras file or a Keras model, got {type(source).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            source.save(path)
        except Exception as error:  # whatever the caller's Keras raises
            said = (str(error).splitlines() or [""])[0][:300]
            raise InputError(f"the Keras model cannot be saved to be read ({type(error).__name__}: {said})") from error
        if not path.is_file():
            raise InputError("the Keras model does not save itself as a .keras file; save it as .h5 and pass the file")
        return read(path)


def _image(size: Size) -> Tensor:
    """An image of the size that the model says; any values will do. Raises InputError where it says none."""
    sides = [s for s in size if s is not None]
    if len(sides) < len(size):
        raise InputError(f"the model takes images of any size ({size}); pass an example of shape (1, C, H, W)")
    *spatial, channels = sides
    rows, cols = spatial if len(spatial) == 2 else (1, spatial[0])
    return torch.rand(1, channels, rows, cols, generator=torch.Generator().manual_seed(0))
