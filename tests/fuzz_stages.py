"""Stages of random CNNs: the usual layers of CAM networks, in the spellings that people write.

A stage is a module from one map to another. ``STAGES`` holds how often each kind is drawn and who draws it; a draw may
give a stage that does not fit its map, or that autograd refuses: the caller tries it and draws again. What moves values
alone is in fuzz_moves.py, the rest of the vocabulary in fuzz_pieces.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]
Draw = Callable[[random.Random, Shape], nn.Module]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

SLOPES = (0.01, 0.2, 0.5, 0.99, 0.0, 1.0, 1.5, 3.0, -0.3, -1.0, -2.0)


def pair(r: random.Random, values: tuple[int, ...]) -> tuple[int, int]:
    return r.choice(values), r.choice(values)


# --- convolutions, batch norm ---------------------------------------------------------------------------------------


class FunctionalConv(nn.Module):
    """A convolution whose weights are plain parameters or buffers."""

    kernel: Tensor

    def __init__(self, conv: nn.Conv2d, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("kernel", conv.weight.detach().clone(), persistent=persistent)
        self.offset = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.how: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, self.offset, *self.how)


def conv(r: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    groups = r.choice([g for g in range(1, channels + 1) if channels % g == 0]) if r.random() < 0.4 else 1
    out = groups * r.randint(1, max(1, 4 // groups))
    stride, dilation = pair(r, (1, 1, 1, 2, 3)), pair(r, (1, 1, 1, 2, 3))
    padding: tuple[int, int] | str = pair(r, (0, 1, 1, 2))
    if r.random() < 0.15:
        padding = r.choice(("same", "valid"))
        stride = (1, 1) if padding == "same" else stride
    mode: PaddingMode = "zeros" if r.random() < 0.99 else r.choice(("reflect", "replicate", "circular"))
    kernel = pair(r, (1, 3, 3) if padding == "same" and r.random() < 0.8 else (1, 2, 3, 3))
    made = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, r.random() < 0.7, padding_mode=mode)
    with torch.no_grad():
        made.weight.mul_(r.choice((1.0, 1.0, 2.0)))
        if r.random() < 0.1:
            made.weight[r.randrange(out)] = 0.0
    if mode == "zeros" and r.random() < 0.15:
        return FunctionalConv(made, persistent=r.random() < 0.5)
    return made


def batch_norm(r: random.Random, shape: Shape) -> nn.Module:
    norm = nn.BatchNorm2d(shape[0], eps=r.choice((1e-5, 1e-3, 0.1)), affine=r.random() < 0.6)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(0, 0.5)
    norm.running_var.uniform_(0.1, 2.0)
    if r.random() < 0.1:
        norm.running_var[0] = r.choice((0.0, 1e-12, 1e6))
    if norm.affine:
        nn.init.normal_(norm.weight, 0, 1)
        nn.init.normal_(norm.bias, 0, 0.5)
        if r.random() < 0.1:
            nn.init.zeros_(norm.weight)
    return norm


# --- what is not affine ---------------------------------------------------------------------------------------------


class Call(nn.Module):
    """A function of the map, in place or not, by the name of its spelling."""

    def __init__(self, how: str, slope: float = 0.0) -> None:
        super().__init__()
        self.how, self.slope = how, slope

    def extra_repr(self) -> str:
        return f"{self.how!r}, {self.slope}"

    def forward(self, x: Tensor) -> Tensor:
        return {
            "F.relu": lambda: F.relu(x),
            "torch.relu": lambda: torch.relu(x),
            "x.relu": lambda: x.relu(),
            "x.relu_": lambda: x.relu_(),
            "F.relu_": lambda: F.relu(x, inplace=True),
            "sigmoid": lambda: torch.sigmoid(x),
            "F.leaky": lambda: F.leaky_relu(x, self.slope),
            "F.leaky_": lambda: F.leaky_relu(x, self.slope, inplace=True),
            "square": lambda: x * x,
            "where": lambda: torch.where(x > 0, x, 0.2 * x),
            "sorted": lambda: x.sort(dim=1).values,
            "cumsum": lambda: x.cumsum(2),
            "softshrink": lambda: F.softshrink(x, 0.1),
        }[self.how]()


def relu(r: random.Random, shape: Shape) -> nn.Module:
    if r.random() < 0.5:
        return nn.ReLU(inplace=r.random() < 0.4)
    return Call(r.choice(("F.relu", "torch.relu", "x.relu", "x.relu_", "F.relu_")))


def leaky_relu(r: random.Random, shape: Shape) -> nn.Module:
    slope = r.choice(SLOPES)
    if r.random() < 0.6:
        return nn.LeakyReLU(slope, inplace=r.random() < 0.4)
    return Call(r.choice(("F.leaky", "F.leaky_")), slope)


def unknown(r: random.Random, shape: Shape) -> nn.Module:
    """Outside the vocabulary: right or refused by name, and nothing else."""
    return r.choice(
        (
            Call(r.choice(("sigmoid", "square", "where", "sorted", "cumsum", "softshrink"))),
            nn.LPPool2d(2, 2),
            nn.InstanceNorm2d(shape[0]),
            nn.GroupNorm(1, shape[0]),
            nn.Softmax2d(),
            nn.FractionalMaxPool2d(2, output_ratio=0.5),
        )
    )


# --- pools ----------------------------------------------------------------------------------------------------------


def max_pool(r: random.Random, shape: Shape) -> nn.Module:
    kernel = pair(r, (1, 2, 2, 3))
    stride = None if r.random() < 0.3 else pair(r, (1, 1, 2, 3))
    padding = (r.randint(0, kernel[0] // 2), r.randint(0, kernel[1] // 2))
    return nn.MaxPool2d(kernel, stride, padding, pair(r, (1, 1, 1, 2)), ceil_mode=r.random() < 0.4)


def avg_pool(r: random.Random, shape: Shape) -> nn.Module:
    kernel = pair(r, (1, 2, 2, 3))
    stride = None if r.random() < 0.3 else pair(r, (1, 1, 2, 3))
    padding = (r.randint(0, kernel[0] // 2), r.randint(0, kernel[1] // 2))
    divisor = r.choice((None, None, None, 1, 3, -2))
    return nn.AvgPool2d(
        kernel, stride, padding, r.random() < 0.35, count_include_pad=r.random() < 0.5, divisor_override=divisor
    )


# --- constants, plumbing --------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """One arithmetic operation with a constant: a number, a buffer or a parameter of a shape that broadcasts."""

    NUMBER = ("x*c", "c*x", "x+c", "c+x", "x-c", "c-x", "x/c", "x+=c", "x*=c", "x-=c", "x/=c", "rsub", "add alpha")
    TENSOR = (*NUMBER, "sub alpha", "c sub alpha", "rsub alpha", "c add alpha")

    c: Tensor | float

    def __init__(self, how: str, c: Tensor | float, alpha: float, store: str) -> None:
        super().__init__()
        self.how, self.alpha = how, alpha
        if isinstance(c, Tensor) and store == "parameter":
            self.c = nn.Parameter(c)
        elif isinstance(c, Tensor):
            self.register_buffer("c", c, persistent=store == "buffer")
        else:
            self.c = c

    def extra_repr(self) -> str:
        return f"{self.how!r}, c={tuple(self.c.shape) if isinstance(self.c, Tensor) else self.c}, alpha={self.alpha}"

    def forward(self, x: Tensor) -> Tensor:
        c, alpha = self.c, self.alpha
        return {
            "x*c": lambda: x * c,
            "c*x": lambda: c * x,
            "x+c": lambda: x + c,
            "c+x": lambda: c + x,
            "x-c": lambda: x - c,
            "c-x": lambda: c - x,
            "x/c": lambda: x / c,
            "x+=c": lambda: x.add_(c),
            "x*=c": lambda: x.mul_(c),
            "x-=c": lambda: x.sub_(c),
            "x/=c": lambda: x.div_(c),
            "rsub": lambda: torch.rsub(x, c),
            "add alpha": lambda: torch.add(x, c, alpha=alpha),
            "sub alpha": lambda: torch.sub(x, c, alpha=alpha),
            "c sub alpha": lambda: torch.sub(c, x, alpha=alpha),
            "c add alpha": lambda: torch.add(c, x, alpha=alpha),
            "rsub alpha": lambda: torch.rsub(x, c, alpha=alpha),
            "-x": lambda: -x,
            "x.neg_": lambda: x.neg_(),
        }[self.how]()


def constant(r: random.Random, shape: Shape) -> nn.Module:
    channels, h, w = shape
    if r.random() < 0.15:
        return Constant(r.choice(("-x", "x.neg_")), 0.0, 1.0, "")
    alpha = r.choice((0.5, -2.0, 3.0, 1.0))
    if r.random() < 0.35:
        return Constant(r.choice(Constant.NUMBER), r.choice((0.7, -0.5, 2.0, 3, -1.5, 0.1)), alpha, "")
    shapes = ((1, channels, 1, 1), (1, 1, h, w), (1, channels, h, w), (channels, 1, 1), (h, w), (1,), (w,), (h, 1), ())
    c = torch.randn(r.choice(shapes)) * 0.5
    how = r.choice(Constant.TENSOR)
    if how in ("x/c", "x/=c"):
        c = torch.where(c >= 0, 1.0, -1.0) * (c.abs() + 0.3)
    return Constant(how, c, alpha, r.choice(("buffer", "hidden buffer", "parameter")))


class Plumbing(nn.Module):
    """Something that changes no value. ``through``: leaves it out (casts and detach bar float64 and gradients)."""

    KINDS = ("clone", "contiguous", "view_as", "detach", "to", "type_as", "float", "flatten", "channels_last")

    like: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.through = kind, False
        self.register_buffer("like", torch.zeros(1))

    def extra_repr(self) -> str:
        return repr(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        if self.through:
            return x
        return {
            "clone": lambda: x.clone(),
            "contiguous": lambda: x.contiguous(),
            "view_as": lambda: x.view_as(x),
            "detach": lambda: x.detach(),
            "to": lambda: x.to(self.like.dtype),
            "type_as": lambda: x.type_as(self.like),
            "float": lambda: x.float(),
            "flatten": lambda: x.flatten(1).reshape(x.shape),
            "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        }[self.kind]()


def plumbing(r: random.Random, shape: Shape) -> nn.Module:
    if r.random() < 0.6:
        return r.choice((nn.Dropout(0.5), nn.Dropout2d(0.3), nn.Identity(), nn.Dropout(0.2, inplace=True)))
    return Plumbing(r.choice(Plumbing.KINDS))


class Reshape(nn.Module):
    """The same numbers as a map of another shape; ones may move."""

    def __init__(self, r: random.Random, shape: Shape) -> None:
        super().__init__()
        total = math.prod(shape)
        splits = [(a, b, total // a // b) for a in range(1, 7) for b in range(1, 7) if total % (a * b) == 0]
        self.shape = r.choice([s for s in splits if s[2] < 8] or [shape])

    def extra_repr(self) -> str:
        return repr(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


def reshaped(r: random.Random, shape: Shape) -> nn.Module:
    return Reshape(r, shape)


# --- several paths --------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Two or three branches, added or subtracted in some spelling. A branch may write into the map it reads."""

    HOWS = ("x+y", "x+y", "y-x", "add", "sub", "x+=y", "x+=y", "add alpha", "sub alpha", "add_ alpha", "rsub alpha")

    def __init__(self, how: str, alpha: float, *branches: nn.Module) -> None:
        super().__init__()
        self.how, self.alpha = how, alpha
        self.branches = nn.ModuleList(branches)

    def extra_repr(self) -> str:
        return f"{self.how!r}, alpha={self.alpha}"

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = (branch(x) for branch in self.branches)
        for other in rest:
            first = self.join(first, other)
        return first

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return {
            "x+y": lambda: x + y,
            "y-x": lambda: y - x,
            "add": lambda: torch.add(x, y),
            "sub": lambda: x.sub(y),
            "x+=y": lambda: x.add_(y),
            "add alpha": lambda: torch.add(x, y, alpha=self.alpha),
            "sub alpha": lambda: torch.sub(x, y, alpha=self.alpha),
            "add_ alpha": lambda: x.add_(y, alpha=self.alpha),
            "rsub alpha": lambda: torch.rsub(x, y, alpha=self.alpha),
        }[self.how]()


