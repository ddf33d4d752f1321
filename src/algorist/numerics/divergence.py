"""How far the policy is from a reference, from the tokens that were sampled: KL(policy || reference).

Whether an estimator has the right value and whether it has the right gradient are two questions. With
d = log policy(token) - log reference(token) and tokens drawn from the policy as it is now ("on policy"), the
expectations over the tokens of one place are

            k = value    its mean value    gradient of k in the loss     gradient of ratio * k in the loss
    "k1"    d            KL                zero: noise and no force      that of KL
    "k2"    d^2 / 2      about KL          that of KL                    that of E[d^2 / 2]
    "k3"    e^-d - 1 + d KL, never below 0 that of KL(reference||policy) that of KL

where ratio = policy / policy that sampled: 1 on policy, but with a gradient. With the ratio, value and gradient of k1
and k3 stay right when the policy has moved on since. So "k2" plain, or "k3" with the ratio; "k3" plain, which GRPO
uses, holds the policy near the reference by another divergence, and its gradient grows without bound where the policy
has left a token that the reference likes.

A penalty per token ignores that a token changes what comes after it. To count that too, take the estimate away from
the reward of each token (PPO's way, "k1" detached: `rewards - beta * kl_estimate(...)` before `gae`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from algorist.numerics.losses import Loss

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: Estimator) -> Tensor:
    """KL(policy || reference) at each sampled token; the table above says which to take.

        d = logprobs - ref_logprobs
        k1 = d,    k2 = d^2 / 2,    k3 = exp(-d) - 1 + d

    Args (T tokens):
        logprobs      (T,)  under the policy; carries the gradient
        ref_logprobs  (T,)  of the same tokens under the reference, at the same temperature

    Returns:
        (T,) estimates, nats.

    Source: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html). Gradients: Liu et al. 2025
    (arXiv 2510.01555), Tang and Munos 2025 (arXiv 2506.09477).

    >>> policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> [round(float(kl_estimate(policy, reference, estimator=k)), 3) for k in ("k1", "k2", "k3")]   # d = log 2 = 0.693
    [0.693, 0.24, 0.193]
    """
    distance = logprobs - ref_logprobs
    if estimator == "k1":
        return distance
    # expm1: near the reference both terms of k3 are far larger than their difference.
    return distance.square() / 2 if estimator == "k2" else torch.expm1(-distance) + distance


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    weights: Tensor,
    *,
    estimator: Estimator = "k2",
    old_logprobs: Tensor | None = None,
) -> Loss:
    """The estimate as a term of the loss, a weighted sum over tokens; the caller multiplies it by beta.

        value = sum_t  weights_t * ratio_t * k_t,    ratio_t = exp(logprobs_t - old_logprobs_t), or 1

    Args (T tokens; all float32):
        logprobs      (T,)  under the policy in training; carries the gradient
        ref_logprobs  (T,)  of the same tokens under the frozen reference, at the same temperature
        weights       (T,)  as in the policy loss
        old_logprobs  (T,)  under the policy that sampled; without them no ratio is taken

    Returns:
        Loss with metric "kl_reference": the weighted sum of ratio * k3 whatever the estimator, nats per token.

    Source: the term is that of Shao et al. 2024, eq. 3; the ratio that of DeepSeek-V3.2 (arXiv 2512.02556), sect. 3.1.

    >>> policy, reference, one = torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.ones(1)
    >>> kl_penalty(policy, reference, one, estimator="k2").value          # (log 2)^2 / 2
    tensor(0.2402)
    """
    ratio = torch.ones_like(logprobs) if old_logprobs is None else (logprobs - old_logprobs).exp()
    value = (weights * ratio * kl_estimate(logprobs, ref_logprobs, estimator=estimator)).sum()
    with torch.no_grad():
        seen = (weights * ratio * kl_estimate(logprobs, ref_logprobs, estimator="k3")).sum()
    return Loss(value, {"kl_reference": seen})
