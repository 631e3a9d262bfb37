"""torch.export -> LayerGraph. One table: aten operation -> builder.

A vector is a map of one pixel, so global pooling and dense layers are convolutions like any other. ``pooled``
keeps max pools whole and in the model's own order (the paper's bound relaxes them so); the normal form that
everything else works on comes from it by :func:`corgi_opt.network.lowering.normal_form`.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt.errors import InputError, ModelModeError, UnsupportedOpError
from corgi_opt.network import lowering
from corgi_opt.network.graph import GraphBuilder, LayerGraph
from corgi_opt.network.ops import Combine, Conv2d, Input, MaxPool2d, Op, ReLU, Shape


@dataclass(frozen=True)
class Unsupported:
    """One operation that cannot be lowered: its module path (or graph node), its name, what to do about it."""

    node: str
    op: str
    hint: str

    def __str__(self) -> str:
        return f"{self.node}: {self.op} is not supported. {self.hint}"


def check_ready(model: nn.Module, example: Tensor) -> None:
    """Refuses at the entrance what cannot be a fixed function of one image.

    Raises ModelModeError (training mode), InputError (no batch dimension, not an image, NaN there or in the weights).
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ModelModeError(
            f"the model is in training mode (first: {training[0]}), where dropout and batch norm are random or "
            "depend on the batch; call model.eval() first"
        )
    broken = [name for name, t in model.state_dict().items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise InputError(f"the model's {broken[0]!r} holds NaN or infinite values; load working weights first")
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise InputError("example must be a floating-point torch tensor of shape (1, C, H, W)")
    if example.ndim == 3:
        raise InputError(
            f"example has shape {tuple(example.shape)}: the batch dimension is missing; pass example[None]"
        )
    if example.ndim != 4 or example.shape[0] != 1:
        raise InputError(f"example must have shape (1, C, H, W), got {tuple(example.shape)}")
    if not bool(torch.isfinite(example).all()):
        raise InputError("example holds NaN or infinite values")


def ingest(model: nn.Module, example: Tensor) -> LayerGraph:
    """The network as a graph with max pools kept whole, in float64 on the CPU.

    Raises the first UnsupportedOpError; :func:`unsupported` lists all of them.
    """
    translation = _translate(model, example)
    if translation.problems:
        first = translation.problems[0]
        raise UnsupportedOpError(first.node, first.op, _and_others(first.hint, translation.problems[1:]))
    assert translation.output is not None  # without problems every node was translated
    return lowering.fold_affine(translation.builder.build(translation.output))


def unsupported(model: nn.Module, example: Tensor) -> tuple[Unsupported, ...]:
    """Every operation of the model that has no builder, or is used in a way none covers."""
    return tuple(_translate(model, example).problems)


def _and_others(hint: str, rest: list[Unsupported]) -> str:
    if not rest:
        return hint
    others = "; ".join(f"{p.node}: {p.op}" for p in rest)
    return f"{hint} Also unsupported: {others} (co.check_model lists all with advice)."


class _NotCoveredError(Exception):
    """Raised by a builder: this use of the operation is not covered."""


class _Translation:
    """Walks an exported program once; collects nodes and every problem on the way."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.problems: list[Unsupported] = []
        self.output: str | None = None
        self.names: dict[Any, str] = {}  # fx node -> graph node
        self.constants: dict[Any, Tensor] = {}  # fx node -> parameter or buffer
        self.poisoned: set[Any] = set()  # depends on something unsupported: no second report

    def shape(self, fx: Any) -> Shape:
        size = tuple(int(s) for s in fx.meta["val"].shape)
        if not size or size[0] != 1:
            raise _NotCoveredError(f"Its result has shape {size}; the batch dimension must stay first and be 1.")
        rest = size[1:]
        if len(rest) > 3 and all(s == 1 for s in rest[3:]):
            rest = rest[:3]
        if len(rest) > 3:
            raise _NotCoveredError(f"Its result has shape {size}; only (1, C, H, W) maps and (1, C) vectors are known.")
        padded = rest + (1,) * (3 - len(rest))
        return (padded[0], padded[1], padded[2])

    def add(self, fx: Any, name: str, op: Op, inputs: tuple[str, ...]) -> str:
        """Adds a node; an elementwise one keeps its operand's shape (a flattened map stays a map)."""
        shape = self.builder.nodes[inputs[0]].shape if inputs and isinstance(op, (ReLU, Combine)) else None
        return self.builder.add(name, op, inputs, shape or self.shape(fx), _module_path(fx))

    def operand(self, arg: Any) -> str:
        if arg not in self.names:
            raise _NotCoveredError("One of its operands is a parameter or a constant where a feature map is expected.")
        return self.names[arg]

    def constant(self, arg: Any) -> Tensor | None:
        if arg is None:
            return None
        if isinstance(arg, (int, float)):
            return torch.tensor(float(arg), dtype=torch.float64)
        if arg not in self.constants:
            raise _NotCoveredError("A weight that depends on the input is not an affine layer.")
        return self.constants[arg]


def _translate(model: nn.Module, example: Tensor) -> _Translation:
    check_ready(model, example)
    program = _export(model, example)
    t = _Translation()
    state = {**dict(program.state_dict), **program.constants}
    signature = program.graph_signature
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    for fx in program.graph.nodes:
        if fx.op == "placeholder":
            if fx.name in sources:
                t.constants[fx] = state[sources[fx.name]].detach().cpu()
            else:
                t.names[fx] = t.builder.add("input", Input(), (), t.shape(fx))
        elif fx.op == "call_function":
            _translate_call(t, fx)
        elif fx.op == "output":
            result = fx.args[0][0]
            if len(fx.args[0]) != 1:
                t.problems.append(Unsupported("output", "a model with several outputs", "Return the logits alone."))
            elif result not in t.poisoned:
                t.output = t.names[result]
    return t


def _export(model: nn.Module, example: Tensor) -> Any:
    weights = [p for p in model.parameters() if p.is_floating_point()]
    example = example.detach().to(weights[0]) if weights else example.detach()
    with warnings.catch_warnings():
        # torch's own deprecation notices while it copies its tree specs; nothing a user could act on
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.export.export(model, (example,)).run_decompositions({})
        except Exception as error:
            raise UnsupportedOpError(
                type(model).__name__,
                "torch.export of this model",
                "The forward pass must be one fixed computation (no branch on data, no numpy, one tensor in, one "
                f"tensor out). torch said: {str(error).splitlines()[0][:300] if str(error) else error!r}",
            ) from error


def _translate_call(t: _Translation, fx: Any) -> None:
    operands = fx.all_input_nodes
    if any(a in t.poisoned for a in operands):
        t.poisoned.add(fx)
    target = _name(fx.target)
    builder = _BUILDERS.get(target)
    if builder is None:
        if fx.target is operator.getitem and fx.args[1] == 0 and fx not in t.poisoned:
            t.names[fx] = t.names[fx.args[0]]
            return
        if fx.target is not operator.getitem:
            t.problems.append(Unsupported(_place(fx), target, _hint(target)))
        t.poisoned.add(fx)
        return
    if fx in t.poisoned:
        return
    try:
        t.names[fx] = builder(t, fx)
    except _NotCoveredError as problem:
        t.problems.append(Unsupported(_place(fx), target, str(problem)))
        t.poisoned.add(fx)


def _name(target: Any) -> str:
    text = str(target)
    parts = text.split(".")
    return parts[1] if text.startswith("aten.") and len(parts) > 1 else text


def _module_path(fx: Any) -> str:
    stack = fx.meta.get("nn_module_stack")
    return list(stack.values())[-1][0] if stack else ""


def _place(fx: Any) -> str:
    path = _module_path(fx)
    return f"{path} ({fx.name})" if path else f"forward ({fx.name})"


_ADVICE = {
    "sigmoid": "Only affine and piecewise-linear layers have an exact form; retrain with ReLU.",
    "tanh": "Only affine and piecewise-linear layers have an exact form; retrain with ReLU.",
    "gelu": "Only affine and piecewise-linear layers have an exact form; retrain with ReLU.",
    "silu": "Only affine and piecewise-linear layers have an exact form; retrain with ReLU.",
    "elu": "Only affine and piecewise-linear layers have an exact form; retrain with ReLU.",
    "softmax": "Return the logits: softmax keeps their order and the CAM does not depend on it.",
    "_softmax": "Return the logits: softmax keeps their order and the CAM does not depend on it.",
    "log_softmax": "Return the logits: softmax keeps their order and the CAM does not depend on it.",
    "_log_softmax": "Return the logits: softmax keeps their order and the CAM does not depend on it.",
    "batch_norm": "Batch norm must be in eval mode with running statistics.",
    "native_layer_norm": "It divides by the input's own variance; use batch norm instead.",
    "layer_norm": "It divides by the input's own variance; use batch norm instead.",
    "native_group_norm": "It divides by the input's own variance; use batch norm instead.",
    "group_norm": "It divides by the input's own variance; use batch norm instead.",
}


def _hint(target: str) -> str:
    known = "conv2d, batch norm (eval), ReLU, leaky ReLU, max and average pooling, flatten, dropout, add, linear"
    return _ADVICE.get(target, f"Known operations: {known}. Rewrite this step with those.")


# --- the builders, one per aten operation -------------------------------------------------------------------


def _args(fx: Any, count: int) -> list[Any]:
    given = list(fx.args) + [None] * (count - len(fx.args))
    for position, argument in enumerate(fx.target._schema.arguments[:count]):
        if argument.name in fx.kwargs:
            given[position] = fx.kwargs[argument.name]
        elif position >= len(fx.args) and argument.has_default_value():
            given[position] = argument.default_value
    return given[:count]


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def _label(fx: Any) -> str:
    return _module_path(fx) or str(fx.name)


def _conv2d(t: _Translation, fx: Any) -> str:
    x, weight, bias, stride, padding, dilation, groups = _args(fx, 7)
    w, b = t.constant(weight), t.constant(bias)
    assert w is not None  # the schema requires a weight
    dilation = _pair(dilation)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        if padding == "same" and any(p % 2 for p in total):
            raise _NotCoveredError("padding='same' with an even kernel pads one side more; pad explicitly instead.")
        padding = [p // 2 for p in total] if padding == "same" else [0, 0]
    op = Conv2d(w.double(), None if b is None else b.double(), _pair(stride), _pair(padding), dilation, int(groups))
    return t.add(fx, _label(fx), op, (t.operand(x),))


def _batch_norm(t: _Translation, fx: Any) -> str:
    x, weight, bias, mean, var, _, eps = _args(fx, 7)
    m, v = t.constant(mean), t.constant(var)
    if m is None or v is None:
        raise _NotCoveredError("Batch norm without running statistics depends on the batch; track them and use eval().")
    op = lowering.batch_norm(t.constant(weight), t.constant(bias), m, v, float(eps))
    return t.add(fx, _label(fx), op, (t.operand(x),))


def _relu(t: _Translation, fx: Any) -> str:
    operand = t.operand(fx.args[0])
    if isinstance(t.builder.nodes[operand].op, ReLU):
        return operand  # relu(relu(x)) = relu(x)
    return t.add(fx, _label(fx), ReLU(), (operand,))


def _leaky_relu(t: _Translation, fx: Any) -> str:
    x, slope = _args(fx, 2)
    operand = t.operand(x)
    rectified = t.add(fx, f"{_label(fx)}.relu", ReLU(), (operand,))
    coefs = (lowering.scalar(float(slope)), lowering.scalar(1.0 - float(slope)))
    return t.add(fx, _label(fx), Combine(coefs), (operand, rectified))


def _max_pool2d(t: _Translation, fx: Any) -> str:
    x, kernel, stride, padding, dilation, ceil_mode = _args(fx, 6)
    kernel = _pair(kernel)
    op = MaxPool2d(kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation), bool(ceil_mode))
    return t.add(fx, _label(fx), op, (t.operand(x),))


def _avg_pool2d(t: _Translation, fx: Any) -> str:
    x, kernel, stride, padding, _, include, divisor = _args(fx, 7)
    operand, kernel = t.operand(x), _pair(kernel)
    strides = _pair(stride) if stride else kernel
    shape, out = t.builder.nodes[operand].shape, t.shape(fx)
    pool, scale = lowering.average_pool(
        shape, out, kernel, strides, _pair(padding), bool(include), None if divisor is None else int(divisor)
    )
    if pool_size(shape, pool) != out[1:]:
        raise _NotCoveredError("ceil_mode=True with a window that overhangs the padding; use ceil_mode=False.")
    if scale is None:
        return t.add(fx, _label(fx), pool, (operand,))
    summed = t.add(fx, f"{_label(fx)}.sum", pool, (operand,))
    return t.add(fx, _label(fx), scale, (summed,))


def pool_size(shape: Shape, conv: Conv2d) -> tuple[int, int]:
    kh, kw = conv.weight.shape[-2:]
    sizes = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(shape[1:], conv.padding, (kh, kw), conv.stride, strict=True)
    ]
    return (sizes[0], sizes[1])


