"""All methods side by side on one question, with the attack and the bounds computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from corgi_opt.errors import InputError, Interrupted
from corgi_opt.network.cam import CamNetwork
from corgi_opt.progress import reporting
from corgi_opt.question import Question, resolve_device
from corgi_opt.radius import LADDER_ORDER, RadiusSearch, check_rtol
from corgi_opt.results import Radius, asked
from corgi_opt.search.attack import PgdOptions
from corgi_opt.spec import Clip, Norm, canonical_norm
from corgi_opt.verify import check_method, check_solver, check_time_limit


@dataclass(frozen=True, eq=False)
class Comparison:
    """Radii of several methods on one question. ``radii`` by method, weakest first; ``seconds`` by stage.

    The seconds of a method are what it added to the shared work of those before it.
    """

    radii: Mapping[str, Radius]
    seconds: Mapping[str, float]
    k: int
    within: int
    class_idx: int
    clip: Clip
    rtol: float

    def to_frame(self) -> Any:
        """A pandas DataFrame indexed by method: certified_eps, falsified_eps, ratio, over_corgi, seconds, reason."""
        import pandas as pd

        rows = [
            {
                "method": name,
                "certified_eps": r.lower,
                "falsified_eps": r.upper,
                "ratio": r.ratio,
                "over_corgi": r.lower / r.corgi if r.corgi > 0 else float("nan"),
                "seconds": self.seconds.get(name, float("nan")),
                "reason": r.reason,
            }
            for name, r in self.radii.items()
        ]
        return pd.DataFrame(rows).set_index("method")

    def plot(self, ax: Any = None) -> Any:
        """Certified radii as bars up to the smallest falsified eps; returns the matplotlib Axes."""
        from corgi_opt.plots import plot_comparison

        return plot_comparison(self, ax)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {r.lower:.6g}" for name, r in self.radii.items())
        upper = min(r.upper for r in self.radii.values())
        return f"Comparison({asked(self.k, self.within)}, class {self.class_idx}: {parts}, falsified at {upper:.6g})"


def compare(
    net: CamNetwork,
    x: Tensor,
    *,
    k: int,
    methods: Sequence[str] | None = None,
    rtol: float = 0.01,
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    time_limit: float = 600.0,
    tie_tol: float | None = None,
    within: int | None = None,
    keep_class: bool = False,
    solver: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """The certified radius of every method on one question; arguments as in :func:`corgi_opt.radius`.

    ``methods``: names; None means corgi, crown, dual, lp and bab (auto where rivals are counted or the class is kept).
    ``time_limit`` is the total for each method. Raises TieError for a tied image, BoundOrderError if bounds
    contradict each other or a certified eps reaches a broken one.
    """
    norm = canonical_norm(norm)
    if methods is None:
        pairwise = not keep_class and within in (None, k)
        methods = ("corgi", "crown", "dual", "lp", "bab" if pairwise else "auto")
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise InputError(f"methods must be a non-empty sequence of names or None, got {methods!r}")
    chosen = sorted({check_method(m, norm) for m in methods}, key=LADDER_ORDER.index)
    where, tolerance = resolve_device(device), check_rtol(rtol)
    check_time_limit(time_limit)
    for method in chosen:
        check_solver(solver, method, norm)
    question = Question.ask(
        net, x, k=k, class_idx=class_idx, norm=norm, clip=clip, tie_tol=tie_tol, within=within, keep_class=keep_class
    )
    radii: dict[str, Radius] = {}

    def comparison() -> Comparison:
        topk = question.topk
        return Comparison(dict(radii), dict(search.seconds), topk.k, topk.within, question.class_idx, clip, tolerance)

    with reporting(progress, "compare") as report:
        search = RadiusSearch(
            question, where, PgdOptions(seed=seed), tolerance, partial(check_solver, solver, norm=norm), report
        )
        try:
            for method in chosen:
                radii[method] = search.run(method, check_time_limit(time_limit))
        except Interrupted as stop:
            raise Interrupted(comparison()) from stop
    return comparison()
