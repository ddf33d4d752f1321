"""Twins of numerics/losses.py: one loop over tokens or pairs, each term as its docstring writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def cross_entropy(logprobs: Numbers, weights: Numbers) -> dict[str, float]:
    total = 0.0
    for t in range(len(logprobs)):
        total -= weights[t] * logprobs[t]
    return {"loss": total}


def dpo_loss(
    chosen: Numbers, rejected: Numbers, ref_chosen: Numbers, ref_rejected: Numbers, weights: Numbers, *, beta: float
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "margin", "ranked", "chosen_change", "rejected_change"), 0.0)
    for p in range(len(chosen)):
        # Odds of the pair under the policy, divided by those under the reference.
        preference = (chosen[p] - rejected[p]) - (ref_chosen[p] - ref_rejected[p])
        found["loss"] += weights[p] * math.log(1.0 + math.exp(-beta * preference))
        found["margin"] += weights[p] * beta * preference
        found["ranked"] += weights[p] if preference > 0 else 0.0
        found["chosen_change"] += weights[p] * (chosen[p] - ref_chosen[p])
        found["rejected_change"] += weights[p] * (rejected[p] - ref_rejected[p])
    return found


def clipped_policy_loss(
    logprobs: Numbers,
    old_logprobs: Numbers,
    advantages: Numbers,
    weights: Numbers,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "clipped", "kl"), 0.0)
    for t in range(len(logprobs)):
        ratio, advantage = math.exp(logprobs[t]) / math.exp(old_logprobs[t]), advantages[t]
        # In words: a gain counts up to the upper bound, a loss counts at least as much as at the lower one.
        if advantage > 0 and ratio > 1 + clip_high:
            term, clipped = (1 + clip_high) * advantage, True
        elif advantage < 0 and ratio < 1 - clip_low:
            term, clipped = (1 - clip_low) * advantage, True
        else:
            term, clipped = ratio * advantage, False
        found["loss"] -= weights[t] * term
        found["clipped"] += weights[t] if clipped else 0.0
        found["kl"] += weights[t] * (ratio - 1 - math.log(ratio))
    return found


def value_loss(
    values: Numbers, returns: Numbers, weights: Numbers, *, old_values: Numbers, clip: float
) -> dict[str, float]:
    total = 0.0
    for t in range(len(values)):
        bounded = min(max(values[t], old_values[t] - clip), old_values[t] + clip)
        worse = max(abs(values[t] - returns[t]), abs(bounded - returns[t]))
        total += weights[t] * worse * worse / 2
    return {"value_loss": total}
