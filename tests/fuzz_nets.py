"""Random CAM networks and images, one for every seed. Nothing here imports the package.

``random_case(seed)`` gives a model in eval mode (a body of stages, and a head in one of many spellings), an image, and
the box images live in. Some heads are none: their class scores are no linear map of the averaged features.
"""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fuzz_moves import moved
from fuzz_pieces import Piece, layer, piece, smooth
from fuzz_stages import STAGES, Call, Draw, Plumbing, Shape, WrittenInto, conv, relu
from torch import Tensor, nn

MOST_PIXELS, MOST_VALUES = 24, 300
"""Of the CAM, and of any map: a case is for seconds, not minutes."""

DRAWN: tuple[tuple[float, Draw], ...] = (*STAGES, (2.5, moved), (2.0, piece), (2.5, layer), (0.4, smooth))
"""How often each kind of stage is drawn, and who draws it."""

POOLS = (
    "mean(2,3)",
    "mean(-1,-2)",
    "mean keepdim",
    "adaptive",
    "adaptive pair",
    "F.adaptive",
    "F.avg_pool2d",
    "AvgPool2d",
    "AvgPool2d strided",
    "AvgPool2d divisor",
    "twice",
    "depthwise",
    "reshape",
    "mean mean",
    "flatten mean",
    "channels last",
    "transposed",
    "pool1d",
    "halves",
    "sum",
    "partial",
    "shifted",
    "max",
)
POOL_WEIGHTS = (4, 2, 2, 4, 1, 2, 2, 2, 1, 0.5, 0.4, 0.3, 1, *[0.3] * 7, 0.15, 0.15, 0.1)
LINEARS = ("linear", "F.linear", "conv 1x1", "grouped", "matmul", "einsum", "addmm", "two", "bn1d", "scaled", "shifted")
LINEAR_WEIGHTS = (8, 2, 1.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)
OUTPUTS = ("plain", "tuple", "dict", "softmax", "log_softmax", "sigmoid")
CURVED = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AdaptiveMaxPool2d, Call, Piece, WrittenInto)


def stage(r: random.Random, shape: Shape) -> nn.Module:
    weights, draws = zip(*DRAWN, strict=True)
    made: nn.Module = r.choices(draws, weights)[0](r, shape)
    return made.eval()


