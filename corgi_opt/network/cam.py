"""Binds graph, class weights and the user's own torch model together.

CAM head: last spatial node A (C, H, W) -> global average -> linear. ``CAM_p(x) = sum_c W[class, c] * A[c, p](x)``
(Zhou et al. 2016): raw signed values at feature-map resolution; the linear bias plays no part in it. A head that is
spelt in another way is brought into this form (head.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt._ambient import pinned, pinned_with_grad
from corgi_opt._checks import integer
from corgi_opt.drawing.tables import html_table
from corgi_opt.errors import InputError, NoCamHeadError, UnsupportedOpError
from corgi_opt.network import names, parity
from corgi_opt.network.exported import Exported, check_ready, export, require_runs
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.head import find_head, find_in_model, with_head
from corgi_opt.network.ingest import Ingested, Unsupported, ingest, known, refuse
from corgi_opt.network.lowering import fold_affine, normal_form
from corgi_opt.network.onnx.module import OnnxModule
from corgi_opt.network.ops import Conv2d, Shape
from corgi_opt.network.replay import Replay, scores
from corgi_opt.network.smooth import Curved
from corgi_opt.network.standin import changing_hooks, stand_in

MOST_NAMED = 12
"""Names of classes that a table shows."""


@dataclass(frozen=True, eq=False)
class CamNetwork:
    """A CNN with a CAM head as a graph of affine operations, ReLUs and curved ones.

    Build it with :func:`from_torch` or :func:`from_onnx`.

    ``graph`` is the normal form every method works on; ``pooled`` keeps max pools whole (the paper's bound relaxes
    them so). ``features`` names the last spatial node A, ``weight`` (classes, C) is the linear layer's. ``replay`` runs
    ``model``, a float64 stand-in of the user's own: every counterexample is replayed through it. ``notes`` say what of
    the model was left out because it changes nothing. ``class_names``: one for each class, or none at all.
    """

    graph: LayerGraph
    pooled: LayerGraph
    features: str
    weight: Tensor
    replay: Replay
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    _moved: dict[Any, CamNetwork] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> nn.Module:
        """The user's model in float64 on the CPU, with weights of its own."""
        return self.replay.model

    @property
    def note(self) -> str:
        """Of an ONNX model, what its reading was compared with; empty for any other."""
        return self.model.origin.note if isinstance(self.model, OnnxModule) else ""

    @property
    def input_shape(self) -> Shape:
        return self.graph[self.graph.input].shape

    @property
    def map_shape(self) -> tuple[int, int]:
        """Height and width of the CAM."""
        return self.graph[self.features].shape[1:]

    @property
    def classes(self) -> int:
        return int(self.weight.shape[0])

    @property
    @pinned
    def bias(self) -> Tensor:
        """The linear layer's bias (classes,)."""
        last = self.graph[self.graph.output].op
        assert isinstance(last, Conv2d)  # the head is a linear layer
        return self.weight.new_zeros(self.classes) if last.bias is None else last.bias

    @property
    def curved(self) -> tuple[str, ...]:
        """The layers that are neither affine nor piecewise linear, each with what it is: no exact method takes them."""
        nodes = (self.graph[name] for name in self.graph.curved)
        return tuple(f"{node.module or node.name} ({node.op.title})" for node in nodes if isinstance(node.op, Curved))

    def __repr__(self) -> str:
        c, h, w = self.graph[self.features].shape
        module = self.graph[self.features].module or "forward"
        return (
            f"CamNetwork({len(self.graph)} nodes; CAM head: {self.features!r} ({module}) {c}x{h}x{w} "
            f"-> global average -> {self.graph.output!r} linear, {self.classes} classes; "
            f"input {tuple(self.input_shape)}{''.join(f'; {note}' for note in (*self.notes, self.note) if note)})"
        )

    def _repr_html_(self) -> str:
        c, h, w = self.graph[self.features].shape
        units = sum(math.prod(self.graph[name].shape) for name in self.graph.relus)
        more = ", ..." if len(self.class_names) > MOST_NAMED else ""
        rows = {
            "input": "x".join(map(str, self.input_shape)),
            "CAM": f"{h}x{w} pixels, of {c} channels after {self.graph[self.features].module or 'forward'!r}",
            "classes": self.classes,
            "their names": ", ".join(self.class_names[:MOST_NAMED]) + more or None,
            "operations": len(self.graph),
            "ReLUs": f"{units:,}",
            "curved layers": ", ".join(self.curved) or "none",
            "exact methods": "none (curved layers)" if self.curved else "bab, milp",
            "notes": "; ".join(note for note in (*self.notes, self.note) if note) or None,
        }
        return html_table("network with a CAM head", rows)

    @pinned
    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> CamNetwork:
        """This network's graphs and class weights in another precision or on another device (kept for reuse)."""
        key = (dtype, torch.device(device))
        if key not in self._moved:
            self._moved[key] = CamNetwork(
                self.graph.to(dtype, device),
                self.pooled.to(dtype, device),
                self.features,
                self.weight.to(device, dtype),
                self.replay,
                self.notes,
                self.class_names,
            )
        return self._moved[key]

    @pinned
    def image(self, x: Tensor, name: str = "x") -> Tensor:
        """A copy of x as a float64 image (1, C, H, W) on the CPU.

        Raises InputError on a wrong shape, a missing batch dimension, NaN or infinity.
        """
        expected = (1, *self.input_shape)
        if not isinstance(x, Tensor):
            raise InputError(
                f"{name} must be a torch tensor or a numpy array of floats of shape {expected}, got {type(x).__name__}"
            )
        if tuple(x.shape) == expected[1:]:
            raise InputError(f"{name} has shape {tuple(x.shape)}: the batch dimension is missing; pass {name}[None]")
        if tuple(x.shape) != expected:
            raise InputError(f"{name} must have shape {expected} as the example had, got {tuple(x.shape)}")
        if not x.is_floating_point() or x.layout is not torch.strided or x.is_meta:
            raise InputError(f"{name} must be a dense floating-point tensor, got {x.dtype}, {x.layout} on {x.device}")
        x = x.detach().to("cpu", torch.float64, copy=True)
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"{name} holds NaN or infinite values; clean the image first")
        return x

    @pinned
    def class_index(self, x: Tensor, class_idx: int | str | None) -> int:
        """The class asked for by number or name; None means the class predicted at x.

        Raises InputError when it does not exist, and for a name that several classes have.
        """
        if class_idx is None:
            return int(self.logits(x).argmax())
        if isinstance(class_idx, str):
            return names.index_of(class_idx, self.class_names)
        return integer("class_idx", class_idx, 0, self.classes - 1)

    @pinned
    def logits(self, x: Tensor) -> Tensor:
        """Class scores (classes,) at x (1, C, H, W), in float64."""
        return self.graph.forward(self.image(x)).flatten()

    @pinned
    def cam(self, x: Tensor, class_idx: int | str | None = None) -> Tensor:
        """The class activation map (H, W) at x (1, C, H, W), in float64; raw signed values, no ReLU, no resizing."""
        image = self.image(x)
        return self.cams(image, self.class_index(image, class_idx))[0]

    @pinned_with_grad
    def cams(self, images: Tensor, class_idx: int) -> Tensor:
        """CAMs (N, H, W) of images (N, C, H, W), differentiable, in the images' precision and on their device."""
        here = self.to(images.dtype, images.device)
        return torch.einsum("c,nchw->nhw", here.weight[class_idx], here.pooled.forward(images, self.features))

    @pinned_with_grad
    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Last feature maps (N, C, H, W) and class scores (N, classes) of images (N, C, H, W), differentiable, in their
        precision and on their device."""
        here = self.to(images.dtype, images.device)
        features = here.pooled.forward(images, self.features)
        return features, features.mean(dim=(2, 3)) @ here.weight.T + here.bias

    @pinned
    def model_cam(self, x: Tensor, class_idx: int) -> Tensor:
        """The CAM (H, W) of x (1, C, H, W) computed by running the user's own torch model in float64."""
        return torch.einsum("c,nchw->nhw", self.weight[class_idx], self.replay.run(x)[1])[0]

    @pinned
    def model_logits(self, x: Tensor) -> Tensor:
        """Class scores (classes,) of x (1, C, H, W) computed by running the user's own torch model in float64."""
        return self.replay.run(x)[0]


