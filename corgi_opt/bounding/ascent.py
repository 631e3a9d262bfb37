"""Dual ascent: the largest D(mu) that a few gradient steps find, for many objectives at once.

As in alpha-CROWN (Xu et al., arXiv 2011.13824), mu is spanned by the slope of each unstable ReLU's lower line, in
[0, 1], one per objective and neuron; the chord above needs no choice. A curved node's choice, in [0, 1] too, is which
of several planes it takes (turning.py). With fixed pre-activation bounds the best D over the slopes is the optimum of
the triangle LP (Salman et al. 2019). The search starts from CROWN's choices, runs in float32 and proves nothing. The
result is D at the best choices met, evaluated in the precision of the given bounds, with ``phi`` and with planes that
hold, which makes it a lower bound for any choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corgi_opt.bounding.budget import in_parts
from corgi_opt.bounding.choosing import Choosing, ChoosingLines, ChoosingPlanes, ChosenLines, ChosenPlanes
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.dual import Relaxation, Relaxations, Rows, descend, rows_at_once
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.turning import TurningPlanes
from corgi_opt.network.graph import LayerGraph

STEPS, RATE, LAST_RATE = 10, 0.5, 0.1
"""Ascent steps; Adam's rate at the first, falling geometrically to the last. Ten steps recover nine tenths of the
triangle LP's improvement over CROWN on the paper's network (benchmarks/RESULTS.md)."""

TAPE, TURNING_TAPE = 8, 32
"""A pass that is differentiated keeps about this many times the memory of one that is not; where planes are mixed, as
many more."""


def ascend(relaxed: Relaxed, node: str, rows: Rows, enough: float = torch.inf, steps: int = STEPS) -> Tensor:
    """Lower bounds (R,) of functionals of ``node`` by dual ascent, never below CROWN's.

    A row stops as soon as its bound exceeds ``enough`` (its sign is decided).
    """
    turning = {
        name: TurningPlanes.of(relaxed.graph[name], relaxed.intervals, planes)
        for name, planes in relaxed.curves.items()
        if name in relaxed.graph.ancestors(node)
    }

    def part(start: int, count: int) -> Tensor:
        return _ascend(relaxed, turning, node, rows.part(start, count), enough, steps)

    tape = TURNING_TAPE if turning else TAPE
    parts = in_parts(len(rows), rows_at_once(relaxed.graph, node, rows) // tape, part)
    return torch.cat(parts) if parts else rows.coefs.new_zeros(0)


def _ascend(
    relaxed: Relaxed, turning: Mapping[str, TurningPlanes], node: str, rows: Rows, enough: float, steps: int
) -> Tensor:
    relaxed.deadline.check()
    start, quick = relaxed.bound(node, rows), relaxed.to(torch.float32)
    choosing: dict[str, Choosing] = {name: ChoosingLines(lines) for name, lines in quick.lines.items()}
    choosing.update((name, ChoosingPlanes(planes.to(torch.float32))) for name, planes in turning.items())
    in_float32 = rows.to(torch.float32)
    found = best_choices(quick.graph, quick.regions, node, in_float32, choosing, quick.direct, enough, steps)
    chosen: dict[str, Relaxation] = {}
    for name, choice in found.items():
        if name in turning:
            chosen[name] = ChosenPlanes(turning[name], choice)
        else:
            chosen[name] = ChosenLines(relaxed.lines[name], relaxed.intervals, choice)
    best = descend(relaxed.graph, node, rows, relaxed.regions, {**relaxed.direct, **chosen}, relaxed.rounding)
    return torch.where(best > start, best, start)  # keeps the start where best is NaN


@torch.enable_grad()  # callers may be inside no_grad
def best_choices(
    graph: LayerGraph,
    regions: Regions,
    node: str,
    rows: Rows,
    choosing: Mapping[str, Choosing],
    fixed: Relaxations,
    enough: float,
    steps: int,
) -> Mapping[str, Tensor]:
    """The best choices met, by node: (R, C, h, w) on the windows of the pass. ``fixed``: what leaves no choice."""
    relaxations: dict[str, Relaxation] = {**fixed, **choosing}
    best = torch.full((len(rows),), -torch.inf, device=rows.coefs.device)
    kept: dict[str, Tensor] = {}
    open_ = torch.arange(len(rows), device=rows.coefs.device)
    for step in range(steps + 1):
        value = descend(graph, node, rows, regions, relaxations)
        used = {name: s for name, s in choosing.items() if s.choice is not None}
        better = value.detach() > best[open_]
        best[open_[better]] = value.detach()[better]
        for name, s in used.items():
            assert s.choice is not None
            if name not in kept:
                kept[name] = s.choice.detach().clone()
            kept[name][open_[better]] = s.choice.detach()[better]
        if step == steps or not used:
            break
        rate = RATE * (LAST_RATE / RATE) ** (step / max(1, steps - 1))
        leaves = [s.choice for s in used.values() if s.choice is not None]
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
