"""Choices waiting for the model, and the one call at a time that answers them.

Choices that arrive while the model speaks wait for the next call, and all that share their sampling settings go into it
together, whichever requests they belong to. The oldest decides whose turn it is, so nobody starves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from algorist.generate.sampling import Sampling
from algorist.serving.models import Model, Wanted
from algorist.serving.wire import Refusal, Said

_GATHER = 0.01  # seconds for the rest of a burst to arrive before the first of it is answered
_CALLS = 2  # times as many choices as slots in one call: the finished make room for the waiting
CLOSING = "The server is shutting down."


class _GivenUp(Exception):  # noqa: N818 - nothing failed
    """Raised inside the sampler when nobody waits for its answers any more."""


@dataclass(eq=False)
class _Job:
    wanted: Wanted
    sampling: Sampling
    answer: asyncio.Future[Said]


class Queue:
    """Between the requests, which live in the event loop, and the model, which speaks in a thread.

    `closing` says that the server stops: what is under way is given up, and everybody waiting is told so.
    """

    def __init__(self, model: Model, closing: Callable[[], bool]) -> None:
        self.model, self.closing = model, closing
        self.waiting: list[_Job] = []
        self.running = 0  # choices in the present call
        self.arrived = asyncio.Event()

    async def answers(self, wanted: Sequence[Wanted], sampling: Sampling) -> list[Said]:
        """One answer for each, in order. Cancelling gives up those that nobody else waits for."""
        loop = asyncio.get_running_loop()
        jobs = [_Job(one, sampling, loop.create_future()) for one in wanted]
        self.waiting += jobs
        self.arrived.set()
        return await asyncio.gather(*(job.answer for job in jobs))

    async def work(self) -> None:
        """Answer for ever; run it as a task."""
        while True:
            await self.arrived.wait()
            await asyncio.sleep(_GATHER)
            jobs = self._turn()
            if not jobs:
                self.arrived.clear()
                continue
            self.running = len(jobs)
            try:
                await self._answer(jobs)
            finally:
                self.running = 0

    def _turn(self) -> list[_Job]:
        """Take the choices of the next call out of the queue."""
        alive = [job for job in self.waiting if not job.answer.done()]
        same = [job for job in alive if job.sampling == alive[0].sampling]
        taken = same[: _CALLS * self.model.num_slots]
        chosen = set(map(id, taken))
        self.waiting = [job for job in alive if id(job) not in chosen]
        return taken

    async def _answer(self, jobs: list[_Job]) -> None:
        def check(_: int) -> None:
            if self.closing() or all(job.answer.cancelled() for job in jobs):
                raise _GivenUp

        said: list[Said] | Exception
        try:
            wanted = [job.wanted for job in jobs]
            said = await asyncio.to_thread(self.model.say, wanted, jobs[0].sampling, check)
        except _GivenUp:
            said = Refusal(503, CLOSING)
        except Exception as error:  # out of memory, most likely: the next call may be smaller
            said = Refusal(500, f"The model could not answer: {type(error).__name__}: {error}")
        for place, job in enumerate(jobs):
            if job.answer.done():  # its client has gone
                continue
            if isinstance(said, Exception):
                job.answer.set_exception(said)
            else:
                job.answer.set_result(said[place])
