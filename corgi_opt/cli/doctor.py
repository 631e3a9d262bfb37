"""``corgi-opt doctor``: what is installed here, what of it works, and one question that is answered to its end."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from corgi_opt.answering.backends import known_solvers, why_not
from corgi_opt.answering.verdict import verify
from corgi_opt.data import digits
from corgi_opt.network.cam import from_torch

PACKAGES = ("corgi_opt", "torch", "numpy", "scipy", "networkx", "highspy", "pulp", "cvxpy", "clarabel")
EXTRAS = {
    "onnx": ("onnx", "onnxruntime"),
    "keras": ("h5py",),
    "study": ("dask", "distributed", "filelock", "psutil", "jinja2", "pyarrow"),
    "gtsrb": ("scikit-image", "pillow", "h5py"),
    "notebook": ("ipykernel", "nbclient", "nbformat"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it works, and what is to be said of it. ``needed``: nothing
    works without it."""

    what: str
    works: bool
    said: str
    needed: bool = True


def examined() -> list[Finding]:
    """Everything there is to say about this installation, in order."""
    return [
        _python(),
        *map(_package, PACKAGES),
        _device(),
        *map(_solver, known_solvers()),
        *map(_extra, EXTRAS),
        _self_test(),
    ]


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.platform()}")


def _package(name: str) -> Finding:
    version = _version(name)
    return Finding(name, version is not None, version or f"not installed: pip install {name}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> Finding:
    if not torch.cuda.is_available():
        return Finding("device", True, f"CPU, {torch.get_num_threads()} threads (no CUDA device)", needed=False)
    free, total = torch.cuda.mem_get_info()
    shown = f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return Finding("device", True, f"CUDA {torch.version.cuda}: {shown}", needed=False)


def _solver(name: str) -> Finding:
    """Whether a backend can be run: asked of itself, as every public function asks it."""
    lacks = why_not(name)
    return Finding(f"solver {name}", not lacks, lacks or "works", needed=name == "highs")


def _extra(name: str) -> Finding:
    missing = [package for package in EXTRAS[name] if _version(package) is None]
    said = "installed" if not missing else f"without {', '.join(missing)}: pip install 'corgi_opt[{name}]'"
    return Finding(f"extra {name}", not missing, said, needed=False)


def _self_test() -> Finding:
    """The bundled network: certified with a checked proof below its radius, broken above it."""
    start = time.monotonic()
    try:
        said = _answered(lambda: time.monotonic() - start)
    except Exception as error:  # whatever it is, it is what the report is for
        return Finding("self-test", False, f"{type(error).__name__}: {error}")
    return Finding("self-test", not said.startswith("wrong"), said)


def _answered(seconds: Callable[[], float]) -> str:
    images, _ = digits.load_digits()
    model, x = digits.digits_model(), images[7:8]
    net = from_torch(model, x)
    kept = verify(net, x, eps=0.012, k=3, proof="checked", progress=False, time_limit=60)
    broken = verify(net, x, eps=0.05, k=3, progress=False, time_limit=60)
    if (kept.status, kept.proof, broken.status) != ("certified", "checked", "falsified"):
        return f"wrong: {kept!r} and {broken!r}; please report this"
    return f"certified, proven and broken as it should be, in {seconds():.1f} s"
