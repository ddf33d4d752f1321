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
    chosen: Numbers,
    rejected: Numbers,
    ref_chosen: Numbers,
    ref_rejected: Numbers,
    weights: Numbers,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "margin", "ranked"), 0.0)
    for p in range(len(chosen)):
        # Odds of the pair under the policy, divided by those under the reference.
        preference = (chosen[p] - rejected[p]) - (ref_chosen[p] - ref_rejected[p])
        as_labelled = 1.0 / (1.0 + math.exp(-beta * preference))  # how surely chosen beats rejected
        # Cross-entropy with a label that says so in a share of 1 - label_smoothing.
        found["loss"] -= weights[p] * (1.0 - label_smoothing) * math.log(as_labelled)
        found["loss"] -= weights[p] * label_smoothing * math.log(1.0 - as_labelled)
        found["margin"] += weights[p] * beta * preference
        found["ranked"] += weights[p] if preference > 0 else 0.0
    return found


def apo_zero_loss(
    chosen: Numbers, rejected: Numbers, ref_chosen: Numbers, ref_rejected: Numbers, weights: Numbers, *, beta: float
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "margin", "ranked"), 0.0)
    for p in range(len(chosen)):
        # As odds: (policy / reference) to the power of beta, for each of the two.
        up, down = math.exp(chosen[p] - ref_chosen[p]) ** beta, math.exp(rejected[p] - ref_rejected[p]) ** beta
        found["loss"] += weights[p] * ((1.0 - up / (1.0 + up)) + down / (1.0 + down))
        found["margin"] += weights[p] * (math.log(up) - math.log(down))
        found["ranked"] += weights[p] if up > down else 0.0
    return found


def pair_likelihoods(logprobs: Numbers, ref_logprobs: Numbers, lengths: Numbers, weights: Numbers) -> dict[str, float]:
    found = dict.fromkeys(
        ("chosen_change", "rejected_change", "chosen_change_per_token", "chosen_logprob", "rejected_logprob"), 0.0
    )
    for p in range(len(weights)):
        for name, place in (("chosen", 2 * p), ("rejected", 2 * p + 1)):
            change = logprobs[place] - ref_logprobs[place]
            found[f"{name}_change"] += weights[p] * change
            found[f"{name}_logprob"] += weights[p] * logprobs[place] / lengths[place]
            if name == "chosen":
                found["chosen_change_per_token"] += weights[p] * change / lengths[place]
    return found


def preference_objective(
    logprobs: Sequence[tuple[Numbers, Numbers]],
    ref_logprobs: Sequence[tuple[Numbers, Numbers]],
    *,
    loss: str,
    beta: float,
    label_smoothing: float,
    length_normalised: bool,
    nll_weight: float,
) -> float:
    """What [dpo] minimises on one optimizer step of pairs, from the log-probability of every single token."""
    total = 0.0
    for pair, ref_pair in zip(logprobs, ref_logprobs, strict=True):
        rewards = []
        for response, ref_response in zip(pair, ref_pair, strict=True):
            reward = 0.0
            for now, before in zip(response, ref_response, strict=True):
                reward += beta * (now - before)
            rewards.append(reward / len(response) if length_normalised else reward)
        wins = 1.0 / (1.0 + math.exp(rewards[1] - rewards[0]))
        if loss == "apo_zero":
            term = 1.0 - 1.0 / (1.0 + math.exp(-rewards[0])) + 1.0 / (1.0 + math.exp(-rewards[1]))
        else:
            term = -(1.0 - label_smoothing) * math.log(wins) - label_smoothing * math.log(1.0 - wins)
        for now in pair[0]:
            term -= nll_weight * now / len(pair[0])
        total += term / len(logprobs)
    return total


def clipped_policy_loss(
    logprobs: Numbers,
    old_logprobs: Numbers,
    advantages: Numbers,
    weights: Numbers,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = math.inf,
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "clipped", "ratio_tail", "kl"), 0.0)
    for t in range(len(logprobs)):
        ratio, advantage = math.exp(logprobs[t]) / math.exp(old_logprobs[t]), advantages[t]
        # In words: a gain counts up to the upper bound; a loss counts at least as much as at the lower one, and at
        # most as much as at the dual one.
        if advantage > 0 and ratio > 1 + clip_high:
            term, clipped = (1 + clip_high) * advantage, True
        elif advantage < 0 and ratio < 1 - clip_low:
            term, clipped = (1 - clip_low) * advantage, True
        elif advantage < 0 and ratio > dual_clip:
            term, clipped = dual_clip * advantage, True
        else:
            term, clipped = ratio * advantage, False
        found["loss"] -= weights[t] * term
        found["clipped"] += weights[t] if clipped else 0.0
        found["ratio_tail"] += weights[t] if ratio > 2 or ratio < 0.5 else 0.0
        found["kl"] += weights[t] * (ratio - 1 - math.log(ratio))
    return found


def entropy_bonus(entropy: Numbers, weights: Numbers) -> dict[str, float]:
    total = 0.0
    for t in range(len(entropy)):
        total += weights[t] * entropy[t]
    return {"entropy_bonus": total}


def value_loss(
    values: Numbers, returns: Numbers, weights: Numbers, *, old_values: Numbers, clip: float
) -> dict[str, float]:
    total = 0.0
    for t in range(len(values)):
        bounded = min(max(values[t], old_values[t] - clip), old_values[t] + clip)
        worse = max(abs(values[t] - returns[t]), abs(bounded - returns[t]))
        total += weights[t] * worse * worse / 2
    return {"value_loss": total}
