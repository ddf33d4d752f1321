"""The four stages' losses: pure functions of plain tensors, each a weighted sum.

No loss divides. `weights` carries the whole normalisation of an optimizer step (see model/batches.py), so that
cutting the step into micro-batches cannot change what is optimised. Metrics are weighted sums too: they add up.
"""

import math
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
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    weights: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Loss:
    """Direct preference optimisation, as a weighted sum over pairs.

        margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        loss   = - sum_p  weights_p * ((1 - s) * log sigmoid(margin_p) + s * log sigmoid(-margin_p))

    Args (P pairs; all float32): log-probabilities summed over each response, or their means per token for the
    length-normalised loss, in which a long response counts no more than a short one and beta is per token.
        chosen, rejected          (P,)  under the policy in training; carry the gradient
        ref_chosen, ref_rejected  (P,)  under the frozen reference
        weights                   (P,)  1 / pairs of the optimizer step
        beta                      how strongly the policy is held to the reference
        label_smoothing           s, the share of pairs whose order is taken to be wrong; below 0.5

    Returns:
        Loss with metrics "loss", "margin" (mean) and "ranked" (share of pairs with margin > 0).

    Source: Rafailov et al. 2023, eq. 7; label smoothing is Mitchell's conservative DPO (2023, "A note on DPO with
    noisy preferences", eq. 3), the length mean that of Tulu 3 (Lambert et al. 2024, arXiv 2411.15124, section 5).

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> dpo_loss(zero, zero, zero, zero, one, beta=0.1).value     # no preference yet: log 2
    tensor(0.6931)
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    likelihood = functional.logsigmoid(margin)
    if label_smoothing:
        likelihood = (1 - label_smoothing) * likelihood + label_smoothing * functional.logsigmoid(-margin)
    return _preference(-(weights * likelihood).sum(), margin, weights)


def apo_zero_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, weights: Tensor, *, beta: float
) -> Loss:
    """Anchored preference optimisation, the variant for chosen responses better than the policy's own.

        chosen_reward, rejected_reward = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
        loss = sum_p  weights_p * (sigmoid(-chosen_reward_p) + sigmoid(rejected_reward_p))

    Chosen responses are pushed up and rejected ones down, each against the reference and not against the other, so
    that a margin made of two falls gains nothing. Arguments and metrics are those of `dpo_loss`.

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, section 4, plus 1: a pair's loss is 0 to 2.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> apo_zero_loss(zero, zero, zero, zero, one, beta=0.1).value     # no preference yet: 1/2 for each response
    tensor(1.)
    """
    chosen_reward, rejected_reward = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    value = (weights * (torch.sigmoid(-chosen_reward) + torch.sigmoid(rejected_reward))).sum()
    return _preference(value, chosen_reward - rejected_reward, weights)


def _preference(value: Tensor, margin: Tensor, weights: Tensor) -> Loss:
    metrics = {"loss": value, "margin": (weights * margin).sum(), "ranked": (weights * (margin > 0)).sum()}
    return Loss(value, {name: metric.detach() for name, metric in metrics.items()})


def pair_likelihoods(logprobs: Tensor, ref_logprobs: Tensor, lengths: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """How likely the two responses of a pair are, each for itself: metrics, weighted sums over pairs.

    A preference loss sees differences only. Whether the chosen responses rose, or only fell less than the rejected
    ones, is told by these.

    Args (P pairs; responses 2p are chosen, 2p + 1 rejected; float32):
        logprobs      (2P,)  summed over each response, under the policy
        ref_logprobs  (2P,)  the same under the frozen reference
        lengths       (2P,)  of the responses, in tokens
        weights       (P,)   1 / pairs of the optimizer step

    Returns, detached, means over pairs:
        "chosen_change", "rejected_change"    against the reference, nats per response
        "chosen_change_per_token"             the same, each response over its own length, nats per token
        "chosen_logprob", "rejected_logprob"  under the policy, each response over its own length, nats per token

    Source: likelihood displacement is described by Pal et al. 2024 (arXiv 2402.13228) and Razin et al. 2024
    (arXiv 2410.08847).

    >>> now, before, four = torch.tensor([-6.0, -9.0]), torch.tensor([-4.0, -5.0]), torch.full((2,), 4.0)
    >>> found = pair_likelihoods(now, before, four, torch.ones(1))
    >>> float(found["chosen_change"]), float(found["chosen_change_per_token"])     # -6 + 4, over 4 tokens
    (-2.0, -0.5)
    """
    changes, means = logprobs - ref_logprobs, logprobs / lengths
    found = {
        "chosen_change": changes[0::2],
        "rejected_change": changes[1::2],
        "chosen_change_per_token": (changes / lengths)[0::2],
        "chosen_logprob": means[0::2],
        "rejected_logprob": means[1::2],
    }
    return {name: (weights * values).sum().detach() for name, values in found.items()}


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = math.inf,
) -> Loss:
    """Clipped policy-gradient surrogate of PPO and GRPO, as a weighted sum over tokens.

        ratio = exp(logprobs - old_logprobs)
        gain  = min(ratio_t * A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_t)
        loss  = - sum_t  weights_t * (gain_t where A_t >= 0, max(gain_t, dual_clip * A_t) elsewhere)

    The weights say whose mean it is (sum over the tokens of responses i of a step): GRPO 1 / (responses * |o_i|),
    DAPO 1 / (all tokens), Dr. GRPO 1 / (responses * max_tokens).

    Args (T tokens; all float32):
        logprobs      (T,)  under the policy in training, at the sampling temperature; carries the gradient
        old_logprobs  (T,)  of the same tokens when they were sampled, at the same temperature. Strictly on policy
                            logprobs.detach() will do: the gradient is then that of -sum weights * A * logprobs
        advantages    (T,)  one value repeated along a response for GRPO, one per token for PPO
        weights       (T,)  0 outside responses
        dual_clip     the ratio beyond which a token with negative advantage gives no gradient, above 1; 3 in its source

    Returns:
        Loss with metrics "loss", "clipped" (weighted share of tokens whose ratio is clipped, on either side),
        "ratio_tail" (weighted share of tokens whose ratio has left [1/2, 2]) and "kl" (the k3 estimate of
        KL(old || new), in nats per token).

    Source: Schulman et al. 2017, eq. 7; the length mean is GRPO's (Shao et al. 2024, eq. 3), the separate upper bound
    and the token mean DAPO's (Yu et al. 2025, eq. 8), the constant length Dr. GRPO's (Liu et al. 2025, arXiv
    2503.20783), the dual clip that of Ye et al. 2020 (arXiv 1912.09729, eq. 5).

    >>> old, new, one = torch.zeros(1), torch.full((1,), 2.0).log(), torch.ones(1)
    >>> clipped_policy_loss(new, old, one, one).value             # the ratio 2 is clipped to 1.2
    tensor(-1.2000)
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    clipped = bounded * advantages < ratio * advantages
    if dual_clip < math.inf:
        clipped = clipped | ((advantages < 0) & (ratio > dual_clip))
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    value = -(weights * surrogate).sum()
    metrics = {
        "loss": value,
        "clipped": (weights * clipped).sum(),
        "ratio_tail": (weights * (log_ratio.abs() > math.log(2))).sum(),
        "kl": (weights * (ratio - 1 - log_ratio)).sum(),
    }
    return Loss(value, {name: metric.detach() for name, metric in metrics.items()})


