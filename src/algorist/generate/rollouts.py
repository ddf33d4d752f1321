"""Problems in, rollouts out, by a policy in this process: what RL, prompt selection and evaluation call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from algorist.generate import native
from algorist.generate.sampling import Request, Response, Sampling, never
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics.address import key
from algorist.records import Part, Problem, Rollout

Begun = Mapping[tuple[str, int], Rollout]  # (problem id, sample index) → what was left unfinished


class Engine(Protocol):
    """What turns requests into responses: `Native` here, or vLLM (generate/vllm.py)."""

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, *, enough: Callable[[], bool]
    ) -> Iterator[tuple[int, Response]]:
        """(index of the request, response), each as it finishes. Once `enough`, the rest come as they stand."""
        ...

    def hand_over(self, policy: Policy) -> None:
        """Sample with these weights from now on."""
        ...

    def rest(self) -> None:
        """Give back the memory that only sampling needs: the next stream asks for it again."""
        ...


@dataclass(frozen=True)
class Native:
    """The embedded sampler. It has the weights of the policy in training, and nothing is handed over; or a copy."""

    policy: Policy
    stops: frozenset[int]  # tokens that end a response
    num_slots: int = 128  # sequences decoded together

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, *, enough: Callable[[], bool]
    ) -> Iterator[tuple[int, Response]]:
        """As `Engine` has it."""
        return native.stream(
            self.policy, requests, sampling, end_ids=self.stops, num_slots=self.num_slots, enough=enough
        )

    def hand_over(self, policy: Policy) -> None:
        """Copy the weights where they are not the policy's own."""
        if policy is not self.policy:
            with torch.no_grad():
                for own, given in zip(self.policy.model.parameters(), policy.model.parameters(), strict=True):
                    own.copy_(given)

    def rest(self) -> None:
        """Nothing to do: a stream's cache goes when the stream ends."""


def copied(policy: Policy, device: str = "") -> Policy:
    """A policy with weights of its own, without gradients and critic, on `device` or the policy's own; not compiled."""
    critic, policy.critic = policy.critic, None
    try:
        other = copy.deepcopy(policy)
    finally:
        policy.critic = critic
    for module in other.modules():  # compiled and recomputed layers are functions, and those of a copy run the original
        module.__dict__.pop("forward", None)
    other.fused = ""
    target = torch.device(device or policy.device)
    if target.type != policy.device.type:  # its path of attention has a kernel for the other kind of device
        other.path = "grouped"
    return other.to(target).requires_grad_(False)


@dataclass(frozen=True)
class Speaker:
    """Who samples: an engine with the policy's chat, and the name under which its rollouts are known."""

    engine: Engine
    chat: Chat
    name: str  # goes into the rollouts' ids
    version: int = 0  # of the policy: optimizer steps that it has taken


def stream(
    speaker: Speaker,
    wanted: Sequence[tuple[Problem, int]],
    sampling: Sampling,
    *,
    address: tuple[object, ...],
    begun: Begun | None = None,
    enough: Callable[[], bool] = never,
) -> Iterator[tuple[int, Rollout]]:
    """(place in `wanted`, rollout), each as it finishes, with token ids and log-probabilities.

    Args:
        wanted   (problem, sample index); samples of one problem that stand together share the work of its prompt
        address  numerics/address.py, the recipe's seed first. Sample i of a problem depends on it, the problem and i
                 alone
        begun    rollouts among `wanted` that go on where an earlier call left them, by the address they began with
        enough   asked after each rollout; once it is true, the rest are given as they stand, "unfinished"
    """
    begun = begun or {}
    seed = key(*address)
    prompts = {problem.id: speaker.chat.prompt_ids(problem.statement) for problem, _ in wanted}
    requests = [_request(begun.get((problem.id, i)), prompts[problem.id], seed, problem.id, i) for problem, i in wanted]
    for place, response in speaker.engine.stream(requests, sampling, enough=enough):
        problem, index = wanted[place]
        before = begun.get((problem.id, index))
        parts = before.parts if before else ()
        fresh = len(response.tokens) - sum(part.tokens for part in parts)
        if fresh:
            parts += (Part(fresh, sampling.temperature, speaker.version),)
        yield (
            place,
            Rollout.of(
                problem.id,
                speaker.chat.text(response.tokens),
                before.sampler if before else speaker.name,
                index=index,
                seed=before.seed if before else seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                finish=response.finish,
                num_tokens=len(response.tokens),
                tokens=response.tokens,
                logprobs=response.logprobs,
                parts=parts,
            ),
        )


def rollouts(
    speaker: Speaker,
    wanted: Sequence[tuple[Problem, int]],
    sampling: Sampling,
    *,
    address: tuple[object, ...],
    progress: Callable[[int], object] = lambda _: None,
) -> list[Rollout]:
    """`stream` to its end: one rollout for each of `wanted`, in order."""
    found = {}
    for place, rollout in stream(speaker, wanted, sampling, address=address):
        found[place] = rollout
        progress(1)
    return [found[place] for place in range(len(wanted))]


def _request(before: Rollout | None, prompt: tuple[int, ...], seed: int, problem_id: str, index: int) -> Request:
    """A new response, or the rest of one, drawn with the numbers it began with."""
    if before is None:
        return Request(prompt, key(seed, problem_id, index))
    return Request(prompt, key(before.seed, problem_id, index), before.tokens or (), before.logprobs or ())
