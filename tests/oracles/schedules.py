"""Twins of numerics/schedules.py: walked step by step from the first."""

from __future__ import annotations

import math


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: float, end: float) -> float:
    rising = math.ceil(warmup * num_steps)
    rate = 0.0
    for now in range(step + 1):
        if now < rising:
            rate += peak / rising
        else:
            # cos^2 of half the angle is (1 + cos) / 2.
            fallen = math.cos(math.pi / 2 * (now - rising) / (num_steps - rising)) ** 2
            rate = peak * end + peak * (1 - end) * fallen
    return rate


def temperature(step: int, num_steps: int, *, start: float, end: float, over: float) -> float:
    if over == 0:
        return end
    now = start
    for before in range(step):
        # The last move may be a part of one: annealing can end between two steps.
        share = max(0.0, min(1.0, over * num_steps - before))
        now += share * (end - start) / (over * num_steps)
    return now
