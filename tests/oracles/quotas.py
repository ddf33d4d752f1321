"""Twins of numerics/quotas.py, in exact fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def water_fill(supply: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    shares = [Fraction(weight) for weight in weights]
    stock = [count if share > 0 else 0 for count, share in zip(supply, shares, strict=True)]
    if total >= sum(stock):
        return stock
    # The level is found by trying every set of kinds that run dry: those below it, for some height.
    heights = sorted({Fraction(count) / share for count, share in zip(stock, shares, strict=True) if share > 0})
    for height in [*heights, None]:
        dry = [k for k, share in enumerate(shares) if share > 0 and (height is None or stock[k] / share < height)]
        wet = [k for k, share in enumerate(shares) if share > 0 and k not in dry]
        room = sum((shares[k] for k in wet), Fraction(0))
        if not room:
            continue
        level = (total - sum(stock[k] for k in dry)) / room
        if all(stock[k] <= level * shares[k] for k in dry) and all(stock[k] >= level * shares[k] for k in wet):
            break
    exact = [Fraction(0)] * len(stock)
    for k in dry:
        exact[k] = Fraction(stock[k])
    for k in wet:
        exact[k] = level * shares[k]
    quotas = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(stock)), key=lambda k: (-(exact[k] - quotas[k]), k))
    for k in by_remainder[: total - sum(quotas)]:
        quotas[k] += 1
    return quotas


def draw_keys(uniforms: Sequence[float], weights: Sequence[float]) -> list[float]:
    return [math.log(u ** (1 / weight)) for u, weight in zip(uniforms, weights, strict=True)]