def summed(r: random.Random, shape: Shape) -> nn.Module:
    """Residual sums: identity and body, or branches that stride, pool and pad differently to the same shape."""
    channels = shape[0]
    out, stride = (channels, (1, 1)) if r.random() < 0.5 else (r.randint(1, 4), pair(r, (1, 2, 2)))
    how, alpha = r.choice(Sum.HOWS), r.choice((0.5, -2.0, 1.0, 3.0))

    def branch() -> nn.Module:
        k = r.choice((1, 3, 3))
        kind = r.choice(("conv", "conv", "relu conv", "conv relu", "pool conv", "dilated", "deep", "leaky conv bn"))
        strided = nn.Conv2d(channels, out, k, stride, k // 2, bias=r.random() < 0.6)
        if kind == "pool conv":
            pool = r.choice((nn.MaxPool2d, nn.AvgPool2d))(3, stride, 1)
            return nn.Sequential(pool, nn.Conv2d(channels, out, 1))
        if kind == "dilated":
            return nn.Conv2d(channels, out, 3, stride, 2, 2)
        if kind == "deep":
            return nn.Sequential(strided, relu(r, shape), nn.Conv2d(out, out, 3, padding=1))
        before = [relu(r, shape)] if kind == "relu conv" else [leaky_relu(r, shape)] if "leaky" in kind else []
        after = [relu(r, shape)] if kind == "conv relu" else [batch_norm(r, (out, 1, 1))] if "bn" in kind else []
        return nn.Sequential(*before, strided, *after)

    same = (out, stride) == (channels, (1, 1))
    first = nn.Identity() if same and r.random() < 0.6 else branch()
    branches = [first, branch()] + ([branch()] if r.random() < 0.15 else [])
    if same and r.random() < 0.08:
        branches = [nn.Identity(), nn.Identity()]  # x + x, x - x with an alpha
    r.shuffle(branches)
    return Sum(how, alpha, *branches)


class Twice(nn.Module):
    """One module used at two places."""

    def __init__(self, shared: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.shared, self.between = shared, between

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.between(self.shared(x)))


def twice(r: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    shared = r.choice(
        (
            nn.Conv2d(channels, channels, r.choice((1, 3)), padding="same"),
            nn.MaxPool2d(2, 1, ceil_mode=r.random() < 0.5),
            batch_norm(r, shape),
            nn.Sequential(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)), nn.ReLU()),
        )
    )
    return Twice(shared, relu(r, shape) if r.random() < 0.7 else nn.Identity())


class Spelt(nn.Module):
    """A function of the map by the name of its spelling."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def extra_repr(self) -> str:
        return repr(self.how)


class WrittenInto(nn.Module):
    """A value is read before and after something writes into its memory."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def extra_repr(self) -> str:
        return str(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            y = x * 1.0
            z = y - 0.1
            y.relu_()
            return y + z
        if self.kind == 1:
            y = x + 0.2
            view = y.view_as(y)
            view.mul_(-0.5)
            return y.add(0.1)
        if self.kind == 2:
            y = F.relu(x - 0.1)
            return y.add_(x)
        y = x.clone()
        y += x
        y -= 0.3
        return y


def written_into(r: random.Random, shape: Shape) -> nn.Module:
    return WrittenInto(r.randrange(4))


STAGES: tuple[tuple[float, Draw], ...] = (
    (5.0, conv),
    (3.5, relu),
    (1.2, leaky_relu),
    (1.2, batch_norm),
    (2.0, max_pool),
    (1.3, avg_pool),
    (2.5, summed),
    (1.5, constant),
    (0.5, plumbing),
    (0.15, reshaped),
    (0.6, twice),
    (0.4, written_into),
    (0.15, unknown),
)
