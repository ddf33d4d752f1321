"""Addressed randomness: every random choice is a function of where it stands, never of what ran before.

An address is a tuple such as (seed, "rlvr", step, prompt, sample). Because nothing is drawn from a shared stream,
resuming a run needs no generator state, and leaving out one sample does not change the next.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the data engine draws random numbers on machines without torch
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's constants, as signed 64-bit integers
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def key(*address: object) -> int:
    """A 63-bit integer that depends on every part of the address."""
    digest = hashlib.sha256(json.dumps(address, default=str).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(*address: object) -> np.random.Generator:
    """A generator of its own for one address."""
    return np.random.Generator(np.random.Philox(key=key(*address)))


def uniforms(keys: Tensor, counters: Tensor) -> Tensor:
    """One uniform number per (key, counter): the counter-th output of splitmix64 seeded with the key.

    Args:
        keys      (S,) int64  one address per sample
        counters  (S,) int64  which draw of that sample this is, from 0

    Returns:
        (S,) float64 in [0, 1), with 53 random bits.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17.

    >>> import torch
    >>> uniforms(torch.tensor([0]), torch.tensor([0]))     # splitmix64's first output for seed 0 is 0xE220A8397B1DCDAF
    tensor([0.8833], dtype=torch.float64)
    """
    z = keys + (counters + 1) * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).double() * 2.0**-53


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of signed integers: torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
