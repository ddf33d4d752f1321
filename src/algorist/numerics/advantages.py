"""From rewards to advantages: relative to the group (GRPO and its kin), or by a critic (PPO)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Numbers = NDArray[np.float64]


def group_relative(rewards: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """GRPO's advantage: rewards of one group, centred and divided by their population deviation.

        A_i = (R_i - mean R) / (std R + epsilon)

    Args:
        rewards  (G,) float  of the responses to one prompt
        epsilon  in units of reward. With rewards of +1 and -1 it changes little and spoils the exact case below. With
                 rewards that depend on length it keeps responses that differ by next to nothing from being told apart
                 at full strength: others take 1e-6 (verl) to 1e-4 (TRL).

    Returns:
        (G,) advantages; all zero where every reward is the same. A balanced group of +1 and -1 gives exactly +1 and
        -1; one right answer among ten gives +3 and -1/3.

    Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. The population deviation makes the balanced case exact.

    >>> group_relative(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    tensor([ 1.,  1., -1., -1.])
    """
    centre = _centred(rewards)
    deviation = centre.square().mean().sqrt()
    return (centre / (deviation + epsilon)).to(rewards.dtype) if deviation > 0 else torch.zeros_like(rewards)


def centred(rewards: Tensor) -> Tensor:
    """Dr. GRPO's advantage: rewards of one group against their mean, not divided by anything.

        A_i = R_i - mean R

    Dividing by the deviation gives very hard and very easy prompts the largest weight; this does not. Its other half,
    a loss that does not divide by a response's own length, is a matter of weights.

    Args:
        rewards  (G,) float  of the responses to one prompt

    Returns:
        (G,) advantages, in units of reward.

    Source: Liu et al. 2025 (arXiv 2503.20783), section 3.2.

    >>> centred(torch.tensor([1.0, -1.0, -1.0, -1.0]))
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    """
    return _centred(rewards).to(rewards.dtype)


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO's advantage: each reward against the mean of the others, a baseline that does not depend on it.

        A_i = R_i - 1/(G-1) sum_{j != i} R_j  =  G/(G-1) * (R_i - mean R)

    It is `centred`, larger by G / (G - 1): the gradient of the expected reward without bias.

    Args:
        rewards  (G,) float  of the responses to one prompt

    Returns:
        (G,) advantages, in units of reward; zero for a group of one, which has no others.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024
    (arXiv 2402.14740), the RLOO estimator.

    >>> leave_one_out(torch.tensor([1.0, -1.0, -1.0]))       # 1 - (-1);  -1 - 0
    tensor([ 2., -1., -1.])
    """
    size = len(rewards)
    return (_centred(rewards) * (size / (size - 1))).to(rewards.dtype) if size > 1 else torch.zeros_like(rewards)


def difficulty_weighted(
    advantages: Tensor,
    accuracy: float,
    *,
    least: float = 0.4,
    most: float = 1.5,
    middle: float = 0.75,
    slope: float = 10.0,
) -> Tensor:
    """GRPO-LEAD's advantage: what is right counts more on hard prompts, what is wrong counts more on easy ones.

        w(a) = least + (most - least) / (1 + exp(slope * (a - middle)))
        A'   = A * w(accuracy) where A > 0,  A * w(1 - accuracy) elsewhere

    Args:
        advantages  (G,) float  of one group, from any of the functions above
        accuracy    share of the group's responses that are right, before any were left out
        least, most       weights of an easy and of a hard prompt's right responses
        middle, slope     the accuracy at which the weight is half way, and how fast it falls there

    Returns:
        (G,) advantages; their sum need not be zero any more.

    Source: Zhang and Zuo 2025 (arXiv 2504.09696), difficulty-aware advantage reweighting; the defaults are theirs.

    >>> difficulty_weighted(torch.tensor([1.0, -1.0]), 0.75)     # w(0.75) = (0.4 + 1.5) / 2;  w(0.25) = 1.49
    tensor([ 0.9500, -1.4926])
    """

    def weight(share: float) -> float:
        return least + (most - least) / (1.0 + math.exp(slope * (share - middle)))

    return torch.where(advantages > 0, advantages * weight(accuracy), advantages * weight(1.0 - accuracy))


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float, bounds: Sequence[int] | None = None) -> Tensor:
    """Generalised advantage estimation along responses that end with their last token.

        delta_t = r_t + gamma * V_{t+1} - V_t,   V_T = 0
        A_t     = delta_t + gamma * lam * A_{t+1}

    Args:
        rewards  (T,) float  per token; a verifiable reward stands at the last one
        values   (T,) float  of the critic before each token
        gamma    discount per token
        lam      1 is the plain return less the value, 0 one-step bootstrapping
        bounds   where documents begin in the row, and T at the end; none for one response. Advantages flow from the
                 end of a document to its beginning only: what stands before a response in its document, a prompt,
                 changes nothing in it and gets numbers without meaning.

    Returns:
        (T,) advantages: constants, computed in double precision on the CPU, on the rewards' device and in their type.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16.

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), gamma=1.0, lam=1.0)    # return minus value
    tensor([0.5000, 0.5000])
    >>> gae(torch.tensor([1.0, 0.0, -1.0]), torch.zeros(3), gamma=1.0, lam=1.0, bounds=(0, 1, 3))
    tensor([ 1., -1., -1.])
    """
    ends = np.asarray((0, len(rewards)) if bounds is None else bounds, np.int64)
    assert ends[0] == 0 and ends[-1] == len(rewards) == len(values), "bounds cover the row"
    found = _gae(_double(rewards), _double(values), ends, gamma, gamma * lam)
    return torch.from_numpy(found).to(rewards.device, rewards.dtype)


