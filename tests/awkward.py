"""Models whose forward, attributes or hooks are easily harmed, and a record of everything about them that may be."""

from __future__ import annotations

import atexit
import functools
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.prune as prune
from torch import Tensor, nn

OPEN_FILE = open(__file__)  # noqa: SIM115 (open as long as the tests run)
atexit.register(OPEN_FILE.close)


class Base(nn.Module):
    """conv-relu-conv-relu -> global average -> linear, on 1x5x5."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


class Stores(Base):
    """Keeps its feature map in an attribute, a list, a dict and an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.every: list[Tensor] = []
        self.by_name: dict[str, dict[str, Tensor]] = {"n": {}}
        self.recorder = Recorder()

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        self.every.append(self.last)
        self.by_name["n"]["features"] = self.last
        self.recorder.seen.append(self.last)
        return self.head(self.last.mean((2, 3)))


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []


class WritesItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.25).mul_(1.5))


class ReluOnItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(F.dropout(x, 0.3, training=self.training), inplace=True))


class Counts(Base):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class PlainTensors(Base):
    """Weights that are neither parameters nor buffers, and layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.layers = torch.tensor([[[0.4]]]), [nn.ReLU(inplace=True), *list(self.body)[2:]]
        self.kernel = torch.linspace(-1, 1.5, 9).view(3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.body[0](x - self.mean), self.kernel)
        for layer in self.layers:
            y = layer(y)
        return self.head(y.mean((2, 3)))


class TiedTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.body[2]
        self.again.weight = self.body[2].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(self.body(x))).mean((2, 3)))


def holding(value: Any) -> Base:
    model = Base()
    model.thing = value
    return model


def holding_itself() -> Base:
    model: Any = Base()
    model.me = [model]
    return model


def rebound() -> Base:
    """Its forward was replaced on the instance, by a method and by a function that holds the model."""
    model: Any = Base()

    def forward(x: Tensor) -> Tensor:
        model.kept = model.body(x)
        return model.head(model.kept.mean((2, 3)))

    model.forward = forward
    model.body.forward = types.MethodType(nn.Sequential.forward, model.body)
    return model


def hooked() -> Base:
    """A forward hook of every make, all of which only look."""
    model: Any = Base()
    model.seen, model.named = [], {}

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        model.named[name] = output

    model.body.register_forward_hook(lambda m, i, o: model.seen.append(o))
    model.body[0].register_forward_pre_hook(lambda m, i: None)
    model.head.register_forward_hook(functools.partial(note, "head"))
    model.body[2].register_full_backward_hook(lambda m, gi, go: None)
    return model


def weight_normed(old: bool) -> Base:
    model = Base()
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.body[0] = nn.utils.weight_norm(model.body[0])
    else:
        model.body[0] = parametrizations.weight_norm(model.body[0])
    return model


def pruned() -> Base:
    model = Base()
    prune.l1_unstructured(model.body[0], "weight", 0.3)
    return model


def spectral() -> Base:
    model = Base()
    model.body[2] = parametrizations.spectral_norm(model.body[2])
    model.train()(torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(3)))
    return model


class Casts(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.float().to(self.head.weight.dtype).type_as(self.head.weight))
        return self.head(y.double().float().mean((2, 3), dtype=torch.float32))


class HalfCasts(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half().to(torch.bfloat16).to(self.head.weight.dtype))


@dataclass
class Scores:
    logits: Tensor
    features: Tensor


class Returns(Base):
    def __init__(self, shape: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.shape(self.head(features.mean((2, 3))), features)


AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "stores its features": Stores,
    "writes into its input": WritesItsInput,
    "relu on its input": ReluOnItsInput,
    "counts its calls": Counts,
    "plain tensors and a list of layers": PlainTensors,
    "one layer twice": TiedTwice,
    "holds a lock": lambda: holding(threading.Lock()),
    "holds an open file": lambda: holding(OPEN_FILE),
    "holds a generator": lambda: holding(i for i in range(3)),
    "holds itself": holding_itself,
    "forward bound anew": rebound,
    "hooks that look": hooked,
    "weight norm": lambda: weight_normed(old=False),
    "weight norm by a hook": lambda: weight_normed(old=True),
    "pruned": pruned,
    "spectral norm": spectral,
    "casts": Casts,
    "casts to half": HalfCasts,
    "float64": lambda: Base().double(),
    "float16": lambda: Base().half(),
    "returns a dict": lambda: Returns(lambda logits, features: {"features": features, "logits": logits}),
    "returns a tuple of one": lambda: Returns(lambda logits, features: (logits,)),
    "returns a dataclass": lambda: Returns(Scores),
}
"""By name; all are to be called and put into eval mode."""


@dataclass(frozen=True)
class Snapshot:
    """All that a call may not change: weights bit by bit, attributes by name and kind, lists by length, hooks."""

    state: dict[str, bytes]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, *tensors: Tensor) -> Snapshot:
        state = {name: _bytes(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        state |= {f"tensor {at}": _bytes(t) for at, t in enumerate(tensors)}
        return cls(state, {path: _described(vars(m)) for path, m in model.named_modules()})


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor).encode()


def _described(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        return (type(value).__name__, tensor_id(value), _bytes(value), value.requires_grad)
    if isinstance(value, dict):
        return {k: _described(v, depth + 1) for k, v in value.items()} if depth < 4 else len(value)
    if isinstance(value, (list, tuple)) and depth < 4:
        return [_described(v, depth + 1) for v in value]
    if isinstance(value, Recorder):
        return _described(vars(value), depth + 1)
    return (type(value).__name__, id(value))


def tensor_id(tensor: Tensor) -> int:
    return id(tensor)