@pinned
def from_torch(
    model: nn.Module,
    example: Tensor,
    *,
    target_layer: str | nn.Module | None = None,
    classes: Sequence[str] | None = None,
) -> CamNetwork:
    """Builds the layer graph of an eval-mode CNN with a CAM head and checks it against the torch model.

    ``example`` is one image batch of shape (1, C, H, W), any values. The model and the example are not written to, and
    nothing of them is kept: the network is about the weights as they are now. Forward hooks are left out, and so is a
    softmax or sigmoid at the end, which keeps the order of class scores.

    The CAM is that of the last map of which all class scores are one affine function, the same at every pixel.
    ``target_layer``: a module of the model, or its name, whose output is to be that map instead.
    ``classes``: the names of the classes, one for each class score and in their order. ``class_idx=`` takes a name
    then, and answers and pictures say "class 7 (stop)".

    Raises ModelModeError, InputError, UnsupportedOpError (see :func:`check_model` for all at once), NoCamHeadError, and
    ParityError when the graph and the model disagree on the example, on images near it or on random ones.
    """
    said = names.checked_names(classes)
    ready = _ready(model, example)
    names.require_one_each(said, ready.scores)
    if isinstance(ready.ingested, tuple):
        raise refuse(ready.ingested)
    return ready.built(ready.ingested, _named(model, target_layer), said)


def _named(model: nn.Module, target: object) -> str | None:
    """The name of the module whose map is wanted. Raises InputError where the model has none such."""
    if target is None:
        return None
    modules: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    chosen = [name for name, module in modules.items() if name == target or module is target]
    if not chosen:
        raise InputError(
            f"target_layer must be a module of the model or its name, as in model.named_modules(), got {target!r:.80}; "
            f"the last ones are {', '.join(map(repr, list(modules)[-6:]))}"
        )
    return chosen[0]


