"""The objectives of bounds: parts of a property and combinations of parts, as functionals of the last feature map.

The class weights are part of the functional (the fused head), so one backward pass sees the whole objective. A logit is
the mean over the map plus the bias: its coefficients ``w / (H W)``, like those of a sum of head vectors, are rounded a
few times; the account of rounding counts that at the start of a pass (tolerance.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.tolerance import FLOOR, gamma
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.fields import fields_of
from corgi_opt.problem.atoms import MEAN, Groups, Parts

Bound = Callable[[str, Rows], Tensor]
"""Lower bounds (R,) of R functionals of a node."""


class Objectives(NamedTuple):
    """Some of many functionals, those numbered ``which`` (R,), as ``rows`` of the last feature map plus ``shift`` (R,),
    which is off by ``doubt`` (R,) at most."""

    which: Tensor
    rows: Rows
    shift: Tensor
    doubt: Tensor


def objectives(net: CamNetwork, parts: Parts, terms: Tensor, coefs: Tensor, case: Tensor) -> Iterator[Objectives]:
    """``sum of coefs * part`` for parts ``terms`` (Q, T) and ``coefs`` (Q, T), about regions ``case`` (Q,).

    Each on the rectangle that spans its pixels (the whole map, where it holds a logit). They come in groups of like
    rectangle, so that each group is one batch; its common rectangle has zeros where one does not reach.
    """
    device = net.weight.device
    terms, coefs = terms.to(device), coefs.to(net.weight)
    (height, width), used = net.map_shape, coefs != 0
    place, head = parts.place.to(device)[terms], parts.head.to(device)[terms]
    whole = (used & (place == MEAN)).any(dim=1)
    y, x = place // width, place % width
    first, last = _ends(y, used, whole, height), _ends(x, used, whole, width)
    corners = torch.stack([first[0], last[0]], dim=1)
    size = torch.stack([_rounded(first[1] - first[0] + 1), _rounded(last[1] - last[0] + 1)], dim=1)
    size[whole] = torch.tensor([height, width], device=device)
    vectors, shifts = parts.vectors(net.weight), parts.shifts(net.bias)[terms] * coefs
    sizes = parts.heads.abs().to(net.weight) @ net.bias.abs()
    logits = bool(parts.whole.any())
    doubts = gamma(net.classes + terms.shape[1]) * (coefs.abs() * sizes[head]).sum(dim=1) + FLOOR
    for h, w in torch.unique(size, dim=0).tolist():
        which = torch.nonzero((size == torch.tensor([h, w], device=device)).all(dim=1)).flatten()
        table = vectors.new_zeros(len(which), vectors.shape[1], h, w)
        row = torch.arange(len(which), device=device)
        for term in range(terms.shape[1]):
            own = coefs[which, term, None] * vectors[head[which, term]]
            mean = (place[which, term] == MEAN)[:, None]
            if logits:
                table += (torch.where(mean, own, torch.zeros_like(own)) / (height * width))[:, :, None, None]
                own = torch.where(mean, torch.zeros_like(own), own)
            there = place[which, term] != MEAN
            dy = torch.where(there, y[which, term] - corners[which, 0], torch.zeros_like(row)).clamp(0, h - 1)
            dx = torch.where(there, x[which, term] - corners[which, 1], torch.zeros_like(row)).clamp(0, w - 1)
            table[row, :, dy, dx] += own
        logit = whole[which]
        doubt = torch.where(logit, doubts[which], torch.zeros_like(doubts[which]))
        yield Objectives(which, Rows.at(table, corners[which], case.to(device)[which]), shifts[which].sum(dim=1), doubt)


def _ends(at: Tensor, used: Tensor, whole: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first and the last row (or column) of each functional (Q,), from those of its terms (Q, T)."""
    first = torch.where(used, at, torch.full_like(at, length)).amin(dim=1)
    last = torch.where(used, at, torch.zeros_like(at)).amax(dim=1)
    return torch.where(whole, torch.zeros_like(first), first), torch.where(
        whole, torch.full_like(last, length - 1), last
    )


def combination_bounds(
    net: CamNetwork, parts: Parts, bound: Bound, terms: Tensor, coefs: Tensor, case: Tensor
) -> Tensor:
    """Lower bounds (Q,) of ``sum of coefs * part``, each as one objective; arguments as of :func:`objectives`."""
    lower = net.weight.new_empty(len(terms))
    for which, rows, shift, doubt in objectives(net, parts, terms, coefs, case):
        lower[which] = bound(net.features, rows) + shift - doubt
    return lower


