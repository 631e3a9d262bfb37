"""Damaged files of any kind: what bytes may be changed to."""

from __future__ import annotations

import random


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Cut off, bits turned, pieces moved, or nothing of it left."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        how, at = rng.randrange(6), rng.randrange(max(1, len(found)))
        if how == 0:
            del found[at:]
        elif how == 1 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            found[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
        elif how == 3:
            found[at:at] = found[at : at + rng.randrange(1, 200)]
        elif how == 4:
            del found[at : at + rng.randrange(1, 50)]
        elif how == 5 and rng.random() < 0.1:
            found = bytearray(rng.randbytes(rng.randrange(300)))
    return bytes(found)
