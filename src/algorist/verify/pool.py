"""Pool: many verdicts, fast and in order, from workers that can be killed.

Reading the answer out and everything `at_sight` decides happens here, in the calling process, in linear time.
Only what needs algebra goes to worker processes, which have a time limit, a memory limit and a short life: a
parser that hangs, eats memory or crashes costs one verdict (right = None) and one worker, never the run.

A worker is a fresh interpreter that runs this module. It is not a `multiprocessing` process: those import the
parent's main module again, which may import torch, and so the memory limit would hit the innocent.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from algorist.errors import RecordError, RunError
from algorist.records import Rollout, Verdict
from algorist.verify.equal import LONGEST_ANSWER, Outcome, at_sight, by_algebra, verifier
from algorist.verify.extract import extract

START_SECONDS = 120.0  # for a worker to import math-verify, on a machine busy with other things
TASKS_PER_WORKER = 2_000  # sympy's caches only grow; a worker is replaced after this many comparisons
KNOWN = 200_000  # outcomes remembered

_TIMED_OUT: Outcome = (None, "timed out")
_CRASHED: Outcome = (None, "crashed")


@dataclass(frozen=True)
class Settings:
    """[verify]"""

    seconds: float = 1.0  # for one comparison; then its worker is killed and the answer counts as not judged
    memory_mib: int = 2048  # that one worker may use

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory_mib < 256:
            raise ValueError("seconds must be above 0 and memory_mib at least 256.")


@dataclass
class _Worker:
    """One child process: not ready until it says so, then idle or busy with one (gold, answer)."""

    process: subprocess.Popen[bytes]
    deadline: float  # monotonic seconds; by when it must be ready, or have answered
    ready: bool = False
    task: tuple[str, str] | None = None
    done: int = 0
    unread: bytes = b""


class Pool:
    """Verdicts in bulk; a context manager. Nothing is started before the first answer that needs algebra.

    One pool may be used from any thread; calls from several threads take turns. Workers are killed by `close`, at
    the end of the `with` block, when the pool is garbage, and at exit; they end by themselves if we are killed.
    """

    def __init__(self, workers: int | None = None, seconds: float = 1.0, memory_mib: int = 2048) -> None:
        """`workers`: how many at most (all cores, up to 8); `seconds` and `memory_mib`: limits of one comparison."""
        self._most = workers or min(os.cpu_count() or 1, 8)
        self._seconds = seconds
        self._memory_mib = memory_mib
        self._known: dict[tuple[str, str], Outcome] = {}
        self._workers: list[_Worker] = []
        self._turn = threading.Lock()
        self._at_exit = weakref.finalize(self, _stop_all, self._workers, os.getpid())

    @classmethod
    def of(cls, limits: Settings) -> Self:
        """A pool with the limits of a recipe."""
        return cls(seconds=limits.seconds, memory_mib=limits.memory_mib)

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

        Reasons: equal, different, too long, no answer, cut off (no answer, and the rollout ran into its token
        limit): judged, right is True or False. gold unreadable, timed out, crashed: right is None.
        Raises RecordError for a rollout whose problem has no gold answer, RunError where no worker can start.
        """
        keys: list[tuple[str, str] | None] = []
        outcomes: dict[tuple[str, str], Outcome | None] = {}
        for rollout in rollouts:
            gold = golds.get(rollout.problem_id)
            if gold is None:
                raise RecordError(
                    f"rollout {rollout.id}: its problem {rollout.problem_id} has no gold answer here. "
                    "Verify rollouts together with the problems they were sampled for."
                )
            extraction = extract(rollout.text)
            key = None if extraction.found == "none" else (gold, extraction.answer)
            keys.append(key)
            if key is not None and key not in outcomes:
                outcomes[key] = self._known.get(key) or at_sight(*key)
        unknown = [key for key, outcome in outcomes.items() if outcome is None]
        if unknown:
            outcomes.update(self._judge(unknown))
        self._remember(outcomes)
        name = verifier()
        return [_verdict(rollout, key, outcomes, name) for rollout, key in zip(rollouts, keys, strict=True)]

    def _remember(self, outcomes: Mapping[tuple[str, str], Outcome | None]) -> None:
        """Keep outcomes for the pool's life, so that no pair is decided twice; forget all when there are too many."""
        if len(self._known) + len(outcomes) > KNOWN:
            self._known.clear()
        self._known.update((key, outcome) for key, outcome in outcomes.items() if outcome and outcome[1] != "too long")

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Outcome]:
        """Outcomes of all pairs, from the workers."""
        found: dict[tuple[str, str], Outcome] = {}
        waiting = deque(pairs)
        with self._turn:
            try:
                while waiting or any(worker.task for worker in self._workers):
                    self._hand_out(waiting)
                    found.update(self._collect())
            except BaseException:
                # Answers that nobody waits for any more would be taken for those of the next call.
                _stop_all(self._workers, os.getpid())
                raise
        return found

    def _hand_out(self, waiting: deque[tuple[str, str]]) -> None:
        """Give each idle worker a pair, and start workers while there are more pairs than workers to come."""
        for worker in [worker for worker in self._workers if worker.ready and worker.task is None]:
            if not waiting:
                return
            if worker.done >= TASKS_PER_WORKER:
                self._drop(worker)
            elif _send(worker, waiting[0]):
                worker.task = waiting.popleft()
                worker.deadline = time.monotonic() + self._seconds
            else:
                self._drop(worker)
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(self._most - len(self._workers), len(waiting) - starting)):
            self._workers.append(_start(self._memory_mib, self._seconds))

    def _collect(self) -> dict[tuple[str, str], Outcome]:
        """Wait until a worker has something to say or is out of time; what is then decided."""
        found: dict[tuple[str, str], Outcome] = {}
        busy = [worker for worker in self._workers if worker.task or not worker.ready]
        for worker in _speaking(busy):
            for said in _hear(worker):
                if worker.task is None:
                    _expect_ready(worker, said, self._memory_mib)
                    continue
                found[worker.task] = outcome = said or _CRASHED
                worker.task = None
                worker.done += 1
                if outcome == _CRASHED:
                    self._drop(worker)
        for worker in [worker for worker in busy if time.monotonic() >= worker.deadline]:
            if not worker.ready:
                raise RunError(
                    f"verify: a worker was not ready after {START_SECONDS:.0f} seconds. "
                    "The machine may be overloaded; run the same command again, or with fewer workers."
                )
            if worker.task:
                found[worker.task] = _TIMED_OUT
                self._drop(worker)
        return found

    def _drop(self, worker: _Worker) -> None:
        """Kill one worker; the next round starts another if there is work for it."""
        self._workers.remove(worker)
        _stop(worker)


