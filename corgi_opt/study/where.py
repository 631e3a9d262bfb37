"""Where a cell was answered, for the record: the machine, its processor, and the versions of what answered it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("corgi_opt", "torch", "numpy", "scipy", "highspy", "pulp", "cvxpy", "clarabel")
"""Those whose versions stand beside every answer: ours, what computes, and the solvers."""

CPU_INFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def where_it_ran() -> dict[str, str]:
    """The columns ``host``, ``cpu`` and ``versions`` of a row."""
    return {"host": platform.node(), "cpu": cpu(), "versions": versions()}


def versions() -> str:
    """Python's version and those of the packages that are installed, as ``python 3.11.2, torch 2.6.0, ...``."""
    said = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            said.append(f"{package} {version(package)}")
    return ", ".join(said)


def cpu() -> str:
    """The processor's model, and how many of the machine's cores this process may use."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    said = f"{cores} cores" if usable == cores else f"{usable} of {cores} cores"
    return f"{_model()}, {said}"


def _model() -> str:
    """As Linux says it; elsewhere, and on processors that say none there, the kind of machine."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"
