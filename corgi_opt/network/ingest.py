"""An exported model -> LayerGraph, by the table of builders; collects every problem on the way.

The graph keeps max pools whole and in the model's own order (the paper's bound relaxes them so); the normal form that
everything else works on comes from it by :func:`corgi_opt.network.lowering.normal_form`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from corgi_opt.errors import UnsupportedOpError
from corgi_opt.network import arithmetic as arithmetic  # for its rows of the table, as the next three
from corgi_opt.network import layers as layers
from corgi_opt.network import pieces as pieces
from corgi_opt.network import smooth_builders as smooth_builders
from corgi_opt.network.builders import build, overload
from corgi_opt.network.builders import known as known
from corgi_opt.network.exported import Exported, calculated, is_random, module_path
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Input
from corgi_opt.network.replay import MONOTONE
from corgi_opt.network.translation import NotCoveredError, Translation, as_shape, shape_of


@dataclass(frozen=True)
class Unsupported:
    """One operation that cannot be lowered: its module path (or graph node), its name, what to do about it.

    ``call``: its node in the graph that torch exported; empty where the model could not be exported.
    """

    node: str
    op: str
    hint: str
    call: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.op} is not supported. {self.hint}"


@dataclass(frozen=True, eq=False)
class Ingested:
    """``graph``: the network with max pools kept whole, in float64 on the CPU, each operation a node of its own.

    ``held``: of calls of the exported model, the node that has each value of the result once, and the flat place in it
    of each. ``notes``: what of the model was left out, and why nothing is lost. ``halves``: nodes that are sums or
    means over one axis of a map.
    """

    graph: LayerGraph
    held: Mapping[Any, tuple[str, Tensor]]
    notes: tuple[str, ...]
    halves: frozenset[str]


def ingest(exported: Exported) -> Ingested | tuple[Unsupported, ...]:
    """The network, or everything that has no builder or is used in a way that none covers."""
    t, problems = Translation(exported.constants), list[Unsupported]()
    shape = shape_of(exported.image)
    t.hold(exported.image, t.add(exported.image, "input", Input(), (), as_shape(shape)))
    logits, notes = _logits(exported)
    poisoned = set[Any]()  # what depends on something unsupported is no second problem, unless it is one itself
    for fx in exported.calls:
        if fx is exported.logits and fx is not logits:
            break
        depends = any(a in poisoned for a in fx.all_input_nodes)
        problem = _translated(t, fx, depends)
        if problem is not None:
            problems.append(problem)
        if fx not in t.values and fx not in t.constants:
            poisoned.add(fx)
    if problems:
        return tuple(problems)
    try:
        output = t.map(logits)
    except NotCoveredError as problem:
        return (Unsupported("output", "what the model returns", str(problem)),)
    held = {fx: at for fx in t.values if (at := t.node_of(fx)) is not None}
    return Ingested(t.builder.build(output), held, notes, frozenset(t.halves))


def _logits(exported: Exported) -> tuple[Any, tuple[str, ...]]:
    """The call that gives the class scores, before whatever keeps their order."""
    logits, notes = exported.logits, list[str]()
    while logits in exported.calls and _short(overload(logits.target)) in MONOTONE and _over_classes(logits):
        notes.append(f"{_short(overload(logits.target)).lstrip('_')} at the end left out: it keeps the order of scores")
        logits = logits.args[0]
    return logits, tuple(notes)


def _over_classes(fx: Any) -> bool:
    """Whether a call that may be a softmax is one over the classes."""
    if "softmax" not in str(fx.target):
        return True
    rank = len(shape_of(fx))
    dim = fx.args[1] if len(fx.args) > 1 else fx.kwargs.get("dim")
    return isinstance(dim, int) and dim % rank == 1


def _translated(t: Translation, fx: Any, depends: bool) -> Unsupported | None:
    """Adds one call to the graph, or says why not."""
    if all(a in t.constants for a in fx.all_input_nodes) and not is_random(fx.target):
        return _calculated(t, fx)
    if fx.target is operator.getitem:
        source, part = fx.args
        if depends:
            return None
        parts = t.values[source]
        if isinstance(parts, tuple) and part < len(parts):
            t.keep(fx, parts[part])
            return None
        if part == 0 and not isinstance(parts, tuple):
            t.keep(fx, parts)
            return None
        return _unsupported(fx, f"output {part} of {overload(source.target)}", "Only its first output is known.")
    name = overload(fx.target)
    if not known(fx.target):
        return _unsupported(fx, _short(name), _hint(_short(name)))
    if depends:
        return None
    try:
        t.begin()
        t.hold(fx, build(t, fx))
    except NotCoveredError as problem:
        return _unsupported(fx, _short(name), str(problem))
    return None


def _calculated(t: Translation, fx: Any) -> Unsupported | None:
    """Keeps what a call gives that turned out to read constants alone, or says why not."""
    value = calculated(fx, t.constants)
    if isinstance(value, Tensor) and not bool(value.isfinite().all()):
        op = _short(overload(fx.target))
        return _unsupported(fx, op, "It gives a constant that is not finite (a mean of an empty slice, say).")
    t.constants[fx] = value
    return None


def _unsupported(fx: Any, op: str, hint: str) -> Unsupported:
    return Unsupported(_place(fx), op, hint, fx.name)


def refuse(problems: tuple[Unsupported, ...]) -> UnsupportedOpError:
    """The first problem as an error that names the others."""
    first, *others = problems
    hint = first.hint
    if others:
        named = "; ".join(f"{p.node}: {p.op}" for p in others)
        hint += f" Also unsupported: {named} (co.check_model lists all with advice)."
    return UnsupportedOpError(first.node, first.op, hint)


def _short(name: str) -> str:
    """An operation without its overload, which no user has chosen."""
    return name.partition(".")[0]


def _place(fx: Any) -> str:
    path = module_path(fx)
    return f"{path} ({fx.name})" if path else f"forward ({fx.name})"


KNOWN = (
    "convolutions (transposed ones too), batch norm (eval), linear layers, ReLU and what is made of it (leaky, PReLU, "
    "ReLU6, clamp, abs, maximum, minimum), max and average pools, sums, means, products, smooth activations (sigmoid, "
    "tanh, SiLU, GELU, ELU, softplus, hardswish, Mish), and whatever only moves values (reshape, permute, slice, cat, "
    "pad, nearest upsampling)"
)

_CURVED = (
    "Of curved functions sigmoid, tanh, SiLU, GELU, ELU, softplus, hardswish, Mish, squares and products are known; "
    "retrain with one of them, or with ReLU, which exact methods answer too."
)
_MONOTONE = "Return the logits: softmax keeps their order and the CAM does not depend on it."
_VARIANCE = "It divides by the input's own variance; use batch norm instead."

_ADVICE = {
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "sin", "cos", "erf", "sqrt", "rsqrt", "reciprocal"), _CURVED),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _MONOTONE),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "native_group_norm", "group_norm"), _VARIANCE),
    "_native_batch_norm_legit": "Batch norm must be in eval mode with running statistics.",
    "native_dropout": (
        "It drops values in eval mode too, at random: pass training=self.training to F.dropout, or use nn.Dropout."
    ),
}


def _hint(op: str) -> str:
    return _ADVICE.get(op, f"Known operations: {KNOWN}. Rewrite this step with those.")
