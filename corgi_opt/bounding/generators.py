"""Bounds by generators: a layer's values as affine maps of the inputs and of the unstable ReLUs below, all at once.

A backward pass is spent on one neuron. On a deep network most neurons need one only to be shown stable, and every pass
goes through the same layers. Here these layers are gone through once, forwards: over a region with center c, a node is

    value = constant + sum over g of coef_g g,     g: the inputs' moves d = x - c, and r_u = relu(z_u),

one r_u for each unit u below that is unstable. A convolution takes the coefficients (a batch of maps) through its
weights, a stable ReLU masks them, an unstable one is cleared there and is its own generator. CROWN's bound of any row
is then D(mu) of dual.py by dense products, block of units by block from the last to the first: ``lam`` of the block's
units, ``mu = slope lam`` by sign, ``lam += Z' mu`` where the rows of Z are these units' own coefficients; at the end
the region's minimum of ``lam' d``. Up to rounding that is what a backward pass finds.

**Rounding.** Coefficients are small beside values (they meet the region's radius, and not its center), so single
precision is enough to show most signs, and this is a proof in it. Let v be the unit of the precision, |g| <= mag_g over
the region, and of each node

    size  = sum of |coef_g| mag_g,        error >= |exact value - (constant + sum of coef_g g)|, whatever the image.

Coefficients as they were computed, and D at the mu that were computed, are what is claimed. Constants are computed in
float64, with u = 2^-53. An affine node M of n terms is off by

    error' = |M| error + gamma_n(v) |M| size + gamma_n(u) (|M| |constant| + |b|)

(weights rounded to v are one more rounding); a selection and a mask round nothing; a unit's own generator is exact. A
row over N inputs and U units takes sums of U products for each lam, of 2 U for constants and shifts, and of N for the
region's minimum, whose terms all sum to at most ``size(row) + sum of |mu_u| (size_u + |constant_u|)``, as CROWN's
slopes see to ``|mu_u| max(|l|, u) <= |lam_u| u``, shifts are at most u, and so is mag_g. So it is off by at most

    error(row) + sum of |mu_u| error_u + gamma_(N + 3 U)(v) (size(row) + sum of |mu_u| (size_u + |constant_u|)).

gamma is taken twice over (tolerance.py), which pays for computing this account. Ends of intervals are rounded
outwards. Products below the precision's smallest number may be lost: ``_lost`` of each is in the account.

``error`` goes through |M| layer after layer, so it grows faster than intervals do; in float32 it is a few hundredths of
a CROWN interval's width after eight layers, and grows by about five with each. Neurons that it leaves open have their
backward pass (crown.py), so that bounds of unstable neurons are what they were.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.budget import chunk_bytes, in_parts
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import ReluLines
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.network.cone import windows_of
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Conv2d, Geometry, Input, Op, Places, ReLU, Weighted, Window

TILES = 4
"""Rows are taken together by tiles of their map, so many along each axis: they share most of what they read."""

FEW = 8
"""Most roundings of a result in these sums besides those of its terms: a weight's, a slope's, a magnitude's."""

AT_LEAST = 32
"""Fewest maps that go through an operation at once: oneDNN leaves smaller batches to slower code."""


@dataclass(frozen=True, eq=False)
class Coefs:
    """The generators' coefficients at a node: ``maps`` (M, C, H, W) of the first M, times ``mask`` where there is one;
    those from ``start`` on are each one neuron of this node, at places ``flat``. All others are zero.

    ``span`` (G, 2): from which row of the map on, and up to which, a generator's may differ from zero.
    """

    maps: Tensor
    span: Tensor
    mask: Tensor | None = None
    start: int = 0
    flat: Tensor | None = None

    def __len__(self) -> int:
        return len(self.span)

    def rows(self, start: int, count: int) -> tuple[int, int]:
        """The rows that ``count`` generators from ``start`` on lie in."""
        part = self.span[start : start + count]
        return (int(part[:, 0].min()), int(part[:, 1].max())) if len(part) else (0, 0)

    def some(self, start: int, count: int, top: int, bottom: int) -> Tensor:
        """Of these generators, on rows ``top`` to ``bottom``."""
        part = self.maps[start : start + count, :, top:bottom]
        part = part if self.mask is None else part * self.mask[:, :, top:bottom]
        if len(part) < count:
            part = F.pad(part, (0, 0, 0, 0, 0, 0, 0, count - len(part)))
        if self.flat is not None:
            first = max(start, self.start)
            own = self.flat[first - self.start : max(0, start + count - self.start)]
            height, width = self.maps.shape[2:]
            c, y, x = own // (height * width), own // width % height, own % width
            read = torch.nonzero((y >= top) & (y < bottom)).flatten()
            part[read + (first - start), c[read], y[read] - top, x[read]] = 1.0
        return part


