"""Which generation is sampled when, and by which weights: in turns with learning, or one generation ahead of it.

In turns is the default: every token is sampled by the weights that learn from it. With `engine.ahead` a copy of the
policy, on another device where one is named, samples the next generation while this one is learned from. The queue
between them holds one generation and no more, so nothing can run away or lock: the sampler waits for weights, the
trainer for the generation, never both. What is learned from is then one generation old, which the ratio in the loss
or a `correction` accounts for.

A save is exact where nothing is under way: ahead, the stage may stop only where it has waited for the next generation.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from algorist.generate.rollouts import Engine, Speaker
from algorist.generate.sampling import Sampling
from algorist.model.policy import Policy
from algorist.numerics import schedules
from algorist.records import Problem
from algorist.stage import Run
from algorist.stages import groups
from algorist.stages.prompts import Deck
from algorist.stages.sampler import Clock, Sampler
from algorist.stages.watch import Watch
from algorist.verify.pool import Pool


def temperature(run: Run, generation: int) -> float:
    """Of the sampling in a generation: remedy 3."""
    keys = run.settings.temperature
    return schedules.temperature(generation, run.settings.steps, start=keys.start, end=keys.end, over=keys.over)


class Generations:
    """The generations of a run, each sampled at most once; a context manager."""

    def __init__(
        self, run: Run, engine: Callable[[], Engine], pool: Pool, problems: Mapping[str, Problem], first: int
    ) -> None:
        """`engine` opens the sampler, once something is to be sampled; `first` is the generation that the run goes on
        with, those before it are on disk."""
        self._run, self._pool, self._problems = run, pool, problems
        self._engine = functools.cache(engine)
        self._watch = Watch(run.folder, run.settings.health.patience)
        self._deck, self._drawn = Deck(run, list(problems.values())), -1
        for generation in range(first):
            self._take(generation)
        self._beside = ThreadPoolExecutor(1, "generation")
        self._stopped = threading.Event()
        self._coming: Future[Clock] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way is given up."""
        self._stopped.set()
        self._beside.shutdown()

    def get(self, generation: int, policy: Policy) -> tuple[groups.Generation, Clock]:
        """A generation, sampled now by the policy as it is unless it was before, and the time it took."""
        clock = Clock()
        if self._coming is not None:
            started = time.monotonic()
            found = self._coming.result()
            waited = time.monotonic() - started
            clock = Clock(generate=waited, hand_over=found.hand_over, beside=found.generate + found.verify)
            self._coming = None
        elif not self._known(generation):
            self._hand_over(policy, clock)
            self._sample(generation, generation * self._run.settings.updates, clock)
        return groups.read(self._run, generation, self._problems), clock

    def send_ahead(self, generation: int, policy: Policy) -> None:
        """Sample the next generation beside, by the policy as it is now, whatever becomes of it meanwhile."""
        if generation + 1 < self._run.settings.steps and not self._known(generation + 1):
            clock = Clock()
            self._hand_over(policy, clock)
            version = generation * self._run.settings.updates
            self._coming = self._beside.submit(self._sample, generation + 1, version, clock)

    def wait(self) -> None:
        """Until nothing is under way. What failed there fails here, before a save that would not be exact any more."""
        if self._coming is not None:
            self._coming.result()

    def _known(self, generation: int) -> bool:
        """Whether a generation stands on disk, sampled before a kill by these very weights."""
        known = groups.stored(self._run, generation)
        if known:
            self._take(generation)
        return known

    def _hand_over(self, policy: Policy, clock: Clock) -> None:
        with clock.handing_over():
            self._engine().hand_over(policy)

    def _sample(self, generation: int, version: int, clock: Clock) -> Clock:
        """Fill a generation and store it; `version` is that of the weights that were handed over."""
        speaker = Speaker(self._engine(), self._run.chat, f"rlvr/{generation}", version)
        sampling = Sampling(temperature(self._run, generation), 1.0, self._run.settings.max_tokens)
        sampler = Sampler(self._run, speaker, self._pool, sampling, generation, self._watch, clock, self._stopped)
        sampler.fill(self._deck, self._problems)
        self._drawn = generation
        with clock.handing_over():
            self._engine().rest()
        return clock

    def _take(self, generation: int) -> None:
        """Bring the deck to where a stored generation left it, once."""
        if generation <= self._drawn:
            return
        self._drawn = generation
        found = groups.read(self._run, generation, self._problems)
        before = {rollout.problem_id for rollout in groups.carried(self._run, generation - 1)}
        asked = {rollout.problem_id for rollout in (*(said for said, _ in found.heard), *found.carried)}
        self._deck.take(asked - before, generation, before)
        for group in found.groups:
            self._deck.note(group.problem.id, group.all_right)
