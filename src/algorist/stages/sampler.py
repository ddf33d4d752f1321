"""How stage 4 fills a generation: ask prompts, verify, ask hard prompts again, replace those that teach nothing.

Long responses need not hold everybody up. With `issue` above 1 more prompts are asked than needed; once enough of them
are complete, the others are left as they stand and go on in the next generation, with the log-probabilities and the
temperatures that their first tokens were sampled at. Responses are verified while others are still being decoded.

Which responses are complete when a generation is cut follows from the order of decoding, never from a clock, so that a
run that was killed and made again samples the same.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from algorist.generate.rollouts import Begun, Speaker, stream
from algorist.generate.sampling import Sampling
from algorist.numerics.groups import wants_more
from algorist.records import Problem, Rollout, Verdict
from algorist.stage import Run
from algorist.stages import groups
from algorist.stages.prompts import Deck
from algorist.stages.watch import Watch
from algorist.verify.pool import Pool

_TOGETHER = 32  # rollouts that are handed to the verifier at once


@dataclass
class Clock:
    """Seconds of a generation that went into each kind of work."""

    generate: float = 0.0
    verify: float = 0.0  # of waiting for verdicts when nothing was left to generate
    hand_over: float = 0.0  # of weights to the engine, and of waking it and sending it to sleep
    beside: float = 0.0  # of sampling and verifying while the generation before was learned from

    @contextlib.contextmanager
    def handing_over(self) -> Iterator[None]:
        """Count what the block takes."""
        started = time.monotonic()
        yield
        self.hand_over += time.monotonic() - started

    def spent(self) -> dict[str, float]:
        """For the journal."""
        return {f"{name}_seconds": seconds for name, seconds in asdict(self).items()}


class Stopped(Exception):
    """A sampling was given up because the run ends; nothing of it is stored."""


@dataclass
class _Heard:
    """Of each prompt by sample index: finished rollouts with their verdicts, and samples left in the middle."""

    finished: defaultdict[str, dict[int, tuple[Rollout, Verdict]]] = field(default_factory=lambda: defaultdict(dict))
    left: defaultdict[str, list[Rollout]] = field(default_factory=lambda: defaultdict(list))

    def judged(self, problem_id: str) -> list[tuple[Rollout, bool]]:
        """A prompt's rollouts that could be judged, with whether they are right."""
        found = self.finished[problem_id].values()
        return [(rollout, verdict.right) for rollout, verdict in found if verdict.right is not None]


@dataclass(frozen=True)
class Sampler:
    """Samples and verifies one generation."""

    run: Run
    speaker: Speaker
    pool: Pool
    sampling: Sampling
    generation: int
    watch: Watch
    clock: Clock = field(default_factory=Clock)
    stopped: threading.Event = field(default_factory=threading.Event)  # set: give up, store nothing

    def fill(self, deck: Deck, problems: Mapping[str, Problem]) -> None:
        """Ask until `batch_size` groups can be learned from, or `refills` are spent, and store the generation.

        Args:
            deck      where prompts are drawn from
            problems  by id
        """
        settings, size = self.run.settings, self.run.training.batch_size
        before = groups.by_sample(groups.carried(self.run, self.generation - 1))
        asked = [problems[one] for one in dict.fromkeys(problem for problem, _ in before)]
        busy = {problem.id for problem in asked}
        heard = _Heard()
        ended: list[groups.Group] = []
        kept = 0
        for again in range(1 + settings.refills):
            missing = size - kept
            wanted = math.ceil(settings.engine.issue * missing)
            old = asked if again == 0 else []
            fresh = deck.draw(max(wanted - len(old), 0), self.generation, busy)
            busy |= {problem.id for problem in fresh}
            if not old and not fresh:
                break
            self._ask_prompts([*old, *fresh], before, heard, missing)
            complete = [problem for problem in (*old, *fresh) if problem.id not in heard.left]
            new = [groups.group(self.run, self.generation, one, heard.judged(one.id)) for one in complete]
            ended += new
            kept += sum(bool(group.selection.kept) for group in new)
            if kept >= size:
                break
        for group in ended:
            deck.note(group.problem.id, group.all_right)
        over = [pair for own, found in heard.finished.items() if own not in heard.left for pair in found.values()]
        waiting = [said for own, rest in heard.left.items() for said in (*_said(heard.finished[own]), *rest)]
        groups.write(self.run, self.generation, over, waiting)

    def _ask_prompts(self, problems: Sequence[Problem], before: Begun, heard: _Heard, needed: int) -> None:
        """Ask each prompt `group_size` times, and those with too few right responses again."""
        settings = self.run.settings
        wanted = [(problem, i) for problem in problems for i in range(settings.group_size)]
        cut = settings.engine.issue > 1
        self._ask(wanted, before, heard, needed if cut else len(problems))
        asking = [problem for problem in problems if problem.id not in heard.left]
        sampled = settings.group_size
        limits = {"enough_right": settings.enough_right, "most": settings.oversample}
        while sampled < settings.oversample:
            right = {problem.id: [good for _, good in heard.judged(problem.id)] for problem in asking}
            asking = [problem for problem in asking if wants_more(right[problem.id], **limits)]
            if not asking:
                break
            more = range(sampled, min(sampled + settings.group_size, settings.oversample))
            self._ask([(problem, i) for problem in asking for i in more], {}, heard, len(asking))
            sampled = more.stop

    def _ask(self, wanted: Sequence[tuple[Problem, int]], before: Begun, heard: _Heard, needed: int) -> None:
        """Sample `wanted` until `needed` of its prompts are complete; verify beside."""
        golds = {problem.id: problem.answer for problem, _ in wanted}
        missing = Counter(problem.id for problem, _ in wanted)

        def enough() -> bool:
            complete = needed < len(missing) and sum(not count for count in missing.values()) >= needed
            return complete or self.stopped.is_set()

        found: dict[int, Rollout] = {}
        judged: list[tuple[list[int], Future[list[Verdict]]]] = []
        together: list[int] = []
        started = time.monotonic()
        with ThreadPoolExecutor(1) as beside, self.watch.over(wanted, found):

            def judge() -> None:
                places = list(together)
                together.clear()
                judged.append((places, beside.submit(self.pool.verdicts, [found[place] for place in places], golds)))

            address = (self.run.seed, "rlvr", self.generation)
            for place, rollout in stream(
                self.speaker, wanted, self.sampling, address=address, begun=before, enough=enough
            ):
                found[place] = rollout
                self.watch.beat()
                if rollout.finish != "unfinished":
                    missing[rollout.problem_id] -= 1
                    together.append(place)
                if len(together) >= _TOGETHER:
                    judge()
            judge()
            generated = time.monotonic()
            verdicts = {
                place: verdict for places, said in judged for place, verdict in zip(places, said.result(), strict=True)
            }
        if self.stopped.is_set():
            raise Stopped
        self.clock.generate += generated - started
        self.clock.verify += time.monotonic() - generated
        for place, (problem, index) in enumerate(wanted):
            if place in verdicts:
                heard.finished[problem.id][index] = found[place], verdicts[place]
            else:
                heard.left[problem.id].append(found[place])


def _said(finished: Mapping[int, tuple[Rollout, Verdict]]) -> list[Rollout]:
    return [rollout for rollout, _ in finished.values()]
