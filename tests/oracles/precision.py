"""The twin of numerics/precision.py: one weight at a time, from the bits of a number and of the one above it."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def moved_share(weights: Sequence[float], step: float, *, bits: int) -> float:
    """`bits` of a float32 are kept in the format: 32, or 16 for bfloat16."""
    moved = 0
    for weight in weights:
        code = struct.unpack("<I", struct.pack("<f", abs(weight)))[0] >> (32 - bits)
        size, above = (struct.unpack("<f", struct.pack("<I", one << (32 - bits)))[0] for one in (code, code + 1))
        # Nearer to the number above than to where it was; halfway, the one with an even last digit is taken.
        halfway = (size + above) / 2
        moved += size + step > halfway or (size + step == halfway and code % 2 == 1)
    return moved / len(weights)
