"""A stand-in for a GPU: memory of the CPU that counts itself ``cuda:0``, and refuses what CUDA refuses.

While a :class:`StandIn` is entered, whatever torch makes on, or moves to, a "cuda" device is an :class:`OnDevice`
tensor. Every torch function sees to it that

* tensors of the two devices do not meet, but for CPU tensors without dimensions (numbers);
* CPU indices may index a tensor of the device, and not the other way round;
* data cross by ``to``, ``cpu``, ``cuda``, ``copy_`` and by assigning to a slice, and nothing else;
* no array is made of a tensor of the device, and no generator of the CPU's fills one.

It is stricter than CUDA in what it makes of a number of the device that is put in a tensor of the CPU by an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)
REFUSED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class OnDevice(Tensor):
    """A tensor of the stand-in device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class StandIn(TorchFunctionMode):
    """Makes "cuda" a device that there is, with so many bytes free.

    ``calls``: how often each function had a tensor of the device to work on.
    """

    def __init__(self, free: int = 64_000_000_000) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        said = {"mem_get_info": (free, 2 * free), "memory_reserved": 0, "memory_allocated": 0}
        fakes: dict[str, Any] = {name: _saying(value) for name, value in said.items()}
        self._cuda = mock.patch.multiple(torch.cuda, **fakes)

    def __enter__(self) -> StandIn:
        self._cuda.start()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._cuda.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(t, OnDevice) for t in tensors((args, kwargs or {}))):
            self.calls[func.__name__] += 1
        return run(func, args, kwargs or {})


def _saying(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | range | torch.Size):
        for part in value:
            yield from tensors(part)


def wrapped(value: Any) -> Any:
    """Tensors of the CPU's memory as tensors of the device; in a result of any form."""
    if isinstance(value, OnDevice):
        return value
    if isinstance(value, Tensor):
        return value.as_subclass(OnDevice)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple | list):
        return type(value)([wrapped(v) for v in value])  # also for what sort, max ... return
    return value


def on_device(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def meet(*values: Any) -> None:
    """Raises what CUDA raises where tensors of both devices meet."""
    found = list(tensors(values))
    if any(isinstance(t, OnDevice) for t in found) and any(not isinstance(t, OnDevice) and t.ndim for t in found):
        raise RuntimeError(REFUSED)


def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        name = func.__name__
        rule = RULES.get(name)
        if name == "__get__":
            rule = PROPERTIES.get(getattr(func.__self__, "__name__", ""))
        if rule is not None and args:
            return rule(func, args, dict(kwargs))
        return _usual(func, args, dict(kwargs))


def _usual(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target: bool | None = None
    if "device" in kwargs:
        target = on_device(kwargs["device"])
        if target:
            kwargs["device"] = torch.device("cpu")
    generator = kwargs.get("generator")
    if target and generator is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if not _makes_new(func):
        meet(args, kwargs)
    result = func(*args, **kwargs)
    here = any(isinstance(t, OnDevice) for t in tensors((args, kwargs)))
    return wrapped(result) if target or (here and target is None) else result


def _makes_new(func: Callable[..., Any]) -> bool:
    """Functions that take a tensor for its form only, or values that may come from anywhere."""
    name = func.__name__
    return name.startswith("new_") or name.endswith("_like") or name in ("tensor", "as_tensor")


def _moved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *rest = args
    target = isinstance(x, OnDevice)
    if func.__name__ == "cpu":
        target, rest, kwargs = False, [], {}
    elif func.__name__ == "cuda":
        target, rest, kwargs = True, [], {}
    else:
        for at, value in enumerate(rest):
            if isinstance(value, str | torch.device):
                target, rest[at] = on_device(value), torch.device("cpu")
            elif isinstance(value, Tensor):
                target = isinstance(value, OnDevice)
        if kwargs.get("device") is not None:
            target, kwargs["device"] = on_device(kwargs["device"]), torch.device("cpu")
    crossed = target != isinstance(x, OnDevice)
    result = Tensor.to(x, *(rest or [x.dtype]), **{**kwargs, "copy": crossed or kwargs.get("copy", False)})
    if result is x:
        return x
    return wrapped(result) if target else result


def _read(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, index = args[0], args[1] if len(args) > 1 else kwargs["indices"]
    _may_index(x, index)
    result = func(*args, **kwargs)
    return wrapped(result) if isinstance(x, OnDevice) else result


def _may_index(x: Tensor, index: Any) -> None:
    if not isinstance(x, OnDevice) and any(isinstance(t, OnDevice) and t.ndim for t in tensors((index,))):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, index, value = args[:3]
    _may_index(x, index)
    if any(t.ndim for t in tensors((index,))):  # a slice is copied to, from wherever
        meet(x, value)
        if isinstance(value, OnDevice) and not isinstance(x, OnDevice):
            raise RuntimeError(REFUSED)
    result = func(*args, **kwargs)
    return wrapped(result) if isinstance(x, OnDevice) else result


def _copied(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _iterated(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = list(func(*args, **kwargs))
    return iter(wrapped(parts) if isinstance(args[0], OnDevice) else parts)


def _no_array(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    return func(*args, **kwargs)


def _property(here: Any) -> Callable[..., Any]:
    def rule(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return here if isinstance(args[0], OnDevice) else func(*args, **kwargs)

    return rule


RULES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("to", "cpu", "cuda", "type_as"), _moved),
    **dict.fromkeys(("__getitem__", "index"), _read),
    **dict.fromkeys(("__setitem__", "index_put", "index_put_"), _written),
    "copy_": _copied,
    "__iter__": _iterated,
    "numpy": _no_array,
    "__array__": _no_array,
    "get_device": _property(0),
}
PROPERTIES: Mapping[str, Callable[..., Any]] = {
    "device": _property(DEVICE),
    "is_cuda": _property(True),
    "is_cpu": _property(False),
}
