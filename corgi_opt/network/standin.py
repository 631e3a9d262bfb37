"""A stand-in for the caller's model: its modules and functions, with weights, buffers and containers of its own.

``copy.deepcopy`` will not do: it dies of whatever a model may hold (a lock, an open file, an activation with a graph),
and it copies hooks, which then speak to the caller's lists. Here the structure is shared and what a forward pass may
write to is not: tensors are cloned, lists and dicts copied, methods bound anew. Forward hooks are left out, but for
those of torch that compute a weight from its parameters (weight norm, spectral norm, pruning): they are run once.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

_FRESH = nn.Module().__dict__
_HOOKS = frozenset(name for name in _FRESH if "hook" in name)
_FORWARD_HOOKS = frozenset(name for name in _HOOKS if name.startswith("_forward"))
_MAKES_A_WEIGHT = (WeightNorm, SpectralNorm, BasePruningMethod)
_SHARED_PACKAGES = sys.stdlib_module_names | {"torch", "numpy"}


def stand_in(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A model that computes what ``model`` does, on the CPU; floating tensors in ``dtype`` (None: their own)."""
    copier = _Copier(None)
    made: nn.Module = copier(_uncompiled(model))
    for module, hook in copier.weights:  # in the precision that the caller's model has them in
        hook(module, ())
    return made if dtype is None else _Copier(dtype)(made)


