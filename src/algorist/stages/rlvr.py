"""Stage 4: reinforcement learning with verifiable reward, GRPO or PPO, with the paper's three remedies.

Sample a group of responses to each prompt, verify them (+1 right, -1 wrong), turn rewards into advantages, and take
an optimizer step or a few on what was sampled. Against the instability of small models the paper adds:

1. Prompt optimization: only prompts whose responses have uniform length are trained on. (stages/prompts.py)
2. Reward rebalancing: hard prompts are sampled again until enough responses are right; all right and equally many
   wrong responses, drawn at random, are learned from, so that every GRPO advantage is +1 or -1; prompts with more
   than half right are dropped. (stages/sampler.py, numerics/groups.py)
3. Temperature annealing: 1.0 to 0.6 over the first half of the steps, then fixed. Log-probabilities are always
   taken at the temperature a token was sampled at.

Every rollout is stored with its verdict before anything is learned from it, and learning reads what is stored: a
generation that stands on disk is not sampled again, and can be learned from again. Responses that could not be judged
leave their group and are counted; they are never called wrong.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from algorist import store
from algorist.errors import RunError
from algorist.generate import rollouts
from algorist.generate.sampling import Sampling
from algorist.model import devices
from algorist.model.batches import GroupBatch
from algorist.model.policy import CriticKind, Policy
from algorist.numerics import losses
from algorist.numerics.divergence import kl_penalty
from algorist.numerics.importance import correction
from algorist.numerics.losses import Loss
from algorist.records import Problem
from algorist.stage import Plan, Run, Stage, Step, Training
from algorist.stages import groups, health
from algorist.stages.generations import Generations, temperature
from algorist.stages.health import Health
from algorist.stages.learning import Objective, optimizer_steps
from algorist.stages.prompts import Prompts, curate
from algorist.stages.shaping import Reward
from algorist.verify.pool import Pool


@dataclass(frozen=True)
class Annealing:
    """The sampling temperature: linear from `start` to `end` over the first share `over` of the steps, then fixed."""

    start: float = 1.0  # of the first generation
    end: float = 0.6  # of the last ones
    over: float = 0.5  # share of the generations over which it moves from start to end

    def __post_init__(self) -> None:
        if min(self.start, self.end) <= 0:
            raise ValueError("temperature must stay above 0: a group of equal responses teaches nothing.")
        if not 0 <= self.over <= 1:
            raise ValueError(f"over = {self.over} is a share of the steps, 0 to 1 was expected.")


@dataclass(frozen=True)
class Critic:
    """PPO's own keys; GRPO reads none of them."""

    trunk: Literal["own", "shared"] = "own"  # a copy of the first policy, or a head on the policy itself
    gamma: float = 1.0  # discount per token
    lam: float = 1.0  # of GAE: 1 is the plain return, 0 one-step bootstrapping
    weight: float = 0.5  # of the value loss beside the policy loss
    clip: float = 0.2  # how far a value may move from its old one, in units of reward
    warmup: int = 0  # generations in which only the critic learns
    whiten: bool = False  # advantages of a step get mean 0 and deviation 1

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ValueError("gamma and lam are shares, 0 to 1 was expected.")
        if min(self.weight, self.clip) <= 0 or self.warmup < 0:
            raise ValueError("weight and clip must be above 0, and warmup not negative.")


@dataclass(frozen=True)
class Engine:
    """Who samples."""

    kind: Literal["native", "vllm"] = "native"  # docs/engines.md
    num_slots: int = 128  # sequences decoded together
    memory: float = 0.5  # share of the GPU's memory that vLLM may take while it samples
    issue: float = 1.0  # prompts asked per prompt needed; above 1 the slowest are cut and go on in the next generation
    ahead: bool = False  # sample the next generation while this one is learned from, by a copy of the policy
    device: str = ""  # of the native engine's copy, such as "cuda:1"; the policy's own unless given

    def __post_init__(self) -> None:
        if self.num_slots < 1 or self.issue < 1:
            raise ValueError("num_slots and issue must be at least 1.")
        if not 0 < self.memory < 1:
            raise ValueError("memory is a share, above 0 and below 1.")
        if self.device and not (self.ahead and self.kind == "native"):
            raise ValueError('device is that of a copy of the policy: it needs ahead = true and kind = "native".')
        try:
            torch.device(self.device or "cpu")
        except RuntimeError:
            raise ValueError(f'device = "{self.device}" is none that torch knows, such as "cuda:1".') from None


