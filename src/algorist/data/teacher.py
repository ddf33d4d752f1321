"""Rollouts of a teacher: several responses to each problem, from one or many OpenAI-compatible servers.

    problems/ ──→ ask ──→ answers.sqlite ──→ rollouts_of ──→ rollouts/

`ask` fills the log with the samples that it lacks, for all shards of problems at once; `rollouts_of` reads those of
one shard. The log outlives both: killed anywhere, the next call asks for the samples that are not there and no others.

Which teacher is a line of the recipe: `url = "http://…/v1"` asks a server, a list of addresses asks all of them,
`url = "toy://teacher"` mounts the scripted teacher of the toy world in the place of the network, `url = ""` asks nobody
and leaves the traces that came with the data.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from algorist import addresses, store
from algorist.errors import RunError
from algorist.generate import answers, fleet, server
from algorist.generate.answers import Answer, Answers, Ask, Refused
from algorist.generate.endpoints import Endpoint
from algorist.generate.sampling import Sampling
from algorist.journal import progress
from algorist.numerics.address import key
from algorist.records import Problem, Rollout, content_id
from algorist.toy import teacher as toy

_JUDGED = 250  # problems whose rollouts are in memory while they are judged

Judge = Callable[[list[Rollout]], Mapping[str, bool | None]]  # rollouts → rollout id → right, wrong or not judged


@dataclass(frozen=True)
class Settings:
    """[teacher]"""

    url: str | tuple[str, ...] = toy.URL  # of one server or several, up to and including /v1; or toy://teacher, or none
    model: str = toy.MODEL  # as the servers know it; goes into the rollouts
    protocol: Literal["chat", "completion"] = "chat"  # chat: the prompt is a message; completion: it is continued
    samples: int = 8  # per problem
    max_samples: int = 0  # problems without a right sample are asked again, `samples` at a time, up to so many; 0: no
    temperature: float = 0.6  # the paper does not print its teacher settings; these are Open-R1's
    top_p: float = 0.95  # share of the probability that is sampled from
    max_tokens: int = 16_384  # of a response; the toy teacher counts words
    concurrency: int = 256  # requests in flight, over all servers
    seeded: bool = False  # send seeds: the same run gets the same samples; some servers die of them. The toy is always
    timeout: float = 3600.0  # seconds for one request: long chains take long
    patience: float = 600.0  # seconds without an answer from any server after which the run ends
    key_env: str = server.KEY  # name of the environment variable that holds the servers' key, if they want one
    price_in: float = 0.0  # of a million prompt tokens; 0: not known
    price_out: float = 0.0  # of a million completion tokens, in the same currency
    ask_traced: bool = False  # ask also about problems that came with traces
    prompt: str = (
        "You will be given a problem. Please reason step by step, "
        "and put your final answer within \\boxed{}:\n{problem}"
    )

    def __post_init__(self) -> None:
        if "{problem}" not in self.prompt:
            raise ValueError("prompt has no place for the problem. Write {problem} where it goes.")
        if self.samples < 1 or self.concurrency < 1:
            raise ValueError("samples and concurrency must be at least 1.")
        if self.max_samples < 0 or self.price_in < 0 or self.price_out < 0:
            raise ValueError("max_samples, price_in and price_out must be 0 or more.")
        if self.timeout <= 0 or self.patience <= 0:
            raise ValueError("timeout and patience must be more than 0 seconds.")
        if not self.key_env.isidentifier():  # not shown: it may be the key itself
            raise ValueError(
                "key_env is no name of an environment variable. The key itself does not belong in a recipe."
            )
        for url in self.urls:
            if url != toy.URL:
                addresses.check(url, f"http://…, https://… or {toy.URL}")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("url names a server twice.")
        self.sampling()

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, none where nobody is to be asked."""
        return self.url if isinstance(self.url, tuple) else (self.url,) if self.url else ()

    @property
    def cap(self) -> int:
        """Most samples of one problem."""
        return max(self.samples, self.max_samples)

    @property
    def addressed(self) -> bool:
        """Whether each sample has a seed of its own."""
        return self.seeded or self.urls == (toy.URL,)

    def sampling(self) -> Sampling:
        """What the servers are told. Raises ValueError where that cannot be."""
        return Sampling(self.temperature, self.top_p, self.max_tokens)


@dataclass(frozen=True)
class Usage:
    """What one call of `ask` came to."""

    samples: int = 0  # that arrived
    found: int = 0  # that were in the log before
    prompt_tokens: int = 0  # of the requests of this call
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0  # of this call, in the currency of the prices
    asked_again: int = 0  # problems that had no right sample
    refused: Mapping[str, int] = field(default_factory=dict)  # reason → questions without an answer
    words: str = ""  # of a server, on one of them
    servers: tuple[tuple[str, int, int], ...] = ()  # address, requests that it answered, requests that failed


