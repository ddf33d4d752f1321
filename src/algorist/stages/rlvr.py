"""Stage 4: reinforcement learning with verifiable reward, GRPO or PPO, with the paper's three remedies.

Sample a group of responses to each prompt, verify them (+1 right, -1 wrong), turn rewards into advantages, and take
an optimizer step or a few on what was sampled. Against the instability of small models the paper adds:

1. Prompt optimization: before training, the stage-3 model samples every candidate prompt, and only prompts whose
   responses have uniform length are kept. Measure and threshold are not printed; ours is the coefficient of
   variation over all rounds.
2. Reward rebalancing: hard prompts are sampled again until enough responses are right; all right and equally many
   wrong responses, drawn at random, are learned from, so that every GRPO advantage is +1 or -1; prompts with more
   than half right are dropped. (stages/groups.py)
3. Temperature annealing: 1.0 to 0.6 over the first half of the steps, then fixed. Log-probabilities are always
   taken at the temperature a response was sampled at.

Responses that could not be judged leave their group and are counted; they are never called wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from algorist import store
from algorist.errors import RunError
from algorist.evals.evaluate import ask
from algorist.generate.rollouts import Speaker
from algorist.generate.sampling import Sampling
from algorist.model.batches import Batch, Document, GroupBatch, cut, lay_out
from algorist.model.policy import Policy
from algorist.numerics import losses, schedules
from algorist.numerics.address import rng
from algorist.numerics.advantages import gae, group_relative
from algorist.numerics.groups import length_spread
from algorist.numerics.losses import Loss
from algorist.records import Problem, Question, Rollout, Verdict
from algorist.stage import Plan, Run, Stage, Step, Training
from algorist.stages.groups import Group, Sampler
from algorist.verify.pool import Pool


@dataclass(frozen=True)
class Reward:
    """What a verdict is worth."""

    right: float = 1.0
    wrong: float = -1.0


@dataclass(frozen=True)
class Annealing:
    """The sampling temperature: linear from `start` to `end` over the first share `over` of the steps, then fixed."""

    start: float = 1.0
    end: float = 0.6
    over: float = 0.5


@dataclass(frozen=True)
class Critic:
    """PPO's own keys; GRPO reads none of them."""

    gamma: float = 1.0  # discount per token
    lam: float = 1.0  # of GAE: 1 is the plain return, 0 one-step bootstrapping
    weight: float = 0.5  # of the value loss beside the policy loss
    clip: float = 0.2  # how far a value may move from its old one, in units of reward


@dataclass(frozen=True)
class Prompts:
    """Remedy 1: which prompts are trained on, measured by sampling them with the stage-3 model."""

    candidates: int = 10_000  # problems sampled, drawn at random
    rounds: int = 2
    samples: int = 4  # per round
    max_length_spread: float = 0.25  # coefficient of variation of a prompt's response lengths; the paper's bad example
    max_accuracy: float = 0.75  # prompts that are this easy already would only be dropped later


@dataclass(frozen=True)
class Settings:
    """[rlvr], beside the loop's keys; batch_size counts prompts"""

    algorithm: Literal["grpo", "ppo"] = "grpo"  # PPO adds a critic
    steps: int = 100  # generations
    updates: int = 1  # optimizer steps on one generation
    max_tokens: int = 25_600  # of a response
    group_size: int = 8  # samples of a prompt at a time
    oversample: int = 128  # most samples of a prompt: the only number that the paper prints
    enough_right: int = 1  # a prompt with fewer right responses is sampled again
    balance: bool = True  # learn from equally many right and wrong responses
    max_prompt_accuracy: float = 0.5  # prompts with a larger share of right responses are dropped
    refills: int = 2  # times that new prompts replace dropped ones in one generation
    clip_low: float = 0.2  # how far below 1 a ratio may fall before its gradient stops
    clip_high: float = 0.2  # how far above 1 it may rise
    max_logprob_gap: float = 0.1  # mean |trainer - sampler| in nats per token above which the run stops
    num_slots: int = 128  # sequences decoded together
    reward: Reward = Reward()
    temperature: Annealing = Annealing()
    critic: Critic = Critic()
    prompts: Prompts = Prompts()

    def __post_init__(self) -> None:
        if min(self.steps, self.updates, self.group_size) < 1 or self.oversample < self.group_size:
            raise ValueError("steps, updates and group_size must be at least 1 and oversample at least group_size.")
        if min(self.num_slots, self.prompts.candidates, self.prompts.rounds, self.prompts.samples) < 1:
            raise ValueError("num_slots and candidates, rounds and samples of prompts must be at least 1.")
        if min(self.temperature.start, self.temperature.end) <= 0:
            raise ValueError("temperature must stay above 0: a group of equal responses teaches nothing.")
        Sampling(self.temperature.start, 1.0, self.max_tokens)