def changing_hooks(model: nn.Module, run: Callable[[nn.Module], object]) -> list[str]:
    """The paths of modules whose forward hooks, which a stand-in leaves out, replace values or write into them.

    ``run`` runs a float64 stand-in that has the hooks, speaking to copies of what they hold.
    """
    watched: list[_Watched] = []
    copier = _Copier(torch.float64, watched)
    made: nn.Module = copier(_uncompiled(model))
    if not watched:
        return []
    for module, hook in copier.weights:
        hook(module, ())
    run(made)
    paths = {id(module): path or type(module).__name__ for path, module in made.named_modules()}
    return [paths.get(id(w.module), type(w.module).__name__) for w in watched if w.changes]


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` has wrapped; any other as it is."""
    inner = model._modules.get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None
    return model if inner is None else inner


class _Watched:
    """A forward hook or pre-hook of ``module``; ``changes``: whether it ever gave another value or wrote into one."""

    def __init__(self, hook: Callable[..., Any], module: nn.Module) -> None:
        self._hook, self.module, self.changes = hook, module, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = [t._version for t in tensors]
        given = self._hook(*args, **kwargs)
        same = given is None or given is args[-1]  # the output, or for a pre-hook the inputs
        self.changes = self.changes or not same or before != [t._version for t in tensors]
        return given


class _Copier:
    """Copies values, each once; what it does not know is shared.

    ``watched``: takes the caller's forward hooks, which are left out without it.
    """

    def __init__(self, dtype: torch.dtype | None, watched: list[_Watched] | None = None) -> None:
        self._dtype, self._watched = dtype, watched
        self._made: dict[int, Any] = {}
        self._sources: list[Any] = []  # kept alive, so that no id is reused
        self._foreign = 0
        self.weights: list[tuple[nn.Module, Callable[[nn.Module, Any], Any]]] = []

    def __call__(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)]
        for kind, copied in self._kinds:
            if isinstance(value, kind):
                return copied(self, value)
        return self._object(value) if _is_plain_object(value) else value

    def _keep(self, value: Any, made: Any) -> Any:
        self._sources.append(value)
        self._made[id(value)] = made
        return made

    def _module(self, module: nn.Module) -> nn.Module:
        made: nn.Module = self._keep(module, object.__new__(type(module)))
        for name, value in module.__dict__.items():
            if name in _HOOKS:
                made.__dict__[name] = self._kept_hooks(made, name, value)
            elif not isinstance(value, FakeTensor):  # left behind by another trace, without values
                made.__dict__[name] = self(value)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _MAKES_A_WEIGHT):
                self.weights.append((made, hook))
        return made

    def _kept_hooks(self, module: nn.Module, name: str, hooks: Any) -> Any:
        if not isinstance(hooks, dict):
            return None
        kept = type(hooks)()
        if self._watched is not None and name in _FORWARD_HOOKS:
            # some of these dicts hold flags, not hooks
            own = {k: h for k, h in hooks.items() if not isinstance(h, _MAKES_A_WEIGHT)}
            kept.update({k: _Watched(self(h), module) if callable(h) else h for k, h in own.items()})
            self._watched.extend(h for h in kept.values() if isinstance(h, _Watched))
        return kept

    def _tensor(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
        made = tensor.detach().to("cpu", dtype, copy=True)
        made = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
        return self._keep(tensor, made)  # type: ignore[no-any-return]

    def _list(self, values: list[Any] | deque[Any]) -> Any:
        made = self._keep(values, [] if isinstance(values, list) else deque(maxlen=values.maxlen))
        made.extend(self(v) for v in values)
        return made

    def _dict(self, values: dict[Any, Any]) -> Any:
        empty = defaultdict(values.default_factory) if isinstance(values, defaultdict) else type(values)()
        made = self._keep(values, empty)
        for key, value in values.items():
            made[key] = self(value)
        return made

    def _tuple(self, values: tuple[Any, ...]) -> Any:
        parts = [self(v) for v in values]
        return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)

    def _set(self, values: set[Any]) -> set[Any]:
        return self._keep(values, set(values))  # type: ignore[no-any-return]

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function that closes over values closes over their copies; any other is shared."""
        if not function.__closure__:
            return function
        cells = tuple(types.CellType() for _ in function.__closure__)
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        made.__kwdefaults__, made.__dict__ = function.__kwdefaults__, dict(function.__dict__)
        self._keep(function, made)
        for cell, source in zip(cells, function.__closure__, strict=True):
            try:
                cell.cell_contents = self(source.cell_contents)
            except ValueError:
                continue  # not bound yet
        return made

    def _method(self, method: types.MethodType) -> types.MethodType:
        return types.MethodType(method.__func__, self(method.__self__))

    def _builtin(self, method: types.BuiltinMethodType) -> Any:
        """``values.append`` of a list becomes that of its copy."""
        if type(method.__self__) in (list, dict, set, deque, OrderedDict, defaultdict):
            return getattr(self(method.__self__), method.__name__)
        return method

    def _partial(self, call: functools.partial[Any]) -> functools.partial[Any]:
        keywords = {name: self(value) for name, value in call.keywords.items()}
        return functools.partial(self(call.func), *map(self, call.args), **keywords)

    def _object(self, value: Any) -> Any:
        """An object of the user's own class: copied with what it holds; further such objects in it are shared."""
        if self._foreign:
            return value
        try:
            made = self._keep(value, object.__new__(type(value)))
        except TypeError:
            return value
        self._foreign += 1
        try:
            made.__dict__.update({name: self(held) for name, held in value.__dict__.items()})
        finally:
            self._foreign -= 1
        return made

    _kinds: tuple[tuple[Any, Callable[[Any, Any], Any]], ...] = (
        (FakeTensor, lambda self, value: value),
        (Tensor, _tensor),
        (nn.Module, _module),
        ((list, deque), _list),
        (dict, _dict),
        (tuple, _tuple),
        (set, _set),
        (types.FunctionType, _function),
        (types.MethodType, _method),
        (types.BuiltinMethodType, _builtin),
        (functools.partial, _partial),
    )


def _is_plain_object(value: Any) -> bool:
    """Whether its class is written in Python, without slots, and is not of the standard library, torch or numpy."""
    kind = type(value)
    if isinstance(value, (type, types.ModuleType)) or kind.__module__.partition(".")[0] in _SHARED_PACKAGES:
        return False
    return "__dict__" in dir(kind) and not any("__slots__" in k.__dict__ for k in kind.__mro__)
