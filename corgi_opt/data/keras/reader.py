"""A Keras file as a torch model, without Keras or TensorFlow: the plan of its calls, built layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from corgi_opt.data.keras import spatial
from corgi_opt.data.keras.graph import Plan, plan_of
from corgi_opt.data.keras.layer import Flow, Layer
from corgi_opt.data.keras.modules import KerasModel
from corgi_opt.data.keras.store import Store, open_store
from corgi_opt.data.keras.table import ANY_NUMBER, SHAPES_ONLY, build
from corgi_opt.data.keras.weights import weights_of
from corgi_opt.errors import InputError

Size = tuple[int | None, ...]

_TAKEN = frozenset((*dir(nn.Sequential()), *dir(KerasModel((), 0))))
"""Names that a child cannot have."""


def read(path: Path, extra: str = "keras") -> tuple[nn.Module, Size]:
    """The float32 torch model in eval mode that a Keras file holds, returning logits, and the size of its image: (rows,
    columns, channels) or (steps, channels).

    Raises InputError for a file that is missing, damaged or no model, UnsupportedOpError for a layer or an option that
    is not read, both naming it; MissingPackageError without h5py, which is in our ``extra``.
    """
    store = open_store(path, extra)
    try:
        return built(store)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def built(store: Store) -> tuple[nn.Module, Size]:
    """The same of a file that is open."""
    plan = plan_of(store.config, store.major)
    return _Building(store, plan).model().eval(), plan.size


class _Building:
    """``steps`` so far: which module reads which values, value 0 being the image; ``flows``: of every value."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan = store, plan
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        self.flows = [Flow(plan.size)]

    def model(self) -> nn.Module:
        if self.flows[0].too_large:
            raise InputError(f"its input of shape {self.plan.size} is larger than any that is read here")
        values = [0]  # of every call, among ours: a call is several steps, or none
        last = _last_calls(self.plan)
        for at, call in enumerate(self.plan.calls, start=1):
            config = call.entry.config
            if not isinstance(config, dict):
                raise InputError(f"Keras layer {call.entry.path!r} has no options")
            source = weights_of(self.store, call.entry)
            layer = Layer(call.entry.kind, call.entry.path, config, source, at in last, self.store.major)
            values.append(self._built(layer, [values[i] for i in call.reads]))
        output = values[self.plan.output]
        if self.flows[output].order is not None:
            raise InputError("it ends in a flattened map, whose order differs between Keras and torch")
        return self._module(output)

    def _built(self, layer: Layer, reads: list[int]) -> int:
        if layer.kind in ANY_NUMBER and len(reads) > 1 and not _one_order([self.flows[i] for i in reads]):
            reads = [self._in_keras_order(layer, i) for i in reads]
        made, flow = build(layer, [self.flows[i] for i in reads])
        return self._added(made, reads, flow)

    def _in_keras_order(self, layer: Layer, value: int) -> int:
        made, flow = spatial.in_keras_order(f"{layer.path}_reorder", self.flows[value])
        return self._added(made, [value], flow)

    def _added(self, made: Sequence[tuple[str, nn.Module]], reads: list[int], flow: Flow) -> int:
        """The value that the last of the modules gives; they read one another, the first of them ``reads``."""
        if not made:
            return reads[0]
        for name, module in made:
            free = self._free_name(name)
            self.modules[free] = module
            self.steps.append((free, tuple(reads)))
            self.flows.append(flow)
            reads = [len(self.steps)]
        return reads[0]

    def _free_name(self, name: str) -> str:
        """The name of a child: of the layer, but for what torch does not take (a dot separates its paths)."""
        plain = name.replace(".", "_")
        while plain in _TAKEN:
            plain += "_"
        number, free = 1, plain
        while free in self.modules:
            number, free = number + 1, f"{plain}_{number + 1}"
        return free

    def _module(self, output: int) -> nn.Module:
        chain = all(reads == (at,) for at, (_, reads) in enumerate(self.steps))
        if chain and output == len(self.steps):
            return nn.Sequential(self.modules)
        model = KerasModel(tuple(self.steps), output)
        for name, module in self.modules.items():
            model.add_module(name, module)
        return model


def _one_order(flows: Sequence[Flow]) -> bool:
    """Do these vectors have their units in one order?"""
    first = flows[0].order
    return all(
        (f.order is None) if first is None else (f.order is not None and np.array_equal(f.order, first)) for f in flows
    )


def _last_calls(plan: Plan) -> set[int]:
    """The call that gives the output, and those before it that only reshaping follows."""
    found, at = set(), plan.output
    while at > 0 and at not in found:
        found.add(at)
        call = plan.calls[at - 1]
        silent = call.entry.kind in SHAPES_ONLY
        if not silent or len(call.reads) != 1:
            break
        at = call.reads[0]
    return found
