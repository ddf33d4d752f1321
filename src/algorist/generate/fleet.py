"""Many servers asked at once: hundreds of requests in flight, each answer exactly once, whatever the servers do.

`ask` is a plain generator; the event loop inside it runs while its caller waits for the next answer. Work goes to the
server that is least busy for its share, and what fails goes back into the queue.

    share      a server that says that it is crowded (429, 503) gets fewer requests, then slowly more again
    pause      a server that fails eight times in a row, or says Retry-After, is left alone; the others take its work
    probe      when the pause is over it is asked for its models; if it speaks it gets four requests, and twice as many
               each second; if it does not, the next pause is twice as long
    patience   when no server has answered for that long, and none has work, the call ends with an error
    given up   a question that fails twenty times by itself, not with its server, is left out, and said to be

A server that ignores `n`, or refuses it, is asked for one sample at a time. No torch here.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from algorist.errors import RunError
from algorist.generate import server
from algorist.generate.answers import Answer, Answers, Ask, Refused
from algorist.generate.endpoints import Endpoint, Lines, allow_files
from algorist.generate.sampling import Sampling
from algorist.generate.server import Protocol, Refusal, Reply, Trouble

_TRIES = 20  # of a question whose failures are its own
_REFUSALS = 20  # by one server with no answer between: then it is not the questions
_TICK = 1.0  # seconds
_PROBE = 30.0  # seconds for a probe
_AWAY = (429, 502, 503, 504)  # statuses of a probe that come from a server that is crowded, or from its proxy


@dataclass(frozen=True)
class Terms:
    """How all questions of one call are asked."""

    model: str
    sampling: Sampling
    protocol: Protocol = "chat"
    concurrency: int = 256  # requests in flight, over all servers
    timeout: float = 3600.0  # seconds for one request
    patience: float = 600.0  # seconds without any answer from any server
    section: str = "teacher"  # of the recipe, that names the servers: where errors send the user


@dataclass
class _Work:
    """An ask under way."""

    ask: Ask
    attempt: int = 0
    blamed: int = 0  # failures that seem to be the question's own
    alone: bool = False  # asked for one sample, because several were refused
    avoid: Endpoint | None = None  # that failed last


def ask(
    asks: Iterable[Ask],
    endpoints: Sequence[Endpoint],
    terms: Terms,
    log: Answers | None = None,
    tick: Callable[[], object] | None = None,
) -> Iterator[Answer | Refused]:
    """Every sample of every ask, in the order in which they arrive; asks are taken from the iterable as there is room.

    An answer is in the log, where one is given, before it is given out. What the log has already is asked for all the
    same: `Answers.missing` says what is not there. `tick` is called about once a second, and at the end.

    Raises RunError where a server refuses all questions (no key, no such model), and where no server answers for
    longer than the patience. What was answered before is kept; what is in flight then is not.
    """
    allow_files(terms.concurrency)
    run = _Run(iter(asks), endpoints, terms, tick or (lambda: None))
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(run.open())
        while batch := loop.run_until_complete(run.some()):
            _keep(log, batch)
            yield from batch
    finally:
        try:
            _keep(log, run.found)  # arrived, and not given out
        finally:
            loop.run_until_complete(run.close())
            loop.close()
            run.tick()


class _Run:
    """One call of `ask`."""

    def __init__(
        self, asks: Iterator[Ask], endpoints: Sequence[Endpoint], terms: Terms, tick: Callable[[], object]
    ) -> None:
        self.asks, self.endpoints, self.terms, self.tick = asks, endpoints, terms, tick
        self.secrets = {endpoint: server.secret(endpoint.key_env) for endpoint in endpoints}
        self.lines = {endpoint: Lines(endpoint, self.secrets[endpoint], terms.timeout) for endpoint in endpoints}
        self.ready: deque[_Work] = deque()
        self.later: list[tuple[float, int, _Work]] = []  # a heap by time
        self.pushed = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.exhausted = False  # no more asks
        self.found: list[Answer | Refused] = []
        self.error: BaseException | None = None
        self.ticked = -math.inf

    async def open(self) -> None:
        self.loop, self.wake = asyncio.get_running_loop(), asyncio.Event()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for lines in self.lines.values():
            await lines.close()

    async def some(self) -> list[Answer | Refused]:
        """What has arrived, at least one; nothing when all is done."""
        while True:
            now = self.loop.time()
            if now - self.ticked >= _TICK:
                self.tick()
                self.ticked = now
            if self.error is None:
                self.fill(now)
            idle = not (self.tasks or self.ready or self.later)
            if idle and self.error is None:
                for endpoint in self.endpoints:
                    self.release(endpoint)
            if self.found:
                found, self.found = self.found, []
                return found
            if self.error is not None:
                raise self.error
            if idle:
                return []
            self.lose_patience(now)
            self.wake.clear()
            timer = self.loop.call_later(self.seconds_to_wait(now), self.wake.set)
            await self.wake.wait()
            timer.cancel()

    def fill(self, now: float) -> None:
        """Send as much as there is room for, and probe whoever has been left alone for long enough."""
        for left in self.endpoints:
            if left.broken and now >= left.paused_until:
                left.paused_until = math.inf  # until the probe has ended
                self.start(self.probe(left))
        while self.in_flight < self.terms.concurrency and self.pick(now, None):
            work = self.take(now)
            if work is None:
                return
            endpoint = self.pick(now, work.avoid)
            assert endpoint is not None, "there was room"
            if endpoint.one_by_one and not work.alone and work.ask.count > 1:
                rest = replace(work.ask, first=work.ask.first + 1, count=work.ask.count - 1)
                self.ready.appendleft(_Work(rest, avoid=work.avoid))
                work = replace(work, ask=replace(work.ask, count=1))
            self.in_flight += 1
            endpoint.in_flight += 1
            self.start(self.send(work, endpoint, 1 if work.alone else work.ask.count))

    def pick(self, now: float, avoid: Endpoint | None) -> Endpoint | None:
        """The server that is least busy for its share, rather another one than `avoid`; None where all are full."""
        rooms = [(endpoint, endpoint.room(now, self.terms.concurrency)) for endpoint in self.endpoints]
        free = [(endpoint, room) for endpoint, room in rooms if endpoint.in_flight < room]
        if not free:
            return None
        return min(free, key=lambda one: (one[0] is avoid, one[0].in_flight / one[1], one[0].answered))[0]

    def take(self, now: float) -> _Work | None:
        """What to send next: what failed before, then what is new, unless too much waits already."""
        if self.later and self.later[0][0] <= now:
            return heapq.heappop(self.later)[2]
        if self.ready:
            return self.ready.popleft()
        if self.exhausted or len(self.later) >= self.terms.concurrency:
            return None
        try:
            return _Work(next(self.asks))
        except StopIteration:
            self.exhausted = True
            return None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.done)

    def done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.error is None:
            self.error = error
        self.wake.set()

    async def send(self, work: _Work, endpoint: Endpoint, count: int) -> None:
        """One request, and what becomes of it."""
        began, terms = self.loop.time(), self.terms
        seed = None if work.ask.seed is None else work.ask.seed + work.ask.first
        asked = server.body(terms.protocol, terms.model, work.ask.content, terms.sampling, count=count, seed=seed)
        try:
            got = await self.post(endpoint, asked)
        finally:
            self.in_flight -= 1
            endpoint.in_flight -= 1
        now = self.loop.time()
        if isinstance(got, Refusal):
            if got.of_question:
                endpoint.speaks(now)
                self.refusal(got, work, endpoint, count)
                return
            if not endpoint.answered:
                raise RunError(server.refused(endpoint.url, got, terms.section))
            got = Trouble(f"status {got.status}: {got.words}")  # it answered before: a gateway, or a key that ran out
        if isinstance(got, Trouble):
            self.trouble(got, work, endpoint, began)
        else:
            self.reply(got, work, endpoint, count, now - began)

    async def post(self, endpoint: Endpoint, asked: dict[str, Any]) -> Reply | Trouble | Refusal:
        protocol, limit = self.terms.protocol, self.terms.timeout
        try:
            async with asyncio.timeout(limit):  # of the whole: a server may drip for ever
                got = await self.lines[endpoint].send("POST", server.PATHS[protocol], asked)
        except TimeoutError:
            return Trouble(f"no answer within {limit:g} s")
        except httpx.RequestError as error:
            return server.failure(error)
        return server.outcome(got.status_code, got.headers, got.content, protocol, self.secrets[endpoint])

    def reply(self, got: Reply, work: _Work, endpoint: Endpoint, count: int, seconds: float) -> None:
        """Give out the samples; those that are missing are asked for at once."""
        asked, given = work.ask, got.choices[:count]
        endpoint.answered += 1
        endpoint.speaks(self.loop.time())
        endpoint.counts(len(given), count)
        endpoint.one_by_one = endpoint.one_by_one or work.alone
        self.release(endpoint)
        for place, choice in enumerate(given):
            spent = (got.prompt_tokens, got.completion_tokens) if place == 0 else (0, 0)
            told = (choice.text, choice.finish, got.prompt_tokens, choice.num_tokens)
            self.found.append(Answer(asked.key, asked.first + place, *told, endpoint.shown, seconds, *spent))
        if len(given) < asked.count:
            rest = replace(asked, first=asked.first + len(given), count=asked.count - len(given))
            self.ready.appendleft(_Work(rest))

    def trouble(self, got: Trouble, work: _Work, endpoint: Endpoint, began: float) -> None:
        """Ask again later; give up where a server that lives fails on this question again and again."""
        now = self.loop.time()
        work.blamed += got.alive or endpoint.spoke_at > began
        endpoint.fails(now, got, began)
        if work.blamed >= _TRIES:
            self.hold(work, endpoint, f"no usable answer after {_TRIES} tries", got.words, lasting=False)
            return
        self.pushed += 1
        again = now + server.pause(work.attempt, 0.0, work.ask.key, work.ask.first)
        heapq.heappush(self.later, (again, self.pushed, replace(work, attempt=work.attempt + 1, avoid=endpoint)))

    def refusal(self, got: Refusal, work: _Work, endpoint: Endpoint, count: int) -> None:
        """A question that a server does not take; where several samples were asked for, one is asked for first."""
        if count > 1:
            self.ready.appendleft(replace(work, alone=True))
            return
        self.hold(work, endpoint, f"refused by the server ({got.status})", got.words, lasting=True)

    def hold(self, work: _Work, endpoint: Endpoint, reason: str, words: str, *, lasting: bool) -> None:
        """Keep back what has no answer until the server answers another question: it may be that it answers none."""
        refused = Refused(work.ask.key, reason, words, endpoint.shown, work.ask.count, lasting)
        endpoint.refusals.append(refused)
        if len(endpoint.refusals) >= _REFUSALS:
            raise RunError(
                f"{endpoint.shown}: the last {_REFUSALS} questions had no answer, {reason} ({words}). "
                f"Mend [{self.terms.section}]."
            )

    def release(self, endpoint: Endpoint) -> None:
        self.found += endpoint.refusals
        endpoint.refusals.clear()

    async def probe(self, endpoint: Endpoint) -> None:
        """Ask a server that was left alone for its models: whatever it says, it lives."""
        try:
            async with asyncio.timeout(_PROBE):
                got = await self.lines[endpoint].send("GET", "/models")
            # Not every 5xx: `transformers serve` answers 500 here while it serves chats.
            alive, words = got.status_code not in _AWAY, f"status {got.status_code}"
        except (TimeoutError, httpx.RequestError) as error:
            alive, words = False, server.failure(error).words
        now = self.loop.time()
        endpoint.paused_until = now
        if alive:
            endpoint.reopens(now)
        else:
            endpoint.said = words
            endpoint.left_alone(now)

    def lose_patience(self, now: float) -> None:
        """Raise RunError where no server has spoken sense for too long and none has work that it may still do."""
        failing = [endpoint.failing_since for endpoint in self.endpoints]
        since = [then for then in failing if then is not None]
        if self.in_flight or len(since) < len(failing) or now - max(since) <= self.terms.patience:
            return
        told = "; ".join(f"{endpoint.shown}: {endpoint.said}" for endpoint in self.endpoints)
        raise RunError(
            f"No server has answered for {self.terms.patience:g} s ({told}). Start one or mend [{self.terms.section}] "
            "url, then run the same command again; what is finished is kept."
        )

    def seconds_to_wait(self, now: float) -> float:
        """Until something may have to be done that no reply tells of."""
        until = [self.ticked + _TICK, *(endpoint.paused_until for endpoint in self.endpoints)]
        if self.later:
            until.append(self.later[0][0])
        if any(endpoint.limited for endpoint in self.endpoints):
            until.append(now + 0.1)  # a share grows
        return max(min((then for then in until if then > now), default=now + _TICK) - now, 0.001)


def _keep(log: Answers | None, batch: Sequence[Answer | Refused]) -> None:
    answers = [one for one in batch if isinstance(one, Answer)]
    if log is not None and answers:
        log.add(answers)
