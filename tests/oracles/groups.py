"""Twins of numerics/groups.py. Where a function draws, its twin lists everything that may be drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def length_spread(lengths: Sequence[int]) -> float:
    if len(lengths) < 2 or sum(lengths) == 0:
        return 0.0
    mean = sum(lengths) / len(lengths)
    return math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths)) / mean


def idle_share(lengths: Sequence[int]) -> float:
    longest = 0
    for length in lengths:
        longest = length if length > longest else longest
    wasted = sum(longest - length for length in lengths)
    return wasted / (longest * len(lengths)) if longest else 0.0


def select(
    right: Sequence[bool], *, balance: bool, max_accuracy: float, keep_flat: bool = False
) -> tuple[str, set[tuple[int, ...]]]:
    """(reason, every set of indices that may be kept)."""
    count, num_right = len(right), sum(right)
    if count == 0 or (num_right == 0 and not keep_flat):
        return "none right", {()}
    if num_right / count > max_accuracy:
        return "too easy", {()}
    if num_right == count and not keep_flat:
        return "none wrong", {()}
    if num_right in (0, count):
        return "kept", {tuple(range(count))}
    allowed = set()
    for size in range(1, count + 1):
        for kept in itertools.combinations(range(count), size):
            good = sum(right[i] for i in kept)
            fits = good == size - good == min(num_right, count - num_right) if balance else size == count
            if fits:
                allowed.add(kept)
    return "kept", allowed


def wants_more(right: Sequence[bool], *, enough_right: int, most: int) -> bool:
    if len(right) >= most:
        return False
    found = 0
    for one in right:
        found += 1 if one else 0
    return found < enough_right
