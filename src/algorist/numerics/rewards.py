"""What a response is worth, from facts about it: right or wrong, finished or cut, how long, how repetitive.

Plain numbers in, plain numbers out; lengths are tokens of the response, its end token included. The recipe's own reward
is +1 and -1 and nothing else. These are the shapings that others reported; each docstring says what its source gives
and what it leaves open. Shaped rewards of one group are hardly ever all the same, so that a group of right responses
teaches again, its length; `advantages.group_relative` blows small differences up to full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from algorist.numerics.repeats import times_before


def overlong_penalty(length: int, *, max_length: int, margin: int) -> float:
    """DAPO's soft punishment of overlong responses, to be added to the reward for being right.

        0                                       up to max_length - margin
        (max_length - margin - length) / margin up to max_length
        -1                                      beyond

    Args:
        max_length  the longest response allowed
        margin      how many tokens before it the penalty begins, at least 1; DAPO: 4,096 before 20,480

    Source: Yu et al. 2025 (arXiv 2503.14476), eq. 13.

    >>> [overlong_penalty(n, max_length=100, margin=20) for n in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return max(min((max_length - margin - length) / margin, 0.0), -1.0)


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
    """Short right responses are worth more than long ones; of wrong ones the long are, which tried harder.

        R = end + (start - end) / 2 * (1 + cos(pi * length / max_length))

    start is the reward of length 0 and end that of max_length, each for right and for wrong responses.

    Source: Yeo et al. 2025 (arXiv 2502.03373), appendix C.1, with the defaults of Open-R1 and of Open-RS (arXiv
    2503.16219). Open-R1 counted characters; here it is tokens. Beyond max_length the reward stays as it is there:
    that is ours, the formula would turn back.

    >>> [round(cosine_length(right, n, max_length=100), 2) for right in (True, False) for n in (0, 50, 100)]
    [1.0, 0.75, 0.5, -1.0, -0.75, -0.5]
    """
    start, end = (right_short, right_long) if right else (wrong_short, wrong_long)
    return _cosine(length / max_length, start, end)


def repetition_penalty(tokens: Sequence[int], *, ngram: int = 3, most: float = -1.0) -> float:
    """The share of n-grams that were said before, times the most that can be lost; added to the reward.

        R = most * (1 - distinct n-grams / all n-grams)

    Args:
        tokens  ids of the response
        ngram   tokens in one n-gram, at least 1
        most    the penalty that a response which says nothing new comes close to, at most 0

    Returns:
        The penalty, 0 for a response shorter than one n-gram.

    Source: Yeo et al. 2025 (arXiv 2502.03373), appendix C.2; n = 3 and -1 are Open-R1's. There n-grams are of words,
    in TRL of tokens as here.

    >>> repetition_penalty([5, 5, 5, 5, 5], ngram=2)           # 4 pairs, 1 distinct
    -0.75
    """
    times = _times(tokens, ngram)
    return most * float((times > 0).mean()) if times.any() else 0.0


def relative_length(
    right: Sequence[bool], lengths: Sequence[int], *, alpha: float, epsilon: float = 1e-6, wrong: float = -1.0
) -> list[float]:
    """GRPO-LEAD's reward: right responses of a group are measured against each other's length.

        z_i = (length_i - mean) / (deviation + epsilon),  over the right responses of the group
        R_i = exp(-alpha * z_i) where right, `wrong` elsewhere

    Args:
        right    (G,)  verdicts of the responses to one prompt
        lengths  (G,)  tokens
        alpha    how strongly length counts; 0 is not at all. The authors' value was not found: no default

    Returns:
        (G,) rewards.

    Source: Zhang and Zuo 2025 (arXiv 2504.09696), length-dependent accuracy reward and explicit penalty. Whether their
    deviation divides by n or n - 1 and their epsilon are not known; ours is the population's.

    >>> [round(r, 2) for r in relative_length([True, True, False], [10, 30, 99], alpha=0.5)]     # z is -1 and 1
    [1.65, 0.61, -1.0]
    """
    scores = _standings(right, lengths, epsilon)
    return [math.exp(-alpha * z) if r else wrong for r, z in zip(right, scores, strict=True)]


def length_when_easy(
    right: Sequence[bool],
    lengths: Sequence[int],
    *,
    alpha: float,
    least_accuracy: float,
    accuracy: float | None = None,
    epsilon: float = 1e-6,
) -> list[float]:
    """Length counts only where most of a group is right; elsewhere a right response is simply worth 1.

        z_i = (length_i - mean) / (deviation + epsilon),  over the right responses of the group
        R_i = 1 - alpha * sigmoid(z_i) where right and the group's accuracy is at least `least_accuracy`
        R_i = 1 where right in other groups,  0 where wrong

    Args:
        right           (G,)  verdicts of the responses to one prompt
        lengths         (G,)  tokens
        alpha           the most that length can cost, 0 to 1
        least_accuracy  share of right responses from which length counts
        accuracy        that share, where `right` is what balancing left of a larger group; None: of `right`

    Returns:
        (G,) rewards.

    Source: the idea is GRPO-lambda's (Dai et al. 2025, arXiv 2505.18086): a length penalty on hard prompts makes
    accuracy collapse. They switch it on for the share lambda of a batch's groups with the highest accuracy; ours is a
    threshold per group, so that no group depends on its neighbours. The penalty is that of Arora and Zanette 2025
    (arXiv 2502.04463); that GRPO-lambda takes the same was not confirmed. No numbers of theirs are used.

    >>> length_when_easy([True, True], [10, 30], alpha=0.0, least_accuracy=0.75)
    [1.0, 1.0]
    >>> [round(r, 2) for r in length_when_easy([True, True], [10, 30], alpha=0.4, least_accuracy=0.75)]
    [0.89, 0.71]
    """
    if (sum(right) / len(right) if accuracy is None else accuracy) < least_accuracy:
        return [float(r) for r in right]
    scores = _standings(right, lengths, epsilon)
    return [1.0 - alpha / (1.0 + math.exp(-z)) if r else 0.0 for r, z in zip(right, scores, strict=True)]


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
    """Phi-4-reasoning's length-aware accuracy: brief when right, longer thought when wrong.

        right:  0.5 + 0.25 * (1 + cos(pi * p)),
                p = min(1, max(0, length - right_control) / (max_length - right_control))
        wrong: -0.5 - 0.25 * (1 + cos(pi * p)),
                p = min(1, length / wrong_control)
        no end token: -0.5;   malformed thinking block: -1

    Right responses are worth 1 up to right_control tokens and fall to 0.5 at max_length; wrong ones rise from -1 to
    -0.5 at wrong_control tokens and stay there.

    Args:
        finished     the response ends with its end token
        well_formed  its thinking block is opened and closed as the format wants

    Source: Abdin et al. 2025 (arXiv 2504.21318), section 4.1; every number is theirs. It is not known which override
    wins where both hold: here the missing end token, as a response that was cut has hardly ever closed its block.

    >>> [round(phi4_accuracy(True, n), 2) for n in (100, 25_600, 28_672, 31_744)]
    [1.0, 1.0, 0.75, 0.5]
    >>> [round(phi4_accuracy(False, n), 2) for n in (0, 1851, 3702, 30_000)]
    [-1.0, -0.75, -0.5, -0.5]
    """
    if not finished:
        return -0.5
    if not well_formed:
        return -1.0
    if right:
        return _cosine(max(0, length - right_control) / (max_length - right_control), 1.0, 0.5)
    return _cosine(length / wrong_control, -1.0, -0.5)


def phi4_repetition(tokens: Sequence[int], *, ngram: int = 5, often: int = 5) -> float:
    """Phi-4-reasoning's repetition penalty, from how often its n-grams are said.

        R = -max(distinct n-grams said more than `often` times / all n-grams,
                 times that the commonest is said / (length / ngram), if it is more than `often`)

    Source: Abdin et al. 2025 (arXiv 2504.21318), section 4.1, gives a penalty from the frequencies of 5-grams. The
    formula itself was not seen: this is how a public re-implementation reads it, its threshold of 5 included, with
    tokens for words. That the penalty ends at -1 is ours: overlapping n-grams would carry it to -5.

    >>> phi4_repetition(list(range(100))), phi4_repetition([7] * 100)
    (0.0, -1.0)
    """
    times = _times(tokens, ngram)
    # The n-grams whose `often` + 1st time this is: each that is said more often has exactly one such place.
    frequent = int((times == often).sum())
    if not frequent:
        return 0.0
    return -min(1.0, max(frequent / len(times), (int(times.max()) + 1) * ngram / len(tokens)))


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
    """Phi-4-reasoning's whole reward: 8/13 of `phi4_accuracy` and 1/13 of `phi4_repetition`.

    The most that can be had is 8/13, the least -9/13; what the other weights of the thirteen went to is not reported.

    Source: Abdin et al. 2025 (arXiv 2504.21318), section 4.1.

    >>> round(phi4_reward(True, range(100)) * 13, 6), round(phi4_reward(False, [7] * 3702) * 13, 6)     # 8;  -4 - 1
    (8.0, -5.0)
    """
    accuracy = phi4_accuracy(
        right,
        len(tokens),
        finished=finished,
        well_formed=well_formed,
        max_length=max_length,
        right_control=right_control,
        wrong_control=wrong_control,
    )
    return 8 / 13 * accuracy + 1 / 13 * phi4_repetition(tokens)


def _cosine(progress: float, start: float, end: float) -> float:
    """From `start` to `end` along half a cosine, and `end` from then on."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _standings(right: Sequence[bool], lengths: Sequence[int], epsilon: float) -> list[float]:
    """(G,) how many deviations each length lies above the mean of the right ones; 0 for wrong responses."""
    chosen = np.asarray([n for r, n in zip(right, lengths, strict=True) if r] or [0], np.float64)
    mean, scale = float(chosen.mean()), float(chosen.std()) + epsilon
    return [(n - mean) / scale if r else 0.0 for r, n in zip(right, lengths, strict=True)]


def _times(tokens: Sequence[int], ngram: int) -> NDArray[np.int32]:
    """(all n-grams,) how often each was said before."""
    return times_before(np.asarray(tokens, np.uint64), ngram)[ngram - 1 :]
