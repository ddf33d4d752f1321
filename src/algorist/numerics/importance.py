"""Correction for a sampler whose numbers are not the trainer's: other kernels, another precision, older weights.

Tokens were drawn with the sampler's probabilities; the loss takes them to be the trainer's. Their quotient tells how
much too often a token was drawn. As it has no bound it is truncated, or tokens where it is far from 1 are left out.

The coefficients are constants and never below 0, so that they pass through the minimum of the clipped loss: multiply
`advantages` by them, not `weights`, and the other metrics keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correction:
    """What each token is multiplied by, and how much of the step the bounds touched."""

    coefficients: Tensor  # (T,), at least 0; 1 where the weight is 0
    touched: Tensor  # (), sum of the weights of truncated or masked tokens


@torch.no_grad()
def correction(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    weights: Tensor,
    *,
    kind: Literal["truncate", "mask"] = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    bounds: Sequence[int] | None = None,
) -> Correction:
    """Importance coefficients of the trainer's old policy over the sampler, per token or per response.

        q_t = exp(old_logprobs_t - sampler_logprobs_t)
        truncate:  c_t = min(max(q_t, low), high)
        mask:      c_t = q_t where low <= q_t <= high, 0 elsewhere

    Args (T tokens):
        old_logprobs      (T,)  under the trainer's policy before the step, at the sampling temperature
        sampler_logprobs  (T,)  as the sampler gave them, at the same temperature
        weights           (T,)  as in the loss, 0 outside responses
        low, high         bounds of the quotient, at most 1 and at least 1
        bounds            where documents begin in the row, and T at the end. With them all tokens of a response
                          share one quotient, the geometric mean of theirs: a response is kept or masked whole,
                          whatever its length. A mean, not a product, so no unbiased weight of the response.

    Returns:
        A Correction. It has no gradient.

    Source: truncation is TIS, Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training", with C = 2 in wide use; masking is IcePop (Ring-1T, arXiv 2510.18855; its bounds are 0.5 and 5) and
    TRL's and verl's masked importance sampling, where [1/C, C] is common.

    >>> old, sampler = torch.tensor([0.9, 0.6, 0.1]).log(), torch.tensor([0.9, 0.2, 0.4]).log()
    >>> third = torch.full((3,), 1 / 3)
    >>> found = correction(old, sampler, third, kind="mask", low=0.5, high=2.0)     # quotients 1, 3 and 1/4
    >>> found.coefficients, found.touched
    (tensor([1., 0., 0.]), tensor(0.6667))
    """
    assert low <= 1 <= high, "equal numbers are inside of the bounds"
    spoken = weights > 0  # elsewhere the quotient is 1
    distance = torch.where(spoken, old_logprobs - sampler_logprobs, 0.0)
    if bounds is not None:
        lengths = torch.tensor(bounds, device=weights.device).diff()
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=weights.device), lengths)
        sums = torch.zeros(2, len(lengths), dtype=torch.float64, device=weights.device)
        sums.index_add_(1, owner, torch.stack([distance.double(), spoken.double()]))
        means = sums[0] / sums[1]  # 0 / 0 where nothing is trained on
        distance = torch.where(spoken, means[owner].to(distance.dtype), 0.0)
    quotient = distance.exp()
    outside = (quotient < low) | (quotient > high)
    coefficients = quotient.clamp(low, high) if kind == "truncate" else quotient.masked_fill(outside, 0.0)
    return Correction(coefficients, (weights * outside).sum())