def _verdict(
    rollout: Rollout, key: tuple[str, str] | None, outcomes: Mapping[tuple[str, str], Outcome | None], name: str
) -> Verdict:
    if key is None:
        return Verdict(rollout.id, False, "cut off" if rollout.finish == "length" else "no answer", "", name)
    outcome = outcomes[key]
    assert outcome is not None, "every pair was decided, at sight or by a worker"
    return Verdict(rollout.id, outcome[0], outcome[1], key[1][:LONGEST_ANSWER], name)


def _start(memory_mib: int, seconds: float) -> _Worker:
    """A new worker, which is not ready yet. It imports from where we import, whatever put us there."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(memory_mib), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    return _Worker(process, deadline=time.monotonic() + START_SECONDS)


def _send(worker: _Worker, pair: tuple[str, str]) -> bool:
    """Write a pair to an idle worker; False where it died while idle. Both answers are short: this cannot block."""
    assert worker.process.stdin is not None
    if worker.process.poll() is not None:
        return False
    try:
        worker.process.stdin.write(json.dumps(pair).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def _speaking(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers with something to read, an end of file included, waiting for the first or the nearest deadline."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        patience = min((worker.deadline for worker in workers), default=0.0) - time.monotonic()
        return [key.data for key, _ in selector.select(max(patience, 0.0))]


def _hear(worker: _Worker) -> list[Outcome | None]:
    """The whole messages a worker has sent; None for the end of a worker that has died."""
    assert worker.process.stdout is not None
    heard = os.read(worker.process.stdout.fileno(), 1 << 16)
    if not heard:
        return [None]
    *lines, worker.unread = (worker.unread + heard).split(b"\n")
    return [(right, reason) for right, reason in map(json.loads, lines)]


def _expect_ready(worker: _Worker, said: Outcome | None, memory_mib: int) -> None:
    """Take a worker's first message; None, or a worker that could not set itself up, is an error the user can mend."""
    if said == (True, "ready"):
        worker.ready = True
        return
    why = said[1] if said else f"it died with status {worker.process.wait()}"
    raise RunError(
        f"verify: a worker could not start ({why}). "
        f"It needs math-verify and at most {memory_mib} MiB; install algorist again, or raise the memory limit."
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


def _serve(memory_mib: int, seconds: float) -> None:
    """The life of a worker: limit itself, import, say so, then answer each line of stdin until there are no more."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a parser prints must not be taken for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # control-C is for the parent, which then kills us
    try:
        _limit_memory(memory_mib)
        by_algebra(r"\frac{x+1}{2}", "0.5x+0.5")  # the first comparison loads grammars; it must not count
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into a RunError
        replies.write(json.dumps([False, f"{type(error).__name__}: {error}"]).encode() + b"\n")
        return
    replies.write(json.dumps([True, "ready"]).encode() + b"\n")
    for line in sys.stdin.buffer:
        gold, answer = json.loads(line)
        # Should the parent be killed while we hang, nobody else ends us. The default action works inside C code too.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 10)
        try:
            outcome = by_algebra(gold, answer)
        except Exception:  # noqa: BLE001 - a parser may raise anything; the verdict says so
            outcome = _CRASHED
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(outcome).encode() + b"\n")


def _limit_memory(memory_mib: int) -> None:
    """Cap this process's address space, where the system can (macOS cannot)."""
    import resource

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
