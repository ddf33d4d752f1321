"""Twins of numerics/estimates.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z = statistics.NormalDist().inv_cdf(0.975)


def mean_interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """Wilson's interval as it is defined, all p that a z-test does not refuse, found by bisection."""
    count = len(shares)
    mean = math.fsum(shares) / count
    variance = math.fsum((share - mean) ** 2 for share in shares) / count / count
    effective = mean * (1 - mean) / variance if variance > 0 else float(count)

    def refused(p: float) -> bool:
        return abs(mean - p) > Z * math.sqrt(p * (1 - p) / effective)

    def edge(outside: float) -> float:
        if not refused(outside):
            return outside
        inside = mean
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refused(middle) else (middle, outside)
        return inside

    return mean, edge(0.0), edge(1.0)


def paired_change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    changes = [after[i] - before[i] for i in range(len(before))]
    mean = math.fsum(changes) / len(changes)
    if len(changes) == 1:
        return mean, -math.inf, math.inf
    spread = math.sqrt(math.fsum((change - mean) ** 2 for change in changes) / (len(changes) - 1))
    return mean, mean - Z * spread / math.sqrt(len(changes)), mean + Z * spread / math.sqrt(len(changes))
