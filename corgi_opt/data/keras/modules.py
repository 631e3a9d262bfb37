"""What Keras computes and torch has no module for. Maps are (N, C, H, W) here, and a sequence has one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corgi_opt.data.keras.layer import MOST_VALUES
from corgi_opt.errors import InputError

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Left, right, top, bottom, as torch has them."""


def same_sides(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Sides:
    """What padding 'same' adds around a map of this size: windows begin at every stride-th pixel, and where what they
    need is odd the lower right gets one more."""
    sides: list[int] = []
    for n, k, s in zip(reversed(size), reversed(window), reversed(stride), strict=True):
        whole = max((math.ceil(n / s) - 1) * s + k - n, 0)
        sides += [whole // 2, whole - whole // 2]
    return (sides[0], sides[1], sides[2], sides[3])


def _require_small(*size: int) -> None:
    if math.prod(size) > MOST_VALUES:
        raise InputError(f"a map of shape {size} has more than {MOST_VALUES:,} values")


class SameConv2d(nn.Conv2d):
    """A convolution with Keras's padding 'same', which depends on the size of the map where it has a stride."""

    def forward(self, x: Tensor) -> Tensor:
        window = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        left, right, top, bottom = same_sides(x.shape[2:], window, self.stride)
        padding = (top, left)
        if (left, top) != (right, bottom):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class TransposedConv2d(nn.ConvTranspose2d):
    """Conv2DTranspose. For 'same', what is more than ``stride`` times the map is cut off, one more at the lower right;
    what is less than that is added there, and is the bias."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Pair, stride: Pair, dilation: Pair, bias: bool, same: bool
    ) -> None:
        window = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        more = [max(k - s, 0) if same else 0 for k, s in zip(window, stride, strict=True)]
        less = [max(s - k, 0) for k, s in zip(window, stride, strict=True)]
        super().__init__(
            c_in,
            c_out,
            kernel,
            stride,
            padding=(more[0] // 2, more[1] // 2),
            output_padding=(less[0], less[1]),
            bias=bias,
            dilation=dilation,
            device="meta",
        )
        self.cut = (more[0] % 2, more[1] % 2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        _require_small(self.out_channels, *(n * s for n, s in zip(x.shape[2:], self.stride, strict=True)))
        y = super().forward(x)
        rows, cols = self.cut
        return y[:, :, : y.shape[2] - rows, : y.shape[3] - cols] if rows or cols else y


class SameMaxPool2d(nn.Module):
    """MaxPooling2D with padding 'same': a window has only the pixels that there are."""

    def __init__(self, window: Pair, stride: Pair) -> None:
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = same_sides(x.shape[2:], self.window, self.stride)
        # One pixel more at the end is what torch's ceil_mode adds. It does not for stride 1: there one window more at
        # the beginning is computed and cut off.
        rows, cols = (int(s == 1 and b > a) for s, a, b in zip(self.stride, (top, left), (bottom, right), strict=True))
        y = F.max_pool2d(x, self.window, self.stride, (top + rows, left + cols), ceil_mode=True)
        return y[:, :, rows:, cols:] if rows or cols else y


class SameAvgPool2d(nn.Module):
    """AveragePooling2D with padding 'same': the mean of the pixels that there are in a window."""

    def __init__(self, window: Pair, stride: Pair) -> None:
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, x: Tensor) -> Tensor:
        sides = same_sides(x.shape[2:], self.window, self.stride)
        if not any(sides):
            return F.avg_pool2d(x, self.window, self.stride)
        # whole numbers: exact in the precision of any weights
        pixels = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        return self._sums(x, sides) / self._sums(pixels, sides)

    def _sums(self, x: Tensor, sides: Sides) -> Tensor:
        return F.avg_pool2d(F.pad(x, sides), self.window, self.stride, divisor_override=1)


class GlobalMax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, (x.shape[2], x.shape[3]))


class Pad(nn.Module):
    """Zeros around a map."""

    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.sides
        _require_small(x.shape[1], x.shape[2] + top + bottom, x.shape[3] + left + right)
        return F.pad(x, self.sides)


class Crop(nn.Module):
    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.sides
        return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


class Upsample(nn.Module):
    def __init__(self, factor: Pair, mode: Literal["nearest", "bilinear"]) -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2] * self.factor[0], x.shape[3] * self.factor[1])
        _require_small(x.shape[1], *size)
        return F.interpolate(x, size, mode=self.mode)


class PReLU(nn.Module):
    """``x`` above zero, ``slope`` times x below, the slope being a map that broadcasts."""

    slope: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) - self.slope * F.relu(-x)


class ClippedLeakyReLU(nn.Module):
    def __init__(self, slope: float, top: float) -> None:
        super().__init__()
        self.slope, self.top = slope, top

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(F.leaky_relu(x, self.slope), max=self.top)


class HardSigmoid2(nn.Module):
    """Of Keras 2; that of Keras 3 is torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


class Softsign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softsign(x)


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Rescale(nn.Module):
    """``x * scale + offset``, of one number or one a channel."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class RescaleChannels(nn.Module):
    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class Normalize(nn.Module):
    """``(x - mean) / sqrt(variance)``, or back."""

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor, invert: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.invert = invert

    def forward(self, x: Tensor) -> Tensor:
        width = torch.clamp(torch.sqrt(self.variance), min=1e-7)
        return x * width + self.mean if self.invert else (x - self.mean) / width


class Merge(nn.Module):
    """One map of several, value by value."""

    def __init__(self, kind: Literal["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        y = first
        for x in others:
            if self.kind in ("Add", "Average"):
                y = y + x
            elif self.kind == "Subtract":
                y = y - x
            elif self.kind == "Multiply":
                y = y * x
            else:
                y = torch.maximum(y, x) if self.kind == "Maximum" else torch.minimum(y, x)
        return y / (1 + len(others)) if self.kind == "Average" else y


class Concatenate(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, self.dim)


class View(nn.Module):
    """The same values in the same order, in another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class Reorder(nn.Module):
    """The same values in another order, in another shape."""

    index: Tensor

    def __init__(self, index: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index].reshape(x.shape[0], *self.shape)


class KerasModel(nn.Module):
    """A graph of layers. ``steps``: which child is called on which values; value 0 is the image, value i what step i
    gives. ``output``: the value that is returned.
    """

    def __init__(self, steps: tuple[tuple[str, tuple[int, ...]], ...], output: int) -> None:
        super().__init__()
        self._steps, self._output = steps, output

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for name, reads in self._steps:
            values.append(self.get_submodule(name)(*(values[i] for i in reads)))
        return values[self._output]
