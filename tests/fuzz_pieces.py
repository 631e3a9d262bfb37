"""Stages of random CNNs beside the usual ones: kin of ReLU, maxima, resizes, layers on lines and on the last axis."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fuzz_stages import Shape, Spelt, pair
from torch import Tensor, nn

ATEN: Any = torch.ops.aten
"""Operations as torch itself calls them; some no function of torch has a name for."""

PIECES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu6": lambda x, low, high: F.relu6(4 * x),
    "hardtanh": lambda x, low, high: F.hardtanh(x, -0.3, 0.6),
    "hardtanh_": lambda x, low, high: F.hardtanh(x + 0.0, -0.3, 0.6, inplace=True),
    "clamp": lambda x, low, high: x.clamp(-0.2, 0.4),
    "clamp below": lambda x, low, high: x.clamp(min=0.1),
    "clamp above": lambda x, low, high: x.clamp(max=0.3),
    "clip": lambda x, low, high: x.clip(0.0, 1.0),
    "clamp_min": lambda x, low, high: torch.clamp_min(x, -0.1),
    "clamp_max": lambda x, low, high: torch.clamp_max(x, 0.2),
    "clamp between tensors": lambda x, low, high: x.clamp(low, high),
    "clamp_min tensor": lambda x, low, high: torch.clamp_min(x, low),
    "clamp_max tensor": lambda x, low, high: torch.clamp_max(x, high),
    "hardsigmoid": lambda x, low, high: F.hardsigmoid(5 * x),
    "prelu": lambda x, low, high: F.prelu(x, high.flatten()),
    "prelu, one slope": lambda x, low, high: F.prelu(x, low.flatten()[:1]),
    "rrelu": lambda x, low, high: F.rrelu(x, 0.1, 0.4, training=False),
    "threshold": lambda x, low, high: F.threshold(x, 0.2, 0.2),
    "abs": lambda x, low, high: x.abs(),
    "crelu": lambda x, low, high: torch.cat([F.relu(x), F.relu(-x)], 1),
    "maximum": lambda x, low, high: torch.maximum(x, 0.3 * x),
    "maximum and a constant": lambda x, low, high: torch.maximum(low, x),
    "minimum": lambda x, low, high: torch.minimum(x, x.flip(3)),
    "minimum and a constant": lambda x, low, high: torch.minimum(x, high),
    "max of two": lambda x, low, high: torch.max(x, -0.5 * x),
    "min of two": lambda x, low, high: torch.min(x.flip(2), x),
    "maxout": lambda x, low, high: x.unflatten(1, (-1, 2)).amax(2),
    "maxout by max": lambda x, low, high: x.unflatten(1, (2, -1)).max(1).values,
    "least of channels": lambda x, low, high: x.amin(1, keepdim=True) + x,
    "least of channels by min": lambda x, low, high: x.min(dim=1, keepdim=True)[0] - x,
    "addcmul": lambda x, low, high: torch.addcmul(x, x.flip(3), high, value=0.5),
    "lerp": lambda x, low, high: torch.lerp(x, x.flip(2), 0.3),
    "scaled by channel": lambda x, low, high: x * high + low,  # LayerScale
    "centred": lambda x, low, high: x - x.mean((2, 3), keepdim=True),
    "centred over all": lambda x, low, high: x - torch.stack([one.mean() for one in x]).view(-1, 1, 1, 1),
    "sum of channels": lambda x, low, high: x - x.sum(1, keepdim=True),
    "sum of all": lambda x, low, high: x + 0.1 * torch.stack([one.sum() for one in x]).view(-1, 1, 1, 1),
    "sum of five axes": lambda x, low, high: x.unflatten(1, (-1, 1)).sum(2) * 2,
    "rows averaged": lambda x, low, high: x.mean(3, keepdim=True) + x,
    "numbers": lambda x, low, high: 0.3 - (x * 2 + 1) / 4,
    "number from": lambda x, low, high: torch.rsub(x, 0.5, alpha=2),
    "divided": lambda x, low, high: torch.div(x, high + 2),
    "divided, no rounding": lambda x, low, high: torch.div(x, 2.0, rounding_mode=None).div(
        high + 2, rounding_mode=None
    ),
    "tensor made inside": lambda x, low, high: x + torch.tensor([[[0.2]]], dtype=x.dtype),
    "lerp with tensors": lambda x, low, high: torch.lerp(x, 1 - x, high),
    "differences": lambda x, low, high: torch.cat([x, x[:, :1]], 1).diff(dim=1),
    "operators": lambda x, low, high: torch.add(torch.sub(torch.mul(x, 2), 1), 3).div(2, rounding_mode=None),
    "operations of numbers": lambda x, low, high: ATEN.div.Scalar(ATEN.mul.Scalar(ATEN.add.Scalar(x, 0.5, 2), 3), 2),
    "others of numbers": lambda x, low, high: ATEN.div.Scalar_mode(ATEN.sub.Scalar(x, 0.2, 3), 2, rounding_mode=None),
    "filled": lambda x, low, high: torch.cat([x, ATEN.fill.Scalar(x[:, :1], 0.3)], 1),
    "prelu, as torch has it": lambda x, low, high: ATEN._prelu_kernel(x, high),
    "convolution": lambda x, low, high: torch.convolution(
        x, high.transpose(0, 1), None, [1, 2], [0, 1], [1, 1], False, [0, 0], x.shape[1]
    ),
    "as another": lambda x, low, high: ATEN.to.other(x, low) - low,
    "types": lambda x, low, high: x.type_as(low).to(low).to("cpu") + 0.1,
}
"""Functions of a map and of two constants (1, C, 1, 1), the first smaller."""

SMOOTH: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda x, low, high: torch.sigmoid(x),
    "tanh": lambda x, low, high: x.tanh(),
    "silu": lambda x, low, high: F.silu(x),
    "silu, written out": lambda x, low, high: x * x.sigmoid(),
    "gelu": lambda x, low, high: F.gelu(2 * x),
    "gelu, tanh": lambda x, low, high: F.gelu(x, approximate="tanh"),
    "elu": lambda x, low, high: F.elu(x, 1.5),
    "celu": lambda x, low, high: F.celu(x, 0.7),
    "selu": lambda x, low, high: F.selu(x),
    "softplus": lambda x, low, high: F.softplus(x, 2.0, 5.0),
    "logsigmoid": lambda x, low, high: F.logsigmoid(x),
    "logsigmoid, forward": lambda x, low, high: ATEN.log_sigmoid_forward(x)[0],
    "hardswish": lambda x, low, high: F.hardswish(3 * x),
    "mish": lambda x, low, high: F.mish(x),
    "square": lambda x, low, high: 0.3 * x.square(),
    "power": lambda x, low, high: (x - 0.2) ** 2,
    "product": lambda x, low, high: x * (x.flip(3) + high),
    "glu": lambda x, low, high: F.glu(torch.cat([x, low * x], 1), 1),
    "gates": lambda x, low, high: x * torch.sigmoid(high * x.mean((2, 3), keepdim=True)),
}
"""Such functions with curved ones in them; exact methods take none of their networks."""


class Piece(Spelt):
    """One of the map and two constants."""

    low: Tensor
    high: Tensor

    def __init__(self, how: str, channels: int) -> None:
        super().__init__(how)
        self.register_buffer("low", torch.rand(1, channels, 1, 1) - 1.0)
        self.register_buffer("high", torch.rand(1, channels, 1, 1) + 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return {**PIECES, **SMOOTH}[self.how](x, self.low, self.high)


def piece(r: random.Random, shape: Shape) -> nn.Module:
    return Piece(r.choice(tuple(PIECES)), shape[0])


def smooth(r: random.Random, shape: Shape) -> nn.Module:
    return Piece(r.choice(tuple(SMOOTH)), shape[0])


# --- layers ----------------------------------------------------------------------------------------------------------

AROUND: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "channels last": (lambda x: x.permute(0, 2, 3, 1), lambda y, x: y.permute(0, 3, 1, 2)),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), lambda y, x: y.mT.unflatten(2, x.shape[2:])),
    "a line": (lambda x: x.flatten(2), lambda y, x: y[:, :, None]),
    "a vector": (lambda x: x.flatten(1), lambda y, x: y.view(len(y), -1, 1, 2)),
    "as it is": (lambda x: x, lambda y, x: y),
}
"""How a map is laid out before a layer, and its result made a map again."""


class Laid(nn.Module):
    """A layer in a layout of its own."""

    def __init__(self, how: str, layer: nn.Module) -> None:
        super().__init__()
        self.how, self.layer = how, layer

    def extra_repr(self) -> str:
        return repr(self.how)

    def forward(self, x: Tensor) -> Tensor:
        before, after = AROUND[self.how]
        return after(self.layer(before(x)), x)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda x, w: x @ w,
    "matmul": lambda x, w: torch.matmul(x, w),
    "mm": lambda x, w: torch.mm(x.flatten(0, -2), w).view(*x.shape[:-1], -1),
    "bmm": lambda x, w: torch.bmm(x.flatten(1, -2), w.expand(len(x), -1, -1)).view(*x.shape[:-1], -1),
    "addmm": lambda x, w: torch.addmm(w[0], x.flatten(0, -2), w, beta=0.5, alpha=2).view(*x.shape[:-1], -1),
    "einsum": lambda x, w: torch.einsum("...c,cd->...d", x, w),
}
"""Of a map whose last axis is channels, and a matrix."""


class Times(nn.Module):
    """A product with a constant matrix, in some spelling."""

    def __init__(self, how: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(0.5 * torch.randn(inputs, outputs))

    def extra_repr(self) -> str:
        return repr(self.how)

    def forward(self, x: Tensor) -> Tensor:
        return PRODUCTS[self.how](x, self.weight)


def linear(r: random.Random, shape: Shape) -> nn.Module:
    """A linear layer over channels, on the last axis; or one of the whole map."""
    if r.random() < 0.2:
        return Laid("a vector", nn.Linear(shape[0] * shape[1] * shape[2], 2 * r.randint(1, 3)))
    out = r.randint(1, 4)
    layer = nn.Linear(shape[0], out, bias=r.random() < 0.7) if r.random() < 0.5 else None
    return Laid(r.choice(("channels last", "tokens")), layer or Times(r.choice(tuple(PRODUCTS)), shape[0], out))


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to a size": lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", align_corners=True),
    "blurred": lambda x: F.interpolate(x, size=(2, 3), mode="bilinear", antialias=True),
    "blurred, bicubic": lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic", antialias=True),
    "bilinear by halves": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", recompute_scale_factor=True),
    "bicubic": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic"),
    "linear": lambda x: F.interpolate(x.flatten(2), size=9, mode="linear")[:, :, None],
    "linear, aligned": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear", align_corners=True)[
        :, None
    ].movedim(1, 3),
    "F.max_pool2d": lambda x: F.max_pool2d(x, 2, 1, return_indices=True)[0],
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1, ceil_mode=True)[:, :, None],
    "max_pool1d and indices": lambda x: F.max_pool1d(x.flatten(2), 2, return_indices=True)[0][:, :, None],
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, ceil_mode=True, count_include_pad=False)[:, :, None],
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5)[:, :, None],
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 3)[:, :, None],
    "adaptive, as torch has it": lambda x: ATEN._adaptive_avg_pool2d(x, [2, 3]),
    "bilinear, plain": lambda x: ATEN.upsample_bilinear2d.default(x, [3, 5], False),
    "bicubic, plain": lambda x: ATEN.upsample_bicubic2d.default(x, [5, 3], True),
    "blurred, plain": lambda x: ATEN._upsample_bilinear2d_aa.default(x, [2, 3], False),
    "blurred bicubic, plain": lambda x: ATEN._upsample_bicubic2d_aa.default(x, [3, 2], False),
    "linear, plain": lambda x: ATEN.upsample_linear1d.default(x.flatten(2), [9], False)[:, :, None],
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=False),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, training=False),
    "dropout, nothing dropped": lambda x: F.dropout(x, 0.0),
}
"""Functions of a map."""


class Called(Spelt):
    """One of the map alone."""

    def forward(self, x: Tensor) -> Tensor:
        return CALLS[self.how](x)


def layer(r: random.Random, shape: Shape) -> nn.Module:
    """Adaptive pools, upsampling, transposed convolutions, layers on a line."""
    channels, out = shape[0], r.randint(1, 3)
    size = pair(r, (1, 2, 3, 4))
    groups = r.choice([g for g in (1, 2, 3) if channels % g == 0])
    stride, padding = r.choice((1, 2)), r.choice((0, 1))
    how = (r.choice((2, 3)), stride, padding, r.choice((0, stride - 1)))
    return r.choice(
        (
            lambda: Called(r.choice(tuple(CALLS))),
            lambda: Called(r.choice(tuple(CALLS))),
            lambda: nn.AdaptiveAvgPool2d(size),
            lambda: nn.AdaptiveMaxPool2d(size),
            lambda: nn.ConvTranspose2d(channels, out * groups, *how, groups, r.random() < 0.5, r.choice((1, 2))),
            lambda: Laid("a line", nn.ConvTranspose1d(channels, out, *how)),
            lambda: Laid("a line", nn.Conv1d(channels, out, 3, stride, padding=padding)),
            lambda: Laid("a line", nn.Conv1d(channels, out, r.choice((2, 3)), padding="same")),
            lambda: Laid("a line", nn.BatchNorm1d(channels)),
            lambda: linear(r, shape),
            lambda: linear(r, shape),
        )
    )()
