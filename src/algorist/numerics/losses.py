"""The four stages' losses: pure functions of plain tensors, each a weighted sum.

No loss divides. `weights` carries the whole normalisation of an optimizer step (see model/batches.py), so that
cutting the step into micro-batches cannot change what is optimised. Metrics are weighted sums too: they add up.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """What a stage returns for one micro-batch: `value` carries the gradient, `metrics` are detached sums."""

    value: Tensor  # ()
    metrics: dict[str, Tensor] = field(default_factory=dict)


def cross_entropy(logprobs: Tensor, weights: Tensor) -> Loss:
    """Next-token cross-entropy as a weighted sum.

        loss = - sum_t  weights_t * logprobs_t

    Args (T tokens; float32):
        logprobs  (T,)  of the tokens under the policy
        weights   (T,)  0 where a token is not trained on; they sum to 1 over an optimizer step for a token mean

    Source: Phi-4-Mini-Reasoning, the objective of its distillation stages.

    >>> cross_entropy(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 0.5])).value
    tensor(2.)
    """
    value = -(weights * logprobs).sum()
    return Loss(value, {"loss": value.detach()})


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, weights: Tensor, *, beta: float
) -> Loss:
    """Direct preference optimisation, as a weighted sum over pairs.

        margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        loss   = - sum_p  weights_p * log sigmoid(margin_p)

    Args (P pairs; all float32, log-probabilities summed over each response):
        chosen, rejected          (P,)  under the policy in training; carry the gradient
        ref_chosen, ref_rejected  (P,)  under the frozen reference
        weights                   (P,)  1 / pairs of the optimizer step
        beta                      how strongly the policy is held to the reference

    Returns:
        Loss with metrics "loss", "margin" (mean), "ranked" (share of pairs with margin > 0), and the mean changes
        "chosen_change" and "rejected_change" of the log-probability against the reference, in nats per response.

    Source: Rafailov et al. 2023, eq. 7.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> dpo_loss(zero, zero, zero, zero, one, beta=0.1).value     # no preference yet: log 2
    tensor(0.6931)
    """
    chosen_change, rejected_change = chosen - ref_chosen, rejected - ref_rejected
    margin = beta * (chosen_change - rejected_change)
    value = -(weights * functional.logsigmoid(margin)).sum()
    metrics = {
        "loss": value,
        "margin": (weights * margin).sum(),
        "ranked": (weights * (margin > 0)).sum(),
        "chosen_change": (weights * chosen_change).sum(),
        "rejected_change": (weights * rejected_change).sum(),
    }
    return Loss(value, {name: metric.detach() for name, metric in metrics.items()})


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Loss:
    """Clipped policy-gradient surrogate of PPO and GRPO, as a weighted sum over tokens.

        ratio = exp(logprobs - old_logprobs)
        loss  = - sum_t  weights_t * min(ratio_t * A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_t)

    Args (T tokens; all float32):
        logprobs      (T,)  under the policy in training, at the sampling temperature; carries the gradient
        old_logprobs  (T,)  of the same tokens when they were sampled, at the same temperature
        advantages    (T,)  one value repeated along a response for GRPO, one per token for PPO
        weights       (T,)  0 outside responses; for GRPO 1 / (responses of the step * own length)

    Returns:
        Loss with metrics "loss", "clipped" (weighted share of tokens whose ratio is clipped) and "kl" (the k3
        estimate of KL(old || new), in nats per token).

    Source: Schulman et al. 2017, eq. 7; the length mean is GRPO's (Shao et al. 2024, eq. 3), the separate upper
    bound DAPO's (Yu et al. 2025, eq. 8).

    >>> old, new, one = torch.zeros(1), torch.full((1,), 2.0).log(), torch.ones(1)
    >>> clipped_policy_loss(new, old, one, one).value             # the ratio 2 is clipped to 1.2
    tensor(-1.2000)
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    value = -(weights * surrogate).sum()
    metrics = {
        "loss": value,
        "clipped": (weights * (bounded * advantages < ratio * advantages)).sum(),
        "kl": (weights * (ratio - 1 - log_ratio)).sum(),
    }
    return Loss(value, {name: metric.detach() for name, metric in metrics.items()})


def value_loss(values: Tensor, returns: Tensor, weights: Tensor, *, old_values: Tensor, clip: float) -> Loss:
    """Squared error of the critic with a trust region around its old estimate, as a weighted sum over tokens.

        bounded = old_values + clip(values - old_values, -clip, clip)
        loss    = 1/2 sum_t  weights_t * max((values_t - returns_t)^2, (bounded_t - returns_t)^2)

    Args (T tokens; all float32):
        values      (T,)  of the critic in training; carries the gradient
        returns     (T,)  advantage plus old value
        weights     (T,)  as in `clipped_policy_loss`
        old_values  (T,)  of the critic when the rollout was sampled
        clip        how far a value may move before its gradient stops, in units of reward

    Source: Schulman et al. 2016 (GAE) for the target; the clipping is that of the PPO reference implementation.

    >>> one = torch.ones(1)
    >>> value_loss(one, 3 * one, one, old_values=one, clip=0.5).value     # (1 - 3)^2 / 2
    tensor(2.)
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns).square(), (bounded - returns).square())
    value = 0.5 * (weights * error).sum()
    return Loss(value, {"value_loss": value.detach()})
