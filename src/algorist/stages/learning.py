"""From a generation to optimizer steps: rewards, advantages, and micro-batches with what the loss compares itself to.

Where the policy that learns is the very one that sampled, its old log-probabilities are those of the loss itself: no
pass is spent on them. Otherwise (several optimizer steps on a generation, PPO's critic, a reference) one pass without
gradients is made before the first step. Tokens that an earlier policy said, in rollouts that were carried over, keep
the log-probabilities and temperatures that they were sampled at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from algorist.errors import RunError
from algorist.model.batches import Batch, Document, GroupBatch, cut, lay_out
from algorist.model.policy import Policy
from algorist.numerics import advantages
from algorist.records import Rollout
from algorist.stage import Run, Step
from algorist.stages.groups import Generation, Group
from algorist.stages.shaping import Reward, worth

_PROBED = 8  # responses on which trainer and sampler are compared before every generation is learned from
_EPSILON = 1e-4  # of reward: shaped rewards that differ by less are hardly told apart
_FAR = 0.05  # nats between them that a token is counted from


@dataclass(frozen=True)
class Objective:
    """What is optimised on the selected responses."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "lead"] = "grpo"  # relative to the group; PPO has its critic instead
    average: Literal["response", "token", "horizon"] = "response"  # what counts alike in the loss: docs/stages/4.md
    clip_low: float = 0.2  # how far below 1 a ratio may fall before its gradient stops
    clip_high: float = 0.2  # how far above 1 it may rise
    dual_clip: float = 0.0  # largest ratio that a wrong response is pushed down with (arXiv 1912.09729); 0: none
    kl: float = 0.0  # weight of KL(policy || first policy)
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"  # which is right in what: numerics/divergence.py
    kl_ratio: bool = True  # k1 and k3 times the ratio to the policy that sampled, which makes their gradients right
    entropy: float = 0.0  # weight of the policy's entropy, which the loss raises
    correction: Literal["none", "truncate", "mask"] = "none"  # of tokens that trainer and sampler disagree on
    correction_low: float = 0.5  # trainer / sampler below which "mask" leaves a token out
    correction_high: float = 2.0  # and above which a token is left out, or counts no more than so often
    correction_per: Literal["token", "response"] = "token"  # the quotient of each, or one mean of all in a response
    keep_flat: bool = False  # groups that are all right or all wrong: they teach nothing, and count in the average

    def __post_init__(self) -> None:
        if min(self.clip_low, self.clip_high) <= 0:
            raise ValueError("clip_low and clip_high must be above 0: nothing would be learned.")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError("dual_clip must be above 1, or 0 for none.")
        if min(self.kl, self.entropy) < 0:
            raise ValueError("kl and entropy are weights, at least 0.")
        if not 0 <= self.correction_low < 1 < self.correction_high:
            raise ValueError("correction_low must lie in [0, 1) and correction_high above 1.")


def optimizer_steps(
    run: Run,
    policy: Policy,
    reference: Policy | None,
    found: Generation,
    generation: int,
    facts: dict[str, float],
) -> Iterator[Step]:
    """The generation cut into `updates` optimizer steps; all see the same old policy.

    Raises RunError where trainer and sampler disagree by more than `health.max_logprob_gap`.
    """
    updates, kept = run.settings.updates, found.kept
    gap = _gap(run, policy, found)
    limit = run.settings.health.max_logprob_gap
    if gap.get("logprob_gap", 0.0) > limit:
        raise RunError(
            f"{run.folder}: trainer and sampler disagree by {gap['logprob_gap']:.3f} nats per token, at most "
            f'{limit} was expected. Use precision = "float32", or raise health.max_logprob_gap.'
        )
    laid_out = [_lay_out(run, policy, reference, kept[part::updates], generation) for part in range(updates)]
    for part, batches in enumerate(laid_out):
        tokens = sum(len(batch.rows.tokens) for batch in batches)
        yield Step(
            tuple(batches),
            {"tokens": tokens, "temperature": facts["temperature"], **(facts | gap if part == 0 else {})},
            may_stop=part == updates - 1,
        )


@torch.no_grad()
def _lay_out(
    run: Run, policy: Policy, reference: Policy | None, kept: Sequence[Group], generation: int
) -> list[GroupBatch]:
    """The micro-batches of one optimizer step."""
    chosen = [pair for group in kept for pair in _rewarded(run, group)]
    prompts = {group.problem.id: run.chat.prompt_ids(group.problem.statement) for group in kept}
    documents = _documents(run, [rollout for rollout, _ in chosen], prompts)
    batches = []
    for part in cut(documents, run.training.tokens_per_batch):
        rows = lay_out([documents[i] for i in part]).to(policy.device)
        batches.append(_batch(run, policy, reference, rows, [chosen[i] for i in part], generation))
    critic = run.settings.critic
    if policy.critic is not None and critic.whiten and batches:
        weights = torch.cat([batch.rows.weights for batch in batches])
        found = advantages.whitened(torch.cat([batch.advantages for batch in batches]), weights)
        parts = torch.split(found, [len(batch.rows.tokens) for batch in batches])
        batches = [replace(batch, advantages=one) for batch, one in zip(batches, parts, strict=True)]
    if policy.critic is not None and generation < critic.warmup:
        batches = [replace(batch, critic_alone=True) for batch in batches]
    return batches


