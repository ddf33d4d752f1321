"""Twins of numerics/rewards.py: n-grams are compared with each other one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def overlong_penalty(length: int, *, max_length: int, margin: int) -> float:
    if length <= max_length - margin:
        return 0.0
    if length <= max_length:
        return ((max_length - margin) - length) / margin
    return -1.0


def cosine_length(
    right: bool,
    length: int,
    *,
    max_length: int,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> float:
    lowest, highest = (right_long, right_short) if right else (wrong_long, wrong_short)  # "with ends swapped"
    angle = math.pi * length / max_length if length < max_length else math.pi
    return lowest + 0.5 * (highest - lowest) * (1.0 + math.cos(angle))


def counts(tokens: Sequence[int], ngram: int) -> list[tuple[tuple[int, ...], int]]:
    """Each distinct n-gram and how often it is said."""
    found: list[tuple[tuple[int, ...], int]] = []
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    for i, gram in enumerate(grams):
        if gram not in grams[:i]:
            found.append((gram, sum(other == gram for other in grams)))
    return found


def repetition_penalty(tokens: Sequence[int], *, ngram: int = 3, most: float = -1.0) -> float:
    said = counts(tokens, ngram)
    return (1.0 - len(said) / sum(count for _, count in said)) * most if said else 0.0


def standing(right: Sequence[bool], lengths: Sequence[int], i: int, epsilon: float) -> float:
    chosen = [n for r, n in zip(right, lengths, strict=True) if r]
    mean = sum(chosen) / len(chosen)
    return (lengths[i] - mean) / (math.sqrt(sum((n - mean) ** 2 for n in chosen) / len(chosen)) + epsilon)


def relative_length(
    right: Sequence[bool], lengths: Sequence[int], *, alpha: float, epsilon: float = 1e-6, wrong: float = -1.0
) -> list[float]:
    found = []
    for i, verdict in enumerate(right):
        found.append(math.exp(-alpha * standing(right, lengths, i, epsilon)) if verdict else wrong)
    return found


def length_when_easy(
    right: Sequence[bool], lengths: Sequence[int], *, alpha: float, least_accuracy: float, epsilon: float = 1e-6
) -> list[float]:
    found = []
    for i, verdict in enumerate(right):
        reward = 1.0 if verdict else 0.0
        if verdict and sum(right) / len(right) >= least_accuracy:
            grown = math.exp(standing(right, lengths, i, epsilon))
            reward -= alpha * grown / (1.0 + grown)
        found.append(reward)
    return found


def phi4_accuracy(
    right: bool,
    length: int,
    *,
    finished: bool = True,
    well_formed: bool = True,
    max_length: int = 31_744,
    right_control: int = 25_600,
    wrong_control: int = 3_702,
) -> float:
    if not finished:
        return -0.5
    if not well_formed:
        return -1.0
    if right:
        share = 0.0 if length <= right_control else min(1.0, (length - right_control) / (max_length - right_control))
        return 0.5 + 0.5 * (1.0 - 0.5) * (1.0 + math.cos(math.pi * share))
    share = min(1.0, length / wrong_control)
    return -0.5 + 0.5 * (-1.0 - -0.5) * (1.0 + math.cos(math.pi * share))


def phi4_repetition(tokens: Sequence[int], *, ngram: int = 5, often: int = 5) -> float:
    said = [count for _, count in counts(tokens, ngram)]
    frequent = [count for count in said if count > often]
    if not frequent:
        return 0.0
    return max(-1.0, -max(len(frequent) / sum(said), max(frequent) / (len(tokens) / ngram)))


def phi4_reward(
    right: bool,
    tokens: Sequence[int],
    *,
    finished: bool = True,
    well_formed: bool = True,
    max_length: int = 31_744,
    right_control: int = 25_600,
    wrong_control: int = 3_702,
) -> float:
    lengths = {"max_length": max_length, "right_control": right_control, "wrong_control": wrong_control}
    accuracy = phi4_accuracy(right, len(tokens), finished=finished, well_formed=well_formed, **lengths)
    return (8 * accuracy + phi4_repetition(tokens)) / 13
