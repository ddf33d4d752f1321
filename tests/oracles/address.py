"""Twins of numerics/address.py: whole numbers of Python, cut to 64 bits by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

_ALL = 2**64 - 1


def key(*address: object) -> int:
    digest = hashlib.sha256(json.dumps(list(address), default=str).encode()).hexdigest()
    return int(digest[:16], 16) // 2


def rng(*address: object) -> Iterator[int]:
    """The raw 64-bit outputs of Philox-4x64-10 (Salmon et al. 2011) keyed by the address, counters from 1."""
    counter = 1
    while True:
        x = [counter, 0, 0, 0]
        k = [key(*address), 0]
        for round_ in range(10):
            if round_:
                k = [(k[0] + 0x9E3779B97F4A7C15) & _ALL, (k[1] + 0xBB67AE8584CAA73B) & _ALL]
            first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [(second >> 64) ^ x[1] ^ k[0], second & _ALL, (first >> 64) ^ x[3] ^ k[1], first & _ALL]
        yield from x
        counter += 1


def uniforms(keys: Sequence[int], counters: Sequence[int]) -> list[float]:
    found = []
    for one, counter in zip(keys, counters, strict=True):
        z = (one + (counter + 1) * 0x9E3779B97F4A7C15) & _ALL
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
        z = z ^ (z >> 31)
        found.append((z >> 11) / 2**53)
    return found