def whitened(advantages: Tensor, weights: Tensor) -> Tensor:
    """Advantages of a whole optimizer step with mean 0 and deviation 1, as each token counts in the loss.

        mean = sum_t w_t A_t / sum_t w_t
        A'_t = (A_t - mean) / sqrt(sum_t w_t (A_t - mean)^2 / sum_t w_t)

    An option of PPO. It has to see all tokens of the step at once: per micro-batch it would change what is optimised.

    Args:
        advantages  (T,) float  per token
        weights     (T,) float  as in the loss, 0 outside responses

    Returns:
        (T,) advantages, 0 where the weight is; all zero where they are all the same.

    Source: the PPO reference implementation; Huang et al. 2022, "The 37 implementation details of PPO", detail 7
    (there per mini-batch and without weights).

    >>> whitened(torch.tensor([3.0, 1.0, 9.0]), torch.tensor([0.5, 0.5, 0.0]))
    tensor([ 1., -1.,  0.])
    """
    shares = weights.double() / weights.double().sum()
    centre = (advantages.double() - (shares * advantages.double()).sum()) * (weights > 0)
    deviation = (shares * centre.square()).sum().sqrt()
    # Rounding of the mean leaves a deviation of some 1e-16 in what has none.
    least = 1e-12 * advantages.double().abs().amax() if len(advantages) else 0.0
    return (centre / deviation).to(advantages.dtype) if deviation > least else torch.zeros_like(advantages)


def _centred(rewards: Tensor) -> Tensor:
    """(G,) float64, rewards less their mean; exactly zero where all are the same, whose mean may be rounded."""
    wide = rewards.double()
    return wide - wide.mean() if (rewards != rewards[:1]).any() else torch.zeros_like(wide)


def _double(values: Tensor) -> _Numbers:
    found: _Numbers = values.detach().to("cpu", torch.float64).numpy()
    return found


@numba.njit(cache=True)
def _gae(rewards: _Numbers, values: _Numbers, bounds: NDArray[np.int64], gamma: float, decay: float) -> _Numbers:
    advantages = np.empty(len(rewards), np.float64)
    for document in range(len(bounds) - 1):
        following, next_value = 0.0, 0.0
        for t in range(bounds[document + 1] - 1, bounds[document] - 1, -1):
            following = rewards[t] + gamma * next_value - values[t] + decay * following
            advantages[t] = following
            next_value = values[t]
    return advantages
