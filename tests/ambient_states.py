"""States of torch (and numpy) that a caller may be in, each as a context manager that puts back what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Rounding(TorchDispatchMode):
    """Rounds whatever is computed to eight bits, as a user's simulation of a coarse number format would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.overrides.resolve_name(func) == "aten.detach.default":
            return out
        return tree_map_only(torch.Tensor, lambda t: t.bfloat16().to(t.dtype) if t.is_floating_point() else t, out)


@contextmanager
def changed(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return changed(torch.get_default_dtype, torch.set_default_dtype, dtype)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def flushing() -> Iterator[None]:
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def coarse_products() -> Iterator[None]:
    """Float32 products as bfloat16 ones where the processor has them, by every name that torch has for it."""
    owners = products()
    before = [owner.fp32_precision for owner in owners]
    try:
        with changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"):
            for owner in owners[1:]:
                owner.fp32_precision = "bf16"
            yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            owner.fp32_precision = value


def products() -> list[Any]:
    """Where torch >= 2.9 keeps the precision of float32 products: CUDA's first."""
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    backends: Any = torch.backends  # torch makes these as it is imported: its hints know of none
    return [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv]


@contextmanager
def everything() -> Iterator[None]:
    with default_dtype(torch.float64), torch.autocast("cpu", torch.bfloat16), torch.no_grad(), default_device("meta"):
        yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "fake tensors": FakeTensorMode,
    "a dispatch mode": Rounding,
    "deterministic": lambda: changed(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2),
    "anomaly detection": lambda: changed(torch.is_anomaly_enabled, torch.set_anomaly_enabled, True),
    "coarse products": coarse_products,
    "flushed denormals": flushing,
    "numpy raises": lambda: np.errstate(all="raise"),
    "several at once": everything,
}


def observed() -> dict[str, Any]:
    """What a caller can see of all that."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "kind": type(torch.empty(0)).__name__,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "modes": torch._C._len_torch_dispatch_stack(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "products": torch.get_float32_matmul_precision(),
        "by backend": [owner.fp32_precision.replace("none", "ieee") for owner in products()],
        "flushed": float("5e-324") * float("1") == 0.0,
        "numpy": np.geterr(),
    }
