"""Continuous batching: who waits, who is decoded, and whose pages of the cache are whose.

A finished sequence gives its pages back at once and a waiting request takes its place; when none waits, the batch runs
narrower and faster. Requests of one text share its prefill and its full pages, whether they start together or not, as
long as the pages are not needed. The cache holds what was said, not what might be: when it is full, the sequence that
began last gives its place back, and is read again and gone on with once there is room.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from algorist.errors import RunError
from algorist.generate.drawing import draw
from algorist.generate.sampling import Request, Response, Sampling, over
from algorist.generate.steps import Steps, room
from algorist.model.cache import PAGE, Kept, Pages
from algorist.model.policy import Policy
from algorist.numerics.address import uniforms

_PREFILL = {"cpu": 2048, "cuda": 16384}  # tokens prefilled together, a longer text alone: activations take memory
_REFILL = 16  # prefill when one of so many places is free: fewer, larger prefills cost less than many small ones

Answers = list[tuple[int, Response]]  # (index of the request, response)


@dataclass
class Tally:
    """What a call did, counted while it runs."""

    prefilled: int = 0  # tokens
    decoded: int = 0  # tokens, each by one row of a step
    steps: int = 0
    preempted: int = 0  # sequences that gave their place back and were read again
    most: int = 0  # tokens of cache held at once
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # prefill, decode, draw


@dataclass(frozen=True)
class How:
    """How the sampler works; it changes no response, but by rounding."""

    cache_tokens: int = 0  # of the cache at most; 0: by the machine's memory, see generate/steps.py
    tally: Tally = field(default_factory=Tally)


@dataclass
class _Text:
    """A text in the cache that waiting requests go on from."""

    pages: list[int]
    state: Tensor  # (H,) the trunk's last


@dataclass
class _Active:
    """A sequence that is being decoded. Its pages stand in the row of the table that has its place."""

    request: int
    born: int  # how many were begun before
    pages: list[int]


class Batching:
    """The state of one call: who waits, who is active in which row, and what each has said so far."""

    def __init__(
        self,
        policy: Policy,
        requests: Sequence[Request],
        sampling: Sampling,
        ends: frozenset[int],
        *,
        num_slots: int,
        how: How,
    ) -> None:
        self.requests, self.sampling, self.ends, self.tally = requests, sampling, ends, how.tally
        self.device = policy.device
        self.limits = [request.limit(sampling) for request in requests]
        self.said = [list(request.said) for request in requests]
        self.logprobs = [list(request.logprobs) for request in requests]
        self.width = min(num_slots, len(requests))
        self.waiting = deque(index for index in range(len(requests)) if not self._finish(index))
        self.wanted = Counter(self._text(index) for index in self.waiting)  # waiting requests by text
        self.active: list[_Active] = []
        self.born = 0
        self.texts: dict[tuple[int, ...], _Text] = {}
        self.pages = self._cache(policy, how)
        self.steps = Steps(policy, self.pages)
        longest = max((len(r.prompt) + limit for r, limit in zip(requests, self.limits, strict=True)), default=0)
        self.table = np.zeros((self.width, self.pages.pages(longest)), dtype=np.int32)
        self.lengths = np.zeros(self.width, dtype=np.int64)  # tokens in the cache, by row
        self.last = np.zeros(self.width, dtype=np.int64)  # token to feed next, by row

    def turns(self) -> Iterator[Answers]:
        """Step after step, what each finished; first those requests that were finished before."""
        waits = set(self.waiting)
        yield [(index, self._response(index)) for index in range(len(self.requests)) if index not in waits]
        while self.active or self.waiting:
            with torch.inference_mode():
                finished = self._turn()
            yield finished

    def rest(self) -> Iterator[tuple[int, Response]]:
        """All that are not finished, as they stand."""
        for index in sorted([*self.waiting, *(one.request for one in self.active)]):
            yield index, self._response(index)

    def _cache(self, policy: Policy, how: How) -> Pages:
        """Room for all that may be needed, so that nobody is preempted; or for as much as may be had."""
        size = PAGE[self.device.type]
        kept = Kept.of(policy.model, policy.precision)
        most = [-(-(len(r.prompt) + limit) // size) for r, limit in zip(self.requests, self.limits, strict=True)]
        prompts = [-(-len(request.prompt) // size) for request in self.requests]
        needed = sum(sum(sorted(one)[-self.width :]) for one in (most, prompts)) + 2 * self.width
        had = (how.cache_tokens or room(kept, self.device)) // size
        if had <= max(most, default=0):  # one page more: a text whose last page others are still to copy
            raise RunError(
                f"The sampler's cache has room for {had * size:,} tokens, and a sequence of {max(most) * size:,} with "
                "one page beside it may come. Lower max_tokens, or leave more memory free."
            )
        return Pages(kept, min(needed, had), self.device)

    def _text(self, index: int) -> tuple[int, ...]:
        """What the next token of a request is drawn from."""
        return (*self.requests[index].prompt, *self.said[index]) if self.said[index] else self.requests[index].prompt

    def _finish(self, index: int) -> str:
        """Why a request is finished; empty while it is not."""
        return over(self.said[index], self.limits[index], self.ends)

    def _response(self, index: int) -> Response:
        finish = self._finish(index) or "unfinished"
        return Response(tuple(self.said[index]), tuple(self.logprobs[index]), finish)

    def _turn(self) -> Answers:
        """Begin waiting requests where there is room for some of them, else one step of the active."""
        free = self.width - len(self.active)
        if self.waiting and free >= min(max(1, self.width // _REFILL), len(self.waiting)):
            begun = len(self.active)
            if states := self._begin():
                with self._timed("prefill"):
                    logits = self.steps.logits(torch.stack(states))
                return self._draw(begun, logits)
        with self._timed("decode"):
            logits = self._step()
        return self._draw(0, logits)

    def _begin(self) -> list[Tensor]:
        """Give waiting requests rows and pages; the states that their next tokens are drawn from."""
        taken: list[tuple[int, tuple[int, ...]]] = []
        fresh: dict[tuple[int, ...], list[int]] = {}  # texts that are not in the cache yet, with their pages
        tokens = copies = 0
        while self.waiting and len(self.active) + len(taken) < self.width:
            text = self._text(self.waiting[0])
            known = text in self.texts or text in fresh
            if not known and fresh and tokens + len(text) > _PREFILL[self.device.type]:
                break
            # Each of the others may want a page soon; one for itself, where the last is still to be copied.
            needed = (0 if known else self.pages.pages(len(text))) + 1 + copies + len(self.active) + len(taken)
            self._leave(needed, but={one for _, one in taken} | {text})
            if needed > self.pages.free and (self.active or taken):
                break
            if not known:
                fresh[text] = self.pages.take(self.pages.pages(len(text)))
                tokens += len(text)
            copies += 1
            taken.append((self.waiting.popleft(), text))
        self._prefill(fresh)
        states = [self.texts[text].state for _, text in taken]
        self._seat(taken)
        return states

    def _prefill(self, fresh: dict[tuple[int, ...], list[int]]) -> None:
        """Write texts to their pages."""
        if fresh:
            with self._timed("prefill"):
                states = self.steps.prefill(list(fresh), list(fresh.values()))
            self.tally.prefilled += sum(map(len, fresh))
            for (text, pages), state in zip(fresh.items(), states, strict=True):
                self.texts[text] = _Text(pages, state)

    def _seat(self, taken: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Rows for requests whose texts are in the cache: full pages are shared, a last one is copied, and whoever
        comes last takes all."""
        source, target = [], []
        for index, text in taken:
            known, full = self.texts[text], len(text) // self.pages.size
            self.wanted[text] -= 1
            pages = list(known.pages)
            if self.wanted[text]:
                self.pages.share(pages[:full])
                if full < len(pages):
                    source.append(pages[full])
                    pages[full:] = self.pages.take(1)
                    target.append(pages[full])
            else:
                del self.texts[text]
            row = len(self.active)
            self.active.append(_Active(index, self.born, pages))
            self.born += 1
            self.table[row, : len(pages)] = pages
            self.lengths[row] = len(text)
        if source:
            self.pages.copy(source, target)

    def _step(self) -> Tensor:
        """Feed the last token of every active sequence; (S, V) logits."""
        while True:
            rows = np.flatnonzero(self.lengths[: len(self.active)] % self.pages.size == 0).tolist()
            self._leave(len(rows), but=set())
            if len(rows) <= self.pages.free:
                break
            self._preempt()
        for row, page in zip(rows, self.pages.take(len(rows)), strict=True):
            self.table[row, len(self.active[row].pages)] = page
            self.active[row].pages.append(page)
        count = len(self.active)
        logits = self.steps.decode(self.last[:count], self.lengths[:count], self.table[:count])
        self.lengths[:count] += 1
        self.tally.steps += 1
        self.tally.decoded += count
        return logits

    def _draw(self, first: int, logits: Tensor) -> Answers:
        """Draw a token for each row from `first` on, and take out the rows that are finished."""
        with self._timed("draw"):
            indices = [one.request for one in self.active[first:]]
            addresses = np.array([[self.requests[i].key for i in indices], [len(self.said[i]) for i in indices]])
            keys, counts = torch.from_numpy(addresses).to(self.device)
            tokens, logprobs = draw(logits, uniforms(keys, counts), self.sampling)
            drawn, scores = torch.stack([tokens.double(), logprobs.double()]).tolist()  # one wait for the device
        if any(math.isnan(score) for score in scores):
            raise RunError("The policy's logits are no numbers: its weights have grown too far. Lower learning_rate.")
        finished: Answers = []
        rows = []
        for row, (index, token, score) in enumerate(zip(indices, drawn, scores, strict=True), first):
            self.said[index].append(int(token))
            self.logprobs[index].append(score)
            self.last[row] = token
            if self._finish(index):
                finished.append((index, self._response(index)))
                rows.append(row)
        self.tally.most = self.pages.most * self.pages.size
        for row in reversed(rows):
            self._remove(row)
        return finished

    def _remove(self, row: int) -> None:
        """Give the pages of a row back; the last row takes its place."""
        self.pages.give_back(self.active[row].pages)
        last = self.active.pop()
        if row < len(self.active):
            self.active[row] = last
            for state in (self.table, self.lengths, self.last):
                state[row] = state[len(self.active)]

    def _preempt(self) -> None:
        """The sequence that began last waits again, before all others."""
        assert len(self.active) > 1, "the cache was to have room for the longest sequence"
        row = max(range(len(self.active)), key=lambda row: self.active[row].born)
        index = self.active[row].request
        self._remove(row)
        self.waiting.appendleft(index)
        self.wanted[self._text(index)] += 1
        self.tally.preempted += 1

    def _leave(self, needed: int, but: Collection[tuple[int, ...]]) -> None:
        """Forget texts that only wait, as long as fewer pages than `needed` are free."""
        for text in [text for text in self.texts if text not in but] if needed > self.pages.free else ():
            if needed > self.pages.free:
                self.pages.give_back(self.texts.pop(text).pages)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.tally.seconds[phase] += time.perf_counter() - started
