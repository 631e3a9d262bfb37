"""Checks of plain arguments: every refusal names the argument, what it must be and what it was."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch

from corgi_opt.errors import InputError


def integer(name: str, value: Any, low: int, high: int, what: str = "") -> int:
    """An int in ``low..high``; numpy's integers count, bools do not. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name} must be an int in {low}..{high}{what}, got {value!r}")
    return int(value)


def finite(name: str, value: Any, what: str = "") -> float:
    """A finite real number; numpy's scalars count, bools do not. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number{what}, got {value!r}")
    return float(value)


def not_negative(name: str, value: Any, what: str = "") -> float:
    """A finite number >= 0. Raises InputError."""
    number = finite(name, value, what)
    if number < 0:
        raise InputError(f"{name} must be >= 0, got {value}")
    return number


def number_from_text(text: str) -> float:
    """A number as it is typed: ``0.01``, ``1e-3``, or a fraction, ``1/255``. Raises ValueError."""
    above, slash, below = text.partition("/")
    if slash and float(below) == 0:
        raise ValueError(f"division by zero in {text!r}")
    return float(above) / float(below) if slash else float(above)


def check_rtol(rtol: Any) -> float:
    """A relative resolution, between 0 and 1. Raises InputError."""
    if isinstance(rtol, bool) or not isinstance(rtol, Real) or not 0 < float(rtol) < 1:
        raise InputError(f"rtol must be a number between 0 and 1, got {rtol!r}")
    return float(rtol)


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"``: CUDA where there is one, else the CPU. Raises InputError for an unknown or absent device."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        made = torch.zeros(1, device=torch.device(name))
        made.sum().item()  # "meta" makes tensors but cannot hold a value
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        message, others = str(error).splitlines()[0], "'cpu'" if device == "auto" else "'auto' or 'cpu'"
        raise InputError(f"device {device!r} is not usable here ({message}); use {others}") from error
    return made.device  # with its number, as tensors name it, so that caches by device hold one entry for it
