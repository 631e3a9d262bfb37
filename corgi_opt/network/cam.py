"""Finds the CAM head and binds graph, class weights and the user's own torch model together.

CAM head: last spatial node A (C, H, W) -> global average -> linear. ``CAM_p(x) = sum_c W[class, c] * A[c, p](x)``
(Zhou et al. 2016): raw signed values at feature-map resolution; the linear bias plays no part.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from corgi_opt.ambient import pinned, pinned_with_grad
from corgi_opt.arguments import integer
from corgi_opt.errors import InputError, NoCamHeadError, ParityError
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ingest import Unsupported, ingest, unsupported
from corgi_opt.network.lowering import normal_form
from corgi_opt.network.ops import Conv2d, Shape

PARITY_TOLERANCE = 1e-9
"""Largest difference from the torch forward in float64, relative to the largest value, at which a build passes."""


@dataclass(frozen=True, eq=False)
class CamNetwork:
    """A CNN with a CAM head as an affine + ReLU graph. Build it with :func:`from_torch`.

    ``graph`` is the normal form every method works on; ``pooled`` keeps max pools whole (the paper's bound relaxes
    them so). ``features`` names the last spatial node A, ``weight`` (classes, C) is the linear layer's. ``model`` is
    a float64 copy of the user's own model: every counterexample is replayed through it.
    """

    graph: LayerGraph
    pooled: LayerGraph
    features: str
    weight: Tensor
    model: nn.Module
    _moved: dict[Any, CamNetwork] = field(default_factory=dict, repr=False)

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

    def __repr__(self) -> str:
        c, h, w = self.graph[self.features].shape
        module = self.graph[self.features].module or "forward"
        return (
            f"CamNetwork({len(self.graph)} nodes; CAM head: {self.features!r} ({module}) {c}x{h}x{w} "
            f"-> global average -> {self.graph.output!r} linear, {self.classes} classes; "
            f"input {tuple(self.input_shape)})"
        )

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
                self.model,
            )
        return self._moved[key]

    @pinned
    def image(self, x: Tensor, name: str = "x") -> Tensor:
        """x as a float64 CPU image (1, C, H, W).

        Raises InputError on a wrong shape, a missing batch dimension, NaN or infinity.
        """
        expected = (1, *self.input_shape)
        if not isinstance(x, Tensor):
            raise InputError(f"{name} must be a torch tensor of shape {expected}, got {type(x).__name__}")
        if tuple(x.shape) == expected[1:]:
            raise InputError(f"{name} has shape {tuple(x.shape)}: the batch dimension is missing; pass {name}[None]")
        if tuple(x.shape) != expected:
            raise InputError(f"{name} must have shape {expected} as the example had, got {tuple(x.shape)}")
        if not x.is_floating_point() or x.layout is not torch.strided or x.is_meta:
            raise InputError(f"{name} must be a dense floating-point tensor, got {x.dtype}, {x.layout} on {x.device}")
        x = x.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"{name} holds NaN or infinite values; clean the image first")
        return x

    @pinned
    def class_index(self, x: Tensor, class_idx: int | None) -> int:
        """The class asked for; None means the class predicted at x. Raises InputError when it does not exist."""
        if class_idx is None:
            return int(self.logits(x).argmax())
        return integer("class_idx", class_idx, 0, self.classes - 1)

    @pinned
    def logits(self, x: Tensor) -> Tensor:
        """Class scores (classes,) at x (1, C, H, W), in float64."""
        return self.graph.forward(self.image(x)).flatten()

    @pinned
    def cam(self, x: Tensor, class_idx: int | None = None) -> Tensor:
        """The class activation map (H, W) at x (1, C, H, W), in float64; raw signed values, no ReLU, no resizing."""
        image = self.image(x)
        return self.cams(image, self.class_index(image, class_idx))[0]

    @pinned_with_grad
    def cams(self, images: Tensor, class_idx: int) -> Tensor:
        """CAMs (N, H, W) of images (N, C, H, W), differentiable, in the images' precision and on their device."""
        here = self.to(images.dtype, images.device)
        return torch.einsum("c,nchw->nhw", here.weight[class_idx], here.pooled.forward(images, self.features))

    @pinned_with_grad
    def class_scores(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W), differentiable, in their precision and on their device."""
        return self.to(images.dtype, images.device).pooled.forward(images).flatten(1)

    @pinned
    def model_cam(self, x: Tensor, class_idx: int) -> Tensor:
        """The CAM (H, W) of x (1, C, H, W) computed by running the user's own torch model in float64."""
        _, features = self._run_model(x)
        return torch.einsum("c,nchw->nhw", self.weight[class_idx], features)[0]

    @pinned
    def model_logits(self, x: Tensor) -> Tensor:
        """Class scores (classes,) of x (1, C, H, W) computed by running the user's own torch model in float64."""
        return self._run_model(x)[0]

    def _run_model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _GlobalPoolInputs() as seen:
            logits = self.model(x.double())
        shape = (x.shape[0], *self.graph[self.features].shape)
        maps = [m for m in seen.maps if tuple(m.shape) == shape]
        if not maps:
            raise NoCamHeadError("running the model did not show the global average pool that its export holds")
        return logits.flatten(), maps[-1]


