"""The linear regions of a tiny network within a ball, by enumeration. Nothing here imports the package.

Every nonlinearity is read as a maximum of affine forms: ``relu(z) = max(z, 0)``, a pooling window the maximum of its
entries. A region fixes, for every such unit, which candidate is the maximum; there the network is affine. A choice is
left out only when multipliers prove that it has no point in the ball, by weak duality evaluated in closed form.

Affine forms are rows ``(constant, coefficients of the displacement d = x - x0)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Array = NDArray[np.float64]
Clip = tuple[float, float] | tuple[Array, Array] | None
"""The ends of the box, of all inputs or of each (N,)."""


# --- the network as affine maps and maxima --------------------------------------------------------------------


class _Maxima(TorchFunctionMode):
    """While a model runs: what every ReLU and max pooling reads, and which entries each of their outputs is a maximum
    of (-1: the constant 0). With ``instead``, their outputs are replaced by these tensors.
    """

    def __init__(self, instead: Sequence[Tensor] = ()) -> None:
        self.instead = instead
        self.read: list[Tensor] = []
        self.put_out: list[Tensor] = []
        self.units: list[list[list[int]]] = []
        self.features: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("mean", "adaptive_avg_pool2d") and args[0].ndim == 4:
            self.features = args[0].clone()
        if name in ("relu", "relu_"):
            self.units.append([[i, -1] for i in range(args[0][0].numel())])
        elif "max_pool2d" in name:
            self.units.append(_windows(*args, **kwargs))
        else:
            return func(*args, **kwargs)
        self.read.append(args[0].flatten(1).clone())
        out = self.instead[len(self.read) - 1] if self.instead else func(args[0].clone(), *args[1:], **kwargs)
        self.put_out.append(out)
        return args[0].copy_(out) if name == "relu_" or kwargs.get("inplace", False) else out


def _windows(
    z: Tensor, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any
) -> list[list[int]]:
    """Flat input indices of every max pooling window (no ``ceil_mode``); entries of the padding left out."""
    channels, height, width = z.shape[1:]
    number = torch.arange(1.0, height * width + 1).reshape(1, 1, height, width)  # 0 is the padding
    columns = F.unfold(number, size, dilation, padding, size if stride is None else stride)[0].T.long() - 1
    windows = [[i for i in row if i >= 0] for row in columns.tolist()]
    return [[c * height * width + i for i in window] for c in range(channels) for window in windows]


@dataclass(frozen=True, eq=False)
class Layer:
    """Maxima of affine forms: ``matrix @ (1, d, outputs of the layers before)``, then a maximum per unit."""

    matrix: Array
    units: list[list[int]]


@dataclass(frozen=True, eq=False)
class Affine:
    """A model around x0: layers of maxima, the CAM of one class and the logits, affine in ``(1, d, all maxima)``."""

    layers: list[Layer]
    cam: Array
    logits: Array
    inputs: int

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, class_idx: int | None) -> Affine:
        """Reads the matrices off one forward pass, in which x and all maxima are replaced by unit vectors."""
        model, x = copy.deepcopy(model).cpu().double().eval(), x.detach().double()
        (head,) = (m for m in model.modules() if isinstance(m, nn.Linear))
        with torch.no_grad(), _Maxima() as plain:
            at_center = model(x).flatten()
        sizes = [x.numel(), *(out[0].numel() for out in plain.put_out)]
        shapes = [x.shape[1:], *(out.shape[1:] for out in plain.put_out)]
        units = torch.eye(1 + sum(sizes), dtype=torch.float64)[:, 1:].split(sizes, dim=1)
        given = [unit.reshape(-1, *shape) for unit, shape in zip(units, shapes, strict=True)]
        with torch.no_grad(), _Maxima(given[1:]) as injected:
            logits = model(x + given[0])
        assert injected.features is not None, "no global average pool was seen"
        chosen = int(at_center.argmax()) if class_idx is None else class_idx
        cam = torch.einsum("c,nchw->nhw", head.weight[chosen].detach(), injected.features).flatten(1)
        known, layers = 1 + sizes[0], []
        for read, candidates, size in zip(injected.read, injected.units, sizes[1:], strict=True):
            forms = np.vstack([_columns(read)[:, :known], np.zeros((1, known))])  # the last form is the constant 0
            layers.append(Layer(forms, candidates))
            known += size
        return cls(layers, _columns(cam), _columns(logits), sizes[0])

    def values(self, d: Array) -> Array:
        """``(1, d, all maxima)`` as rows, for displacements d (count, inputs)."""
        v = np.vstack([np.ones(len(d)), d.T])
        for layer in self.layers:
            z = layer.matrix @ v
            v = np.vstack([v, *(z[unit].max(axis=0) for unit in layer.units)])
        return v


def _columns(batch: Tensor) -> Array:
    """An affine map from its values at 0 and at the unit vectors: column 0 the constant, then the coefficients."""
    return torch.cat([batch[:1], batch[1:] - batch[:1]]).T.numpy()


# --- the ball -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ball:
    """Displacements ``{d : ||d||_norm <= eps}``, ``low <= d <= high``.

    As a polytope: ``d = lift @ w``, ``inner @ w <= inner_rhs`` (nothing for L2), and on d the rows ``clip <= 0``.
    """

    norm: str
    eps: float
    low: Array
    high: Array
    lift: Array = field(init=False)
    inner: Array = field(init=False)
    inner_rhs: Array = field(init=False)
    clip: Array = field(init=False)

    @classmethod
    def around(cls, x: Tensor, eps: float, norm: str, clip: Clip) -> Ball:
        center = x.detach().double().flatten().numpy()
        low, high = (-np.inf, np.inf) if clip is None else (clip[0] - center, clip[1] - center)
        return cls(norm, eps, np.maximum(low, np.full(len(center), -eps)), np.minimum(high, np.full(len(center), eps)))

    def __post_init__(self) -> None:
        n = len(self.low)
        eye = np.eye(n)
        none = np.zeros((0, n)), np.zeros(0)
        box = np.vstack([np.column_stack([-self.high, eye]), np.column_stack([self.low, -eye])])
        bites = np.concatenate([self.high, -self.low]) < self.eps
        lift, (inner, rhs), clip = eye, none, box[bites]
        if self.norm == "inf":
            inner, rhs, clip = box[:, 1:], -box[:, 0], box[:0]
        elif self.norm == "1":
            lift = np.hstack([eye, -eye])
            inner, rhs = np.vstack([-np.eye(2 * n), np.ones(2 * n)]), np.append(np.zeros(2 * n), self.eps)
        for name, value in {"lift": lift, "inner": inner, "inner_rhs": rhs, "clip": clip}.items():
            object.__setattr__(self, name, value)

    def least(self, forms: Array) -> Array:
        """A lower bound of every affine form (..., 1 + n) over the ball; exact but for L1 and L2 balls that are cut."""
        constant, c = forms[..., 0], forms[..., 1:]
        in_box = np.minimum(c * self.low, c * self.high).sum(axis=-1)
        if self.norm == "inf":
            return constant + in_box
        dual = np.abs(c).max(axis=-1) if self.norm == "1" else np.sqrt((c**2).sum(axis=-1))
        return constant + np.maximum(in_box, -self.eps * dual)

    def project(self, d: Array) -> Array:
        """A point of the ball near d."""
        d = np.clip(d, self.low, self.high)
        size = np.linalg.norm(d, {"inf": np.inf, "1": 1, "2": 2}[self.norm])
        return d if size <= self.eps else d * (self.eps / size)

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """Points (count, n) of the ball: a third near its extreme points, a third on its surface, a third inside."""
        g = rng.normal(size=(count, len(self.low)))
        if self.norm == "inf":
            g = np.where(np.arange(count)[:, None] % 3 == 0, np.sign(g), 2 * rng.random(g.shape) - 1)
        else:
            power = np.where(np.arange(count)[:, None] % 3 == 0, 8.0, 1.0)
            g = np.sign(g) * np.abs(g) ** power
            g /= np.linalg.norm(g, 1 if self.norm == "1" else 2, axis=1, keepdims=True)
        g[2::3] *= rng.random((len(g[2::3]), 1))
        return np.clip(self.eps * g, self.low, self.high)

    def closest(self, rows: Array) -> tuple[Array | None, Array]:
        """The least displacement (in terms of w) with ``rows <= 0``, None where there is none, and multipliers of
        the rows. The point may lie outside an L2 ball; rows must include ``clip``.
        """
        k = np.vstack([rows[:, 1:] @ self.lift, self.inner])
        rhs = np.concatenate([-rows[:, 0], self.inner_rhs]) / self.eps
        size = np.concatenate([lengths(rows), np.linalg.norm(self.inner, axis=1)])
        table = -np.vstack([(k / size[:, None]).T, rhs / size])
        target = np.append(np.zeros(k.shape[1]), 1.0)
        u, _ = nnls(table, target)
        r = table @ u - target
        point = self.lift @ (-r[:-1] / r[-1]) * self.eps if r[-1] < -1e-20 else None
        return point, (u / size)[: len(rows)]

    def empty(self, rows: Array) -> bool:
        """Whether multipliers prove that no point of the ball has ``rows <= 0``."""
        _, u = self.closest(rows)
        return bool(self.least(u @ rows) > 1e-13 * (u @ np.abs(rows)).sum())


def lengths(forms: Array) -> Array:
    """The norms of the coefficients, by which rows are scaled; 1 for constants."""
    size = np.linalg.norm(forms[:, 1:], axis=1)
    return np.where(size > 1e-14, size, 1.0)


# --- regions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Region:
    """Where ``rows <= 0`` (closed), the affine forms of all CAM pixels and logits."""

    rows: Array
    cam: Array
    logits: Array


def linear_regions(net: Affine, ball: Ball) -> Iterator[Region]:
    """All linear regions that meet the ball (and perhaps some that touch it or miss it by rounding)."""

    def walk(layers: list[Layer], forms: Array, rows: Array) -> Iterator[Region]:
        if not layers:
            yield Region(rows, net.cam @ forms, net.logits @ forms)
            return
        z = layers[0].matrix @ forms
        open_units = [_undominated(z, unit, ball) for unit in layers[0].units]
        for picked, more in choose(z, open_units, [], rows):
            yield from walk(layers[1:], np.vstack([forms, z[picked]]), more)

    def choose(z: Array, units: list[list[int]], picked: list[int], rows: Array) -> Iterator[tuple[list[int], Array]]:
        while len(picked) < len(units) and len(units[len(picked)]) == 1:
            picked = [*picked, units[len(picked)][0]]
        if len(picked) == len(units):
            yield picked, rows
            return
        candidates = units[len(picked)]
        alive = False
        for c in candidates:
            more = np.vstack([rows, *(z[other] - z[c] for other in candidates if other != c)])
            # rows meet the ball, so that the last candidate does where no other does
            if (c == candidates[-1] and not alive) or not ball.empty(more):
                alive = True
                yield from choose(z, units, [*picked, c], more)

    yield from walk(net.layers, np.eye(1 + net.inputs), ball.clip)


def _undominated(z: Array, unit: list[int], ball: Ball) -> list[int]:
    """The candidates of a unit that may be its maximum somewhere in the ball; of equal ones the first."""
    kept: list[int] = []
    for c in unit:
        if kept and bool((ball.least(z[kept] - z[c]) >= 0).any()):
            continue
        kept = [k for k in kept if ball.least(z[c] - z[k]) < 0] + [c]
    return kept


def regions(
    model: nn.Module, x: Tensor, *, eps: float, norm: str, clip: Clip, class_idx: int | None = None
) -> list[Region]:
    """The linear regions of a model in X. Forms are in ``x - x0``; ``rows`` include those of the clip box that bite in
    an L1 or L2 ball.
    """
    return list(linear_regions(Affine.of(model, x, class_idx), Ball.around(x, eps, norm, clip)))
