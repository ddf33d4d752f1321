"""The events of a schedule of RL, one by one.

Sampler: engines of a few GPUs with a bounded number of slots. A step of an engine takes `fixed + kv * context` seconds,
context being the tokens that its running responses attend to, and gives each of them a token; between two events this
is a quadratic in time, so only starts and ends are events. Tokens are a fluid: a response may be cut between two.
Trainer: takes whole groups from a bounded queue, `parts` lots a version; a lot takes serial seconds, and GPU-seconds a
token. Staleness: at most (version + 1 + ahead) * groups groups have ever been begun (AReaL's rule, and verl's; those
thrown away are given back). This bounds how many groups run ahead, not the age of one; the greatest age is reported.

Never dead-locks, by this rule: an idle trainer takes from the queue at once, group by group, until it has a lot; a
finished group that finds the queue full waits at the door without holding slots, and nothing new begins meanwhile.
So a trainer that waits leaves queue and door empty, at least as many groups as it lacks were begun or may begin (ahead
is not negative), and what has begun ends after finitely many tokens, even if each hand-over interrupts it. Asserted.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from async_work import SYNC, Outcome, Rates, Schedule, Work


@dataclass
class Engine:
    """Responses that decode together, as (step at which it ends, group, length)."""

    rates: Rates
    prompt: int
    at: float = 0.0  # the time up to which `step` is known; in the future while the engine cannot decode
    step: float = 0.0
    context: float = 0.0
    running: list[tuple[float, int, int]] = field(default_factory=list)
    stamp: int = 0
    tokens: float = 0.0
    busy: float = 0.0

    def advance(self, now: float) -> None:
        """Decode until now."""
        spent = now - self.at
        if spent <= 0:
            return
        self.at = now
        if self.running:
            count = len(self.running)
            speed, growth = self.rates.fixed + self.rates.kv * self.context, self.rates.kv * count
            # speed * n + growth * n^2 / 2 = spent, in the form that does not cancel
            done = min(
                2 * spent / (speed + math.sqrt(speed * speed + 2 * growth * spent)), self.running[0][0] - self.step
            )
            self.step += done
            self.context += count * done
            self.tokens += count * done
            self.busy += spent

    def due(self) -> float:
        """When the first of the running ends."""
        left = self.running[0][0] - self.step
        return self.at + left * (self.rates.fixed + self.rates.kv * (self.context + len(self.running) * left / 2))

    def start(self, now: float, group: int, length: int, left: float) -> None:
        """Take a response in; what it said before is read again first."""
        self.advance(now)
        said = length - left
        self.at = max(self.at, now) + self.rates.prefill * said
        self.context += self.prompt + said
        heapq.heappush(self.running, (self.step + left, group, length))

    def ended(self, now: float) -> Iterator[tuple[int, int]]:
        """(group, length) of what ends now; the caller was woken by `due`."""
        self.advance(now)
        self.step = self.running[0][0]
        while self.running and self.running[0][0] <= self.step + 1e-6:
            _, group, length = heapq.heappop(self.running)
            self.context -= self.prompt + length
            yield group, length

    def interrupt(self, now: float) -> list[tuple[int, int, float]]:
        """(group, length, tokens left) of all that ran, in the order of their groups."""
        self.advance(now)
        cut = sorted(((group, length, end - self.step) for end, group, length in self.running), key=lambda r: r[0])
        self.running, self.context = [], 0.0
        return cut


class Run:
    """One schedule on one machine, event by event."""

    def __init__(self, work: Work, rates: Rates, schedule: Schedule, gpus: tuple[int, int], seed: int = 0) -> None:
        """`gpus` are those of the sampler and those of the trainer. Raises ValueError for what cannot be run."""
        if min(gpus) < 1 or gpus[0] < rates.gpus or schedule.ahead < 0 or schedule.queue < 1:
            raise ValueError("a run needs an engine, a trainer, a queue of at least one group and ahead >= 0")
        if work.groups % schedule.parts or (schedule.colocated and schedule.parts > 1):
            raise ValueError("parts must divide the groups, and a colocated trainer takes them all at once")
        self.work, self.rates, self.schedule, self.trainers, self.seed = work, rates, schedule, gpus[1], seed
        self.engines = [Engine(rates, work.prompt) for _ in range(gpus[0] // rates.gpus)]
        self.places, self.loads = range(len(self.engines)), [0] * len(self.engines)
        self.events: list[tuple[float, int, int, int]] = []  # (time, order, engine or -1, stamp)
        self.order = itertools.count()
        self.waiting: deque[tuple[int, int, float]] = deque()
        self.lengths: dict[int, int] = {}  # tokens of each group that was begun and not trained
        self.left: dict[int, int] = {}  # responses that each of them still lacks
        self.version_of: dict[int, int] = {}
        self.queue: deque[int] = deque()
        self.door: deque[int] = deque()
        self.taken: list[int] = []
        self.now, self.version, self.lot, self.begun, self.number = 0.0, 0, 0, 0, 0
        self.training = self.stopped = self.draining = False
        self.made: list[float] = []  # when each version had been handed over
        self.trained = self.wasted = self.trainer_busy = 0.0
        self.oldest = self.most = 0

    def may_begin(self) -> bool:
        """Whether another group may be begun now."""
        if self.stopped or self.draining or self.door:
            return False
        if self.schedule.whole and self.begun % self.work.groups == 0 and self.left:
            return False
        return self.begun + 1 <= (self.version + 1 + self.schedule.ahead) * self.work.groups

    def feed(self) -> None:
        """Fill free slots, the least loaded engine first: interrupted responses before new ones."""
        touched = set()
        while not self.stopped and not self.draining and (self.waiting or self.may_begin()):
            place = min(self.places, key=self.loads.__getitem__)
            if self.loads[place] >= self.rates.slots:
                break
            if not self.waiting:
                self.begin()
            self.engines[place].start(self.now, *self.waiting.popleft())
            self.loads[place] += 1
            touched.add(place)
        for place in touched:
            self.wake(place)

    def begin(self) -> None:
        """Put a new group's responses in line."""
        lengths = self.work.lengths(self.seed, self.number)
        self.waiting.extend((self.number, int(length), float(length)) for length in lengths)
        self.lengths[self.number], self.left[self.number] = int(lengths.sum()), len(lengths)
        self.version_of[self.number] = self.version
        self.number += 1
        self.begun += 1
        self.most = max(self.most, len(self.lengths))

    def wake(self, place: int) -> None:
        """Have the engine looked at when its next response ends."""
        engine = self.engines[place]
        engine.stamp += 1
        if engine.running:
            heapq.heappush(self.events, (engine.due(), next(self.order), place, engine.stamp))

    def finish(self, place: int) -> None:
        """Responses of an engine have ended; complete groups go to the queue or to its door."""
        for group, _ in self.engines[place].ended(self.now):
            self.left[group] -= 1
            self.loads[place] -= 1
            if not self.left[group]:
                del self.left[group]
                (self.queue if len(self.queue) < self.schedule.queue else self.door).append(group)
        self.wake(place)
        self.collect()
        if self.draining and not any(engine.running for engine in self.engines):
            self.draining = False
            self.hand_over()
        self.feed()

    def collect(self) -> None:
        """An idle trainer takes groups until it has a lot, and trains on it."""
        need = self.work.groups // self.schedule.parts
        while not self.training and self.queue and len(self.taken) < need:
            self.taken.append(self.queue.popleft())
            while self.door and len(self.queue) < self.schedule.queue:
                self.queue.append(self.door.popleft())
        if self.training or len(self.taken) < need:
            return
        self.training = True
        if self.schedule.colocated:
            self.stop()
        tokens = sum(self.lengths[group] for group in self.taken)
        seconds = tokens * self.rates.train / self.trainers + self.rates.serial / self.schedule.parts
        self.trainer_busy += seconds
        heapq.heappush(self.events, (self.now + seconds, next(self.order), -1, 0))

    def stop(self) -> None:
        """Take every response off its engine: to go on later, or for good."""
        cut = sorted((one for engine in self.engines for one in engine.interrupt(self.now)), key=lambda r: r[0])
        self.stopped = self.schedule.colocated
        self.loads = [0] * len(self.engines)
        for place in self.places:
            self.wake(place)
        self.waiting.extendleft(reversed(cut))
        if self.schedule.cut == "discard":
            gone = {**self.left}
            for group in [*gone, *self.queue, *self.door]:
                self.wasted += self.lengths[group]
                del self.lengths[group], self.version_of[group]
            self.wasted -= sum(left for group, _, left in self.waiting)
            self.begun -= len(gone) + len(self.queue) + len(self.door)
            for line in (self.left, self.queue, self.door, self.waiting):
                line.clear()

    def trained_lot(self) -> None:
        """A lot has been trained on; after the last of a version the weights are handed over."""
        for group in self.taken:
            self.trained += self.lengths.pop(group)
            self.oldest = max(self.oldest, self.version - self.version_of.pop(group))
        self.taken = []
        self.lot += 1
        if self.lot < self.schedule.parts:
            self.training = False
            self.collect()
            self.feed()
            return
        self.lot = 0
        self.version += 1
        drain = self.schedule.cut == "drain" and not self.schedule.whole and not self.schedule.colocated
        if drain and any(engine.running for engine in self.engines):
            self.draining = True
        else:
            self.hand_over()

    def hand_over(self) -> None:
        """New weights go to the sampler, and the trainer waits; one-step-off takes them when its next batch begins."""
        if not self.schedule.whole:
            if self.schedule.cut == "carry":
                self.stop()
            self.stopped = True
        heapq.heappush(self.events, (self.now + self.rates.hand_over, next(self.order), -2, 0))

    def until(self, version: int) -> float:
        """The time at which this version had been handed over. AssertionError if nothing could happen any more."""
        self.feed()
        while len(self.made) < version:
            assert self.events, f"dead-lock at {self.now:.1f} s, version {self.version}"
            self.now, _, place, stamp = heapq.heappop(self.events)
            if place >= 0:
                if stamp == self.engines[place].stamp:
                    self.finish(place)
            elif place == -1:
                self.trained_lot()
            else:
                self.made.append(self.now)
                self.training = self.stopped = False
                self.collect()
                self.feed()
        return self.now

    def held(self) -> float:
        """Tokens generated so far that are neither trained on nor thrown away."""
        for engine in self.engines:
            engine.advance(self.now)
        running = sum(end - engine.step for engine in self.engines for end, _, _ in engine.running)
        return sum(self.lengths.values()) - running - sum(left for _, _, left in self.waiting)


