"""Twins of numerics/divergence.py, from probabilities and not from their logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def kl_estimate(logprobs: Numbers, ref_logprobs: Numbers, *, estimator: str) -> list[float]:
    found = []
    for here, there in zip(logprobs, ref_logprobs, strict=True):
        quotient = math.exp(there) / math.exp(here)  # reference over policy
        if estimator == "k1":
            found.append(-math.log(quotient))
        elif estimator == "k2":
            found.append(0.5 * math.log(quotient) ** 2)
        else:
            found.append(quotient - 1.0 - math.log(quotient))
    return found


def kl_penalty(
    logprobs: Numbers,
    ref_logprobs: Numbers,
    weights: Numbers,
    *,
    estimator: str = "k2",
    old_logprobs: Numbers | None = None,
) -> dict[str, float]:
    found = {"value": 0.0, "kl_reference": 0.0}
    for name, kind in (("value", estimator), ("kl_reference", "k3")):
        estimates = kl_estimate(logprobs, ref_logprobs, estimator=kind)
        for t in range(len(logprobs)):
            ratio = 1.0 if old_logprobs is None else math.exp(logprobs[t]) / math.exp(old_logprobs[t])
            found[name] += weights[t] * ratio * estimates[t]
    return found
