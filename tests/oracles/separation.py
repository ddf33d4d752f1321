"""Twin of numerics/separation.py: many small steps uphill."""

from __future__ import annotations

import math
from collections.abc import Sequence


def bradley_terry(differences: Sequence[Sequence[float]], *, ridge: float) -> list[float]:
    size = len(differences[0])
    weights = [0.0] * size
    for _ in range(20_000):
        slope = [-ridge * weight for weight in weights]
        for row in differences:
            score = sum(weight * part for weight, part in zip(weights, row, strict=True))
            for place, part in enumerate(row):
                slope[place] += part / (1 + math.exp(score)) / len(differences)
        weights = [weight + slope_k for weight, slope_k in zip(weights, slope, strict=True)]
        if max(map(abs, slope)) < 1e-10:
            break
    return weights
