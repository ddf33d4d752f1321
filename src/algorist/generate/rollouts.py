"""Problems in, rollouts out, by the policy in this process: what RL, prompt selection and evaluation call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from algorist.generate import native
from algorist.generate.sampling import Request, Sampling
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics.address import key
from algorist.records import Problem, Rollout


@dataclass(frozen=True)
class Speaker:
    """Who samples: a policy with its chat, and the name under which its rollouts are known."""

    policy: Policy
    chat: Chat
    name: str  # goes into the rollouts' ids
    num_slots: int = 128  # sequences decoded together


def rollouts(
    speaker: Speaker,
    wanted: Sequence[tuple[Problem, int]],
    sampling: Sampling,
    *,
    address: tuple[object, ...],
    progress: Callable[[int], object] = lambda _: None,
) -> list[Rollout]:
    """One rollout for each (problem, sample index), in order, with token ids and log-probabilities.

    Args:
        wanted   sample i of a problem depends on `address`, the problem and i alone; samples of one problem that
                 stand together share the work of its prompt
        address  numerics/address.py; the recipe's seed first
    """
    chat = speaker.chat
    prompts = {problem.id: chat.prompt_ids(problem.statement) for problem, _ in wanted}
    requests = [Request(prompts[p.id], key(*address, p.id, index)) for p, index in wanted]
    responses = native.sample(
        speaker.policy, requests, sampling, end_ids=chat.stops, num_slots=speaker.num_slots, progress=progress
    )
    return [
        Rollout.of(
            problem.id,
            chat.text(response.tokens),
            speaker.name,
            index=index,
            seed=key(*address),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            finish=response.finish,
            num_tokens=len(response.tokens),
            tokens=response.tokens,
            logprobs=response.logprobs,
        )
        for (problem, index), response in zip(wanted, responses, strict=True)
    ]