def entropy_bonus(entropy: Tensor, weights: Tensor) -> Loss:
    """Entropy as a term of the loss, a weighted sum over tokens; the caller multiplies it by the coefficient.

        value = - sum_t  weights_t * entropy_t

    Adding it to a loss keeps the policy from growing sure of itself: the value falls as entropy rises.

    Args (T tokens; float32):
        entropy  (T,)  of what each token was drawn from, under the policy in training, nats; carries the gradient
        weights  (T,)  as in `clipped_policy_loss`

    Returns:
        Loss with metric "entropy_bonus": the weighted sum of entropy, nats per token.

    Source: Williams and Peng 1991; Schulman et al. 2017, eq. 9. The gradient is that of the entropy at the tokens'
    places, not of their being reached.

    >>> entropy_bonus(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5])).value
    tensor(-2.)
    """
    total = (weights * entropy).sum()
    return Loss(-total, {"entropy_bonus": total.detach()})


def value_loss(values: Tensor, returns: Tensor, weights: Tensor, *, old_values: Tensor, clip: float) -> Loss:
    """Squared error of the critic with a trust region around its old estimate, as a weighted sum over tokens.

        bounded = old_values + clip(values - old_values, -clip, clip)
        loss    = 1/2 sum_t  weights_t * max((values_t - returns_t)^2, (bounded_t - returns_t)^2)

    Args (T tokens; all float32):
        values      (T,)  of the critic in training; carries the gradient
        returns     (T,)  advantage plus old value
        weights     (T,)  as in `clipped_policy_loss`
        old_values  (T,)  of the critic when the rollout was sampled
        clip        how far a value may move before its gradient stops, in units of reward; math.inf for no bound

    Source: Schulman et al. 2016 (GAE) for the target; the clipping is that of the PPO reference implementation.

    >>> one = torch.ones(1)
    >>> value_loss(one, 3 * one, one, old_values=one, clip=0.5).value     # (1 - 3)^2 / 2
    tensor(2.)
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns).square(), (bounded - returns).square())
    value = 0.5 * (weights * error).sum()
    return Loss(value, {"value_loss": value.detach()})
