"""The vocabulary of a lowered network that exact methods take: affine operations, and ReLU. (Curved ones: smooth.py.)

Every tensor between nodes is a map ``(N, C, H, W)``; a vector is a map of one pixel. Each operation knows

* ``apply``: the forward map on whole images, and ``interval``: bounds of it from bounds of what it reads,
* ``geometry``: which input rows and columns a window of its output reads (receptive-field arithmetic),
* for affine operations, ``adjoint``: the transpose on windows, and ``constant``: the bias' share of a linear
  functional. One that only selects rounds nothing; one that sums products says how many, and what they come to in
  absolute values (``absolute``, ``linear``, ``bias_map``, ``terms``), which is what rounding is counted from.

A new affine operation is a class here, its counterpart in proof/operations.py, a row of answering/plain.py that makes
the second from the first, and a builder for the layers that it covers.

A *window* is a rectangle of positions that may overhang the image: positions outside hold no neuron, and
whoever reads a window there reads zero. This makes the windows of all positions of a layer one shape, so that
a layer's bounds are one batched pass (the relaxations are gathered by window).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, int, int]


class Window(NamedTuple):
    """Rows ``y .. y+h-1`` and columns ``x .. x+w-1`` of a map; it may overhang the image."""

    y: int
    x: int
    h: int
    w: int

    def union(self, other: Window) -> Window:
        """The smallest window that holds both."""
        y, x = min(self.y, other.y), min(self.x, other.x)
        bottom = max(self.y + self.h, other.y + other.h)
        right = max(self.x + self.w, other.x + other.w)
        return Window(y, x, bottom - y, right - x)

    def intersects(self, other: Window) -> bool:
        rows = self.y < other.y + other.h and other.y < self.y + self.h
        return rows and self.x < other.x + other.w and other.x < self.x + self.w


class Geometry(NamedTuple):
    """Output row r reads input rows ``stride*r + offset .. stride*r + offset + extent - 1`` (each per axis), of these
    every ``step``-th from the first. A stride of zero on both axes: every row reads all of the map."""

    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    extent: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)

    def size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the input window that an output window (h, w) reads."""
        (sy, sx), (ey, ex) = self.stride, self.extent
        return (h - 1) * sy + ey, (w - 1) * sx + ex

    def below(self, places: Places) -> Places:
        """Where the input windows of output windows at these places lie."""
        return places.moved(self.stride, self.offset)

    def window(self, out: Window) -> Window:
        """The input window that an output window reads."""
        return Window(
            out.y * self.stride[0] + self.offset[0],
            out.x * self.stride[1] + self.offset[1],
            *self.size(out.h, out.w),
        )


POINTWISE = Geometry()


@dataclass(frozen=True, eq=False)
class Places:
    """Where R windows lie: top-left corners (R, 2), and the map of a batch that each is about, ``case`` (R,).

    ``low`` and ``high``: a box that the corners lie in, ``cases``: the first and last case, known to the host: whether
    windows overhang an image must not be asked of the device in every step of a pass.
    """

    corners: Tensor
    case: Tensor
    low: tuple[int, int]
    high: tuple[int, int]
    cases: tuple[int, int]

    @classmethod
    def of(cls, corners: Tensor, case: Tensor | None = None) -> Places:
        case = torch.zeros_like(corners[:, 0]) if case is None else case
        if not len(corners):
            return cls(corners, case, (0, 0), (0, 0), (0, 0))
        known = torch.cat([corners, case[:, None]], dim=1)
        (y, x, first), (bottom, right, last) = torch.stack([known.amin(dim=0), known.amax(dim=0)]).tolist()
        return cls(corners, case, (y, x), (bottom, right), (first, last))

    def __len__(self) -> int:
        return len(self.case)

    def __getitem__(self, part: slice | Tensor) -> Places:
        return replace(self, corners=self.corners[part], case=self.case[part])

    def moved(self, stride: tuple[int, int], offset: tuple[int, int]) -> Places:
        """Corners times a stride plus an offset."""
        if stride == (1, 1) and offset == (0, 0):
            return self
        # spelt out per axis: a tensor of constants would be a copy to the device
        axes = [self.corners[:, axis] * stride[axis] + offset[axis] for axis in (0, 1)]
        low, high = ((v[0] * stride[0] + offset[0], v[1] * stride[1] + offset[1]) for v in (self.low, self.high))
        return replace(self, corners=torch.stack(axes, dim=1), low=low, high=high)

    def on_border(self, axis: int) -> Places:
        """With all corners at 0 along one axis (0 rows, 1 columns)."""
        corners = self.corners.clone()
        corners[:, axis] = 0
        low, high = ((0, v[1]) if axis == 0 else (v[0], 0) for v in (self.low, self.high))
        return replace(self, corners=corners, low=low, high=high)

    def fit(self, shape: Shape, h: int, w: int) -> bool:
        """Whether all windows of this size lie on the image."""
        return min(self.low) >= 0 and self.high[0] + h <= shape[1] and self.high[1] + w <= shape[2]


