"""Groups of responses to one prompt: which prompts and which responses reinforcement learning learns from.

The three functions are the paper's remedies against unstable GRPO, as far as their rules are known: prompts whose
responses have uniform length, easy prompts dropped, right and wrong responses balanced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Selection:
    """Which responses of a group are kept, and if none, why."""

    kept: tuple[int, ...]  # indices into the group, ascending
    reason: str  # "kept", "too easy", "none right", "none wrong"


def length_spread(lengths: Sequence[int]) -> float:
    """Dispersion of response lengths: their coefficient of variation (population deviation / mean).

    Returns 0 for fewer than two lengths. The paper's example of a bad prompt, responses between 12K and 20K tokens,
    has about 0.25 when the two ends are equally common.

    >>> length_spread([12_000, 20_000])
    0.25
    """
    if len(lengths) < 2:
        return 0.0
    values = np.asarray(lengths, dtype=np.float64)
    return float(values.std() / values.mean()) if values.mean() > 0 else 0.0


def idle_share(lengths: Sequence[int]) -> float:
    """Share of the slots' time that a group wastes when it is decoded side by side until its longest is done.

        1 - mean / max

    Returns 0 for no lengths.

    >>> idle_share([10, 10, 40])
    0.5
    """
    longest = max(lengths, default=0)
    return float(1 - np.mean(lengths) / longest) if longest else 0.0


def select(
    right: Sequence[bool],
    rng: np.random.Generator,
    *,
    balance: bool = True,
    max_accuracy: float = 0.5,
    keep_flat: bool = False,
) -> Selection:
    """Keep all right responses and equally many wrong ones drawn at random; drop prompts that are too easy.

    Args:
        right         (G,)  verdicts of the judged responses of one prompt
        rng           draws which of the more common kind stay
        balance       False keeps every response of a kept prompt
        max_accuracy  prompts with a larger share of right responses are dropped
        keep_flat     keep groups that are all right or all wrong too: their advantages are 0, and they count

    Returns:
        A Selection. Where the threshold is above 1/2 and right responses are the more common, they are the ones
        drawn from, so that a balanced group is always half and half.

    Source: Phi-4-Mini-Reasoning, "reward rebalancing" and "filtering of easy prompts".

    >>> select([True, False, False, False], np.random.default_rng(0)).reason
    'kept'
    """
    good = [i for i, r in enumerate(right) if r]
    bad = [i for i, r in enumerate(right) if not r]
    if not good and not (keep_flat and bad):
        return Selection((), "none right")
    if len(good) / len(right) > max_accuracy:  # 0.29 * 100 is less than 29
        return Selection((), "too easy")
    if not bad and not keep_flat:
        return Selection((), "none wrong")
    if not balance or not good or not bad:
        return Selection(tuple(range(len(right))), "kept")
    size = min(len(good), len(bad))
    drawn = [rng.choice(kind, size, replace=False) if len(kind) > size else np.asarray(kind) for kind in (good, bad)]
    return Selection(tuple(sorted(int(i) for kind in drawn for i in kind)), "kept")


def wants_more(right: Sequence[bool], *, enough_right: int, most: int) -> bool:
    """Whether a prompt should be sampled again: too few right responses so far, and not yet `most` samples.

    Source: Phi-4-Mini-Reasoning, oversampling of hard prompts; 128 is the only size it prints.

    >>> wants_more([False] * 8, enough_right=1, most=16)
    True
    """
    return sum(right) < enough_right and len(right) < most
