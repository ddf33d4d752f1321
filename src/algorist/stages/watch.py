"""A watchdog over sampling: a generation that stands still ends with everything one needs to find out why.

Engines, drivers and verifiers can hang where no exception ever comes. When nothing has finished for too long, the
stacks of all threads and the prompts in flight are written to `<stage>/stuck.txt`, and the process ends: what is
finished is on disk, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from algorist.errors import RunError
from algorist.records import Problem

_EXIT = RunError.exit_status
_SHOWN = 200  # prompts in flight that are named


def end(message: str) -> None:
    """End the process at once: a thread that hangs could not be waited for."""
    print(message, file=sys.stderr, flush=True)
    os._exit(_EXIT)


class Watch:
    """Knows when something last finished. A thread of its own looks while a block of `over` runs."""

    def __init__(self, folder: Path, seconds: float, end: Callable[[str], None] = end) -> None:
        """`seconds` without a beat after which `end` is called with a message; 0 never."""
        self._file, self._seconds, self._end = folder / "stuck.txt", seconds, end
        self._latest = 0.0

    def beat(self) -> None:
        """Something has finished."""
        self._latest = time.monotonic()

    @contextlib.contextmanager
    def over(self, wanted: Sequence[tuple[Problem, int]], finished: Collection[int]) -> Iterator[None]:
        """Watch the sampling of `wanted`, of which `finished` holds the places that are done."""
        if not self._seconds:
            yield
            return
        self.beat()
        done = threading.Event()
        thread = threading.Thread(target=self._look, args=(done, wanted, finished), daemon=True, name="watch")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _look(self, done: threading.Event, wanted: Sequence[tuple[Problem, int]], finished: Collection[int]) -> None:
        while not done.wait(min(self._seconds / 4, 30.0)):
            if time.monotonic() - self._latest > self._seconds:
                waiting = [pair for place, pair in enumerate(wanted) if place not in set(finished)]
                self._write(waiting)
                self._end(
                    f"{self._file}: no response finished for {self._seconds:.0f} s, {len(waiting)} are in flight. Look "
                    "at the stacks and prompts there, then run the same command again; or raise [rlvr] health.patience."
                )
                return

    def _write(self, waiting: Sequence[tuple[Problem, int]]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "w", encoding="utf-8") as file:
            file.write(f"{len(waiting)} samples in flight, {min(len(waiting), _SHOWN)} of them:\n")
            for problem, index in waiting[:_SHOWN]:
                line = {"problem": problem.id, "sample": index, "statement": problem.statement}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.write("\nStacks, the latest call first:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