def atom_bounds(
    net: CamNetwork, groups: Groups, bound: Bound, atoms: Tensor, case: Tensor, sign: float = 1.0
) -> Tensor:
    """Lower bounds (Q,) of some atoms (or of their negatives: ``sign`` -1), each as one objective."""
    return combination_bounds(net, groups.parts, bound, groups.terms[atoms], sign * groups.coefs[atoms], case)


def part_bounds(net: CamNetwork, parts: Parts, bound: Bound, below: Tensor, above: Tensor) -> Interval:
    """Lower bounds (B, F) of the parts marked in ``below`` (B, F), upper bounds of those in ``above``, on the CPU;
    infinite elsewhere."""
    places = torch.cat([torch.nonzero(below), torch.nonzero(above)])
    count = int(below.sum())
    signs = torch.where(torch.arange(len(places)) < count, 1.0, -1.0).double()
    values = combination_bounds(net, parts, bound, places[:, 1:], signs[:, None], places[:, 0]).cpu()
    unknown = torch.full(below.shape, torch.inf, dtype=values.dtype)
    low, high = (tuple(part.T) for part in (places[:count], places[count:]))
    return Interval((-unknown).index_put(low, values[:count]), unknown.index_put(high, -values[count:]))


def interval_parts(net: CamNetwork, parts: Parts, features: Interval) -> Interval:
    """Bounds (B, F) of all parts from those of the last feature map (B, C, H, W), channel by channel (for a CAM pixel
    the paper's equation)."""
    vectors = parts.vectors(net.weight)
    plus, minus = vectors.clamp(min=0), vectors.clamp(max=0)
    low, high = (side.flatten(2) for side in features)
    lower, upper = plus @ low + minus @ high, plus @ high + minus @ low  # (B, D, P)
    size = vectors.abs() @ torch.maximum(low.abs(), high.abs())
    pixels, shifts = low.shape[2], parts.shifts(net.bias)
    head, place, whole = (t.to(low.device) for t in (parts.head, parts.place.clamp(min=0), parts.whole))

    def picked(maps: Tensor) -> Tensor:
        return torch.where(whole, maps.mean(dim=2)[:, head], maps[:, head, place])

    lower, upper, size = picked(lower) + shifts, picked(upper) + shifts, picked(size)
    if lower.dtype == torch.float64:
        terms = vectors.shape[1] + (pixels + net.classes if bool(whole.any()) else 0)
        bias = (parts.heads.abs().to(net.bias) @ net.bias.abs())[head]
        error = gamma(terms) * (size + torch.where(whole, bias, torch.zeros_like(bias))) + FLOOR
        lower, upper = lower - error, upper + error
    return Interval(lower, upper)


def _rounded(size: Tensor) -> Tensor:
    """Rectangle sides rounded up to a few values: fewer, larger batches."""
    steps = torch.tensor([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], device=size.device)
    index = torch.searchsorted(steps, size.contiguous())
    return torch.where(index < len(steps), steps[index.clamp(max=len(steps) - 1)], size)


def places_of(net: CamNetwork, parts: Parts, marked: Tensor) -> Tensor:
    """The map (B, H, W) of pixels that any marked part (B, F) is made of."""
    height, width = net.map_shape
    pixels = torch.zeros(len(marked), height * width, dtype=torch.bool)
    at_pixels = torch.nonzero(~parts.whole).flatten()
    count = torch.zeros(pixels.shape, dtype=torch.int32)
    pixels |= count.index_add(1, parts.place[at_pixels], marked[:, at_pixels].int()) > 0
    pixels |= (marked & parts.whole).any(dim=1, keepdim=True)
    return pixels.view(-1, height, width)


def share_inputs(net: CamNetwork, parts: Parts, terms: Tensor, coefs: Tensor) -> Tensor:
    """Which combinations of parts (Q,) have some whose receptive fields meet; the others are bounded part by part."""
    used = coefs != 0
    several = used.sum(dim=1) > 1
    places = parts.place[terms]
    if places.shape[1] != 2:
        return several  # any two of three parts may share inputs
    whole = (used & (places == MEAN)).any(dim=1)
    return several & (whole | fields_of(net.graph, net.features).share(places.clamp(min=0)))


def share_in_atoms(net: CamNetwork, groups: Groups, atoms: Tensor) -> Tensor:
    """:func:`share_inputs` of some atoms (Q,)."""
    return share_inputs(net, groups.parts, groups.terms[atoms], groups.coefs[atoms])
