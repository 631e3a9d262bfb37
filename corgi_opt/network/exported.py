"""A model as torch.export writes it down: aten operations in order, and the constants they read.

``torch.export`` functionalises where it is asked to: an operation in place becomes one that gives a new map, so what a
model writes into its image or its buffers changes nothing here. What depends on weights and literals alone is a
constant, and is calculated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt.errors import InputError, ModelModeError, UnsupportedOpError
from corgi_opt.network.replay import NoCasts, alone, logits_of


@dataclass(frozen=True, eq=False)
class Exported:
    """``calls``: the fx nodes that the class scores depend on, in order; ``image`` and ``logits`` among them or before.

    ``constants``: the values of fx nodes that do not depend on the image, in float64 where they are floating.
    """

    image: Any
    calls: tuple[Any, ...]
    logits: Any
    constants: Mapping[Any, Tensor]

    def values(self, x: Tensor) -> dict[Any, Any]:
        """The result of every call at x (1, C, H, W), in float64; of calls with several outputs a tuple."""
        known: dict[Any, Any] = {**self.constants, self.image: x.double()}
        with torch.no_grad(), NoCasts():
            for fx in self.calls:
                known[fx] = _called(fx, known)
        return known


def check_ready(model: nn.Module, example: Tensor) -> None:
    """Refuses at the entrance what cannot be a fixed function of one image.

    Raises ModelModeError (training mode), InputError (no batch dimension, not an image, NaN there or in the weights,
    weights that are quantised or not there).
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is compiled by TorchScript; pass the nn.Module that it was made from")
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    # a module that torch.export made has no modes: its graph fixes what batch norm and dropout do
    if training and not isinstance(model, torch.fx.GraphModule):
        raise ModelModeError(
            f"the model is in training mode (first: {training[0]}), where dropout and batch norm are random or "
            "depend on the batch; call model.eval() first"
        )
    _check_weights(model)
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise InputError("example must be a floating-point torch tensor of shape (1, C, H, W)")
    if example.layout is not torch.strided or example.is_meta or example.is_quantized:
        raise InputError(f"example must be a dense tensor with values, got {example.layout} on {example.device}")
    if example.ndim == 3:
        raise InputError(
            f"example has shape {tuple(example.shape)}: the batch dimension is missing; pass example[None]"
        )
    if example.ndim != 4 or example.shape[0] != 1 or not example.numel():
        raise InputError(f"example must have shape (1, C, H, W), got {tuple(example.shape)}")
    if not bool(torch.isfinite(example).all()):
        raise InputError("example holds NaN or infinite values")


