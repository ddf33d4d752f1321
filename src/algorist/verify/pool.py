"""Pool: many verdicts, fast and in order, from workers that can be killed.

Reading the answer out and everything `at_sight` decides happens here, in the calling process, in linear time.
What must be read and computed goes to worker processes, which have a time limit, a memory limit and a short life:
whatever hangs, eats memory or crashes costs one verdict (right = None) and one worker, never the run. A worker is
handed several pairs at a time and answers each as it goes, so that it never waits for us; its clock starts anew with
each answer.

A worker is a fresh interpreter that runs worker.py. It is not a `multiprocessing` process: those import the
parent's main module again, which may import torch, and so the memory limit would hit the innocent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from algorist.errors import RecordError, RunError
from algorist.recipe import Recipe
from algorist.records import Rollout, Verdict
from algorist.verify.conventions import DEFAULT, Conventions
from algorist.verify.equal import LONGEST_ANSWER, Outcome, at_sight, verifier
from algorist.verify.extract import extract
from algorist.verify.worker import CRASHED

START_SECONDS = 120.0  # for a worker to be ready, on a machine busy with other things
TASKS_PER_WORKER = 20_000  # whatever grows in a worker goes with it; it is replaced after so many comparisons
AHEAD = 64  # pairs that a worker holds at most
WORKER = "algorist.verify.worker"  # the module that a worker runs
PIPE = 60_000  # bytes on their way to a worker: they fit into a pipe, so that no write waits for a worker that hangs
KNOWN = 200_000  # outcomes remembered

Pair = tuple[str, str]  # (gold, answer)
Timed = tuple[Outcome, float]  # and the seconds it took
Said = tuple[int, bool | None, str, float]  # the same, with the pair's number, as a worker writes it

_TIMED_OUT: Outcome = (None, "timed out")


@dataclass(frozen=True)
class Settings:
    """[verify]"""

    seconds: float = 1.0  # for one comparison; then its worker is killed and the answer counts as not judged
    memory_mib: int = 1024  # that one worker may use

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory_mib < 256:
            raise ValueError("seconds must be above 0 and memory_mib at least 256.")


@dataclass
class _Worker:
    """One child process: not ready until it says so, then idle or busy with the first of its (gold, answer)s."""

    process: subprocess.Popen[bytes]
    deadline: float  # monotonic seconds; by when it must be ready, or have answered once more
    ready: bool = False
    tasks: dict[int, Pair] = field(default_factory=dict)  # by the number under which each was handed out
    next: int = 0
    done: int = 0
    unread: bytes = b""


class Pool:
    """Verdicts in bulk; a context manager. Nothing is started before the first answer that needs algebra.

    One pool may be used from any thread; calls from several threads take turns. Workers are killed by `close`, at
    the end of the `with` block, when the pool is garbage, and at exit; they end by themselves if we are killed.
    """

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 1.0,
        memory_mib: int = 1024,
        conventions: Conventions = DEFAULT,
    ) -> None:
        """`workers`: how many at most (all cores, up to 8); `seconds` and `memory_mib`: limits of one comparison."""
        self._most = workers or min(os.cpu_count() or 1, 8)
        self._seconds = seconds
        self._memory_mib = memory_mib
        self._conventions = conventions
        self._known: dict[Pair, Outcome] = {}
        self._alone: set[Pair] = set()  # pairs of which one has killed a worker; each is asked by itself
        self._workers: list[_Worker] = []
        self._turn = threading.Lock()
        self._at_exit = weakref.finalize(self, _stop_all, self._workers, os.getpid())

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """A pool with the limits and the conventions of a recipe's [verify]."""
        limits: Settings = recipe.of("verify", Settings)
        return cls(seconds=limits.seconds, memory_mib=limits.memory_mib, conventions=recipe.of("verify", Conventions))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers. What was judged stays known, and a later call starts new ones."""
        with self._turn:
            _stop_all(self._workers, os.getpid())

    def verdicts(self, rollouts: Sequence[Rollout], golds: Mapping[str, str]) -> list[Verdict]:
        """One verdict per rollout, in order. `golds`: problem id → gold answer.

        Reasons with right True or False: those of `equal`; no answer, unfinished thought, thought only, too many
        boxes (see `extract`); cut off, where there is no answer because the rollout ran into its token limit. With
        right None: gold unreadable, undecided, timed out, crashed.
        Raises RecordError for a rollout whose problem has no gold answer, RunError where no worker can start.
        """
        found, keys = [], []
        for rollout in rollouts:
            gold = golds.get(rollout.problem_id)
            if gold is None:
                raise RecordError(
                    f"rollout {rollout.id}: its problem {rollout.problem_id} has no gold answer here. "
                    "Verify rollouts together with the problems they were sampled for."
                )
            found.append(extract(rollout.text))
            keys.append((gold, found[-1].answer))
        outcomes = self.outcomes([key for key in keys if key[1]])
        name = verifier()
        verdicts = []
        for rollout, extraction, key in zip(rollouts, found, keys, strict=True):
            if extraction.answer:
                right, reason = outcomes[key]
            else:
                right, reason = False, "cut off" if rollout.finish == "length" else extraction.found
            verdicts.append(Verdict(rollout.id, right, reason, extraction.answer[:LONGEST_ANSWER], name))
        return verdicts

    def outcomes(self, pairs: Iterable[Pair]) -> dict[Pair, Outcome]:
        """(gold, answer) → what `equal` says of them, each different pair decided once."""
        found: dict[Pair, Outcome] = {}
        unknown = []
        for pair in dict.fromkeys(pairs):
            outcome = self._known.get(pair) or at_sight(*pair, self._conventions)
            if outcome is None:
                unknown.append(pair)
            else:
                found[pair] = outcome
        if unknown:
            found.update({pair: outcome for pair, (outcome, _) in self.timed(unknown).items()})
        if len(self._known) + len(found) > KNOWN:  # rather forget all than keep count of which are old
            self._known.clear()
        self._known.update((pair, outcome) for pair, outcome in found.items() if outcome[1] != "too long")
        return found

    def timed(self, pairs: Iterable[Pair]) -> dict[Pair, Timed]:
        """(gold, answer) → (outcome, seconds it took), all of them decided by workers and nothing remembered."""
        found: dict[Pair, Timed] = {}
        waiting = deque(dict.fromkeys(pairs))
        with self._turn:
            try:
                self._alone.clear()
                while waiting or any(worker.tasks for worker in self._workers):
                    self._hand_out(waiting)
                    found.update(self._collect(waiting))
            except BaseException:
                # Answers that nobody waits for any more would be taken for those of the next call.
                _stop_all(self._workers, os.getpid())
                raise
        return found

    def _hand_out(self, waiting: deque[Pair]) -> None:
        """Fill each worker that is running out of pairs, and start workers while there is work for them."""
        for worker in [worker for worker in self._workers if worker.ready and len(worker.tasks) <= AHEAD // 2]:
            if not waiting:
                return
            if worker.done >= TASKS_PER_WORKER and not worker.tasks:
                self._drop(worker)
            batch = self._batch(worker, waiting) if worker.done < TASKS_PER_WORKER else {}
            if not batch:
                continue
            if not worker.tasks:
                worker.deadline = time.monotonic() + self._seconds
            worker.tasks.update(batch)
            if not _send(worker, batch):
                self._give_up(worker, waiting)
        starting = sum(not worker.ready for worker in self._workers)
        wanted = -(-len(waiting) // AHEAD) - starting
        for _ in range(min(self._most - len(self._workers), wanted)):
            self._workers.append(_start(self._memory_mib, self._seconds, self._conventions))

    def _batch(self, worker: _Worker, waiting: deque[Pair]) -> dict[int, Pair]:
        """The next pairs for a worker, by number: as many as its pipe takes with those it holds, or one asked alone."""
        if worker.tasks and not self._alone.isdisjoint((waiting[0], *worker.tasks.values())):
            return {}
        # A fair share, so that the last pairs do not queue behind one worker while others have none.
        share = max(1, min(AHEAD - len(worker.tasks), len(waiting) // self._most))
        room = PIPE - sum(map(_bytes, worker.tasks.values()))
        batch: dict[int, Pair] = {}
        while waiting and len(batch) < share:
            room -= _bytes(waiting[0])
            if (room < 0 or waiting[0] in self._alone) and (batch or worker.tasks):
                break
            batch[worker.next] = waiting.popleft()
            worker.next += 1
            if batch[worker.next - 1] in self._alone:
                break
        return batch

    def _give_up(self, worker: _Worker, waiting: deque[Pair]) -> None:
        """Kill a worker; the pairs it has not answered go back to the head of the queue."""
        waiting.extendleft(reversed(worker.tasks.values()))
        self._drop(worker)

    def _collect(self, waiting: deque[Pair]) -> dict[Pair, Timed]:
        """Wait until a worker has something to say or is out of time; what is then decided."""
        found: dict[Pair, Timed] = {}
        busy = [worker for worker in self._workers if worker.tasks or not worker.ready]
        for worker in _speaking(busy):
            for said in _hear(worker):
                if not worker.ready:
                    _expect_ready(worker, said, self._memory_mib)
                elif said is None:
                    found.update(self._blame(worker, waiting, CRASHED))
                elif said[0] in worker.tasks:
                    found[worker.tasks.pop(said[0])] = (said[1:3], said[3])
                    worker.done += 1
                    worker.deadline = time.monotonic() + self._seconds
                    if said[1:3] == CRASHED:  # it may be short of memory for good
                        self._give_up(worker, waiting)
                        break
        for worker in [worker for worker in busy if worker in self._workers and time.monotonic() >= worker.deadline]:
            if not worker.ready:
                raise RunError(
                    f"verify: a worker was not ready after {START_SECONDS:.0f} seconds. "
                    "The machine may be overloaded; run the same command again, or with fewer workers."
                )
            if worker.tasks:
                found.update(self._blame(worker, waiting, _TIMED_OUT))
        return found

    def _blame(self, worker: _Worker, waiting: deque[Pair], outcome: Outcome) -> dict[Pair, Timed]:
        """Give a worker up. Which of several pairs it was, nobody knows: replies may be lost. Each is asked alone."""
        took = time.monotonic() - worker.deadline + self._seconds
        found: dict[Pair, Timed] = {}
        if len(worker.tasks) == 1:
            found[worker.tasks.popitem()[1]] = (outcome, took)
        self._alone.update(worker.tasks.values())
        self._give_up(worker, waiting)
        return found

    def _drop(self, worker: _Worker) -> None:
        """Kill one worker; the next round starts another if there is work for it."""
        self._workers.remove(worker)
        _stop(worker)


def _start(memory_mib: int, seconds: float, conventions: Conventions) -> _Worker:
    """A new worker, which is not ready yet. It imports from where we import, whatever put us there."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, str(memory_mib), str(seconds), json.dumps(asdict(conventions))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise RunError(f"verify: no worker could be started ({error.strerror}). Free memory or processes.") from None
    return _Worker(process, deadline=time.monotonic() + START_SECONDS)


