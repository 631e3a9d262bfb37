"""How much is computed at once: a budget of memory that belongs to the device, and what happens where it is too much.

On a CPU larger chunks were not faster (they leave its caches). A GPU wants them: the paper's network, 256 images at
once, on one H100: 77 images a second with chunks of 5e6 bytes, 407 with 5e7, 776 with 5e8, 816 with 4e9. A pass holds a
few dozen times its chunk in all, so a chunk is a small share of the memory that is free; where that was still too much
(or somebody else took it meanwhile), the chunk is halved and tried again.

The environment variable ``CORGI_CHUNK_BYTES`` overrides it for every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from corgi_opt.errors import InputError

T = TypeVar("T")

VARIABLE = "CORGI_CHUNK_BYTES"

CPU_BYTES = 5_000_000
"""Size of a chunk on a CPU, and on devices that do not say how much memory is free."""

GPU_BYTES = 500_000_000
"""Largest chunk on a GPU: eight times as much was 5 % faster."""

SHARE = 64
"""A chunk takes at most this part, 1 / SHARE, of a GPU's free memory."""


def chunk_bytes(device: torch.device) -> int:
    """Memory for the coefficients of one node at once in a backward pass. Raises InputError for a bad override."""
    asked = os.environ.get(VARIABLE, "")
    if asked:
        if not asked.isdecimal() or not int(asked):
            raise InputError(f"the environment variable {VARIABLE} must be a positive number of bytes, got {asked!r}")
        return int(asked)
    return min(GPU_BYTES, free_bytes(device) // SHARE) if device.type == "cuda" else CPU_BYTES


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, with what torch has reserved there and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def in_parts(total: int, at_once: int, run: Callable[[int, int], T]) -> list[T]:
    """``run(start, count)`` over all of ``range(total)``: ``at_once`` at a time, fewer where memory does not suffice.

    Raises torch.OutOfMemoryError where not even one at a time fits.
    """
    results: list[T] = []
    start = 0
    while start < total:
        count = min(max(1, at_once), total - start)
        try:
            results.append(run(start, count))
            start += count
            continue
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        # out here the error is gone, and with it what its frames held
        torch.cuda.empty_cache()
        at_once = count // 2
    return results
