"""Directions of Adam, for multipliers that are searched in many rows at once, some of which end before the others."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN, SQUARE = 0.9, 0.999
"""How much of the mean of gradients, and of the mean of their squares, is kept from step to step."""

TINY = 1e-12
"""Added to the size of a gradient, so that none is divided by."""


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) for one tensor: the caller moves along ``step`` by a rate of its own."""

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square, self._steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, gradient: Tensor) -> Tensor:
        """The direction (as ``gradient``), each entry about 1 in size while its gradients agree."""
        self._steps += 1
        self._mean.mul_(MEAN).add_(gradient, alpha=1 - MEAN)
        self._square.mul_(SQUARE).addcmul_(gradient, gradient, value=1 - SQUARE)
        size = (self._square / (1 - SQUARE**self._steps)).sqrt_().add_(TINY)
        return self._mean / (1 - MEAN**self._steps) / size

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows, of the first axis, but these (a mask or indices)."""
        self._mean, self._square = self._mean[rows], self._square[rows]