def inside(shape: Shape, places: Places, h: int, w: int) -> Tensor | None:
    """Mask (R, 1, h, w) of window positions that lie on the image, or None when all do."""
    if places.fit(shape, h, w):
        return None
    rows = places.corners[:, :1] + torch.arange(h, device=places.corners.device)
    cols = places.corners[:, 1:] + torch.arange(w, device=places.corners.device)
    row_ok, col_ok = (rows >= 0) & (rows < shape[1]), (cols >= 0) & (cols < shape[2])
    return (row_ok[:, :, None] & col_ok[:, None, :])[:, None]


def gather(values: Tensor, places: Places, h: int, w: int) -> Tensor:
    """Windows (R, C, h, w) of maps (B, C, H, W); zero outside the image. One map (B = 1) serves every case.

    One window the size of the map for all rows comes back as (1, C, h, w), to broadcast.
    """
    maps, _, height, width = values.shape
    if maps == 1 and (h, w) == (height, width) and places.low == places.high == (0, 0):
        return values
    top, left = max(0, -places.low[0]), max(0, -places.low[1])
    bottom, right = max(0, places.high[0] + h - height), max(0, places.high[1] + w - width)
    first, last = places.cases if maps > 1 else (0, 0)
    values = values[first : last + 1]
    padded = F.pad(values, (left, right, top, bottom)) if top or left or bottom or right else values
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)
    rows, columns = windows.shape[2:4]
    y, x = places.corners[:, 0] + top, places.corners[:, 1] + left
    case = places.case - first if maps > 1 else torch.zeros_like(y)
    if h * w == 1 or len(places) < FEW:
        return windows[case, :, y, x]
    # many rows are about one place (its channels, from below and above): windows are cut once and then copied whole
    place, row = torch.unique((case * rows + y) * columns + x, return_inverse=True)
    cut = windows[place // (rows * columns), :, place // columns % rows, place % columns]
    return cut.index_select(0, row)


FEW = 16
"""Fewer windows than this are cut one by one."""


def laid_out(coefs: Tensor, places: Places, axis: int, length: int) -> Tensor:
    """Windows (R, C, h, w) as windows that hold positions 0 .. length-1 of one axis (0 rows, 1 columns) of the map."""
    source = torch.arange(length, device=coefs.device) - places.corners[:, axis, None]
    held = (source >= 0) & (source < coefs.shape[2 + axis])
    along = (slice(None), None, slice(None), None) if axis == 0 else (slice(None), None, None, slice(None))
    size = [*coefs.shape]
    size[2 + axis] = length
    index = source.clamp(0, coefs.shape[2 + axis] - 1)[along].expand(size)
    return coefs.gather(2 + axis, index) * held[along]


def crop(values: Tensor, window: Window) -> Tensor:
    """The window (..., h, w) of maps (..., H, W); zero outside the image."""
    height, width = values.shape[-2:]
    if not window.intersects(Window(0, 0, height, width)):
        # a negative pad may not crop more than there is
        return values.new_zeros(*values.shape[:-2], window.h, window.w)
    pads = (
        -window.x,
        window.x + window.w - width,
        -window.y,
        window.y + window.h - height,
    )
    return F.pad(values, pads)  # a negative pad crops


class Op(ABC):
    """One operation of a layer graph. ``elementwise``: its value has its operands' shape."""

    elementwise: ClassVar[bool] = False

    @property
    def geometry(self) -> Geometry:
        return POINTWISE

    @abstractmethod
    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        """The operation on whole maps, each (N, C_i, H_i, W_i) -> (N, C, H, W)."""

    @abstractmethod
    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Bounds (N, C, H, W) of its value from its operands'; rounding is not accounted for."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Op:
        return self


class Monotone(Op):
    """An operation whose value does not fall where an operand rises."""

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.apply(lower), self.apply(upper)


class Affine(Op):
    """An operation of the form ``sum_i M_i x_i + b``."""

    @abstractmethod
    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        """``M_i' lam`` for each input i, for windows of coefficients lam (R, C, h, w) on this node's output.

        The result lives on the input windows that ``geometry`` gives. ``lam`` is zero outside the image.
        """

    @abstractmethod
    def constant(self, lam: Tensor, places: Places, shape: Shape) -> Tensor | None:
        """``b' lam`` (R,), or None when there is no bias."""


class Selection(Monotone, Affine):
    """Every value is one of the operands' or zero: nothing is rounded."""

    def constant(self, lam: Tensor, places: Places, shape: Shape) -> Tensor | None:
        return None


class Weighted(Affine):
    """Sums of products, which round."""

    @abstractmethod
    def absolute(self) -> Weighted:
        """``sum_i |M_i| x_i + |b|``."""

    @abstractmethod
    def linear(self) -> Weighted:
        """``sum_i M_i x_i``."""

    @abstractmethod
    def bias_map(self) -> Tensor | None:
        """``b``, (C or 1, 1, 1) or (C or 1, H, W)."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Products that a value of an ``M_i x_i`` is the sum of, at most."""

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``M c + b -+ |M| r`` for centers c and radii r."""
        sides = list(zip(lower, upper, strict=True))
        middle = self.apply([(low + high) / 2 for low, high in sides])
        spread = self.linear().absolute().apply([(high - low) / 2 for low, high in sides])
        return middle - spread, middle + spread

    def constant(self, lam: Tensor, places: Places, shape: Shape) -> Tensor | None:
        bias = self.bias_map()
        return None if bias is None else (lam * on_windows(bias, places, lam)).sum(dim=(1, 2, 3))


def on_windows(values: Tensor, places: Places, lam: Tensor) -> Tensor:
    """A map (C or 1, H, W) on the windows of coefficients ``lam``; one that is the same everywhere, (C or 1, 1, 1), as
    it is, to broadcast."""
    return values if values.shape[-2:] == (1, 1) else gather(values[None], places, *lam.shape[-2:])


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The image."""

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        raise TypeError("the input node has no operands")

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        raise TypeError("the input node has no operands")


@dataclass(frozen=True, eq=False)
class ReLU(Monotone):
    """``max(x, 0)``, the only nonlinearity that exact methods take."""

    elementwise = True

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].relu()


