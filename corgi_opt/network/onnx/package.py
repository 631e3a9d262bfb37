"""Import of the packages of the ``onnx`` extra, at the moment they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from corgi_opt.errors import MissingPackageError

PIP = "pip install 'corgi_opt[onnx]'"


def onnx_package() -> Any:
    """The package ``onnx``. Raises MissingPackageError."""
    try:
        return import_module("onnx")
    except ModuleNotFoundError as error:
        raise MissingPackageError("onnx", "reading an ONNX model", PIP) from error


def onnxruntime_package() -> Any | None:
    """The package ``onnxruntime``, or None where it is not installed."""
    try:
        return import_module("onnxruntime")
    except ModuleNotFoundError:
        return None