def _global_mean(t: _Translation, fx: Any, operand: str) -> str:
    channels, height, width = t.builder.nodes[operand].shape
    weight = torch.full((channels, 1, height, width), 1.0 / (height * width), dtype=torch.float64)
    return t.add(fx, _label(fx), Conv2d(weight, None, groups=channels), (operand,))


def _adaptive_avg_pool2d(t: _Translation, fx: Any) -> str:
    x, size = _args(fx, 2)
    if _pair(size) != (1, 1):
        raise _NotCoveredError("Only a global average, AdaptiveAvgPool2d(1), is known; use AvgPool2d for the rest.")
    return _global_mean(t, fx, t.operand(x))


def _mean(t: _Translation, fx: Any) -> str:
    x, dims = _args(fx, 2)
    rank = len(x.meta["val"].shape)
    if rank != 4 or sorted(d % rank for d in dims or []) != [2, 3]:
        raise _NotCoveredError("Only the mean over both spatial axes, x.mean((2, 3)), is known.")
    return _global_mean(t, fx, t.operand(x))


def _linear(t: _Translation, fx: Any) -> str:
    x, weight, bias = _args(fx, 3)
    operand, w, b = t.operand(x), t.constant(weight), t.constant(bias)
    assert w is not None  # the schema requires a weight
    shape = t.builder.nodes[operand].shape
    if torch.Size(shape).numel() != w.shape[1] or len(x.meta["val"].shape) != 2:
        raise _NotCoveredError("A linear layer must act on a (1, features) vector; flatten first.")
    kernel = w.double().reshape(w.shape[0], *shape)
    return t.add(fx, _label(fx), Conv2d(kernel, None if b is None else b.double()), (operand,))