def _check_weights(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise InputError(f"the model's {path or 'own class'!r} is quantised; pass the float model it was made from")
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(weight, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise InputError(
                f"the model's {name!r} has no shape yet; run model(example) once, so that lazy layers get one"
            )
        if weight.is_meta:
            raise InputError(
                f"the model's {name!r} is on the meta device and has no values; build the model on the CPU, or call "
                "model.to_empty(device='cpu') and load its weights"
            )
        if weight.is_quantized:
            raise InputError(f"the model's {name!r} is quantised; pass the float model it was made from")
        if weight.is_complex():
            raise InputError(f"the model's {name!r} is complex; only real networks have a CAM here")
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"the model's {name!r} holds NaN or infinite values; load working weights first")


def export(model: nn.Module, example: Tensor, known: Callable[[Any], bool]) -> Exported:
    """The operations of a stand-in, which is written to. ``known``: whether an operation is covered as it is.

    Raises UnsupportedOpError.
    """
    program = _program(model, example, known)
    signature = program.graph_signature
    held = {**dict(program.state_dict), **program.constants}
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    written = {*signature.buffers_to_mutate.values()}
    by_name = {fx.name: fx for fx in program.graph.nodes}
    images = [fx for fx in by_name.values() if fx.op == "placeholder" and fx.name in signature.user_inputs]
    (wanted,) = signature.user_outputs
    logits = by_name.get(wanted) if isinstance(wanted, str) else None
    calls = [] if logits is None else _ancestors(program.graph.nodes, logits)
    if len(images) != 1 or images[0] not in {a for fx in calls for a in fx.all_input_nodes}:
        raise UnsupportedOpError("output", "a model whose output does not depend on the image", "Return the logits.")
    constants: dict[Any, Tensor] = {}
    for fx in by_name.values():
        if fx.op == "placeholder" and fx.name in sources:
            if sources[fx.name] in written and any(fx in call.all_input_nodes for call in calls):
                raise UnsupportedOpError(
                    sources[fx.name],
                    "a buffer that forward reads and changes",
                    "The model is another function at every call; make the buffer constant in eval mode.",
                )
            constants[fx] = _owned(held[sources[fx.name]])
    return Exported(images[0], _folded(calls, constants), logits, constants)


def require_runs(model: nn.Module, example: Tensor) -> None:
    """Raises InputError where a stand-in cannot take an image of this shape in its own precision."""
    try:
        with alone(), torch.no_grad():
            model(_as_weights(model, example))
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise InputError(
            f"the model does not run on an example of shape {tuple(example.shape)}; pass one image as the model takes "
            f"it. Python said: {type(error).__name__}: {said}"
        ) from error


def _as_weights(model: nn.Module, example: Tensor) -> Tensor:
    """The example in the precision of the model's first weight."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), example.dtype)
    return example.detach().to("cpu", dtype, copy=True)


def _program(model: nn.Module, example: Tensor, known: Callable[[Any], bool]) -> Any:
    example = _as_weights(model, example)
    with alone(), warnings.catch_warnings():
        # torch's own notices while it exports; nothing a user could act on
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_Logits(model), (example,))
            called = [fx.target for fx in program.graph.nodes if fx.op == "call_function"]
            # functional and covered as it is, it needs no second pass, which takes two thirds of the time
            if all(_writes_nothing(t) and known(t) for t in called):
                return program
            ways = torch.export.default_decompositions()
            return program.run_decompositions({t: way for t, way in ways.items() if str(t) in _MADE_OF_OTHERS})
        except Exception as error:
            raise UnsupportedOpError(
                type(model).__name__,
                "torch.export of this model",
                "The forward pass must be one fixed computation (no branch on data, no numpy, one tensor in, one "
                f"tensor out). torch said: {str(error).splitlines()[0][:300] if str(error) else error!r}",
            ) from error


def _writes_nothing(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable


_MADE_OF_OTHERS = frozenset(
    f"aten.{name}"
    for name in (
        "column_stack.default",
        "diff.default",
        "dstack.default",
        "einsum.default",
        "hstack.default",
        "moveaxis.int",
        "moveaxis.intlist",
        "ravel.default",
        "swapdims.default",
        "tensor_split.indices",
        "tensor_split.sections",
        "tensordot.default",
        "vstack.default",
    )
)
"""What torch itself calls others for, which are known: they are read in its place."""


class _Logits(nn.Module):
    """A model that returns its class scores and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x))


def _ancestors(nodes: Any, last: Any) -> list[Any]:
    """The calls that ``last`` depends on, itself included, in order; what runs beside them changes nothing."""
    wanted, pending = {last}, [last]
    while pending:
        for fx in pending.pop().all_input_nodes:
            if fx not in wanted:
                wanted.add(fx)
                pending.append(fx)
    return [fx for fx in nodes if fx in wanted and fx.op == "call_function"]


def _owned(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype, copy=True)


def _folded(calls: list[Any], constants: dict[Any, Tensor]) -> tuple[Any, ...]:
    """The calls that depend on the image; the others are calculated, and join ``constants``."""
    left = []
    for fx in calls:
        shapes = _shapes_read(fx)
        if all(a in constants or a in shapes for a in fx.all_input_nodes) and not is_random(fx.target):
            constants[fx] = calculated(fx, {**constants, **shapes} if shapes else constants)
        else:
            left.append(fx)
    return tuple(left)


_LIKE = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})


def _shapes_read(fx: Any) -> dict[Any, Tensor]:
    """Of a call that reads nothing but the shape of its operands (``torch.zeros_like``): some values of that shape."""
    if not isinstance(fx.target, torch._ops.OpOverload) or fx.target._schema.name.removeprefix("aten::") not in _LIKE:
        return {}
    return {a: torch.zeros(tuple(a.meta["val"].shape), dtype=torch.float64) for a in fx.all_input_nodes[:1]}


def is_random(target: Any) -> bool:
    """Whether a call gives something else each time."""
    tags = getattr(target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or "empty" in str(target)


def calculated(fx: Any, known: Mapping[Any, Any]) -> Any:
    """What a call gives whose operands are known; a tensor is the caller's own."""
    with torch.no_grad(), NoCasts():
        value = _called(fx, known)
    return _owned(value) if isinstance(value, Tensor) else value


def _called(fx: Any, known: Mapping[Any, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((fx.args, fx.kwargs), known.__getitem__)
    return fx.target(*args, **kwargs)


def module_path(fx: Any) -> str:
    """Where in the caller's model a call stands; empty for its own forward."""
    stack = fx.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return str(path).removeprefix("model").removeprefix(".")