def curate(run: Run) -> store.Manifest:
    """Prompts whose responses by the parent policy have uniform length and are not mostly right already."""
    settings: Prompts = run.settings.prompts
    asked = {question.problem_id for question in store.stream(run.set, Question)}
    problems = [problem for problem in store.stream(run.root / "problems", Problem) if problem.id in asked]
    order = rng(run.seed, "rlvr", "candidates").permutation(len(problems))
    candidates = [problems[i] for i in sorted(order[: settings.candidates])]
    policy = run.opened()
    sampling = Sampling(run.settings.temperature.start, 1.0, run.settings.max_tokens)
    wanted = [(problem, i) for problem in candidates for i in range(settings.rounds * settings.samples)]
    folder = run.folder / "prompts"
    with Pool.of(run.recipe) as pool:
        speaker = Speaker(policy, run.chat, "rlvr/prompts", run.settings.num_slots)
        address = (run.seed, "rlvr", "prompts")
        ask(speaker, wanted, folder, sampling, address=address, pool=pool, title="rlvr: prompts")
    lengths, right = defaultdict(list), defaultdict(list)
    found, verdicts = store.read(folder / "rollouts", Rollout), store.read(folder / "verdicts", Verdict)
    for rollout, verdict in zip(found, verdicts, strict=True):
        lengths[rollout.problem_id].append(rollout.num_tokens)
        if verdict.right is not None:
            right[rollout.problem_id].append(verdict.right)
    kept, dropped = [], Counter[str]()
    for problem in candidates:
        judged = right[problem.id]
        if not judged:
            dropped["could not be judged"] += 1
        elif length_spread(lengths[problem.id]) > settings.max_length_spread:
            dropped["lengths not uniform"] += 1
        elif sum(judged) > settings.max_accuracy * len(judged):
            dropped["too easy"] += 1
        else:
            kept.append(problem)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise RunError(f"{run.data}: no prompt is left ({reasons}). Raise max_length_spread or max_accuracy.")
    parents = [store.manifest(run.set).id, store.manifest(folder / "verdicts").id]
    return store.write(run.data, Problem, kept, parents=parents, dropped=dropped)


def plan(run: Run) -> Plan:
    """Generations times updates; the tokens are sampled on the way."""
    return Plan(run.settings.steps * run.settings.updates, store.manifest(run.data).rows, 0)


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Sample, verify, select; then the optimizer steps on that generation; then round again."""
    settings = run.settings
    problems = store.read(run.data, Problem)
    annealing: Annealing = settings.temperature
    with Pool.of(run.recipe) as pool:
        for generation in range(run.start // settings.updates, settings.steps):
            temperature = schedules.temperature(
                generation, settings.steps, start=annealing.start, end=annealing.end, over=annealing.over
            )
            sampling = Sampling(temperature, 1.0, settings.max_tokens)
            groups, facts = Sampler(run, policy, pool, sampling, generation).fill(problems)
            yield from _optimizer_steps(run, policy, groups, {**facts, "temperature": temperature})


def loss(policy: Policy, batch: GroupBatch, settings: Any) -> Loss:
    """The clipped surrogate; PPO's critic learns beside it from the same states."""
    hidden = policy.hidden(batch.rows)
    logprobs = policy.logprobs(batch.rows, temperature=batch.temperature, hidden=hidden)
    weights = batch.rows.weights
    surrogate = losses.clipped_policy_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        weights,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
    )
    if policy.critic is None:
        return surrogate
    critic: Critic = settings.critic
    fit = losses.value_loss(
        policy.values(hidden), batch.returns, weights, old_values=batch.old_values, clip=critic.clip
    )
    return Loss(surrogate.value + critic.weight * fit.value, surrogate.metrics | fit.metrics)