def _reshape(t: _Translation, fx: Any) -> str:
    """Flatten and friends: allowed when the result is the same map or its row-major vector."""
    operand = t.operand(fx.args[0])
    size = [int(s) for s in fx.meta["val"].shape]
    trimmed = [s for s in size[1:] if s != 1]
    before = [s for s in t.builder.nodes[operand].shape if s != 1]
    if trimmed in (before, [torch.Size(t.builder.nodes[operand].shape).numel()]):
        return operand
    raise _NotCoveredError("Only flattening to a vector is known; other reshapes mix rows, columns and channels.")


def _same(t: _Translation, fx: Any) -> str:
    return t.operand(fx.args[0])


def _sum(sign: float) -> Callable[[_Translation, Any], str]:
    def build(t: _Translation, fx: Any) -> str:
        x, y, *rest = _args(fx, 3)
        scale = sign * float(rest[0] if rest and rest[0] is not None else 1.0)
        if x not in t.names and y not in t.names:
            raise _NotCoveredError("It adds two constants; fold them before export.")
        if x in t.names and y in t.names:
            a, b = t.names[x], t.names[y]
            if t.builder.nodes[a].shape != t.builder.nodes[b].shape:
                raise _NotCoveredError("The two maps differ in shape; broadcasting between maps is not known.")
            return t.add(fx, str(fx.name), Combine((lowering.scalar(1.0), lowering.scalar(scale))), (a, b))
        first = x in t.names
        operand = t.operand(x if first else y)
        shift = _map_constant(t, y if first else x, fx, operand) * (scale if first else 1.0)
        coef = lowering.scalar(1.0 if first else scale)
        return t.add(fx, str(fx.name), Combine((coef,), shift), (operand,))

    return build