@dataclass(frozen=True, eq=False)
class MaxPool2d(Monotone):
    """Max pooling, before it is lowered to differences (the paper's bound relaxes it whole)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool = False

    @property
    def geometry(self) -> Geometry:
        extent = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return Geometry(self.stride, (-self.padding[0], -self.padding[1]), (extent[0], extent[1]), self.dilation)

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.dilation, ceil_mode=self.ceil_mode)


@dataclass(frozen=True, eq=False)
class Conv2d(Weighted):
    """Cross-correlation with zero padding; also average pooling, global pooling and dense layers.

    weight (C_out, C_in/groups, kh, kw), bias (C_out,) or None.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        kh, kw = self.weight.shape[-2:]
        extent = (self.dilation[0] * (kh - 1) + 1, self.dilation[1] * (kw - 1) + 1)
        return Geometry(self.stride, (-self.padding[0], -self.padding[1]), extent, self.dilation)

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        return F.conv2d(inputs[0], self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        return [
            F.conv_transpose2d(lam, self.weight, None, self.stride, 0, 0, groups=self.groups, dilation=self.dilation)
        ]

    def constant(self, lam: Tensor, places: Places, shape: Shape) -> Tensor | None:
        return None if self.bias is None else lam.sum(dim=(2, 3)) @ self.bias

    def absolute(self) -> Conv2d:
        return replace(self, weight=self.weight.abs(), bias=None if self.bias is None else self.bias.abs())

    def linear(self) -> Conv2d:
        return replace(self, bias=None)

    def bias_map(self) -> Tensor | None:
        return None if self.bias is None else self.bias[:, None, None]

    @property
    def terms(self) -> int:
        return self.weight[0].numel()

    def to(self, dtype: torch.dtype, device: torch.device) -> Conv2d:
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return replace(self, weight=self.weight.to(device, dtype), bias=bias)


@dataclass(frozen=True, eq=False)
class Tap(Selection):
    """One tap of a pooling window: ``out[r, c] = in[stride*r + offset]`` per axis, zero outside the image.

    ``place``: its row and column from the corner of the window.
    """

    stride: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    place: tuple[int, int] = (0, 0)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.offset, (1, 1))

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        window = crop(inputs[0], self.geometry.window(Window(0, 0, *self.size)))
        return window[..., :: self.stride[0], :: self.stride[1]]

    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        h, w = lam.shape[-2:]
        out = lam.new_zeros(*lam.shape[:2], *self.geometry.size(h, w))
        out[..., :: self.stride[0], :: self.stride[1]] = lam
        return [out]