def _optimizer_steps(run: Run, policy: Policy, groups: Sequence[Group], facts: dict[str, float]) -> Iterator[Step]:
    """The generation cut into `updates` optimizer steps; all see the same old policy."""
    updates = run.settings.updates
    laid_out = [_lay_out(run, policy, groups[part::updates], facts["temperature"]) for part in range(updates)]
    gaps, entropy = torch.cat([seen for _, seen in laid_out], 1) if groups else torch.zeros(2, 1)
    gap = {"logprob_gap": float(gaps.mean()), "logprob_gap_max": float(gaps.max()), "entropy": float(entropy.mean())}
    if gap["logprob_gap"] > run.settings.max_logprob_gap:
        raise RunError(
            f"{run.folder}: trainer and sampler disagree by {gap['logprob_gap']:.3f} nats per token, at most "
            f'{run.settings.max_logprob_gap} was expected. Use precision = "float32", or raise max_logprob_gap.'
        )
    for part, (batches, _) in enumerate(laid_out):
        tokens = sum(len(batch.rows.tokens) for batch in batches)
        first = {**facts, **gap} if part == 0 else {"temperature": facts["temperature"]}
        yield Step(tuple(batches), {"tokens": tokens, **first}, may_stop=part == updates - 1)


@torch.no_grad()
def _lay_out(run: Run, policy: Policy, groups: Sequence[Group], temperature: float) -> tuple[list[GroupBatch], Tensor]:
    """Micro-batches of one optimizer step, with the old policy's opinion, and what is seen of every token.

    That is (2, N): |trainer - sampler|, and the entropy of what it was drawn from.
    """
    chosen = [(group.rollouts[i], a) for group in groups for i, a in zip(*_advantages(run, group), strict=True)]
    prompts = {group.problem.id: run.chat.prompt_ids(group.problem.statement) for group in groups}
    documents = []
    for rollout, _ in chosen:
        prompt, response = prompts[rollout.problem_id], rollout.tokens or ()
        documents.append(Document.of(prompt + response, len(prompt), 1.0 / len(response)))
    batches, seen = [], [torch.zeros(2, 0)]
    for part in cut(documents, run.training.tokens_per_batch):
        rows = lay_out([documents[i] for i in part], total=len(documents)).to(policy.device)
        hidden = policy.hidden(rows)
        old, entropy = policy.scores(rows, temperature=temperature, hidden=hidden, with_entropy=True)
        assert entropy is not None
        spoken = rows.weights > 0
        sampled = torch.tensor([x for i in part for x in chosen[i][0].logprobs or ()], device=old.device)
        seen.append(torch.stack([(old[spoken] - sampled).abs(), entropy[spoken]]).cpu())
        values = policy.values(hidden) * spoken if policy.critic is not None else torch.zeros_like(old)
        advantages = _per_token(run, [chosen[i] for i in part], rows, values)
        batches.append(GroupBatch(rows, old, advantages, (advantages + values) * spoken, values, temperature))
    return batches, torch.cat(seen, 1)


def _advantages(run: Run, group: Group) -> tuple[tuple[int, ...], list[float]]:
    """(index, advantage) of the responses learned from: GRPO's relative to each other, for PPO the bare reward."""
    reward: Reward = run.settings.reward
    kept = group.selection.kept
    rewards = torch.tensor([reward.right if group.right[i] else reward.wrong for i in kept])
    return kept, (group_relative(rewards) if run.settings.algorithm == "grpo" else rewards).tolist()


def _per_token(run: Run, chosen: Sequence[tuple[Rollout, float]], rows: Batch, values: Tensor) -> Tensor:
    """(T,) advantages: GRPO's repeated along the response, PPO's by GAE from a reward at the last token."""
    advantages = torch.zeros_like(values)
    for (rollout, value), end in zip(chosen, rows.bounds[1:], strict=True):
        span = slice(end - len(rollout.tokens or ()), end)
        if run.settings.algorithm == "grpo":
            advantages[span] = value
        else:
            rewards = torch.zeros_like(values[span])
            rewards[-1] = value
            critic: Critic = run.settings.critic
            advantages[span] = gae(rewards, values[span], gamma=critic.gamma, lam=critic.lam)
    return advantages


STAGE = Stage(
    "rlvr",
    Settings,
    Training(learning_rate=5e-7, batch_size=64, save_every=10, warmup=0.0, end_learning_rate=1.0),
    ("verify",),
    curate,
    plan,
    steps,
    loss,
    with_critic=lambda settings: settings.algorithm == "ppo",
)