def ask(
    problem_shards: Sequence[Path],
    log: Path,
    settings: Settings,
    *,
    seed: int,
    judge: Judge | None = None,
    traces: Sequence[Path] = (),
) -> Usage:
    """Put every sample that the settings ask for into the log, where it is not there yet.

    Args:
        problem_shards  Parquet shards of problems; one is in memory at a time
        log             the file of answers, made where it is missing
        seed            of the run: from it come the seeds of samples, where they have some
        judge           says which rollouts are right, where problems without a right one are to be asked again
        traces          shards of the rollouts that came with the problems, shard for shard; empty: there are none

    Raises RunError where the servers refuse or are gone for longer than the patience, RecordError where a shard or the
    log cannot be read. What was answered before is kept.
    """
    if not settings.urls:
        return Usage()
    with answers.writing(log) as known:
        call = _Call(known, settings)
        beside: Sequence[Path | None] = traces or [None] * len(problem_shards)
        sources = [_Source(path, seed, settings, own) for path, own in zip(problem_shards, beside, strict=True)]
        call.round("teacher", sources, 0, settings.samples)
        for first in range(settings.samples, settings.cap if judge else 0, settings.samples):
            assert judge is not None
            sources = [source.still_wrong(known, judge, first) for source in sources]
            count = min(settings.samples, settings.cap - first)
            call.again |= {(place, row) for place, source in enumerate(sources) for row in source.rows or ()}
            call.round(f"teacher, again from {first}", sources, first, count)
        return call.usage()


def rollouts_of(
    problem_shard: Path, log: Path, settings: Settings, *, seed: int, traces: Sequence[Rollout] = ()
) -> list[Rollout]:
    """The rollouts of one shard of problems, by problem and then by sample: what the log has, and the traces given.

    Raises RecordError where there is no log and a teacher was to be asked.
    """
    problems = store.read_shard(problem_shard, Problem)
    own: dict[str, list[Rollout]] = {problem.id: [] for problem in problems}
    for trace in traces:
        own.get(trace.problem_id, []).append(trace)  # some are of problems that were left out since
    with answers.reading(log) if settings.urls else contextlib.nullcontext() as known:
        for problem in problems:
            if known is not None and (settings.ask_traced or not own[problem.id]):
                own[problem.id] += _read(known, problem, settings, seed)
    return [rollout for problem in problems for rollout in sorted(own[problem.id], key=lambda one: one.index)]


@dataclass(frozen=True)
class _Source:
    """One shard of problems, and which of them are asked."""

    path: Path
    seed: int
    settings: Settings
    traces: Path | None = None
    rows: tuple[int, ...] | None = None  # None: all

    def __len__(self) -> int:
        return store.facts(self.path).rows if self.rows is None else len(self.rows)

    def problems(self) -> Iterator[tuple[int, Problem]]:
        """(row, problem) of those that are asked."""
        traced: set[str] = set()
        if self.traces and not self.settings.ask_traced:
            traced = set(store.read_columns(self.traces, ["problem_id"])["problem_id"].to_pylist())
        chosen = None if self.rows is None else set(self.rows)
        for row, problem in enumerate(store.read_shard(self.path, Problem) if self.rows != () else ()):
            if problem.id not in traced and (chosen is None or row in chosen):
                yield row, problem

    def still_wrong(self, known: Answers, judge: Judge, count: int) -> _Source:
        """The same without the problems that have a right one among their first `count` samples, or none judged."""
        rows: list[int] = []
        asked = self.problems()
        while part := list(itertools.islice(asked, _JUDGED)):
            found = {row: _read(known, problem, self.settings, self.seed, count) for row, problem in part}
            said = judge([rollout for rollouts in found.values() for rollout in rollouts])
            for row, rollouts in found.items():
                verdicts = [said.get(rollout.id) for rollout in rollouts]
                if False in verdicts and True not in verdicts:
                    rows.append(row)
        return _Source(self.path, self.seed, self.settings, self.traces, tuple(rows))


