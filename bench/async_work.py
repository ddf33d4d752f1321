"""What a schedule of RL is run on: lengths, rates of the machine, when sampler and trainer may run (async_run.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from algorist.numerics.address import rng

INFINITE = math.inf


@dataclass(frozen=True)
class Work:
    """What a version of the weights is made of: groups of responses, lengths lognormal and cut at the longest."""

    groups: int
    group: int
    mean: float  # tokens, of the cut lengths
    median: float
    longest: int
    prompt: int = 200

    @property
    def tokens(self) -> float:
        """Expected response tokens of a version."""
        return self.groups * self.group * self.mean

    def lengths(self, seed: int, group: int) -> np.ndarray:
        """(group,) int64 lengths, a function of the group's number alone: every schedule meets the same responses."""
        return drawn(self, seed, group)


@lru_cache(maxsize=20_000)
def normals(count: int, seed: int, group: int) -> np.ndarray:
    """(count,) standard normal numbers of a group."""
    return rng(seed, "async_sim", "lengths", group).standard_normal(count)


@lru_cache(maxsize=20_000)
def drawn(work: Work, seed: int, group: int) -> np.ndarray:
    """See Work.lengths."""
    sigma = spread(work.median, work.mean, work.longest)
    lengths = work.median * np.exp(sigma * normals(work.group, seed, group))
    return np.clip(np.rint(lengths), 1, work.longest).astype(np.int64)


@dataclass(frozen=True)
class Rates:
    """Seconds of the machine."""

    fixed: float  # seconds of a decode step: weights, launches
    kv: float  # more seconds of a step per token of context on the engine
    train: float  # GPU-seconds per trained token
    serial: float = 0.0  # seconds of training a version, however many GPUs
    hand_over: float = 0.0  # seconds in which neither side works, once a version
    prefill: float = 0.0  # seconds of an engine per token said before an interruption: its cache is made again
    slots: int = 256  # responses an engine decodes at once
    gpus: int = 1  # GPUs of an engine


@dataclass(frozen=True)
class Schedule:
    """When sampler and trainer may run. `sampler` and `trainer` GPUs are the same ones if it is colocated."""

    name: str
    colocated: bool = False
    ahead: float = 0.0  # versions' worth of groups that may be begun ahead of the trainer
    parts: int = 1  # lots that the trainer takes a version in
    whole: bool = False  # a batch begins when the one before has ended (one-step-off)
    cut: str = "drain"  # at a hand-over: "drain" (wait for what runs), "carry" (interrupt, go on), "discard"
    queue: float = INFINITE  # groups between sampler and trainer


SYNC = Schedule("sync", colocated=True, cut="carry")
OVER_CUT = Schedule("over-issue, cut", colocated=True, ahead=0.5, cut="discard")
OVER_CARRY = Schedule("over-issue, carried", colocated=True, ahead=1.0, cut="carry")
ONE_OFF = Schedule("one-step-off", ahead=1.0, whole=True)
STREAM = Schedule("streaming", parts=4)
STALE = Schedule("streaming, stale", ahead=0.5, parts=4)
PARTIAL = Schedule("streaming, stale, partial", ahead=0.5, parts=4, cut="carry")
SCHEDULES = (SYNC, OVER_CUT, OVER_CARRY, ONE_OFF, STREAM, STALE, PARTIAL)


@dataclass(frozen=True)
class Outcome:
    """Seconds a version, where the tokens went, and who waited."""

    seconds: float
    generated: float
    trained: float
    wasted: float
    held: float
    sampler_idle: float  # share of the engines' time without anything to decode
    trainer_idle: float
    oldest: int  # versions between the weights a group was begun with and those it was trained on
    most: int  # most groups begun and not yet trained


@cache
def spread(median: float, mean: float, longest: float) -> float:
    """Sigma of the lognormal with this median whose mean, cut at `longest`, is `mean`. ValueError if there is none."""
    if mean == median:
        return 0.0
    low, high = 1e-3, 8.0
    if not median < mean < cut_mean(median, high, longest):
        raise ValueError(f"no lognormal cut at {longest:g} has median {median:g} and mean {mean:g}")
    for _ in range(60):
        sigma = (low + high) / 2
        low, high = (sigma, high) if cut_mean(median, sigma, longest) < mean else (low, sigma)
    return low


def cut_mean(median: float, sigma: float, longest: float) -> float:
    """Mean of min(X, longest), X lognormal."""
    below = (math.log(longest / median)) / sigma
    inside = median * math.exp(sigma * sigma / 2) * 0.5 * math.erfc((sigma - below) / math.sqrt(2))
    return inside + longest * 0.5 * math.erfc(below / math.sqrt(2))