class Head(nn.Module):
    """Pool and linear layer. ``POOLS`` from "partial" on are not the global average."""

    def __init__(self, r: random.Random, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, h, w = shape
        self.pool = r.choices(POOLS, POOL_WEIGHTS)[0]
        self.kind = r.choices(LINEARS, LINEAR_WEIGHTS)[0]
        self.output = r.choices(OUTPUTS, (60, 1, 1, 2, 2, 2))[0]
        self.drop = nn.Dropout(0.3) if r.random() < 0.3 else nn.Identity()
        self.gap: nn.Module = {
            "adaptive pair": nn.AdaptiveAvgPool2d((1, 1)),
            "AvgPool2d": nn.AvgPool2d((h, w)),
            "AvgPool2d strided": nn.AvgPool2d((h, w), (1, 2), ceil_mode=True),
            "AvgPool2d divisor": nn.AvgPool2d((h, w), divisor_override=h * w),
            "partial": nn.AvgPool2d((max(1, h - 1), max(1, w - 1)), (h + 1, w + 1)),
            "shifted": nn.AvgPool2d((max(2, h), max(2, w)), (2 * h + 1, 2 * w + 1), 1),
            "max": nn.AdaptiveMaxPool2d(1),
            "depthwise": nn.Conv2d(channels, channels, (h, w), groups=channels, bias=False),
        }.get(self.pool, nn.AdaptiveAvgPool2d(1))
        if self.pool == "depthwise":
            assert isinstance(self.gap, nn.Conv2d)
            nn.init.constant_(self.gap.weight, 1 / (h * w))
        groups = r.choice([g for g in (1, 2, 3) if channels % g == 0]) if self.kind == "grouped" else 1
        classes = groups * max(1, classes // groups)
        if self.kind in ("conv 1x1", "grouped"):
            self.linear: nn.Conv2d | nn.Linear = nn.Conv2d(channels, classes, 1, groups=groups, bias=r.random() < 0.7)
        else:
            self.linear = nn.Linear(channels, classes, bias=r.random() < 0.7)
        self.second = nn.Linear(classes, classes) if self.kind == "two" else nn.Identity()
        self.norm = nn.BatchNorm1d(channels) if self.kind == "bn1d" else nn.Identity()
        self.scale = r.choice((0.5, -1.0, 3.0)) if self.kind == "scaled" else 1.0
        with torch.no_grad():
            self.linear.weight.mul_(r.choice((1, 1, 3)))

    def extra_repr(self) -> str:
        return f"pool={self.pool!r}, kind={self.kind!r}, output={self.output!r}, scale={self.scale}"

    def forward(self, a: Tensor) -> Any:
        z = self.logits(self.drop(self.pooled(a)))
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: z,
            "tuple": lambda: (z,),
            "dict": lambda: {"logits": z},
            "softmax": lambda: z.softmax(1),
            "log_softmax": lambda: F.log_softmax(z, dim=-1),
            "sigmoid": lambda: torch.sigmoid(z),
        }
        return ways[self.output]()

    def pooled(self, a: Tensor) -> Tensor:
        """(N, C, 1, 1)"""
        ways: dict[str, Callable[[], Any]] = {
            "mean(2,3)": lambda: a.mean((2, 3))[:, :, None, None] if self.conv else a.mean((2, 3)),
            "mean(-1,-2)": lambda: a.mean((-1, -2), keepdim=self.conv),
            "mean keepdim": lambda: a.mean((3, 2), keepdim=True),
            "F.adaptive": lambda: F.adaptive_avg_pool2d(a, 1),
            "F.avg_pool2d": lambda: F.avg_pool2d(a, a.shape[2:]),
            "reshape": lambda: a.mean(dim=[2, 3]).reshape(a.shape[0], -1, 1, 1),
            "twice": lambda: F.adaptive_avg_pool2d(a.mean((2, 3), keepdim=True), 1),
            "mean mean": lambda: a.mean(3).mean(2).reshape(a.shape[0], -1, 1, 1),
            "flatten mean": lambda: a.flatten(2).mean(-1).reshape(a.shape[0], -1, 1, 1),
            "channels last": lambda: a.permute(0, 2, 3, 1).mean((1, 2)).reshape(a.shape[0], -1, 1, 1),
            "transposed": lambda: a.flatten(2).transpose(1, 2).mean(1)[:, :, None, None],
            "pool1d": lambda: F.adaptive_avg_pool1d(a.flatten(2), 1)[..., None],
            "halves": lambda: sum(a[..., i::2].sum((2, 3), keepdim=True) for i in (0, 1)) / (a.shape[2] * a.shape[3]),
            "sum": lambda: a.sum((2, 3), keepdim=True) / (a.shape[2] * a.shape[3]),
        }
        return ways[self.pool]() if self.pool in ways else self.gap(a)

    @property
    def conv(self) -> bool:
        return isinstance(self.linear, nn.Conv2d)

    def logits(self, g: Tensor) -> Tensor:
        if self.conv:
            return self.linear(g).flatten(1)
        g = self.norm(g.flatten(1) if self.pool != "adaptive pair" else g.squeeze(3).squeeze(2))
        if self.kind == "F.linear":
            return F.linear(g, self.linear.weight, self.linear.bias)
        if self.kind == "matmul":
            return g @ self.linear.weight.t()
        if self.kind == "einsum":
            return torch.einsum("nc,kc->nk", g, self.linear.weight)
        if self.kind == "addmm":
            return torch.addmm(self.linear.weight[:, 0], g, self.linear.weight.t())
        z = self.second(self.linear(g))
        return {"scaled": z * self.scale, "shifted": z - 0.25}.get(self.kind, z)


class FuzzNet(nn.Module):
    """``body``: maps to the last feature map, ``head``: that map to class scores. ``habit``: what forward also does."""

    features: Tensor
    lock: Any

    def __init__(self, body: nn.Sequential, head: Head, habit: str) -> None:
        super().__init__()
        self.body, self.head, self.habit = body, head, habit
        self.seen: list[Tensor] = []

    def extra_repr(self) -> str:
        return f"habit={self.habit!r}"

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        if self.habit == "stores":
            self.features = features
        elif self.habit == "collects":
            self.seen.append(features)
        return self.head(features)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, an image (1, C, H, W) and the box it lives in.

    ``box``: two tensors (1, C or 1, 1, 1), or None; ``clip``: the same as a caller writes it.
    """

    seed: int
    model: FuzzNet
    x: Tensor
    box: tuple[Tensor, Tensor] | None
    clip: Any

    @property
    def clip_in_words(self) -> str:
        """The box, one number or one a channel, and how it was written."""
        if self.box is None:
            return "None"
        ends = ", ".join(str(end.flatten().tolist()) for end in self.box)
        parts = self.clip if isinstance(self.clip, tuple | list) else [self.clip]
        kinds = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
        return f"({ends}) as {type(self.clip).__name__} of {kinds}"

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.model}\n"
            f"{next(self.model.parameters()).dtype}, x {self.x.dtype} {tuple(self.x.shape)} in "
            f"[{float(self.x.min()):.4g}, {float(self.x.max()):.4g}], clip {self.clip_in_words}"
        )


def random_case(seed: int) -> Case:
    """The case of a seed. Leaves torch's own random state as it was."""
    r = random.Random(seed)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # padding="same" with an even kernel is slow, says torch, once
        torch.manual_seed(seed)
        while True:
            found = _try(r, seed)
            if found is not None:
                return found


def _try(r: random.Random, seed: int) -> Case | None:
    shape = (r.randint(1, 3), r.randint(1, 8), r.randint(1, 8))
    size = 10 ** r.uniform(-12, 12) if r.random() < 0.15 else 1.0
    x = _image(r, shape)
    body = _body(r, x)
    if body is None:
        return None
    with torch.no_grad():
        features = body(x.clone())
    if r.random() < 0.95 and bool((features == features[:, :, :1, :1]).all()):
        return None  # every pixel the same: all its questions are ties
    model = FuzzNet(
        body,
        Head(r, shape_of(features), r.choice((1, 2, 3, 3, 4))),
        r.choices(("", "stores", "collects", "lock", "hook"), (60, 1, 1, 1, 1))[0],
    ).eval()
    _rescale(r, model)
    model.to(r.choices((torch.float32, torch.float64, torch.float16, torch.bfloat16), (6, 3, 1.5, 0.3))[0])
    x = _laid_out(r, (x * size).to(r.choices((torch.float32, torch.float64, torch.float16), (6, 3, 1.5))[0]))
    if any(isinstance(m, Plumbing) and m.kind == "float" for m in model.modules()):
        model.to(torch.float32)  # a cast in forward is written by those whose weights are of that type
    for parameter in model.parameters():
        parameter.requires_grad_(r.random() < 0.8)
    if r.random() < 0.1:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to its hints
    finite = all(bool(torch.isfinite(t).all()) for t in (*model.state_dict().values(), x))
    if not finite or not _works(model, x):
        return None
    if model.habit == "lock":
        model.lock = threading.Lock()
    elif model.habit == "hook":
        model.body.register_forward_hook(lambda *_: None)
    box = _box(r, x)
    return Case(seed, model, x, box, _written(r, x, box))


def shape_of(x: Tensor) -> Shape:
    _, channels, height, width = x.shape
    return channels, height, width


def _image(r: random.Random, shape: Shape) -> Tensor:
    x = torch.rand(1, *shape)
    kind = r.choice(("uniform", "uniform", "uniform", "normal", "levels", "half black", "one colour"))
    if kind == "normal":
        return torch.randn(1, *shape)
    if kind == "levels":
        return (x * 3).round() / 3
    if kind == "half black":
        x[..., : max(1, shape[2] // 2)] = 0.0
    return torch.full_like(x, r.random()) if kind == "one colour" and r.random() < 0.3 else x


def _body(r: random.Random, x: Tensor) -> nn.Sequential | None:
    """Stages that fit one after another: the map stays small, has pixels enough, and autograd goes through."""
    stages: list[nn.Module] = []
    y, shape = x, shape_of(x)
    for _ in range(r.randint(2, 8)):
        for _ in range(8):
            made = conv(r, shape) if not stages and r.random() < 0.5 else stage(r, shape)
            grown = _applied(made, y)
            if grown is None:
                continue
            stages, y, shape = [*stages, made], grown, shape_of(grown)
            break
    if r.random() < 0.5:
        stages.append(relu(r, shape).eval())
    pixels = shape[1] * shape[2]
    curved = any(isinstance(m, CURVED) for made in stages for m in made.modules()) or r.random() < 0.1
    return nn.Sequential(*stages).eval() if 2 <= pixels <= MOST_PIXELS and curved else None


def _applied(made: nn.Module, y: Tensor) -> Tensor | None:
    try:
        z = made(y.clone())
    except (RuntimeError, ValueError, AssertionError):
        return None
    fits = z.ndim == 4 and z.shape[0] == 1 and z.shape[2] * z.shape[3] > 1 and 0 < z.numel() <= MOST_VALUES
    return z.detach() if fits and bool(torch.isfinite(z).all()) and float(z.abs().max()) < 1e9 else None


def _rescale(r: random.Random, model: FuzzNet) -> None:
    """In one net of five, weights of some layers times a power of ten."""
    if r.random() < 0.8:
        return
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not model.head.gap and r.random() < 0.4:
            with torch.no_grad():
                module.weight.mul_(10 ** r.uniform(-12, 12))
                if module.bias is not None and r.random() < 0.5:
                    module.bias.mul_(10 ** r.uniform(-12, 12))


def _laid_out(r: random.Random, x: Tensor) -> Tensor:
    """The same image as another view of memory."""
    kind = r.choice(("plain", "plain", "plain", "channels_last", "transposed", "part"))
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return torch.cat([x, x], dim=3)[..., : x.shape[3]] if kind == "part" else x


def _works(model: FuzzNet, x: Tensor) -> bool:
    """Whether the model runs in float64, backwards too."""
    copied = plain_copy(model)
    given = x.detach().double().clone().requires_grad_(True)
    try:
        z = logits_of(copied(given * 1.0))
        (slope,) = torch.autograd.grad(z.sum(), given, allow_unused=True)
    except (RuntimeError, ValueError):
        return False
    return bool(torch.isfinite(z).all()) and slope is not None and bool(torch.isfinite(slope).all())


def plain_copy(model: FuzzNet) -> FuzzNet:
    """The same function in float64 on the CPU, without what bars gradients or float64 (casts, detach, habits)."""
    body, head = _doubled(model.body), _doubled(model.head)
    for module in body.modules():
        if isinstance(module, Plumbing):
            module.through = True
    head.output = "plain"  # what keeps the order of scores is no part of them
    return FuzzNet(body, head, "").eval()


def _doubled(module: nn.Module) -> Any:
    return copy.deepcopy(module).double().requires_grad_(False)


def logits_of(output: Any) -> Tensor:
    """Class scores (N, classes), however a model hands them over."""
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def _box(r: random.Random, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """None, one interval for all inputs, or one for each channel; x may touch it."""
    kind = r.choice(("none", "one", "one", "channel", "channel"))
    exact = x.double()
    low, high = exact.amin().reshape(1, 1, 1, 1), exact.amax().reshape(1, 1, 1, 1)
    span = float(high - low) or float(high.abs()) or 1.0
    if kind == "none":
        return None
    if kind == "one" and float(low) >= 0 and float(high) <= 1 and span > 1e-3:
        return torch.zeros_like(low), torch.ones_like(high)
    if kind == "channel":
        low, high = exact.amin((2, 3), keepdim=True), exact.amax((2, 3), keepdim=True)
    low = low - span * r.choice((0.0, 0.2, 2.0)) * torch.rand(low.shape, dtype=torch.float64)
    return low, high + span * (r.choice((0.0, 0.2, 2.0)) * torch.rand(high.shape, dtype=torch.float64) + 1e-3)


def _written(r: random.Random, x: Tensor, box: tuple[Tensor, Tensor] | None) -> Any:
    """A box in a spelling that callers use."""
    if box is None:
        return None
    low, high = box
    if low.numel() == 1 and low.shape == high.shape and r.random() < 0.8:
        return (float(low), float(high))
    lows, highs = low.flatten().tolist(), high.flatten().tolist()
    kind = r.choice(("1C11", "C11", "image", "tuples", "list and tensor", "stacked", "pairs"))
    if kind == "pairs" and len(lows) != 2:  # two would be a low and a high end
        return list(zip(lows, highs, strict=True))
    ways: dict[str, Callable[[], Any]] = {
        "C11": lambda: (low[0], high[0]),
        "image": lambda: (low.expand(x.shape)[0], high.expand(x.shape).clone()),
        "tuples": lambda: (tuple(lows), tuple(highs)),
        "list and tensor": lambda: [lows, high[0, :, 0, 0]],
        "stacked": lambda: torch.stack([low[0], high[0]]),
    }
    return ways.get(kind, lambda: (low, high))()