def _bytes(pair: Pair) -> int:
    return 12 * (len(pair[0]) + len(pair[1])) + 40  # at most: a letter beyond the basic plane takes twelve


def _send(worker: _Worker, batch: Mapping[int, Pair]) -> bool:
    """Write pairs to a worker; False where it has died."""
    assert worker.process.stdin is not None
    if worker.process.poll() is not None:
        return False
    try:
        worker.process.stdin.write(
            b"".join(json.dumps([number, *pair]).encode() + b"\n" for number, pair in batch.items())
        )
    except BrokenPipeError:
        return False
    return True


def _speaking(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers with something to read, an end of file included, waiting for the first or the nearest deadline."""
    by_file = {worker.process.stdout.fileno(): worker for worker in workers if worker.process.stdout}
    poll = select.poll()
    for file in by_file:
        poll.register(file, select.POLLIN)
    patience = min((worker.deadline for worker in workers), default=0.0) - time.monotonic()
    return [by_file[file] for file, _ in poll.poll(max(patience, 0.0) * 1_000)]


def _hear(worker: _Worker) -> list[Said | None]:
    """The whole messages a worker has sent; None for the end of a worker that has died."""
    assert worker.process.stdout is not None
    heard = os.read(worker.process.stdout.fileno(), 1 << 16)
    if not heard:
        return [None]
    *lines, worker.unread = (worker.unread + heard).split(b"\n")
    return [(number, right, reason, seconds) for number, right, reason, seconds in map(json.loads, lines)]


def _expect_ready(worker: _Worker, said: Said | None, memory_mib: int) -> None:
    """Take a worker's first message; None, or a worker that could not set itself up, is an error the user can mend."""
    if said and said[1:3] == (True, "ready"):
        worker.ready = True
        return
    why = said[2] if said else f"it died with status {worker.process.wait()}"
    raise RunError(
        f"verify: a worker could not start ({why}). "
        f"It needs mpmath and at most {memory_mib} MiB; install algorist again, or raise the memory limit."
    )


def _stop(worker: _Worker) -> None:
    """Kill a worker and wait until it is gone. SIGKILL, because a hung parser hears nothing else."""
    worker.process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(timeout=10)
    for pipe in (worker.process.stdin, worker.process.stdout):
        assert pipe is not None
        pipe.close()


def _stop_all(workers: list[_Worker], owner: int) -> None:
    """Stop all workers, unless we are a fork of the process that owns them."""
    while os.getpid() == owner and workers:
        _stop(workers.pop())
