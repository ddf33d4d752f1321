"""The rows of bench/gpu.py that sample, by ours: steps of decoding, whole rollouts, and whole GRPO steps.

The final norm is scaled so that a token's distribution has the entropy of a trained model's, about half a nat: with
flat logits the nucleus of top_p would be half of the vocabulary. Lengths are imposed as bench/grpo_steps.py says. What
is bound by memory counts bytes: each step reads all matrices once and the keys and values of what its sequences hold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gpu_work as work
import grpo_steps as grpo
import numpy as np
import torch
from gpu_kernels import now
from gpu_training import build, fit, memory_used, policy_of, precision
from gpu_work import Say, Size
from torch import Tensor

from algorist.generate import native
from algorist.generate.batching import Batching, How, Tally
from algorist.generate.sampling import Request, Response, Sampling
from algorist.model.batches import Document, lay_out
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy

TEMPERATURE, TOP_P = 0.6, 0.95
WARM = 6  # steps that are not timed: graphs are captured, layers compiled
SHORT = 16  # times: the lengths of what only warms up are shorter


@dataclass(frozen=True)
class Rollouts:
    """The work of these rows."""

    steps: tuple[tuple[int, int], ...]  # (sequences, tokens that each holds)
    decoded: int  # steps of each that are timed
    prompts: int
    prompt: int  # tokens
    median: int  # of the lengths of responses
    longest: int
    late: tuple[int, int, int]  # sequences, tokens that each holds, tokens to come
    tokens_per_batch: int


FULL = Rollouts(
    steps=((1, 2_048), (64, 2_048), (64, 8_192), (256, 2_048), (32, 25_600)),
    decoded=32,
    prompts=128,
    prompt=160,
    median=500,
    longest=1_536,
    late=(64, 6_144, 512),
    tokens_per_batch=16_384,
)
TINY = Rollouts(
    steps=((1, 40), (3, 40)),
    decoded=6,
    prompts=16,
    prompt=12,
    median=12,
    longest=32,
    late=(3, 40, 8),
    tokens_per_batch=256,
)


def of(size: Size) -> Rollouts:
    """The work of a size."""
    return FULL if size is work.FULL else TINY


def sharpened(model: Any, size: Size) -> Any:
    """The model with logits that deviate by three times what concentrates independent ones at `TEMPERATURE`."""
    deviation = model.config.initializer_range * math.sqrt(size.hidden)  # of logits under a norm of 1
    wanted = 3 * TEMPERATURE * math.sqrt(2 * math.log(size.vocabulary))
    torch.nn.init.constant_(model.model.norm.weight, wanted / deviation)
    return model


def matrices(size: Size, device: torch.device) -> int:
    """Bytes that each step of decoding reads whatever its sequences hold."""
    return size.parameters * _item(device)


def cached(size: Size, device: torch.device) -> int:
    """Bytes of the keys and values of a token."""
    return 2 * size.layers * size.kv_heads * size.head_dim * _item(device)


def _item(device: torch.device) -> int:
    return 2 if device.type == "cuda" else 4


def read(size: Size, device: torch.device, lengths: Sequence[int]) -> int:
    """Bytes read by rollouts of these lengths that are all decoded side by side, each until it is done."""
    prompt, tokens = of(size).prompt, np.asarray(lengths, np.int64)
    held = int((tokens * prompt + tokens * (tokens + 1) // 2).sum())
    return int(tokens.max()) * matrices(size, device) + held * cached(size, device)


def jobs(size: Size, short: int = 1) -> list[tuple[list[int], int]]:
    """Prompts, and how long the responses to them are."""
    draw, plan = np.random.default_rng(8), of(size)
    lengths = np.clip(draw.lognormal(math.log(plan.median), 0.65, plan.prompts), 2, plan.longest).astype(int)
    prompts = draw.integers(2, size.vocabulary, (plan.prompts, plan.prompt)).tolist()
    return [(prompt, max(2, length // short)) for prompt, length in zip(prompts, lengths.tolist(), strict=True)]


def ours(row: str, size: Size, device: torch.device, until: float, say: Say) -> None:
    """One row by ours."""
    if row == "grpo_step":
        _learn_ours(size, device, until, say)
        return
    model = build(size, device, "eager")
    policy = Policy(sharpened(model.to(getattr(torch, precision(device))), size), precision=precision(device))
    policy.eval()
    {"decode_step": _steps_ours, "rollout": _rollouts_ours}[row](policy, size, device, until, say)


class _Prefilled:
    """The steps of a sampler whose texts are in the cache already, as random numbers."""

    def __init__(self, steps: Any) -> None:
        self._steps, self.logits, self.decode = steps, steps.logits, steps.decode

    def prefill(self, texts: Sequence[Sequence[int]], held: Sequence[Sequence[int]]) -> Tensor:
        """(n, H) random states."""
        policy = self._steps.policy
        return torch.randn(len(texts), policy.model.config.hidden_size, device=policy.device)


def decoding(policy: Policy, batch: int, context: int, count: int) -> Iterator[float]:
    """Seconds of each of `count` steps of the sampler, drawing and bookkeeping included, on sequences that hold
    `context` tokens and more."""
    draw = np.random.default_rng(4)
    prompts = draw.integers(2, policy.model.config.vocab_size, (batch, context)).tolist()
    requests = [Request(tuple(prompt), key, max_tokens=count + 1) for key, prompt in enumerate(prompts)]
    how = How(cache_tokens=(batch + 1) * (context + count + 3 * 256))
    sampler = Batching(policy, requests, Sampling(TEMPERATURE, TOP_P, count + 1), frozenset(), num_slots=batch, how=how)
    for pages in (*sampler.pages.keys, *sampler.pages.values):
        pages.normal_()
    sampler.steps = _Prefilled(sampler.steps)  # type: ignore[assignment]
    begun = how.tally.steps
    began = now(policy.device)
    for _ in sampler.turns():
        ended = now(policy.device)
        if how.tally.steps > begun:
            yield ended - began
        begun, began = how.tally.steps, now(policy.device)


def _steps_ours(policy: Policy, size: Size, device: torch.device, until: float, say: Say) -> None:
    for batch, context in of(size).steps:
        if work.left(until) < 20 * (device.type == "cuda"):
            return
        seconds = list(decoding(policy, batch, context, WARM + of(size).decoded))[WARM:]
        say(step(size, device, batch, context, seconds) | {"who": "ours"})


def step(size: Size, device: torch.device, batch: int, context: int, seconds: Sequence[float]) -> dict[str, Any]:
    """What a steady step took."""
    middle = statistics.median(seconds)
    asked = matrices(size, device) + batch * context * cached(size, device)
    name = f"{batch} x {context:,}"
    return {"set": name, "value": 1e3 * middle, "unit": "ms", "seconds": middle, "bytes": asked, **memory_used(device)}


def _rollouts_ours(policy: Policy, size: Size, device: torch.device, until: float, say: Say) -> None:
    for short in (SHORT, 1):
        asked, tally = jobs(size, short), Tally()
        requests = [Request(tuple(prompt), key, max_tokens=count) for key, (prompt, count) in enumerate(asked)]
        sampling = Sampling(TEMPERATURE, TOP_P, of(size).longest)
        began = now(device)
        found = native.sample(policy, requests, sampling, end_ids=(), num_slots=len(requests), how=How(tally=tally))
        seconds = now(device) - began
        facts = {"logprob_gap": _gap(policy, requests[:8], found[:8])} if short == 1 else {}
        say(rollout(size, device, asked, seconds, short) | {"who": "ours"} | facts)
    batch, context, count = of(size).late
    if work.left(until) < 30 * (device.type == "cuda"):
        return
    steps = list(decoding(policy, batch, context, count))
    kept = matrices(size, device) * count + batch * cached(size, device) * (context * count + count * (count + 1) // 2)
    rate = {"value": batch * len(steps) / sum(steps), "unit": "tokens/s", "tokens": batch * count, "bytes": kept}
    say({"set": "late", "who": "ours", "seconds": sum(steps), **rate, **memory_used(device)})


def rollout(
    size: Size, device: torch.device, asked: Sequence[tuple[list[int], int]], seconds: float, short: int
) -> dict[str, Any]:
    """What rollouts took."""
    lengths = [count for _, count in asked]
    rate = {"value": sum(lengths) / seconds, "unit": "tokens/s", "tokens": sum(lengths), "seconds": seconds}
    more = {"bytes": read(size, device, lengths), "timed": short == 1}
    return {"set": "ragged", **rate, **more, **memory_used(device)}


@torch.no_grad()
def _gap(policy: Policy, requests: Sequence[Request], found: Sequence[Response]) -> float:
    """Nats a token between the sampler's log-probabilities and the trainer's, on average."""
    rows = lay_out(
        [Document.of(r.prompt + one.tokens, len(r.prompt)) for r, one in zip(requests, found, strict=True)]
    ).to(policy.device)
    trained = policy.logprobs(rows, temperature=TEMPERATURE)[rows.weights > 0]
    sampled = torch.tensor([x for one in found for x in one.logprobs], device=trained.device)
    return float((trained - sampled).abs().mean())


def learning(size: Size, timed: int) -> grpo.Work:
    """GRPO steps: one of given responses, one that warms up, both short, and those that are timed."""
    draw, plan = np.random.default_rng(6), of(size)
    turns = []
    for index in range(2 + timed):
        prompts = draw.integers(2, size.vocabulary, (plan.prompts // grpo.GROUP, plan.prompt)).tolist()
        lengths = [count for _, count in jobs(size, 1 if index > 1 else SHORT)]
        given = [tuple(draw.integers(2, size.vocabulary, n).tolist()) for n in lengths] if index == 0 else []
        turns.append(grpo.Turn(tuple(map(tuple, prompts)), tuple(lengths), tuple(given)))
    keys: dict[str, Any] = {"temperature": TEMPERATURE, "tokens_per_batch": plan.tokens_per_batch}
    return grpo.Work(tuple(turns), size.vocabulary, plan.longest, **keys)


def _learn_ours(size: Size, device: torch.device, until: float, say: Say) -> None:
    """On the policy that sampled, then with two updates on each generation."""
    plan = of(size)
    policy = policy_of(size, device, plan.tokens_per_batch)
    sharpened(policy.model, size)
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    kind = fit(policy, optimizer, plan.tokens_per_batch)
    for name, updates in (("on policy", 1), ("two updates", 2)):
        asked = learning(size, timed=2)
        facts = {"path": policy.path, "recompute": kind}
        if work.left(until) > 0:
            tell = teller(name, "ours", size, device, until, say, asked, facts)
            grpo.ours(asked, policy, optimizer, tell, updates=updates)


def teller(
    name: str, who: str, size: Size, device: torch.device, until: float, say: Say, asked: grpo.Work, facts: Any
) -> grpo.Tell:
    """Says each turn of a contender; the gradients of given responses are compared by their length."""
    scale = 1.0 if who == "ours" else 1 / grpo.SAMPLE

    def tell(index: int, seconds: dict[str, float], told: dict[str, Any]) -> bool:
        turn, total = asked.turns[index], sum(seconds.values())
        lengths = [of(size).prompt + length for length in turn.lengths]
        floor = {"bytes": read(size, device, turn.lengths), "operations": size.operations(lengths)}
        line = {"set": name, "turn": index, "timed": index > 1, "who": who, **floor, **facts, **memory_used(device)}
        line |= {"value": turn.tokens / total, "unit": "tokens/s", "tokens": turn.tokens, "seconds": total}
        line |= {"phases": {phase: round(one, 3) for phase, one in seconds.items()}}
        line |= {"outside": 1 - (seconds["generate"] + seconds["train"]) / total}
        line |= {"norm": scale * told["norm"]} if turn.given else {}
        line |= {key: told[key] for key in ("logprob_gap",) if key in told}
        say(line)
        return work.left(until) > (total if index > 1 else 0)

    return tell
