"""What the responses of a group are worth: the paper's +1 and -1, and the shaped rewards that others put there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from algorist.numerics import rewards
from algorist.records import Rollout

# Of Phi-4-reasoning's 31,744 tokens; lengths scale with max_tokens.
_RIGHT_CONTROL, _WRONG_CONTROL = 25_600 / 31_744, 3_702 / 31_744


@dataclass(frozen=True)
class Reward:
    """What a verdict is worth, and what else counts."""

    right: float = 1.0  # of a response whose answer is right; "lead", "lambda" and "phi4" have numbers of their own
    wrong: float = -1.0  # of one whose answer is wrong, or that was cut off before it; so have "lambda" and "phi4"
    shaping: Literal["none", "cosine", "lead", "lambda", "phi4"] = "none"  # by length: numerics/rewards.py has them all
    length_weight: float = 0.1  # alpha of "lead" and "lambda"
    easy_accuracy: float = 0.75  # "lambda": groups less often right are not shaped; see max_prompt_accuracy too
    overlong: float = 0.0  # share of max_tokens at its end in which a response loses up to 1 by its length; 0: none
    repetition: float = 0.0  # the most that repeated 3-grams cost

    def __post_init__(self) -> None:
        if not -math.inf < self.wrong < self.right < math.inf:
            raise ValueError("right must be worth more than wrong, and both be finite.")
        if not 0 <= self.overlong <= 1:
            raise ValueError("overlong is a share of max_tokens, 0 to 1.")
        if not 0 <= self.easy_accuracy <= 1:
            raise ValueError("easy_accuracy is a share, 0 to 1.")
        if min(self.repetition, self.length_weight) < 0:
            raise ValueError("repetition and length_weight are costs, at least 0.")


def worth(
    group: Sequence[Rollout], right: Sequence[bool], reward: Reward, max_tokens: int, accuracy: float
) -> list[float]:
    """The reward of each response learned from; `accuracy` is that of all that were sampled of the prompt."""
    found = _by_length(group, right, reward, max_tokens, accuracy)
    if reward.overlong:
        margin = max(1, round(reward.overlong * max_tokens))
        cut = (rewards.overlong_penalty(one.num_tokens, max_length=max_tokens, margin=margin) for one in group)
        found = [value + cost for value, cost in zip(found, cut, strict=True)]
    if reward.repetition:
        said = (rewards.repetition_penalty(one.tokens or (), most=-reward.repetition) for one in group)
        found = [value + cost for value, cost in zip(found, said, strict=True)]
    return found


def _by_length(
    group: Sequence[Rollout], right: Sequence[bool], reward: Reward, max_tokens: int, accuracy: float
) -> list[float]:
    lengths = [one.num_tokens for one in group]
    match reward.shaping:
        case "cosine":
            ends = {"right_short": reward.right, "right_long": reward.right / 2}
            ends |= {"wrong_short": reward.wrong, "wrong_long": reward.wrong / 2}
            return [
                rewards.cosine_length(good, length, max_length=max_tokens, **ends)
                for good, length in zip(right, lengths, strict=True)
            ]
        case "lead":
            return rewards.relative_length(right, lengths, alpha=reward.length_weight, wrong=reward.wrong)
        case "lambda":
            how = {"alpha": reward.length_weight, "least_accuracy": reward.easy_accuracy, "accuracy": accuracy}
            return rewards.length_when_easy(right, lengths, **how)
        case "phi4":
            return [
                rewards.phi4_reward(
                    good,
                    one.tokens or (),
                    finished=one.finish == "stop",
                    well_formed=_well_formed(one.text),
                    max_length=max_tokens,
                    right_control=round(_RIGHT_CONTROL * max_tokens),
                    wrong_control=max(1, round(_WRONG_CONTROL * max_tokens)),
                )
                for good, one in zip(right, group, strict=True)
            ]
    return [reward.right if good else reward.wrong for good in right]


def _well_formed(text: str) -> bool:
    """Thinking is opened and closed once, or not at all; the prompt may have opened it."""
    opened, closed = text.count("<think>"), text.count("</think>")
    return closed <= 1 and opened <= closed