@dataclass(frozen=True)
class Settings:
    """[rlvr], beside the loop's keys; batch_size counts prompts"""

    preset: Literal["paper", "dapo", "plain"] = "paper"  # defaults of the other keys: docs/stages/4.md
    algorithm: Literal["grpo", "ppo"] = "grpo"  # PPO adds a critic
    steps: int = 100  # generations
    updates: int = 1  # optimizer steps on one generation
    max_tokens: int = 25_600  # of a response
    group_size: int = 8  # samples of a prompt at a time
    oversample: int = 128  # most samples of a prompt, the only number that the paper prints; 0: never again
    enough_right: int = 1  # a prompt with fewer right responses is sampled again
    balance: bool = True  # learn from equally many right and wrong responses
    max_prompt_accuracy: float = 0.5  # prompts with a larger share of right responses are dropped
    refills: int = 2  # times that new prompts replace dropped ones in one generation
    reward: Reward = Reward()
    objective: Objective = Objective()
    temperature: Annealing = Annealing()
    critic: Critic = Critic()
    prompts: Prompts = Prompts()
    engine: Engine = Engine()
    health: Health = Health()

    # What a preset changes. DAPO (arXiv 2503.14476) takes prompts until a batch is full; 4,096 of its 20,480 tokens
    # are the margin in which length costs.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "dapo": {
            "oversample": 0,
            "balance": False,
            "max_prompt_accuracy": 1.0,
            "refills": 8,
            "reward": {"overlong": 0.2},
            "objective": {"average": "token", "clip_high": 0.28},
            "temperature": {"end": 1.0},
            "prompts": {"max_length_spread": 1e9, "max_accuracy": 1.0},
        },
        "plain": {
            "oversample": 0,
            "balance": False,
            "max_prompt_accuracy": 1.0,
            "refills": 0,
            "objective": {"keep_flat": True},
            "temperature": {"end": 1.0},
            "prompts": {"max_length_spread": 1e9, "max_accuracy": 1.0},
        },
    }

    def __post_init__(self) -> None:
        if min(self.steps, self.updates, self.group_size) < 1:
            raise ValueError("steps, updates and group_size must be at least 1.")
        if min(self.refills, self.oversample, self.enough_right) < 0:
            raise ValueError("refills, oversample and enough_right must not be negative.")
        if max(self.group_size, self.oversample) < 2:
            raise ValueError("group_size = 1 without oversample: a response alone has nothing to be better than.")
        if not 0 < self.max_prompt_accuracy <= 1:
            raise ValueError("max_prompt_accuracy is a share above 0 and up to 1: no prompt would be learned from.")
        Sampling(self.temperature.start, 1.0, self.max_tokens)


def choose(run: Run) -> store.Manifest:
    """The prompts (stages/prompts.py), once it is sure that they can be learned from as the settings want.

    Raises RunError where an engine or a device is not here, or there are more optimizer steps than prompts.
    """
    settings = run.settings
    if settings.updates > run.training.batch_size:
        raise RunError(
            f"[rlvr] updates = {settings.updates}: {run.training.batch_size} prompts (batch_size) cannot be cut into "
            "so many optimizer steps. Lower updates or raise batch_size."
        )
    if settings.engine.kind == "vllm":
        from algorist.generate import vllm

        vllm.require()
    _require(settings.engine.device)
    return curate(run)


