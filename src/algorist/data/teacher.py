"""Rollouts of a teacher: several responses to each problem, from an OpenAI-compatible server.

Which teacher is a line of the recipe: `url = "http://…/v1"` asks a server, `url = "toy://teacher"` mounts the
scripted teacher of the toy world in the place of the network. Shards of a few hundred problems are written as they
are finished, so that a killed run asks only for what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from algorist import store
from algorist.generate.sampling import Sampling
from algorist.generate.server import Server
from algorist.journal import progress
from algorist.numerics.address import key
from algorist.records import Problem, Rollout
from algorist.toy import teacher as toy

_SHARD = 200  # problems


@dataclass(frozen=True)
class Settings:
    """[teacher]"""

    url: str = toy.URL  # of an OpenAI-compatible server, up to and including /v1; or toy://teacher
    model: str = toy.MODEL  # as the server knows it; goes into the rollouts
    samples: int = 8  # per problem
    temperature: float = 0.6  # the paper does not print its teacher settings; these are Open-R1's
    top_p: float = 0.95  # share of the probability that is sampled from
    max_tokens: int = 16_384  # of a response; the toy teacher counts words
    concurrency: int = 32  # requests in flight
    prompt: str = (
        "You will be given a problem. Please reason step by step, "
        "and put your final answer within \\boxed{}:\n{problem}"
    )

    def __post_init__(self) -> None:
        if "{problem}" not in self.prompt:
            raise ValueError("prompt has no place for the problem. Write {problem} where it goes.")
        if self.samples < 1 or self.concurrency < 1:
            raise ValueError("samples and concurrency must be at least 1.")
        if self.url != toy.URL and not _is_address(self.url):
            raise ValueError(f'url = "{self.url}" is no address: http://…, https://… or {toy.URL} was expected.')
        Sampling(self.temperature, self.top_p, self.max_tokens)


def ask(
    problems: Sequence[Problem], folder: Path, settings: Settings, *, seed: int, parents: Sequence[str]
) -> store.Manifest:
    """Write `settings.samples` rollouts of each problem to `folder`; shards that are there already stay as they are."""
    scripted = settings.url == toy.URL
    server = Server(settings.url, settings.model, transport=toy.Transport() if scripted else None)
    folder.mkdir(parents=True, exist_ok=True)
    with server.client() as client, ThreadPoolExecutor(1 if scripted else settings.concurrency) as threads:

        def respond(problem: Problem) -> list[Rollout]:
            return _rollouts(server, client, problem, settings, seed)

        with progress("teacher", len(problems)) as advance:
            for index, start in enumerate(range(0, len(problems), _SHARD)):
                part = problems[start : start + _SHARD]
                if not (folder / f"{index:05d}.parquet").exists():
                    rollouts = [rollout for found in threads.map(respond, part) for rollout in found]
                    store.write_shard(folder, index, Rollout, rollouts)
                advance(len(part))
    return store.finish(folder, Rollout, parents=parents)


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _rollouts(server: Server, client: object, problem: Problem, settings: Settings, seed: int) -> list[Rollout]:
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens)
    asked = settings.prompt.replace("{problem}", problem.statement)
    # Servers take seeds of 31 bits.
    own_seed = key(seed, "teacher", problem.id) >> 32
    answers = server.ask(client, asked, sampling, count=settings.samples, seed=own_seed)  # type: ignore[arg-type]
    return [
        Rollout.of(
            problem.id,
            answer.text,
            settings.model,
            index=index,
            seed=own_seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            finish=answer.finish,
        )
        for index, answer in enumerate(answers)
    ]