class _Call:
    """One call of `ask`: what it sends, and what comes of it."""

    def __init__(self, log: Answers, settings: Settings) -> None:
        self.log, self.settings = log, settings
        own = {toy.URL: toy.Transport()}
        self.endpoints = [Endpoint(url, settings.key_env, own.get(url)) for url in settings.urls]
        # The scripted teacher takes no time: nothing is gained from asking it many things at once.
        width = 1 if settings.urls == (toy.URL,) else settings.concurrency
        rest = (settings.protocol, width, settings.timeout, settings.patience)
        self.terms = fleet.Terms(settings.model, settings.sampling(), *rest)
        self.began = time.monotonic()
        self.count: Counter[str] = Counter()  # samples, found, in, out; settled: nothing more is done
        self.refused: Counter[str] = Counter()
        self.without: set[str] = set()  # keys of questions without an answer
        self.words = ""
        self.again: set[tuple[int, int]] = set()
        self.marks: deque[tuple[float, int, int]] = deque(maxlen=60)  # (time, samples, tokens), a second apart

    def round(self, title: str, sources: Sequence[_Source], first: int, count: int) -> None:
        """Ask for samples first … first + count - 1 of all problems of the sources."""
        total = sum(map(len, sources)) * count
        if not total:
            return
        shown = self.count["settled"]
        with progress(title, total) as advance:

            def tick() -> None:
                nonlocal shown
                advance(self.count["settled"] - shown, **self.info())
                shown = self.count["settled"]

            for got in fleet.ask(self.asks(sources, first, count), self.endpoints, self.terms, self.log, tick):
                if isinstance(got, Answer):
                    self.count.update({"samples": 1, "settled": 1, "in": got.spent_in, "out": got.spent_out})
                else:
                    self.refuse(got)

    def asks(self, sources: Sequence[_Source], first: int, count: int) -> Iterator[Ask]:
        """What the log lacks."""
        for source in sources:
            traced = len(source)
            for _, problem in source.problems():
                traced -= 1
                wanted = _ask(problem, self.settings, source.seed, first, count)
                missing = self.log.missing(wanted)
                there = count - sum(one.count for one in missing)
                if not missing and (words := self.log.refusal(wanted.key)):
                    self.refused["refused by the server before"] += 1
                    self.words = self.words or words
                else:
                    self.count["found"] += there
                self.count["settled"] += there
                yield from missing
            self.count["settled"] += traced * count

    def refuse(self, refused: Refused) -> None:
        """Count a question that has no answer; where nothing at all has one, that is an error."""
        if not self.count["samples"] and not self.count["found"]:
            raise RunError(f"{refused.endpoint}: {refused.reason}: {refused.words}. Mend [teacher].")
        self.log.refuse([refused])
        self.refused[refused.reason] += refused.key not in self.without
        self.without.add(refused.key)
        self.words = refused.words
        self.count["settled"] += refused.count

    def info(self) -> dict[str, Any]:
        """What is worth showing beside the bar."""
        now, samples, tokens = time.monotonic(), self.count["samples"], self.count["out"]
        self.marks.append((now, samples, tokens))
        then, samples_then, tokens_then = self.marks[0]
        rate = (samples - samples_then) / (seconds := max(now - then, 1e-9))
        shown: dict[str, Any] = {"samples/s": rate} if rate >= 10 else {"samples/min": float(60 * rate)}
        if tokens:
            shown |= {"tokens/s": (tokens - tokens_then) / seconds, "tokens": tokens}
        if self.cost():
            shown["cost"] = f"{self.cost():,.2f}"
        down = [f"{one.shown} ({one.said})" for one in self.endpoints if one.failing_since is not None]
        failed = [f"{one.failed:,} at {one.shown}" for one in self.endpoints if one.failed]
        if down or failed:
            shown["no answer from" if down else "failed"] = " and ".join(down or failed)
        return shown

    def cost(self) -> float:
        return (self.count["in"] * self.settings.price_in + self.count["out"] * self.settings.price_out) / 1e6

    def usage(self) -> Usage:
        return Usage(
            samples=self.count["samples"],
            found=self.count["found"],
            prompt_tokens=self.count["in"],
            completion_tokens=self.count["out"],
            seconds=time.monotonic() - self.began,
            cost=self.cost(),
            asked_again=len(self.again),
            refused=dict(self.refused),
            words=self.words,
            servers=tuple((one.shown, one.answered, one.failed) for one in self.endpoints),
        )


def _ask(problem: Problem, settings: Settings, seed: int, first: int, count: int) -> Ask:
    """The question about a problem; its key changes with everything that shapes the answer."""
    content = settings.prompt.replace("{problem}", problem.statement)
    # Servers take seeds of 31 bits; this leaves room for the samples.
    own = key(seed, "teacher", problem.id) >> 33 if settings.addressed else None
    shape = (settings.model, settings.protocol, settings.temperature, settings.top_p, settings.max_tokens)
    return Ask(content_id("teacher", *shape, own, content), content, count, first, own)


def _read(log: Answers, problem: Problem, settings: Settings, seed: int, count: int | None = None) -> list[Rollout]:
    """What the log has of a problem's first `count` samples, of all that the settings allow where none is given."""
    asked = _ask(problem, settings, seed, 0, settings.cap if count is None else count)
    make = partial(_rollout, problem.id, settings, asked.seed)
    return [make(answer) for answer in log.read(asked.key) if answer.index < asked.count]


def _rollout(problem_id: str, settings: Settings, seed: int | None, answer: Answer) -> Rollout:
    return Rollout.of(
        problem_id,
        answer.text,
        settings.model,
        index=answer.index,
        seed=0 if seed is None else seed + answer.index,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        finish=answer.finish,
        num_tokens=answer.num_tokens,
        prompt=content_id("prompt", settings.prompt, settings.protocol)[:8],
        prompt_tokens=answer.prompt_tokens,
    )