def plan(run: Run) -> Plan:
    """Generations times updates; the tokens are sampled on the way, and a response may be as long as it may get."""
    settings, problems = run.settings, store.stream(run.data, Problem)
    longest = run.chat.longest_prompt(problem.statement for problem in problems) + settings.max_tokens
    return Plan(settings.steps * settings.updates, store.manifest(run.data).rows, 0, longest)


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Sample, verify, select; then the optimizer steps on that generation; then round again."""
    settings = run.settings
    problems = {problem.id: problem for problem in store.stream(run.data, Problem)}
    engine = functools.partial(_engine, run, policy, problems.values())
    reference = run.opened() if settings.objective.kl else None
    first = run.start // settings.updates
    with Pool.of(run.recipe) as pool, Generations(run, engine, pool, problems, first) as generations:
        for generation in range(first, settings.steps):
            found, clock = generations.get(generation, policy)
            if settings.engine.ahead:
                generations.send_ahead(generation, policy)
            began = time.monotonic()
            facts = groups.facts(found) | {"temperature": temperature(run, generation)}
            spent = clock.spent()
            for step in optimizer_steps(run, policy, reference, found, generation, facts):
                may_stop = step.may_stop and (not settings.engine.ahead or _save_is_due(run, generation))
                prepared = {"prepare_seconds": time.monotonic() - began}
                if may_stop:
                    generations.wait()
                yield Step(step.batches, {**step.facts, **spent, **prepared}, may_stop)
                began, spent = time.monotonic(), {}


def loss(policy: Policy, batch: GroupBatch, settings: Any) -> Loss:
    """The clipped surrogate, with the terms that `objective` adds; PPO's critic learns beside it."""
    objective: Objective = settings.objective
    weights = batch.rows.weights
    hidden = policy.hidden(batch.rows)
    found = policy.scores(batch.rows, temperature=batch.temperature, hidden=hidden, with_entropy=True)
    assert found.entropy is not None
    old = torch.where(batch.fresh, found.logprobs.detach(), batch.old_logprobs)
    metrics = {
        "entropy": (weights * found.entropy).sum().detach(),
        "sampler_gap": (weights * (old - batch.sampled_logprobs).abs()).sum(),
    }
    advantages = batch.advantages
    if objective.correction != "none":
        low = objective.correction_low if objective.correction == "mask" else 0.0
        touched = correction(
            old,
            batch.sampled_logprobs,
            weights,
            kind=objective.correction,
            low=low,
            high=objective.correction_high,
            bounds=batch.rows.bounds if objective.correction_per == "response" else None,
        )
        advantages = advantages * touched.coefficients
        metrics["corrected"] = touched.touched
    surrogate = losses.clipped_policy_loss(
        found.logprobs,
        old,
        advantages,
        weights,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        dual_clip=objective.dual_clip or math.inf,
    )
    value, metrics = surrogate.value, surrogate.metrics | metrics
    if objective.kl:
        ratio = old if objective.kl_ratio and objective.kl_estimator != "k2" else None
        kind = objective.kl_estimator
        penalty = kl_penalty(found.logprobs, batch.ref_logprobs, weights, estimator=kind, old_logprobs=ratio)
        value, metrics = value + objective.kl * penalty.value, metrics | penalty.metrics
    if objective.entropy:
        value = value + objective.entropy * losses.entropy_bonus(found.entropy, weights).value
    if policy.critic is not None:
        critic: Critic = settings.critic
        if batch.critic_alone:
            hidden, value = hidden.detach(), torch.zeros_like(value)
        values = policy.values(batch.rows, hidden)
        fit = losses.value_loss(values, batch.returns, weights, old_values=batch.old_values, clip=critic.clip)
        value, metrics = value + critic.weight * fit.value, metrics | fit.metrics
    return Loss(value, metrics)


def _engine(run: Run, policy: Policy, problems: Iterable[Problem]) -> rollouts.Engine:
    settings = run.settings
    if settings.engine.kind == "native":
        sampling = rollouts.copied(policy, settings.engine.device) if settings.engine.ahead else policy
        return rollouts.Native(sampling, run.chat.stops, settings.engine.num_slots)
    from algorist.generate import vllm

    longest = run.chat.longest_prompt(problem.statement for problem in problems)
    return vllm.open_engine(
        policy,
        end_ids=run.chat.stops,
        context=longest + settings.max_tokens,
        memory=settings.engine.memory,
        num_sequences=settings.engine.num_slots,
    )


def _require(device: str) -> None:
    wanted, there = torch.device(device or "cpu"), torch.cuda.device_count()
    if wanted.type != "cpu" and (wanted.type != "cuda" or (wanted.index or 0) >= there):
        raise RunError(
            f'[rlvr] engine.device = "{device}": the sampler runs on "cpu" or on one of this machine\'s {there} CUDA '
            "devices. Leave it empty to sample on the policy's own device."
        )


def _save_is_due(run: Run, generation: int) -> bool:
    """Whether the loop wants to save within a generation."""
    every, updates = run.training.save_every, int(run.settings.updates)
    return (generation + 1) * updates // every > generation * updates // every


def _alarm(settings: Any, entries: health.Entries) -> str:
    return health.alarm(settings.health, entries)


def _looked_at(settings: Any) -> int:
    return 10 * int(settings.updates)


def _critic(settings: Any) -> CriticKind:
    return settings.critic.trunk if settings.algorithm == "ppo" else "none"


def _copies(settings: Any) -> int:
    """The reference of the KL term, and the native engine's own where it samples ahead."""
    engine: Engine = settings.engine
    own = devices.default()
    wanted = torch.device(engine.device or own)
    beside = wanted.type == own.type and (wanted.index or 0) == (own.index or 0)
    return int(settings.objective.kl > 0) + int(engine.ahead and engine.kind == "native" and beside)


STAGE = Stage(
    "rlvr",
    Settings,
    Training(learning_rate=5e-7, batch_size=64, save_every=10, warmup=0.0, end_learning_rate=1.0),
    ("verify",),
    choose,
    plan,
    steps,
    loss,
    critic=_critic,
    copies=_copies,
    alarm=_alarm,
    looked_at=_looked_at,
)
