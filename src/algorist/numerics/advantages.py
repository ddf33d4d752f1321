"""From rewards to advantages: relative to the group (GRPO), or by a critic (PPO)."""

import torch
from torch import Tensor


def group_relative(rewards: Tensor) -> Tensor:
    """GRPO's advantage: rewards of one group, centred and divided by their population deviation.

        A_i = (R_i - mean R) / std R

    Args:
        rewards  (G,) float  of the responses to one prompt

    Returns:
        (G,) advantages; all zero where every reward is the same. A balanced group of +1 and -1 gives exactly +1 and
        -1; one right answer among ten gives +3 and -1/3.

    Source: Shao et al. 2024, section 4.1.2. The population deviation makes the balanced case exact.

    >>> group_relative(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    tensor([ 1.,  1., -1., -1.])
    """
    centred = rewards - rewards.mean()
    deviation = centred.square().mean().sqrt()
    return torch.zeros_like(rewards) if deviation == 0 else centred / deviation


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation along one response that ends with its last token.

        delta_t = r_t + gamma * V_{t+1} - V_t,   V_T = 0
        A_t     = delta_t + gamma * lam * A_{t+1}

    Args:
        rewards  (T,) float  per token; a verifiable reward stands at the last one
        values   (T,) float  of the critic before each token

    Returns:
        (T,) advantages.

    Source: Schulman et al. 2016, eq. 16.

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), gamma=1.0, lam=1.0)    # return minus value
    tensor([0.5000, 0.5000])
    """
    advantages = torch.empty_like(rewards)
    following = torch.zeros((), dtype=rewards.dtype, device=rewards.device)
    next_value = following
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * next_value - values[t]
        following = delta + gamma * lam * following
        advantages[t] = following
        next_value = values[t]
    return advantages