def simulate(
    work: Work, rates: Rates, schedule: Schedule, gpus: tuple[int, int], steps: int = 6, seed: int = 0
) -> Outcome:
    """Run `steps` versions after as many to warm up as may run ahead. Raises ValueError for what cannot be run."""
    run = Run(work, rates, schedule, gpus, seed)
    warm = 2 + math.ceil(min(schedule.ahead, 4))
    start = run.until(warm)
    before = [run.trainer_busy, sum(engine.busy for engine in run.engines)]
    spent = run.until(warm + steps) - start
    held = run.held()
    busy = sum(engine.busy for engine in run.engines) - before[1]
    return Outcome(
        seconds=spent / steps,
        generated=sum(engine.tokens for engine in run.engines),
        trained=run.trained,
        wasted=run.wasted,
        held=held,
        sampler_idle=1 - busy / spent / len(run.engines) if spent else 0.0,
        trainer_idle=1 - (run.trainer_busy - before[0]) / spent if spent else 0.0,
        oldest=run.oldest,
        most=run.most,
    )


def at_once(work: Work, rates: Rates, gpus: int, versions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(versions, engines): longest response and integral of the context of generations that fit the slots."""
    engines = gpus // rates.gpus
    longest, context = np.zeros((2, versions, engines))
    for version in range(versions):
        groups = range(version * work.groups, (version + 1) * work.groups)
        lengths = np.concatenate([work.lengths(seed, group) for group in groups]).astype(float)
        for place in range(engines):
            mine = lengths[place::engines]
            longest[version, place] = mine.max(initial=0)
            context[version, place] = (work.prompt * mine + mine * mine / 2).sum()
    return longest, context


def calibrated(work: Work, rates: Rates, gpus: int, generation: float, seed: int = 0) -> Rates:
    """The rates with the `fixed` part of a decode step at which a synchronous generation takes so many seconds.

    Raises ValueError if the part of the context alone takes longer.
    """
    alone = replace(rates, train=0.0, serial=0.0, hand_over=0.0)
    fits = work.groups * work.group <= rates.slots * (gpus // rates.gpus)
    longest, context = at_once(work, rates, gpus, 4, seed) if fits else (np.zeros(0), np.zeros(0))

    def seconds(fixed: float) -> float:
        if fits:
            return float((longest * fixed + context * rates.kv).max(axis=1).mean())
        return simulate(work, replace(alone, fixed=fixed), SYNC, (gpus, gpus), 2, seed).seconds

    low, high = 0.0, generation / work.mean
    if not seconds(1e-9) < generation <= seconds(high):
        raise ValueError(
            f"with kv = {rates.kv:g} a generation takes at least {seconds(1e-9):.1f} s, not {generation:g}"
        )
    for _ in range(40 if fits else 12):
        fixed = (low + high) / 2
        low, high = (fixed, high) if seconds(fixed) < generation else (low, fixed)
    return replace(rates, fixed=high)
