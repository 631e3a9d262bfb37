"""Runs a float64 stand-in of the caller's model and records its feature maps: a reading that shares no code with ours.

Casts inside a forward pass (``x.float()``, ``x.to(w.dtype)``) are identities here: what is answered is about the exact
network, and a stand-in in float64 could not run them (a float32 image meets float64 weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from corgi_opt.errors import ParityError, UnsupportedOpError

MONOTONE = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax", "sigmoid", "log_sigmoid", "logsigmoid"})
"""What keeps the order of class scores: at the end of a model it is left out, here and in the graph."""

RETURN_LOGITS = "Wrap it in a module whose forward returns the logits alone, for example model(x)[0]."


@dataclass(frozen=True, eq=False)
class Replay:
    """The caller's model, and which of the maps that a run computes is its last feature map.

    ``model``: a float64 stand-in. ``shape`` (C, H, W) of the map, ``place``: its number among the maps of that shape
    in a run, ``count``: how many there are. ``require``: raises ParityError where it cannot be the map that the class
    scores come from.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    place: int
    count: int
    require: Callable[[Tensor, Tensor], None]

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (classes,) and last feature map (1, C, H, W) of x (1, C, H, W), in float64.

        Raises ParityError.
        """
        logits, maps = watch(self.model, x, self.shape)
        if len(maps) != self.count:
            raise ParityError("the model took another path through its operations than when it was read")
        self.require(logits, maps[self.place])
        return logits, maps[self.place]


def watch(model: nn.Module, x: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, list[Tensor]]:
    """The class scores (classes,) of x (1, C, H, W), and every map of this shape in the run, as it was when made."""
    with alone(), torch.no_grad(), NoCasts(), _Maps(shape) as seen:
        seen.see(image := x.detach().to("cpu", torch.float64, copy=True))
        logits = seen.before_order_is_all(logits_of(model(image)))
    return logits.detach().flatten(), seen.maps


SLOPES_AT_ONCE = 1 << 22
"""Values of the slopes of class scores that are held at once."""


def slopes(model: nn.Module, x: Tensor, shape: tuple[int, int, int], place: int) -> Iterator[Tensor]:
    """The derivative (C, H, W) of each class score by one of the maps that go by, by torch's autograd."""
    with alone(), torch.inference_mode(False), torch.enable_grad():
        with NoCasts(), _Maps(shape, place) as seen:
            image = seen.see(x.detach().to("cpu", torch.float64, copy=True))
            logits = seen.before_order_is_all(logits_of(model(image))).flatten()
        if seen.leaf is None or not logits.requires_grad:
            yield from torch.zeros(len(logits), *shape, dtype=torch.float64)
            return
        each = torch.eye(len(logits), dtype=torch.float64)
        for some in each.split(max(1, SLOPES_AT_ONCE // seen.leaf.numel())):
            for slope in _pulled_back(logits, seen.leaf, some):
                yield seen.spelling(slope)[0]


def _pulled_back(scores: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
    """The derivative of ``weights @ scores`` by a map, row by row (K, *map)."""
    given = partial(torch.autograd.grad, scores, leaf, retain_graph=True, allow_unused=True)
    try:
        (slope,) = given(grad_outputs=weights, is_grads_batched=True)
    except RuntimeError:  # of what torch cannot do for many rows at once
        rows = [given(grad_outputs=row)[0] for row in weights]
        return torch.stack([torch.zeros_like(leaf) if row is None else row for row in rows])
    return leaf.new_zeros(len(weights), *leaf.shape) if slope is None else slope


def scores(model: nn.Module, x: Tensor) -> Tensor:
    """The class scores (1, classes, ...) of x (1, C, H, W), in float64, as the model returns them.

    Raises UnsupportedOpError for a model that does not run in float64, or does not return scores.
    """
    try:
        with alone(), torch.no_grad(), NoCasts():
            returned = model(x.detach().to("cpu", torch.float64, copy=True))
    except Exception as error:
        raise UnsupportedOpError(
            type(model).__name__,
            "running this model in float64 on the CPU",
            "Counterexamples are replayed so. Let forward take its types and devices from its input. Python said: "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}",
        ) from error
    return logits_of(returned)


def logits_of(returned: Any) -> Tensor:
    """The class scores in what a model returned: a tensor, the only tensor of a container, or what it calls "logits".

    Raises UnsupportedOpError.
    """
    if isinstance(returned, Tensor):
        return returned
    named = _named(returned)
    logits = named.get("logits")
    if isinstance(logits, Tensor):
        return logits
    tensors = [t for t in tree_leaves(named or returned) if isinstance(t, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    what = f"{type(returned).__name__} of {len(tensors)} tensors, none called 'logits'"
    what = what if tensors else type(returned).__name__
    raise UnsupportedOpError("output", f"a model that returns {what}", RETURN_LOGITS)


def _named(returned: Any) -> Mapping[str, Any]:
    """The parts of a container by name, where they have names."""
    if isinstance(returned, Mapping):
        return returned
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {f.name: getattr(returned, f.name) for f in dataclasses.fields(returned)}
    if isinstance(returned, tuple) and hasattr(returned, "_asdict"):
        return returned._asdict()  # type: ignore[no-any-return]
    return {} if isinstance(returned, (tuple, list)) else dict(getattr(returned, "__dict__", {}))


class NoCasts(TorchDispatchMode):
    """Float64 where an operation on a tensor is told to give another floating type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if dtype is not None and dtype.is_floating_point and any(isinstance(a, Tensor) for a in args):
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


class _Maps(TorchFunctionMode):
    """Takes down every map (1, C, H, W) of one shape that a torch function takes or gives, however it is spelt: with
    its channels last, or its pixels in a line.

    ``leaf_at``: the number of the map that is made a variable of its own, ``leaf``, to differentiate by.
    """

    def __init__(self, shape: tuple[int, int, int], leaf_at: int | None = None) -> None:
        super().__init__()
        self._spellings, self._leaf_at = _spellings(shape), leaf_at
        self._known: dict[int, tuple[Tensor, int]] = {}  # by id, alive, as of which write
        self._operand: dict[int, tuple[Tensor, Tensor]] = {}  # of what keeps an order: by id of the result, alive
        self.maps: list[Tensor] = []
        self.leaf: Tensor | None = None
        self.spelling: Callable[[Tensor], Tensor] = lambda value: value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with ExitStack() as stack:
            if self._leaf_at is not None:  # in spite of a no_grad in the model
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
            args, kwargs = tree_map(self._taken, (args, kwargs or {}))
            given = func(*args, **kwargs)
            if getattr(func, "__name__", "") in MONOTONE and isinstance(given, Tensor):
                self._operand[id(given)] = (given, args[0] if args else kwargs["input"])
            return tree_map(self.see, given) if isinstance(given, (Tensor, tuple, list)) else given

    def before_order_is_all(self, scores: Tensor) -> Tensor:
        """Class scores as they were before what only keeps their order."""
        while id(scores) in self._operand:
            scores = self._operand[id(scores)][1]
        return scores

    def _taken(self, value: Any) -> Any:
        """Records an argument that was written into since it was recorded, or made where no torch function is seen."""
        known = self._known.get(id(value))
        return value if known is not None and known[1] == _writes(value) else self.see(value)

    def see(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or tuple(value.shape) not in self._spellings:
            return value
        for spelling in self._spellings[tuple(value.shape)]:
            if len(self.maps) == self._leaf_at:
                self.spelling = spelling
                if id(value) in self._known and not value._is_view():  # who holds it reads the variable from now on
                    self.leaf = value = value.detach_().requires_grad_(True)
                else:
                    self.leaf = value.detach().clone().requires_grad_(True)
                    value = self.leaf.clone()
            self._known[id(value)] = (value, _writes(value))
            self.maps.append(spelling(value.detach()).to("cpu", torch.float64, copy=True))
        return value


def _spellings(shape: tuple[int, int, int]) -> dict[tuple[int, ...], list[Callable[[Tensor], Tensor]]]:
    """What makes a map (1, C, H, W) of its values in another shape, by that shape."""
    channels, height, width = shape
    found: dict[tuple[int, ...], list[Callable[[Tensor], Tensor]]] = {}
    for size, spelling in (
        ((1, channels, height, width), lambda v: v),
        ((1, height, width, channels), lambda v: v.permute(0, 3, 1, 2)),
        ((1, channels, height * width), lambda v: v.unflatten(2, (height, width))),
        ((1, height * width, channels), lambda v: v.transpose(1, 2).unflatten(2, (height, width))),
    ):
        found.setdefault(size, []).append(spelling)
    return found


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as torch counts (not those of inference mode)."""
    return -1 if tensor.is_inference() else tensor._version


@contextmanager
def alone() -> Iterator[None]:
    """A block without torch's global module hooks, which are the caller's."""
    names = [name for name in vars(module_hooks) if name.startswith("_global_") and name.endswith("_hooks")]
    with ExitStack() as stack:
        for name in names:
            held = getattr(module_hooks, name)
            if isinstance(held, dict) and held:
                stack.callback(setattr, module_hooks, name, held)
                setattr(module_hooks, name, type(held)())
        yield