def _rsub(t: _Translation, fx: Any) -> str:
    """``other - alpha * x``, which is how torch spells a constant minus a map."""
    x, other, alpha = _args(fx, 3)
    operand = t.operand(x)
    coef = lowering.scalar(-float(1.0 if alpha is None else alpha))
    return t.add(fx, str(fx.name), Combine((coef,), _map_constant(t, other, fx, operand)), (operand,))


def _neg(t: _Translation, fx: Any) -> str:
    return t.add(fx, str(fx.name), Combine((lowering.scalar(-1.0),)), (t.operand(fx.args[0]),))


def _scale(power: int) -> Callable[[_Translation, Any], str]:
    def build(t: _Translation, fx: Any) -> str:
        x, y = _args(fx, 2)
        if (x in t.names) == (y in t.names) or (power < 0 and y in t.names):
            raise _NotCoveredError("A product (or quotient) of two feature maps is not piecewise linear.")
        operand, factor = (t.names[x], y) if x in t.names else (t.operand(y), x)
        coef = _map_constant(t, factor, fx, operand)
        return t.add(fx, str(fx.name), Combine((coef if power > 0 else 1.0 / coef,)), (operand,))

    return build


def _map_constant(t: _Translation, arg: Any, fx: Any, operand: str) -> Tensor:
    """A constant broadcast against a feature map, as a coefficient (1 or C, 1 or H, 1 or W) over that map."""
    value = t.constant(arg)
    if value is None:
        raise _NotCoveredError("It needs a constant operand.")
    value = value.double()
    if value.numel() == 1:
        return value.reshape(1, 1, 1)
    shape = t.builder.nodes[operand].shape
    full = value.expand(tuple(fx.meta["val"].shape)).reshape(shape)
    per_channel = full[:, :1, :1]
    return (per_channel if bool((full == per_channel).all()) else full).contiguous()


_BUILDERS: dict[str, Callable[[_Translation, Any], str]] = {
    "conv2d": _conv2d,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "linear": _linear,
    "flatten": _reshape,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "clone": _same,
    "alias": _same,
    "detach": _same,
    "contiguous": _same,
    "dropout": _same,
    "add": _sum(1.0),
    "sub": _sum(-1.0),
    "rsub": _rsub,
    "neg": _neg,
    "mul": _scale(1),
    "div": _scale(-1),
}