def _batch(
    run: Run,
    policy: Policy,
    reference: Policy | None,
    rows: Batch,
    chosen: Sequence[tuple[Rollout, float]],
    generation: int,
) -> GroupBatch:
    settings = run.settings
    spoken = rows.weights > 0
    sampled, temperature, versions = _said(rows, [rollout for rollout, _ in chosen])
    # With a correction the ratio is that to the policy before the step, and the sampler's part is in the coefficients.
    fresh = spoken & ((versions == generation * settings.updates) | (settings.objective.correction != "none"))
    old, values = sampled, torch.zeros_like(sampled)
    if settings.updates > 1:
        old = torch.where(fresh, policy.logprobs(rows, temperature=temperature), sampled)
        fresh = torch.zeros_like(fresh)
    if policy.critic is not None:
        values = policy.values(rows) * spoken
    ref = torch.zeros_like(sampled) if reference is None else reference.logprobs(rows, temperature=temperature)
    found = _per_token(run, [value for _, value in chosen], rows, values, spoken)
    returns = (found + values) * spoken
    return GroupBatch(rows, old, sampled, fresh, found, returns, values, ref, temperature)


def _rewarded(run: Run, group: Group) -> list[tuple[Rollout, float]]:
    """The responses learned from, with GRPO's advantage relative to each other, or for PPO the bare reward."""
    settings = run.settings
    rollouts, right = [group.rollouts[i] for i in group.selection.kept], [group.right[i] for i in group.selection.kept]
    accuracy = sum(group.right) / len(group.right)
    values = torch.tensor(worth(rollouts, right, settings.reward, settings.max_tokens, accuracy))
    plain = settings.reward == Reward(settings.reward.right, settings.reward.wrong)
    epsilon = 0.0 if plain else _EPSILON  # with +1 and -1 alone, advantages are exact
    if settings.algorithm == "grpo":
        match settings.objective.advantage:
            case "dr_grpo":
                values = advantages.centred(values)
            case "rloo":
                values = advantages.leave_one_out(values)
            case "lead":
                values = advantages.difficulty_weighted(advantages.group_relative(values, epsilon=epsilon), accuracy)
            case _:
                values = advantages.group_relative(values, epsilon=epsilon)
    return list(zip(rollouts, values.tolist(), strict=True))


def _per_token(run: Run, values: Sequence[float], rows: Batch, estimates: Tensor, spoken: Tensor) -> Tensor:
    """(T,) advantages: GRPO's repeated along the response, PPO's by GAE from a reward at the last token."""
    found = torch.zeros_like(estimates)
    if run.settings.algorithm == "grpo":
        owner = rows.document()
        return torch.where(spoken, torch.tensor(values, device=found.device, dtype=found.dtype)[owner], found)
    critic = run.settings.critic
    found[torch.tensor(rows.bounds[1:], device=found.device) - 1] = torch.tensor(values, device=found.device)
    return advantages.gae(found, estimates, gamma=critic.gamma, lam=critic.lam, bounds=rows.bounds) * spoken


def _documents(run: Run, rollouts: Sequence[Rollout], prompts: dict[str, tuple[int, ...]]) -> list[Document]:
    """Prompt and response of each, weighted as `average` says: weights carry the whole normalisation of the step."""
    total = sum(rollout.num_tokens for rollout in rollouts)
    found = []
    for rollout in rollouts:
        response = rollout.tokens or ()
        shares = {
            "response": 1.0 / (len(rollouts) * len(response)),
            "token": 1.0 / total,
            "horizon": 1.0 / (len(rollouts) * run.settings.max_tokens),
        }
        prompt = prompts[rollout.problem_id]
        found.append(Document.of(prompt + response, len(prompt), shares[run.settings.objective.average]))
    return found


@torch.no_grad()
def _gap(run: Run, policy: Policy, found: Generation) -> dict[str, float]:
    """|trainer - sampler| on a few responses that the latest policy to sample said from beginning to end.

    That policy is the one in training or, where sampling is ahead, the one before; {} where it finished no response.
    """
    latest = max((part.version for said, _ in found.heard for part in said.parts), default=0)
    fresh = [said for said, _ in found.heard if {part.version for part in said.parts} == {latest}][:_PROBED]
    if not fresh:
        return {}
    prompts = {group.problem.id: run.chat.prompt_ids(group.problem.statement) for group in found.groups}
    documents = [
        Document.of(prompts[one.problem_id] + (one.tokens or ()), len(prompts[one.problem_id])) for one in fresh
    ]
    gaps = []
    for part in cut(documents, run.training.tokens_per_batch):
        rows = lay_out([documents[i] for i in part]).to(policy.device)
        sampled, temperature, _ = _said(rows, [fresh[i] for i in part])
        gaps.append((policy.logprobs(rows, temperature=temperature) - sampled)[rows.weights > 0].abs())
    gap = torch.cat(gaps)
    return {
        "logprob_gap": float(gap.mean()),
        "logprob_gap_max": float(gap.max()),
        "logprob_gap_share": float((gap > _FAR).float().mean()),
    }


def _said(rows: Batch, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of the rollouts, in a row of their documents: (T,) log-probability as it was sampled, temperature
    and version of the policy; 0, 1 and 0 elsewhere."""
    parts = [part for one in rollouts for part in one.parts]
    lengths = torch.tensor([part.tokens for part in parts])
    logprobs = torch.tensor([x for one in rollouts for x in one.logprobs or ()])
    temperatures = torch.tensor([part.temperature for part in parts], dtype=torch.float64).repeat_interleave(lengths)
    versions = torch.tensor([part.version for part in parts]).repeat_interleave(lengths)
    spoken = rows.weights > 0

    def along(values: Tensor, elsewhere: float) -> Tensor:
        row = torch.full(spoken.shape, elsewhere, dtype=values.dtype, device=spoken.device)
        row[spoken] = values.to(spoken.device)
        return row

    return along(logprobs, 0), along(temperatures, 1), along(versions, 0)
