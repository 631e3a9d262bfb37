"""Combinations of a property's parts as expressions."""

from __future__ import annotations

import torch
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.objective import objectives
from corgi_opt.encode.expressions import Expression, Expressions
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.atoms import Parts


def expressed(
    net: CamNetwork, parts: Parts, expressions: Expressions, terms: Tensor, coefs: Tensor, deadline: Deadline
) -> list[Expression]:
    """``sum of coefs * part`` for parts ``terms`` (Q, T) and ``coefs`` (Q, T), each by a backward pass of its own.

    Raises TimeoutError.
    """
    combinations: dict[int, Expression] = {}
    for which, rows, shifts, doubts in objectives(net, parts, terms, coefs, torch.zeros_like(terms[:, 0])):
        made = expressions.of(net.features, rows, deadline)
        for at, expression, shift, doubt in zip(which.tolist(), made, shifts.tolist(), doubts.tolist(), strict=True):
            combinations[at] = expression.plus(shift, doubt) if shift or doubt else expression
    return [combinations[at] for at in range(len(terms))]
