"""Whether a study's answers keep the promised order of methods, and what a table says where they do not.

A weaker method may have been asked after a stronger one (a plan that grew, a cell that was tried again), and stores of
before cells shared what they prove hold answers that were each found alone, to within rtol.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corgi_opt.methods import TABLE

SHARED = ["model_sha256", "image_sha256", "kind", "k", "within", "property", "eps", "norm", "clip", "clip_low"]
SAME = [*SHARED, "clip_high", "class_idx", "keep_class", "seed"]
"""The columns that make a question, where no hash of it was kept."""


def with_weaker(frame: Any) -> Any:
    """The table of answers with the columns ``weaker`` (the highest certified end among weaker methods' answers to the
    same question; NaN: none is higher than the row's own) and ``weaker_method`` (whose it is; empty)."""
    same = ["|".join(map(str, row)) for row in zip(*(frame[c] for c in SAME), strict=True)]
    question = frame["question"].where(frame["question"].notna(), same) if len(frame) else frame["question"]
    order = {name: place for place, name in enumerate(TABLE)}
    weaker, method = np.full(len(frame), np.nan), [""] * len(frame)
    lower, names = frame["lower"].to_numpy(), frame["method"].tolist()
    for rows in frame.reset_index(drop=True).groupby(question.to_numpy()).indices.values():
        best, whose = -np.inf, ""
        level: list[int] = []
        for at in sorted(rows, key=lambda i: order[names[i]]):
            if level and names[level[0]] != names[at]:  # those of one method are not ordered among themselves
                best, whose = max([(best, whose), *((lower[i], names[i]) for i in level)], key=lambda p: p[0])
                level = []
            if np.isfinite(lower[at]):
                level.append(at)
            if best > lower[at]:
                weaker[at], method[at] = best, whose
    return frame.assign(weaker=weaker, weaker_method=method)


def order_in_words(part: Any) -> str:
    """Of a table's row: how many of its answers are below a weaker method's, by how much, and the tolerance that both
    are found to. Empty where none is. ``part``: rows of :func:`with_weaker`."""
    below = part[part["weaker"].notna()]
    if below.empty:
        return ""
    off = ((below["weaker"] - below["lower"]) / below["weaker"].abs()).max()
    rtol = below["rtol"].max()
    whose = ", ".join(name for name in TABLE if name in set(below["weaker_method"]))
    why = "" if off <= rtol else "; more than rtol: its search ended early, or was another one's"
    return f"{len(below)} of {len(part)} below {whose} by up to {off:.2g} of it (both ±rtol={rtol:g}{why})"
