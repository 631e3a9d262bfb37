"""Resize and Upsample: every output value is one input value, or a weighted sum of two along each axis.

Where torch means the same, it is told so; else the places and weights are written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt.network.onnx.node import Call, Run
from corgi_opt.network.onnx.table import onnx_op

_PLACES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Axis:
    """One axis of ``size`` that becomes ``made``, enlarged by ``scale``."""

    size: int
    made: int
    scale: float

    def places(self, how: str) -> Tensor:
        """Where on the input axis the output's values lie (made,)."""
        at = torch.arange(self.made, dtype=torch.float64, device="cpu")
        if how == "asymmetric":
            return at / self.scale
        if how == "align_corners":
            return at * ((self.size - 1) / (self.made - 1)) if self.made > 1 else at * 0
        if how == "pytorch_half_pixel" and self.made == 1:
            return at * 0
        shift = 0.0
        if how == "half_pixel_symmetric":  # the exact size may be no whole number
            exact = self.scale * self.size
            shift = self.size / 2 * (1 - self.made / exact)
        return shift + (at + 0.5) / self.scale - 0.5

    def nearest(self, how: str, rounding: str) -> Tensor:
        at = self.places(how)
        shift = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(rounding, 0.0)
        up = rounding in ("ceil", "round_prefer_floor") or (rounding == "simple" and self.scale < 1)
        at = (at + shift).ceil() if up else (at + shift).floor()
        return at.long().clamp(0, self.size - 1)

    def linear(self, how: str) -> tuple[Tensor, Tensor, Tensor]:
        """The two places that each value lies between, and the weight of the second."""
        at = self.places(how).clamp(0, self.size - 1)
        first = at.floor().long().clamp(0, max(self.size - 2, 0))
        return first, (first + 1).clamp(max=self.size - 1), at - first


@onnx_op("Upsample", "Resize", signs=(1,))
def _resize(call: Call) -> Run:
    mode = call.text("mode", "nearest")
    how, rounding = _manner(call)
    axes = _axes(call)
    changed = [(at, a) for at, a in enumerate(axes) if a.made != a.size or a.scale != 1]
    if not changed:
        return lambda x: x
    call.sized([a.made for a in axes])
    if mode == "nearest":
        return _nearest(axes, [(at, a.nearest(how, rounding)) for at, a in changed])
    if mode not in ("linear", "bilinear"):
        raise call.refused(f"mode {mode!r} is not known; nearest and linear are")
    return _linear(axes, how, changed)


def _manner(call: Call) -> tuple[str, str]:
    """How output places are input places, and how those are rounded."""
    if call.version < 11:
        return "asymmetric", "simple"  # which nothing but onnxruntime says: floor, and ceil where a map shrinks
    how = call.text("coordinate_transformation_mode", "half_pixel")
    rounding = call.text("nearest_mode", "round_prefer_floor")
    call.real("cubic_coeff_a", -0.75)
    call.real("extrapolation_value", 0.0)
    call.flag("exclude_outside")  # of cubic weights
    if call.flag("antialias"):
        raise call.refused("antialias=1 is not known")
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refused("only keep_aspect_ratio_policy='stretch' is known")
    if how not in _PLACES:
        raise call.refused(f"coordinate_transformation_mode {how!r} is not known")
    if rounding not in _NEAREST:
        raise call.wrong(f"its nearest_mode is {rounding!r}")
    return how, rounding


def _axes(call: Call) -> list[Axis]:
    shape = call.shape()
    sizes: list[int] | None = None
    scales: list[float] | None = None
    if call.version < 9:
        raise call.refused("it is older than opset 9")
    at = 1 if call.version < 11 else 2
    if at == 2 and call.has(1):
        call.static(1)  # of tf_crop_and_resize alone
    if call.has(at) and call.shape(at) != (0,):
        scales = [float(v) for v in call.static(at).reshape(-1).tolist()]
    elif call.has(at):
        call.static(at)
    if at == 2 and call.has(3):
        sizes = call.numbers(3)
    chosen = call.axes(call.integers("axes", list(range(len(shape)))))
    given = scales if sizes is None else sizes
    if given is None or len(given) != len(chosen) or (scales is not None and sizes is not None) or 0 in shape:
        raise call.wrong(f"it makes scales {scales}, sizes {sizes} of {shape}")
    axes = [Axis(n, n, 1.0) for n in shape]
    for axis, value in zip(chosen, given, strict=True):
        n = shape[axis]
        if not (0 < value < 2**40):
            raise call.wrong(f"it makes scales {scales}, sizes {sizes} of {shape}")
        # scales are float32 numbers, and so is the product: 10 rows times 0.7 are 7, though 0.7 is a little less there
        made = int(value) if sizes is not None else math.floor(np.float32(n) * np.float32(value))
        if made < 1:
            raise call.wrong(f"it makes scales {scales}, sizes {sizes} of {shape}")
        axes[axis] = Axis(n, made, made / n if sizes is not None else float(value))
    return axes


def _spatial(axes: list[Axis]) -> bool:
    return len(axes) in (3, 4) and all(a.made == a.size for a in axes[:2])


def _nearest(axes: list[Axis], places: list[tuple[int, Tensor]]) -> Run:
    """torch's where every value is repeated as often as the others."""
    size = [a.made for a in axes[2:]]
    repeats = all(
        axes[at].made % axes[at].size == 0
        and torch.equal(p, torch.arange(axes[at].made) // (axes[at].made // axes[at].size))
        for at, p in places
    )
    if repeats and _spatial(axes):
        return lambda x: F.interpolate(x, size=size, mode="nearest")

    def run(x: Tensor) -> Tensor:
        for axis, at in places:
            x = x.index_select(axis, at.to(x.device))
        return x

    return run


def _linear(axes: list[Axis], how: str, changed: list[tuple[int, Axis]]) -> Run:
    corners = how == "align_corners"
    same = corners or (how.endswith("half_pixel") and all(a.scale == a.made / a.size for _, a in changed))
    one = any(a.made == 1 for _, a in changed)
    if same and not one and _spatial(axes):
        size, mode = [a.made for a in axes[2:]], {3: "linear", 4: "bilinear"}[len(axes)]
        return lambda x: F.interpolate(x, size=size, mode=mode, align_corners=corners)
    rows = []
    for axis, a in changed:
        first, second, weight = a.linear(how)
        rows.append((axis, first, second, weight.reshape(-1, *(1,) * (len(axes) - axis - 1))))

    def run(x: Tensor) -> Tensor:
        for axis, first, second, weight in rows:
            w = weight.to(x.device)
            low, high = (x.index_select(axis, at.to(x.device)) for at in (first, second))
            x = low * (1 - w) + high * w
        return x

    return run