@dataclass(frozen=True, eq=False)
class Combine(Weighted):
    """``sum_i coef_i * x_i + shift``, elementwise: residual adds, differences, scales, masks.

    Each coefficient and the shift broadcast to (C, H, W): shape (C or 1, 1, 1) or (C or 1, H, W).
    """

    coefs: tuple[Tensor, ...]
    shift: Tensor | None = None

    elementwise = True
    terms = 1

    def apply(self, inputs: Sequence[Tensor]) -> Tensor:
        total = sum(c * x for c, x in zip(self.coefs, inputs, strict=True))
        assert isinstance(total, Tensor)  # there is at least one input
        return total if self.shift is None else total + self.shift

    def adjoint(self, lam: Tensor, places: Places, shape: Shape) -> list[Tensor]:
        return [lam * on_windows(c, places, lam) for c in self.coefs]

    def absolute(self) -> Combine:
        return Combine(tuple(c.abs() for c in self.coefs), None if self.shift is None else self.shift.abs())

    def linear(self) -> Combine:
        return Combine(self.coefs)

    def bias_map(self) -> Tensor | None:
        return self.shift

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``M+ l + M- u + b`` and ``M+ u + M- l + b``."""
        shift = self.shift
        if shift is None:
            shift = torch.zeros((), dtype=lower[0].dtype, device=lower[0].device)
        low = high = shift
        for c, l, u in zip(self.coefs, lower, upper, strict=True):
            plus, minus = c.clamp(min=0), c.clamp(max=0)
            low = low + plus * l + minus * u
            high = high + plus * u + minus * l
        return low, high

    def to(self, dtype: torch.dtype, device: torch.device) -> Combine:
        shift = None if self.shift is None else self.shift.to(device, dtype)
        return Combine(tuple(c.to(device, dtype) for c in self.coefs), shift)
