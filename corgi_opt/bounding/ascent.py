"""Dual ascent: the largest D(mu) that a few gradient steps find, for many objectives at once.

As in alpha-CROWN (Xu et al., arXiv 2011.13824), mu is spanned by the slope of each unstable ReLU's lower line, in
[0, 1], one per objective and neuron; the chord above needs no choice. With fixed pre-activation bounds the best D over
these slopes is the optimum of the triangle LP (Salman et al. 2019). The search starts from CROWN's slopes, runs in
float32 and proves nothing. The result is D at the best slopes met, evaluated in the precision of the given bounds, with
``phi``, which makes it a lower bound for any slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corgi_opt.bounding.adam import Adam
from corgi_opt.bounding.budget import in_parts
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.dual import Interval, Relaxation, Rows, Step, descend, phi, rows_at_once
from corgi_opt.bounding.relaxation import ReluLines, lines_step

STEPS, RATE, LAST_RATE = 10, 0.5, 0.1
"""Ascent steps; Adam's rate at the first, falling geometrically to the last. Ten steps recover nine tenths of the
triangle LP's improvement over CROWN on the paper's network (benchmarks/RESULTS.md)."""

TAPE = 8
"""A pass that is differentiated keeps about this many times the memory of one that is not."""


def ascend(relaxed: Relaxed, node: str, rows: Rows, enough: float = torch.inf, steps: int = STEPS) -> Tensor:
    """Lower bounds (R,) of functionals of ``node`` by dual ascent, never below CROWN's.

    A row stops as soon as its bound exceeds ``enough`` (its sign is decided).
    """

    def part(start: int, count: int) -> Tensor:
        return _ascend(relaxed, node, rows.part(start, count), enough, steps)

    parts = in_parts(len(rows), rows_at_once(relaxed.graph, node, rows) // TAPE, part)
    return torch.cat(parts) if parts else rows.coefs.new_zeros(0)


def _ascend(relaxed: Relaxed, node: str, rows: Rows, enough: float, steps: int) -> Tensor:
    relaxed.deadline.check()
    start = relaxed.bound(node, rows)
    below = _search(relaxed.to(torch.float32), node, rows.to(torch.float32), enough, steps)
    chosen = {name: _Chosen(relaxed.lines[name], relaxed.intervals, below[name]) for name in below}
    best = descend(relaxed.graph, node, rows, relaxed.regions, {**relaxed.fixed, **chosen}, relaxed.rounding)
    return torch.where(best > start, best, start)  # keeps the start where best is NaN


@torch.enable_grad()  # callers may be inside no_grad
def _search(relaxed: Relaxed, node: str, rows: Rows, enough: float, steps: int) -> Mapping[str, Tensor]:
    """The best slopes met, by ReLU: (R, C, h, w) on the windows of the pass."""
    slopes = {name: _Ascending(lines) for name, lines in relaxed.lines.items()}
    relaxations: dict[str, Relaxation] = {**relaxed.fixed, **slopes}
    best = torch.full((len(rows),), -torch.inf, device=rows.coefs.device)
    kept: dict[str, Tensor] = {}
    open_ = torch.arange(len(rows), device=rows.coefs.device)
    for step in range(steps + 1):
        value = descend(relaxed.graph, node, rows, relaxed.regions, relaxations)
        used = {name: s for name, s in slopes.items() if s.below is not None}
        better = value.detach() > best[open_]
        best[open_[better]] = value.detach()[better]
        for name, s in used.items():
            assert s.below is not None
            if name not in kept:
                kept[name] = s.below.detach().clone()
            kept[name][open_[better]] = s.below.detach()[better]
        if step == steps or not used:
            break
        rate = RATE * (LAST_RATE / RATE) ** (step / max(1, steps - 1))
        leaves = [s.below for s in used.values() if s.below is not None]
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        for s, gradient in zip(used.values(), gradients, strict=True):
            if gradient is not None:
                s.move(gradient, rate)
        undecided = value.detach() <= enough
        if not bool(undecided.all()):
            if not bool(undecided.any()):
                break
            rows, open_ = rows[undecided], open_[undecided]
            for s in used.values():
                s.keep(undecided)
    return kept


@dataclass(eq=False)
class _Ascending:
    """A ReLU whose lower slopes are being searched, by Adam within [0, 1]."""

    lines: ReluLines
    below: Tensor | None = None
    adam: Adam | None = None

    def step(self, rows: Rows) -> Step:
        below, above, shift = self.lines.at(rows)
        if self.below is None:
            self.below = below.expand_as(rows.coefs).clone().requires_grad_(True)
        # a stable ReLU has no room above its line, and its slope is not a choice
        return lines_step(self.lines.source, rows, torch.where(shift > 0, self.below, below), above, shift)

    def move(self, gradient: Tensor, rate: float) -> None:
        assert self.below is not None
        self.adam = self.adam or Adam(gradient)
        moved = self.below.detach() + rate * self.adam.step(gradient)
        self.below = moved.clamp(0, 1).requires_grad_(True)

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these."""
        assert self.below is not None
        self.below = self.below.detach()[rows].requires_grad_(True)
        if self.adam is not None:
            self.adam.keep(rows)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A ReLU with given lower slopes (R, C, h, w), whatever they are; its share of D is ``phi``."""

    lines: ReluLines
    intervals: Mapping[str, Interval]
    below: Tensor

    def step(self, rows: Rows) -> Step:
        below, above, shift = self.lines.at(rows)
        l, u = (rows.gather(side) for side in self.intervals[self.lines.source])
        slope = torch.where(shift > 0, self.below.to(below.dtype), below)
        mu = torch.where(rows.coefs > 0, slope, above) * rows.coefs
        constant = phi(rows.coefs, mu, l, u).flatten(1).sum(dim=1)
        return Step(((self.lines.source, replace(rows, coefs=mu)),), constant)
