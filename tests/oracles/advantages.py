"""Twins of numerics/advantages.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def group_relative(rewards: Numbers, *, epsilon: float = 0.0) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [0.0 if len(set(rewards)) == 1 else (reward - mean) / (deviation + epsilon) for reward in rewards]


def centred(rewards: Numbers) -> list[float]:
    found = []
    for reward in rewards:
        found.append(math.fsum(reward - other for other in rewards) / len(rewards))
    return found


def leave_one_out(rewards: Numbers) -> list[float]:
    found = []
    for i, reward in enumerate(rewards):
        others = [other for j, other in enumerate(rewards) if j != i]
        found.append(reward - math.fsum(others) / len(others) if others else 0.0)
    return found


def difficulty_weighted(
    advantages: Numbers,
    accuracy: float,
    *,
    least: float = 0.4,
    most: float = 1.5,
    middle: float = 0.75,
    slope: float = 10.0,
) -> list[float]:
    found = []
    for advantage in advantages:
        share = accuracy if advantage > 0 else 1.0 - accuracy
        hard = math.exp(-slope * share) / (math.exp(-slope * share) + math.exp(-slope * middle))
        found.append(advantage * (hard * most + (1.0 - hard) * least))
    return found


def gae(
    rewards: Numbers, values: Numbers, *, gamma: float, lam: float, bounds: Sequence[int] | None = None
) -> list[float]:
    """The double sum of Schulman et al. 2016, eq. 16, without the recursion: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    found = []
    ends = bounds or (0, len(rewards))
    for start, end in zip(ends, ends[1:], strict=False):
        for t in range(start, end):
            total = 0.0
            for later in range(t, end):
                following = values[later + 1] if later + 1 < end else 0.0
                total += (gamma * lam) ** (later - t) * (rewards[later] + gamma * following - values[later])
            found.append(total)
    return found


def whitened(advantages: Numbers, weights: Numbers) -> list[float]:
    total = math.fsum(weights)
    mean = math.fsum(w * a for w, a in zip(weights, advantages, strict=True)) / total
    variance = math.fsum(w * (a - mean) ** 2 for w, a in zip(weights, advantages, strict=True)) / total
    counted = {a for w, a in zip(weights, advantages, strict=True) if w > 0}
    found = []
    for weight, advantage in zip(weights, advantages, strict=True):
        found.append((advantage - mean) / math.sqrt(variance) if weight > 0 and len(counted) > 1 else 0.0)
    return found
