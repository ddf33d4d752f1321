"""Twin of numerics/importance.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def correction(
    old_logprobs: Numbers,
    sampler_logprobs: Numbers,
    weights: Numbers,
    *,
    kind: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    bounds: Sequence[int] | None = None,
) -> tuple[list[float], float]:
    count = len(weights)
    quotients = [math.exp(old_logprobs[t]) / math.exp(sampler_logprobs[t]) for t in range(count)]
    if bounds is not None:
        for start, end in zip(bounds, bounds[1:], strict=False):
            spoken = [t for t in range(start, end) if weights[t] > 0]
            product = math.prod(quotients[t] for t in spoken)
            for t in spoken:
                quotients[t] = product ** (1.0 / len(spoken))
    coefficients, touched = [], 0.0
    for t in range(count):
        if weights[t] == 0:
            coefficients.append(1.0)
        elif low <= quotients[t] <= high:
            coefficients.append(quotients[t])
        else:
            touched += weights[t]
            coefficients.append(0.0 if kind == "mask" else high if quotients[t] > high else low)
    return coefficients, touched
