"""An exported model -> LayerGraph, by the table of builders; collects every problem on the way.

The graph keeps max pools whole and in the model's own order (the paper's bound relaxes them so); the normal form that
everything else works on comes from it by :func:`corgi_opt.network.lowering.normal_form`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corgi_opt.errors import UnsupportedOpError
from corgi_opt.network.builders import BUILDERS, NotCoveredError, Translation, build, overload
from corgi_opt.network.exported import Exported, module_path
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Input


@dataclass(frozen=True)
class Unsupported:
    """One operation that cannot be lowered: its module path (or graph node), its name, what to do about it."""

    node: str
    op: str
    hint: str

    def __str__(self) -> str:
        return f"{self.node}: {self.op} is not supported. {self.hint}"


@dataclass(frozen=True, eq=False)
class Ingested:
    """``graph``: the network with max pools kept whole, in float64 on the CPU, each operation a node of its own.

    ``names``: the graph's node that holds the value of a call of the exported model.
    """

    graph: LayerGraph
    names: Mapping[Any, str]


def known(target: Any) -> bool:
    """Whether the table has this operation."""
    return overload(target) in BUILDERS


def ingest(exported: Exported) -> Ingested | tuple[Unsupported, ...]:
    """The network, or everything that has no builder or is used in a way that none covers."""
    t, problems = Translation(exported.constants), list[Unsupported]()
    t.names[exported.image] = t.builder.add("input", Input(), (), t.shape(exported.image))
    poisoned = set[Any]()  # depend on an unsupported call: reported only where they are unsupported themselves
    for fx in exported.calls:
        depends = any(a in poisoned for a in fx.all_input_nodes)
        problem = _translated(t, fx, depends)
        if problem is not None:
            problems.append(problem)
        if fx not in t.names:
            poisoned.add(fx)
    if problems:
        return tuple(problems)
    return Ingested(t.builder.build(t.names[exported.logits]), t.names)


def _translated(t: Translation, fx: Any, depends: bool) -> Unsupported | None:
    """Adds one call to the graph, or says why not."""
    if fx.target is operator.getitem:
        source, part = fx.args
        if depends:
            return None
        if part == 0:
            t.names[fx] = t.names[source]
            return None
        return Unsupported(_place(fx), f"output {part} of {overload(source.target)}", "Only its first output is known.")
    name = overload(fx.target)
    if not known(fx.target):
        return Unsupported(_place(fx), _short(name), _hint(_short(name)))
    if depends:
        return None
    try:
        t.names[fx] = build(t, fx)
    except NotCoveredError as problem:
        return Unsupported(_place(fx), _short(name), str(problem))
    return None


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


_SMOOTH = "Only affine and piecewise-linear layers have an exact form; retrain with ReLU."
_MONOTONE = "Return the logits: softmax keeps their order and the CAM does not depend on it."
_VARIANCE = "It divides by the input's own variance; use batch norm instead."

_ADVICE = {
    **dict.fromkeys(("sigmoid", "tanh", "gelu", "silu", "elu", "mish", "softplus", "hardswish"), _SMOOTH),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _MONOTONE),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "native_group_norm", "group_norm"), _VARIANCE),
    "_native_batch_norm_legit": "Batch norm must be in eval mode with running statistics.",
    "native_dropout": (
        "It drops values in eval mode too, at random: pass training=self.training to F.dropout, or use nn.Dropout."
    ),
    "pad": (
        "Pad with zeros inside the convolution (padding=...); for more on one side, widen its kernel there by zeros."
    ),
    "mean": "Only the mean over both spatial axes, x.mean((2, 3)), is known.",
}


def _hint(op: str) -> str:
    known = "conv2d, batch norm (eval), ReLU, leaky ReLU, max and average pooling, flatten, dropout, add, linear"
    return _ADVICE.get(op, f"Known operations: {known}. Rewrite this step with those.")
