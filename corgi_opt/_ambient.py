"""The state of torch that our arithmetic runs in, whatever the caller has set: every public entry is ``pinned``.

torch lets a notebook, a training loop or a test harness change what the same line of code computes. Two kinds of state
are set here and put back afterwards, however the call ends:

* of the *thread*: inference mode off, gradients off (our own searches turn them on where they need them), autocast off
  for every device type, tensors made on the CPU unless a device is named, no TorchDispatchMode of the caller's (a
  FakeTensorMode, a counter of operations), denormal numbers not flushed to zero, numpy's errors as by default;
* of the *process*: default dtype float32, float32 products in full precision, no algorithm refused for being
  non-deterministic and cuDNN's deterministic ones chosen, no anomaly detection. Calls may overlap in several threads:
  the last one out puts it back.

What is left alone: a TorchFunctionMode of the caller's own, cuDNN's TF32 in convolutions (a GPU's float32 steers, it
proves nothing), the number of threads, and flushing in torch's own worker threads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from corgi_opt.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "ipu", "xla", "maia", "privateuseone")
"""Device types that autocast knows."""

SMALLEST = 5e-324
"""The smallest denormal float64."""

ENTRIES: set[Callable[..., Any]] = set()
"""Every function that is pinned."""


def pinned(function: Callable[P, R]) -> Callable[P, R]:
    """A public entry: runs in the state that the module describes, gradients off, its arguments made :func:`plain`.

    Raises InputError for a tensor argument that holds no values (a FakeTensor), inside torch.func and torch.jit.trace,
    and where the device runs out of memory.
    """
    return _entry(function, keep_grad=False)


def pinned_with_grad(function: Callable[P, R]) -> Callable[P, R]:
    """:func:`pinned` for what callers may differentiate: gradients stay as they are."""
    return _entry(function, keep_grad=True)


def pinned_as_given(function: Callable[P, R]) -> Callable[P, R]:
    """:func:`pinned` for what works on numpy's arrays: its arguments stay as they are."""
    return _entry(function, keep_grad=False, taken=lambda value: value)


def _entry(function: Callable[P, R], *, keep_grad: bool, taken: Callable[[Any], Any] | None = None) -> Callable[P, R]:
    """``taken``: what an argument is made; None: :func:`plain`."""

    @functools.wraps(function)
    def entry(*args: P.args, **kwargs: P.kwargs) -> R:
        if _here.inside:
            return function(*args, **kwargs)
        result: R = _run(function, keep_grad, taken or plain, args, kwargs)
        return result

    ENTRIES.add(entry)
    return entry


@_disable_dynamo  # a caller's torch.compile goes round it
def _run(
    function: Callable[..., Any],
    keep_grad: bool,
    taken: Callable[[Any], Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
        raise InputError(
            "corgi_opt cannot run inside torch.func (vmap, grad ...) or torch.jit.trace, which record what is computed "
            "on stand-ins of tensors: call it outside and pass its answer in"
        )
    try:
        with _state(keep_grad):
            return function(*map(taken, args), **{name: taken(value) for name, value in kwargs.items()})
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")[0]
        raise InputError(f"the device ran out of memory ({said}); pass device='cpu', or fewer at a time") from error


class _Thread(threading.local):
    inside = False


_here = _Thread()


@contextmanager
def _state(keep_grad: bool) -> Iterator[None]:
    grad = keep_grad and torch.is_grad_enabled()
    with ExitStack() as stack:
        stack.enter_context(_modes_off())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        for device_type in DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_denormals_kept())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(_process.pinned())
        _here.inside = True
        try:
            yield
        finally:
            _here.inside = False


@contextmanager
def _modes_off() -> Iterator[None]:
    if torch._C._len_torch_dispatch_stack():
        with _disable_current_modes():
            yield
    else:
        yield


@contextmanager
def _denormals_kept() -> Iterator[None]:
    flushed = SMALLEST * _ONE == 0.0  # the processor's flag is the same for torch's numbers and Python's
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)


_ONE = float("1")
"""Not a literal: the product is to be computed when it is asked for."""


def plain(value: Any) -> Any:
    """An argument as our code takes it: numpy's arrays as tensors, its scalars and tensors without axes as Python's
    numbers, tensors that our arithmetic can take, and so each item of a list or tuple; anything else as it is.

    Raises InputError for a FakeTensor.
    """
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, np.generic | np.ndarray):
        return _of_numpy(value)
    if not isinstance(value, Tensor):
        return value
    if isinstance(value, FakeTensor):
        raise InputError("a FakeTensor holds no values: pass a tensor that was made outside of FakeTensorMode")
    if value.ndim == 0 and value.layout is torch.strided and not value.is_meta:
        return value.item()
    # a tensor of inference mode can be in no computation that is differentiated
    return value.clone() if value.is_inference() else value


def _of_numpy(value: Any) -> Any:
    """A tensor with values of its own, or a number; a masked array, and types that torch lacks, as they are."""
    if value.ndim == 0:
        return value.item()
    if isinstance(value, np.ma.MaskedArray):
        return value
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    except TypeError:
        return value


@dataclass(frozen=True)
class _Setting:
    """A setting of the process, with functions to read and to write it. The first of ``wanted`` is written unless the
    setting has one of these values already."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: tuple[Any, ...]

    @classmethod
    def of(cls, owner: Any, name: str, *wanted: Any) -> _Setting:
        """The attribute ``name`` of ``owner``."""
        return cls(functools.partial(getattr, owner, name), functools.partial(setattr, owner, name), wanted)


FULL = ("ieee", "none")
"""Values of ``fp32_precision`` that compute float32 products in full: asked for, or the default."""


def _settings() -> Iterator[_Setting]:
    yield _Setting(torch.get_default_dtype, torch.set_default_dtype, (torch.float32,))
    yield _Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, (0,))
    yield _Setting(_anomaly, _set_anomaly, ((False, True), (False, False)))
    yield _Setting.of(torch.backends.cudnn, "deterministic", True)
    yield _Setting.of(torch.backends.cudnn, "benchmark", False)
    yield _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("highest",))
    with suppress(AttributeError):  # torch < 2.9 has but the one name for it
        mkldnn: Any = torch.backends.mkldnn
        for owner in (torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv):
            yield _Setting.of(owner, "fp32_precision", *FULL)


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly(state: tuple[bool, bool]) -> None:
    torch.set_anomaly_enabled(*state)


class _Process:
    """Settings of the process while any thread is inside."""

    def __init__(self, settings: Iterable[_Setting]) -> None:
        self._settings, self._lock = tuple(settings), threading.Lock()
        self._inside = 0
        self._before: list[tuple[_Setting, Any]] = []

    @contextmanager
    def pinned(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            with self._lock:
                for setting in self._settings:
                    self._set(setting)
            yield
        finally:
            with self._lock:
                self._inside -= 1
                while not self._inside and self._before:
                    setting, value = self._before.pop()
                    setting.write(value)

    def _set(self, setting: _Setting) -> None:
        """Writes a setting where need be; also for a later thread, as it may have changed since the first came in."""
        with suppress(RuntimeError, AttributeError):  # torch finds its own settings contradictory, or is an older one
            now = setting.read()
            if now not in setting.wanted:
                if setting not in (known for known, _ in self._before):
                    self._before.append((setting, now))
                setting.write(setting.wanted[0])


_process = _Process(_settings())