@pinned
def examined(
    model: nn.Module, example: Tensor, target_layer: str | nn.Module | None
) -> CamNetwork | tuple[Unsupported, ...]:
    """The network, or every operation that is not supported. Raises what :func:`from_torch` raises otherwise."""
    try:
        ready = _ready(model, example)
    except UnsupportedOpError as error:
        return (Unsupported(error.node, error.op, error.hint),)
    if isinstance(ready.ingested, tuple):
        return ready.ingested
    return ready.built(ready.ingested, _named(model, target_layer))


@dataclass(frozen=True, eq=False)
class _Ready:
    """A model that runs in float64, gives ``scores`` class scores and could be exported; ``ingested``: the network, or
    what is not supported of it."""

    model: nn.Module
    example: Tensor
    scores: int
    exported: Exported
    ingested: Ingested | tuple[Unsupported, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> _Ready:
        check_ready(model, example)
        image = example.detach().to("cpu", torch.float64, copy=True)
        replayed = stand_in(model, torch.float64)
        try:
            logits = scores(replayed, image)
            _check_scores(logits)
        except UnsupportedOpError:
            require_runs(stand_in(model), example)  # raises InputError where the image is at fault
            raise
        _check_hooks(model, image)
        exported = _exported(model, example)
        return cls(replayed, image, logits.numel(), exported, ingest(exported))

    def built(self, ingested: Ingested, target: str | None = None, class_names: tuple[str, ...] = ()) -> CamNetwork:
        parity.check_steps(self.exported, ingested, self.example)
        head = find_head(ingested.graph, target, ingested.halves)
        pooled, folded = fold_affine(with_head(ingested.graph, head))
        graph, lowered = normal_form(pooled)
        features = lowered[folded[head.features]]
        images = list(parity.probes(self.example))
        replay = find_in_model(self.model, graph, features, head.weight, images)
        net = CamNetwork(graph, pooled, features, head.weight, replay, ingested.notes, class_names)
        for x in images:
            require_parity(net, x, parity.MOST_ROUNDING)
        return net


def _ready(model: nn.Module, example: Tensor) -> _Ready:
    """The caller's random numbers go on as if a model that draws some (and is refused) had not been run."""
    with torch.random.fork_rng(devices=[]):
        return _Ready.of(model, example)


def _exported(model: nn.Module, example: Tensor) -> Exported:
    """In float64, as it is replayed: what ``forward`` makes in the precision of its image (``torch.tensor([0.485],
    dtype=x.dtype)``) is the same number then. A model that casts may be one in its own precision only."""
    try:
        return export(stand_in(model, torch.float64), example, known)
    except UnsupportedOpError:
        return export(stand_in(model), example, known)


def _check_scores(logits: Tensor) -> None:
    """Raises UnsupportedOpError unless these are scores (1, classes) of one image, NoCamHeadError for maps of them."""
    if logits.ndim == 4 and logits.shape[0] == 1 and logits.numel() != logits.shape[1]:
        raise NoCamHeadError(
            "no CAM head: the network must end in spatial features -> global average -> linear, and return one row of "
            f"class scores. It ends in maps {tuple(logits.shape)}"
        )
    if logits.ndim < 2 or logits.shape[0] != 1 or logits.numel() != logits.shape[1] or not logits.is_floating_point():
        raise UnsupportedOpError(
            "output",
            f"a model that returns {logits.dtype} of shape {tuple(logits.shape)}",
            "It must return one row of class scores, (1, classes); flatten(1) keeps the batch dimension, squeeze() "
            "does not.",
        )


def _check_hooks(model: nn.Module, x: Tensor) -> None:
    """Raises InputError where hooks, which a stand-in leaves out, are part of what the model computes."""
    changing = changing_hooks(model, lambda made: scores(made, x))
    if changing:
        raise InputError(
            f"the forward hook on {changing[0]!r} changes what the model computes, and hooks are left out here; remove "
            "it (its handle's remove()) or do the same in forward"
        )


def require_parity(net: CamNetwork, x: Tensor, most_rounding: float = math.inf) -> tuple[Tensor, Tensor]:
    """The user's model's logits (classes,) and last feature map (1, C, H, W) at x (1, C, H, W), which the graphs' are
    compared with. Raises ParityError where one differs.

    ``most_rounding``: the share of a map's own size up to which rounding may explain a difference.
    """
    logits, features = net.replay.run(x)
    theirs = {net.features: features, net.graph.output: logits.view(1, -1, 1, 1)}
    for graph in (net.graph, net.pooled):
        values = graph.values(x)
        for name, reference in theirs.items():
            what = "last feature map" if name == net.features else "logits"
            if not parity.near(values[name], reference):
                tolerance = parity.allowed(graph, name, x, values, most_rounding)
                parity.require_equal(what, values[name], reference, tolerance)
    return logits, features
