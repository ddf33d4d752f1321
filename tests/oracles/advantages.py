"""Twins of numerics/advantages.py."""

from __future__ import annotations

import math
from collections.abc import Sequence


def group_relative(rewards: Sequence[float]) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [0.0 if len(set(rewards)) == 1 else (reward - mean) / deviation for reward in rewards]


def gae(rewards: Sequence[float], values: Sequence[float], *, gamma: float, lam: float) -> list[float]:
    """The double sum of Schulman et al. 2016, eq. 16, without the recursion: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    count = len(rewards)
    found = []
    for t in range(count):
        total = 0.0
        for later in range(t, count):
            following = values[later + 1] if later + 1 < count else 0.0
            total += (gamma * lam) ** (later - t) * (rewards[later] + gamma * following - values[later])
        found.append(total)
    return found