@dataclass(frozen=True, eq=False)
class Maps:
    """A node's values: the coefficients of the generators; the rest (1, C, H, W) in float64."""

    coefs: Coefs
    constant: Tensor
    size: Tensor
    error: Tensor

    def at(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Constant, size and error (R,) of some neurons."""
        constant, size, error = (m.flatten()[flat] for m in (self.constant, self.size, self.error))
        return constant, size, error


@dataclass(frozen=True, eq=False)
class Block:
    """The unstable units of one ReLU: generators from ``start`` on, at places ``flat`` (U,) of ``source``.

    ``rows`` (M, U): their pre-activations' coefficients; lines and account (U, 1) in the precision of these.
    """

    source: str
    start: int
    flat: Tensor
    rows: Tensor
    lines: tuple[Tensor, Tensor, Tensor]
    constant: Tensor
    size: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Read:
    """What rows of one tile depend on: a window of the image, and units of each block (first to last)."""

    window: Window
    inputs: Tensor
    units: tuple[tuple[Block, Tensor], ...]

    @property
    def terms(self) -> int:
        return len(self.inputs) + 3 * sum(len(chosen) for _, chosen in self.units)


class Generators:
    """One region's nodes by generators. ``known`` and ``lines`` grow with the pass that asks; ``graph`` and
    ``regions`` are in float64. Bounds raise TimeoutError after ``deadline``.

    ``order``: which input (a flat place of the image) each of the first generators is; ``blocks``: the units that the
    others are, by ReLU; ``maps``: of the nodes that are still read, of those ``done``.
    """

    def __init__(
        self,
        graph: LayerGraph,
        regions: Regions,
        known: Mapping[str, Interval],
        lines: Mapping[str, ReluLines],
        deadline: Deadline,
        dtype: torch.dtype,
    ) -> None:
        self._graph, self._known, self._lines, self._deadline = graph, known, lines, deadline
        self.dtype = dtype
        self._light = graph.to(dtype, regions.eps.device)
        center = torch.zeros_like(regions.center)
        low, high = (
            _outwards(side - regions.center, up) for side, up in ((regions.lower, False), (regions.upper, True))
        )
        self._moves = Regions(regions.norm, center, low, high, regions.eps)
        self._center = regions.center
        channels, height, width = graph[graph.input].shape
        places = torch.arange(channels * height * width, device=center.device).view(channels, height, width)
        self.order = places.transpose(0, 1).flatten()  # inputs are generators row by row of the image
        self._number = self.order.argsort().view_as(places)
        self._mags = torch.maximum(high, -low).flatten()[self.order]
        self.inputs = len(self._mags)
        self.maps: dict[str, Maps] = {}
        self.done: set[str] = set()
        self.blocks: list[Block] = []
        self._free: list[Tensor] = []

    @property
    def count(self) -> int:
        """Generators so far."""
        return len(self._mags)

    # --- forwards ----------------------------------------------------------------------------------------------

    def of(self, name: str) -> Maps:
        """The node's maps; those that no later node reads are forgotten."""
        for node in self._graph.ancestors(name):
            if node not in self.done:
                self.maps[node] = self._step(node)
                self.done.add(node)
                for operand in self._graph[node].inputs:
                    if operand in self.maps and self.done.issuperset(self._graph.consumers(operand)):
                        gone = self.maps.pop(operand).coefs.maps
                        if all(m.coefs.maps is not gone for m in self.maps.values()):
                            self._free.append(gone)
        return self.maps[name]

    def _step(self, name: str) -> Maps:
        node = self._graph[name]
        if isinstance(node.op, Input):
            size, nothing = self._mags.view_as(self._center), self._center.new_zeros(0, *node.shape, dtype=self.dtype)
            y = self.order // node.shape[2] % node.shape[1]
            coefs = Coefs(nothing, torch.stack([y, y + 1], dim=1).cpu(), None, 0, self.order)
            return Maps(coefs, self._center, self._moves.upper.maximum(-self._moves.lower), torch.zeros_like(size))
        operands = [self.maps[operand] for operand in node.inputs]
        return self._relu(name, *operands) if isinstance(node.op, ReLU) else self._affine(name, operands)

    def _affine(self, name: str, operands: list[Maps]) -> Maps:
        node, op, light = self._graph[name], self._graph[name].op, self._light[name].op
        given = [m.coefs for m in operands]
        span = _spanned(op.geometry, [c.span for c in given], node.shape[1])
        maps, mags = self._room(len(span), node.shape), _rounded_up(self._mags, self.dtype)
        size = maps.new_zeros(node.shape)

        def part(start: int, count: int) -> None:
            self._deadline.check()
            top, bottom = Coefs(maps, span).rows(start, count)
            here = maps[start : start + count]
            here[:, :, : min(top, bottom)] = 0.0
            here[:, :, bottom:] = 0.0
            if top < bottom:
                out = _on_rows(light, given, start, count, top, bottom)
                here[:, :, top:bottom] = out
                sizes = torch.mv(out.abs_().flatten(1).t(), mags[start : start + count])
                size[:, top:bottom] += sizes.view(node.shape[0], bottom - top, -1)

        largest = max(math.prod(self._graph[n].shape) for n in (name, *node.inputs)) * maps.element_size()
        with torch.backends.nnpack.flags(enabled=False):  # its products are Winograd's, whose rounding is another
            in_parts(len(maps), max(AT_LEAST, chunk_bytes(maps.device) // (4 * largest)), part)
        constant = op.apply([m.constant for m in operands])
        sizes = size.double()[None] * (1 + gamma(len(maps), self.dtype, FEW))
        errors = [m.error for m in operands]
        if not isinstance(op, Weighted):
            return Maps(Coefs(maps, span), constant, sizes, op.apply(errors))
        absolute, terms, bias = op.linear().absolute(), op.terms * len(operands), op.bias_map()
        rounded = absolute.apply(
            [gamma(terms, self.dtype, FEW) * m.size + gamma(terms) * m.constant.abs() for m in operands]
        )
        rounded = rounded if bias is None else rounded + gamma(terms) * bias.abs()
        error = (absolute.apply(errors) + rounded) * (1 + gamma(terms)) + self._lost(terms)
        return Maps(Coefs(maps, span), constant, sizes, error)

    def _relu(self, name: str, z: Maps) -> Maps:
        source, (_, height, width) = self._graph[name].inputs[0], self._graph[name].shape
        bounds = self._known[source]
        on, zero = bounds.lower >= 0, torch.zeros_like(z.error)
        flat = torch.nonzero(bounds.unstable.flatten()).flatten()
        flat = flat[(flat // width % height).argsort(stable=True)]  # neighbours go through the next layers together
        start, span = len(self._mags), z.coefs.span
        if len(flat):
            lines = [m.flatten()[flat] for m in self._lines[name].maps]
            lines[2] = _rounded_up(lines[2], self.dtype)
            rows = z.coefs.maps.flatten(1)[:, flat].contiguous()
            below, above, shift, *account = (v.to(self.dtype)[:, None] for v in (*lines, *z.at(flat)))
            self.blocks.append(Block(source, start, flat, rows, (below, above, shift), *account))
            self._mags = torch.cat([self._mags, bounds.upper.flatten()[flat]])
            y = (flat // width % height).cpu()
            span = torch.cat([_padded(span, start, height), torch.stack([y, y + 1], dim=1)])
        size = torch.where(on, z.size, bounds.upper.clamp(min=0.0))
        coefs = Coefs(z.coefs.maps, span, on.to(self.dtype), start, flat)
        return Maps(coefs, torch.where(on, z.constant, zero), size, torch.where(on, z.error, zero))

    def _room(self, many: int, shape: tuple[int, int, int]) -> Tensor:
        """Memory for so many maps: of maps that are forgotten where it suffices, as fresh pages are dear."""
        wanted = many * math.prod(shape)
        fit = [
            n for n, free in enumerate(self._free) if free.untyped_storage().nbytes() >= wanted * free.element_size()
        ]
        if not fit:
            # half as much again for the next of that kind: pages that nothing is written to cost nothing
            room = wanted + (wanted // 2 if self._center.device.type == "cpu" else 0)
            return torch.empty(room, dtype=self.dtype, device=self._center.device)[:wanted].view(many, *shape)
        whole = self._free.pop(min(fit, key=lambda n: self._free[n].untyped_storage().nbytes()))
        return whole.as_strided((wanted,), (1,), 0).view(many, *shape)

    def _lost(self, terms: int) -> float:
        """What ``terms`` products for each generator may be off by where they are too small for the precision."""
        return torch.finfo(self.dtype).tiny * terms * (1.0 + float(self._mags.sum()))

    # --- rows --------------------------------------------------------------------------------------------------

    def below(self, name: str, flat: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        """CROWN's lower bounds, in float64, of ``signs`` times the neurons at places ``flat`` of a node's map.

        Two numbers (R,) around each, as far apart as rounding may put them: a proven bound, and what a backward pass
        would not exceed.
        """
        maps, (_, height, width) = self.of(name), self._graph[name].shape
        y, x = flat // width % height, flat % width
        tile = (y * TILES // height) * TILES + x * TILES // width
        found, order = torch.empty(2, len(flat), dtype=torch.float64, device=flat.device), tile.argsort(stable=True)
        for rows in order.split(torch.bincount(tile, minlength=TILES * TILES).tolist()):
            if not len(rows):
                continue
            corner = [int(v[rows].min()) for v in (y, x)]
            window = Window(*corner, *(int(v[rows].max()) - first + 1 for v, first in zip((y, x), corner, strict=True)))
            read = self._read(name, window, len(maps.coefs))

            def part(start: int, count: int, rows: Tensor = rows, read: Read = read) -> None:
                self._deadline.check()
                some = rows[start : start + count]
                found[:, some] = self._substituted(maps, read, flat[some], signs[some])

            row = max(1, read.terms) * maps.coefs.maps.element_size()
            in_parts(len(rows), max(AT_LEAST, chunk_bytes(flat.device) // row), part)
        low, high = found
        return torch.where(low.isnan(), -torch.inf, low), torch.where(high.isnan(), torch.inf, high)  # an overflow

    def _read(self, name: str, window: Window, many: int) -> Read:
        """What a window of a node depends on among the first ``many`` generators."""
        windows = windows_of(self._graph, name, window)
        units = []
        for block in self.blocks:
            if block.start < many and block.source in windows:
                at, (_, height, width) = windows[block.source], self._graph[block.source].shape
                y, x = block.flat // width % height, block.flat % width
                chosen = torch.nonzero((y >= at.y) & (y < at.y + at.h) & (x >= at.x) & (x < at.x + at.w)).flatten()
                units.append((block, chosen))
        shape, at = self._graph[self._graph.input].shape, windows[self._graph.input]
        top, left = max(0, at.y), max(0, at.x)
        bottom, right = max(top, min(shape[1], at.y + at.h)), max(left, min(shape[2], at.x + at.w))
        inside = Window(top, left, bottom - top, right - left)
        return Read(inside, self._number[:, top : top + inside.h, left : left + inside.w].flatten(), tuple(units))

    def _substituted(self, maps: Maps, read: Read, flat: Tensor, signs: Tensor) -> Tensor:
        index = torch.cat([read.inputs, *(block.start + chosen for block, chosen in read.units)])
        lam = maps.coefs.maps.flatten(1)[index[:, None], flat] * signs.to(self.dtype)
        constant, size, error = maps.at(flat)
        rounding = gamma(read.terms, self.dtype, FEW)
        total, doubt = lam.new_zeros(len(flat)), lam.new_zeros(len(flat))
        end = len(index)
        for block, chosen in reversed(read.units):
            start = end - len(chosen)
            below, above, shift = (line[chosen] for line in block.lines)
            positive = lam[start:end].clamp(min=0)
            mu = lam[start:end].sub_(positive)
            total.addmv_(mu.t(), shift[:, 0])
            mu.mul_(above).addcmul_(positive, below)
            total.addmv_(mu.t(), block.constant[chosen, 0])
            lam[:start].addmm_(block.rows[index[:start, None], chosen], mu)
            doubt.addmv_(mu.abs_().t(), (block.error + rounding * (block.size + block.constant.abs()))[chosen, 0])
            end = start
        moved = self._minimum(lam[: len(read.inputs)], read.window)
        doubt = (doubt.double() + error + rounding * size) * (1 + rounding) + self._lost(read.terms)
        found, doubt = constant * signs + total.double() + moved, doubt + gamma(1) * constant.abs()
        return torch.stack([found - doubt, found + doubt])

    def _minimum(self, lam: Tensor, window: Window) -> Tensor:
        """``min of lam' d`` (R,) over the region, for coefficients (N, R) on a window of the image."""
        if not len(lam):  # a window that lies in the padding
            return self._mags.new_zeros(lam.shape[1])
        at = (slice(None), slice(None), slice(window.y, window.y + window.h), slice(window.x, window.x + window.w))
        if self._moves.norm == "inf":
            low = -_rounded_up(-self._moves.lower[at].flatten(), self.dtype)
            high = _rounded_up(self._moves.upper[at].flatten(), self.dtype)
            positive = lam.clamp(min=0)
            return (torch.mv(positive.t(), low) + torch.mv(lam.sub_(positive).t(), high)).double()
        channels = self._center.shape[1]
        corner = torch.tensor([[window.y, window.x]], device=lam.device).expand(lam.shape[1], 2)
        return self._moves.minimum(lam.t().double().view(-1, channels, window.h, window.w), Places.of(corner))


def _outwards(values: Tensor, up: bool) -> Tensor:
    """Floats beyond the exact values that one rounding took to these; zero is exact."""
    moved = torch.nextafter(values, torch.full_like(values, torch.inf if up else -torch.inf))
    return torch.where(values == 0, values, moved)


def _rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """No smaller in another precision."""
    rounded = values.to(dtype)
    return torch.where(
        rounded.to(values.dtype) < values, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded
    )


def _spanned(geometry: Geometry, spans: list[Tensor], height: int) -> Tensor:
    """Which rows (G, 2) of a node of this height generators reach, from the rows of its operands that they reach."""
    many, found = max(map(len, spans)), torch.tensor([[height, 0]])
    for span in spans:
        low, high = _padded(span, many, NOWHERE).unbind(dim=1)
        reached = low < high
        stride, offset, extent = geometry.stride[0], geometry.offset[0], geometry.extent[0]
        if stride:
            low = -((offset + extent - 1 - low) // stride)
            high = (high - 1 - offset) // stride + 1
        else:
            low, high = torch.zeros_like(low), torch.full_like(high, height)
        low = torch.where(reached, low.clamp(0, height), height)
        high = torch.where(reached, high.clamp(0, height), 0)
        found = torch.stack([torch.minimum(found[:, 0], low), torch.maximum(found[:, 1], high)], dim=1)
    return found


NOWHERE = 1 << 30
"""A row that no map has."""


def _padded(span: Tensor, many: int, beyond: int) -> Tensor:
    """For so many generators: the further ones reach no row."""
    return torch.cat([span, torch.tensor([[beyond, 0]]).expand(many - len(span), 2)])


def _on_rows(op: Op, given: list[Coefs], start: int, count: int, top: int, bottom: int) -> Tensor:
    """An affine operation's linear part on some generators; rows ``top`` to ``bottom`` of the result."""
    if isinstance(op, Conv2d):
        (coefs,), height = given, given[0].maps.shape[2]
        first = top * op.stride[0] - op.padding[0]
        last = (bottom - 1) * op.stride[0] - op.padding[0] + op.geometry.extent[0]
        part = coefs.some(start, count, max(0, first), min(height, last))
        part = F.pad(part, (0, 0, max(0, -first), max(0, last - height)))
        return replace(op, bias=None, padding=(0, op.padding[1])).apply([part])
    linear = op.linear() if isinstance(op, Weighted) else op
    return linear.apply([c.some(start, count, 0, c.maps.shape[2]) for c in given])[:, :, top:bottom]


@functools.cache
def exact_in_float32() -> bool:
    """Whether float32 convolutions and products on the CPU are sums of float32's products: no bfloat16 in their place,
    and no transform (Winograd's) that adds neighbours up before it multiplies, whose rounding is another."""
    fine = (1 + 2.0**-11) * torch.eye(32)
    exact = (1 + 2.0**-10 + 2.0**-22) * torch.eye(32)
    by_conv = F.conv2d(fine.view(32, 32, 1, 1), fine.view(32, 32, 1, 1)).view(32, 32)
    # each value passes alone beside neighbours of 2^24, with which its sum is rounded
    apart = torch.ones(AT_LEAST, 16, 16, 16)
    apart[..., ::2] = 2.0**24
    alone = torch.zeros(16, 16, 3, 3)
    alone[range(16), range(16), 1, 1] = 1.0
    with torch.backends.nnpack.flags(enabled=False):  # as in the sweep
        passed = F.conv2d(apart, alone, padding=1)
    return bool((fine @ fine == exact).all() and (by_conv == exact).all() and (passed == apart).all())
