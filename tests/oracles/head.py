"""Twins of model/head.py: one loop over tokens and words, each term as its docstring writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def distribution(state: Sequence[float], weight: Matrix, bias: Sequence[float], temperature: float) -> list[float]:
    """log p of every word after one state."""
    logits = []
    for word, row in enumerate(weight):
        logits.append((math.fsum(a * b for a, b in zip(state, row, strict=True)) + bias[word]) / temperature)
    normaliser = math.log(math.fsum(math.exp(logit) for logit in logits))
    return [logit - normaliser for logit in logits]


def scores(
    hidden: Matrix, weight: Matrix, bias: Sequence[float], targets: Sequence[int], temperature: float
) -> tuple[list[float], list[float]]:
    """(log-probability of each target, entropy of each distribution)"""
    logprobs, entropy = [], []
    for state, target in zip(hidden, targets, strict=True):
        logp = distribution(state, weight, bias, temperature)
        logprobs.append(logp[target])
        entropy.append(-math.fsum(math.exp(one) * one for one in logp))
    return logprobs, entropy
