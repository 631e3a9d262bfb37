"""Models and images by name, as the command line and a study's plan write them.

A model is ``digits`` (bundled), ``path/to/model.onnx``, ``path/to/model.keras`` (or .h5, .hdf5),
``path/to/file.py:function`` or ``package.module:function``. The function is called without arguments for an eval-mode
nn.Module, and its file is run: name only files that you trust. ONNX and Keras files are only read;
``path/to/model.onnx:value`` says which of its values holds the class scores.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from corgi_opt.data import keras
from corgi_opt.data.images import Note, fitted, read_array, read_image, refusal, to_stderr
from corgi_opt.data.user_code import import_module, user_code
from corgi_opt.errors import InputError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.network.onnx.module import OnnxModule
from corgi_opt.network.onnx.network import read_onnx
from corgi_opt.network.weights import load_weights

BUGS = (NameError, AttributeError, TypeError, KeyError, ImportError, NotImplementedError, ZeroDivisionError)
"""What a forward raises that fails on every image. Of one it does not take torch says RuntimeError or ValueError."""


def load(
    model: str, image: str, size: int | None, weights: Path | None, classes: Sequence[str] | None = None
) -> tuple[CamNetwork, Tensor]:
    """The network, with the names of its classes where they are known, and the image that the command line names.

    Raises InputError, MissingPackageError; UserCodeError where the code of the model fails.
    """
    x = load_image(image, size, bundled=model == "digits")
    module = load_model(model, weights, tuple(x.shape))
    x = fitted(module, x)
    refused = refusal(module, x)
    if isinstance(refused, BUGS) and onnx_name(model) is None and not keras.is_keras_file(model):
        with user_code(model):
            raise refused
    if refused is not None:
        said = (str(refused).splitlines() or [type(refused).__name__])[0]
        raise InputError(
            f"{type(module).__name__} does not take this image: torch said {said!r}; the image has {x.shape[1]} "
            f"channels and {x.shape[2]} x {x.shape[3]} pixels; --size N makes an image file N x N"
        ) from refused
    net = from_torch(module, x, classes=classes)
    if isinstance(module, OnnxModule) and not module.origin.compared:
        to_stderr(net.note)
    return net, x


def load_model(name: str, weights: Path | None = None, shape: tuple[int, ...] | None = None) -> nn.Module:
    """Builds the model a MODEL argument names, with the weights of a file if there is one.

    ``shape`` (1, C, H, W): of the image, for the sizes that an ONNX file leaves open.

    Raises InputError, MissingPackageError, UserCodeError; for an ONNX or Keras file UnsupportedOpError; for an
    ONNX file ParityError.
    """
    onnx = onnx_name(name)
    file = name if keras.is_keras_file(name) else None if onnx is None else onnx[0]
    if file is not None and weights is not None:
        raise InputError(f"{file} holds its own weights; --weights is for models that a function builds")
    if onnx is not None:
        return read_onnx(onnx[0], shape, onnx[1])
    if file is not None:
        return keras.torch_model(file)
    module = _built(name)
    return module if weights is None else load_weights(module, weights)


def onnx_name(name: str) -> tuple[str, str | None] | None:
    """The file and the value that ``file.onnx`` or ``file.onnx:value`` names; None for another model."""
    found = re.fullmatch(r"(?is)(.+?\.onnx)(?::(.+))?", name)
    return None if found is None else (found[1], found[2])


def _built(name: str) -> nn.Module:
    if name == "digits":
        from corgi_opt.data.digits import digits_model

        return digits_model()
    model = find_function("MODEL", name, "'digits', model.onnx, model.keras, ")()
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def find_function(what: str, name: str, others: str = "") -> Callable[[], Any]:
    """The function that ``file.py:function`` or ``package.module:function`` names; its module is run.

    For the message: ``what`` the name is for, and the ``others`` that it may be. Raises InputError; UserCodeError
    where the module fails, and so does the function when it is called.
    """
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise InputError(f"{what} must be {others}file.py:function or package.module:function, got {name!r}")
    named = getattr(_load_module(where), function, None)
    if not callable(named):
        raise InputError(f"{where} has no function {function!r}")

    def call() -> Any:
        with user_code(name):
            return named()

    return call


def _load_module(where: str) -> Any:
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise InputError(f"no such file: {where}")
        return _run_file(path)
    if not all(part.isidentifier() for part in where.split(".")):
        raise InputError(f"{where!r} is neither a .py file nor a dotted module name")
    sys.path.insert(0, "")  # modules of the current directory, as python -m has them
    try:
        return import_module(where)
    finally:
        sys.path.remove("")


def _run_file(path: Path) -> Any:
    # a name of its own: a user's json.py must not take the place of the standard library's
    name = f"_corgi_opt_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)  # the file's neighbours, as python file.py has them
    sys.path.insert(0, folder)
    try:
        with user_code(str(path)):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def load_image(name: str, size: int | None, *, bundled: bool, note: Note = to_stderr) -> Tensor:
    """The image (1, C, H, W) an --image option names; ``note`` is told of what was done to it (images.py).

    A number is that of a digit as ``digits.load_digits`` returns them.

    Raises InputError, MissingPackageError.
    """
    if re.fullmatch(r"-?\d+", name):
        if not bundled:
            raise InputError("an index names a bundled image, which only the model 'digits' has; give a file")
        if size is not None:
            raise InputError("--size is for image files; a bundled digit has 8 x 8 pixels")
        from corgi_opt.data.digits import N_IMAGES, load_digits

        if not 0 <= int(name) < N_IMAGES:
            raise InputError(f"the bundled digits are images 0..{N_IMAGES - 1}, got {name}")
        return load_digits()[0][int(name)][None]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"no such image file: {name}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        raise InputError(f"{name} may hold several arrays; save the one that is meant with np.save as a .npy file")
    if suffix == ".npy":
        if size is not None:
            raise InputError("--size is for image files; a .npy array is taken as it is")
        return read_array(path, note)
    return read_image(path, size, note)