class _GlobalPoolInputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what every global average pool reads while a model runs, however the model spells it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.maps: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        pools = ("mean", "_adaptive_avg_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
        if name in pools and args[0].ndim == 4 and out.numel() == args[0].shape[0] * args[0].shape[1]:
            self.maps.append(args[0].detach())
        return out


@pinned
def from_torch(model: nn.Module, example: Tensor) -> CamNetwork:
    """Builds the layer graph of an eval-mode CNN with a CAM head and checks it against the torch forward.

    ``example`` is one image batch of shape (1, C, H, W), any values. Raises ModelModeError, InputError,
    UnsupportedOpError (see :func:`check_model` for all at once), NoCamHeadError, and ParityError when the graph and
    the model disagree on a random input.
    """
    pooled = ingest(model, example)
    graph = normal_form(pooled)
    features, weight = find_head(graph)
    reference = copy.deepcopy(model).cpu().double().eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    net = CamNetwork(graph, pooled, features, weight, reference)
    _check_parity(net, example)
    return net


@pinned
def check_model(model: nn.Module, example: Tensor) -> tuple[Unsupported, ...]:
    """Every unsupported operation of the model, with its module path and what to do about it; empty when fine.

    Raises ModelModeError or InputError for a model or example that cannot be looked at, NoCamHeadError when all
    operations are known but the network does not end in features -> global average -> linear.
    """
    problems = unsupported(model, example)
    if not problems:
        find_head(normal_form(ingest(model, example)))
    return problems


def find_head(graph: LayerGraph) -> tuple[str, Tensor]:
    """The last spatial node's name and the class weights (classes, C). Raises NoCamHeadError."""
    last = graph[graph.output]
    if not (isinstance(last.op, Conv2d) and tuple(last.op.weight.shape[2:]) == (1, 1) and last.shape[1:] == (1, 1)):
        raise NoCamHeadError(_no_head(graph, f"the last operation, {last.name!r}, is not a linear layer on a vector"))
    pool = graph[last.inputs[0]]
    if not (isinstance(pool.op, Conv2d) and pool.shape[1:] == (1, 1) and _is_global_mean(graph, pool.name)):
        raise NoCamHeadError(
            _no_head(graph, f"what feeds the last linear layer, {pool.name!r}, is not a global average pool")
        )
    return pool.inputs[0], last.op.weight[:, :, 0, 0]


def _is_global_mean(graph: LayerGraph, name: str) -> bool:
    node = graph[name]
    assert isinstance(node.op, Conv2d)
    channels, height, width = graph[node.inputs[0]].shape
    if node.op.groups != channels or tuple(node.op.weight.shape) != (channels, 1, height, width):
        return False
    mean = torch.full_like(node.op.weight, 1.0 / (height * width))
    return node.op.bias is None and torch.allclose(node.op.weight, mean, rtol=1e-12, atol=0.0)


def _no_head(graph: LayerGraph, found: str) -> str:
    tail = " -> ".join(repr(n) for n in graph.order[-4:])
    return (
        f"no CAM head: the network must end in spatial features -> global average -> linear, but {found}. "
        f"It ends in {tail}. Networks with dense layers after the features have no CAM (Grad-CAM is not covered)."
    )


def _check_parity(net: CamNetwork, example: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = example.detach().cpu().double()
    noise = torch.rand(x0.shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    for x in (x0, noise, normal, x0 + 0.1 * normal):
        logits, features = net._run_model(x)
        for graph in (net.graph, net.pooled):
            values = graph.values(x)
            for what, ours, theirs in (
                ("logits", values[graph.output].flatten(), logits),
                ("last feature map", values[net.features], features),
            ):
                gap = float((ours - theirs).abs().max())
                scale = max(1.0, float(theirs.abs().max()))
                if not gap <= PARITY_TOLERANCE * scale:
                    raise ParityError(
                        f"the layer graph's {what} differs from the torch model's by {gap:.3g} (scale {scale:.3g}); "
                        "please report the model: nothing was certified"
                    )
