"""How far each class trails the predicted one, as expressions: whole where the network is small, else in part.

Logits are affine in all features, so they couple every pixel of the map. Where that is too much for a MILP, only the
pair's own pixels stay variable and the rest counts with its proven largest share: fewer images are excluded than do
lose their class, which is sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.crown import Relaxed
from corgi_opt.bounding.dual import Rows
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.encode.expressions import Expression, Expressions, combined
from corgi_opt.network.ops import Conv2d
from corgi_opt.problem.question import Question, class_rows

IN_PART = "the class is kept in part only"
"""Why an answer may be no answer."""

HEAD_TOLERANCE = 1e-12
"""How far, in parts of a weight, a head may be from a mean (network/cam.py)."""

MOST_UNITS = 300
"""Most unstable ReLUs of the whole network that are encoded for the sake of the class."""


@dataclass(frozen=True, eq=False)
class ClassGaps:
    """``logit_c - logit_t`` (one for each other class t), or upper bounds of it; ``exact`` says which."""

    expressions: list[Expression]
    exact: bool


def class_gaps(
    question: Question, expressions: Expressions, relaxed: Relaxed, pair: Sequence[int], deadline: Deadline
) -> ClassGaps:
    """For a question that keeps the predicted class c. Raises TimeoutError."""
    net = question.net
    assert question.predicted is not None
    coefs = class_rows(net.classes, question.predicted)[:, :, None, None]
    logits = _rows(coefs)
    unstable = sum(int(expressions.bounded.intervals[n].unstable.sum()) for n in net.graph.preactivations)
    if unstable <= MOST_UNITS:
        return ClassGaps(expressions.of(net.graph.output, logits, deadline), True)
    return ClassGaps(_in_part(question, expressions, relaxed, coefs[:, :, 0, 0], pair, deadline), False)


def _in_part(
    question: Question,
    expressions: Expressions,
    relaxed: Relaxed,
    coefs: Tensor,
    pair: Sequence[int],
    deadline: Deadline,
) -> list[Expression]:
    net = question.net
    height, width = net.map_shape
    share = (coefs @ net.weight / (height * width))[:, :, None, None].expand(-1, -1, height, width)
    near = torch.zeros(height * width, dtype=torch.float64)
    near[list(pair)] = 1.0
    near = near.view(height, width)
    last = net.graph[net.graph.output].op
    assert isinstance(last, Conv2d)  # the head is a linear layer
    bias = torch.zeros(len(coefs), dtype=torch.float64) if last.bias is None else coefs @ last.bias
    here = expressions.of(net.features, _rows(share * near), deadline)
    # the rest, bounded from above
    rest = (-share * (1 - near)).to(relaxed.regions.eps.device)
    most = -relaxed.bound(net.features, _rows(rest)).cpu()
    # the head's own mean may differ from ``share`` by what a graph's head may differ from a mean
    size = torch.maximum(*(side.abs() for side in expressions.bounded.intervals[net.features]))
    doubt = 2 * HEAD_TOLERANCE * (share.abs() * size).sum(dim=(1, 2, 3))
    if last.bias is not None:
        doubt = doubt + gamma(net.classes) * (coefs.abs() @ last.bias.abs())
    constants = most + bias + doubt
    return [combined([(1.0, e)], constant) for e, constant in zip(here, constants.tolist(), strict=True)]


def _rows(coefs: Tensor) -> Rows:
    origin = torch.zeros(len(coefs), 2, dtype=torch.long, device=coefs.device)
    return Rows.at(coefs, origin, origin[:, 0])
