"""Worker: the other end of the pool's pipes. One process that compares answers until it is told no more, or killed.

Lines of JSON come in on stdin, [number, gold, answer], and go out on stdout, [number, right, reason, seconds].
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator

from algorist.verify.conventions import Conventions
from algorist.verify.equal import Outcome, by_reading

CRASHED: Outcome = (None, "crashed")
READY = -1  # the number of a worker's first message
TOGETHER = 0.006  # seconds for which a reply may wait for others


class Replies:
    """Replies on their way to the parent, a few at a time: it would wake up for each, and wants the processor less.

    `send` is also called by an alarm, which may interrupt `add` and `send` themselves anywhere. That loses nothing,
    because every step on the queue is one call into C; the order may suffer, but each reply bears its number.
    """

    def __init__(self) -> None:
        self._file = os.dup(1)
        os.dup2(2, 1)  # what anybody prints must not be taken for a reply
        self._waiting: deque[bytes] = deque()
        self._sent = 0.0

    def add(self, *reply: object) -> None:
        """Send a reply, soon."""
        line = json.dumps(reply).encode() + b"\n"
        self._waiting.append(line)
        if time.perf_counter() - self._sent > TOGETHER:
            self.send()

    def send(self, *_: object) -> None:
        """Send what waits."""
        self._sent = time.perf_counter()
        lines = []
        while self._waiting:
            try:
                lines.append(self._waiting.popleft())
            except IndexError:  # the alarm was here first
                break
        if lines:
            os.write(self._file, b"".join(lines))


def serve(memory_mib: int, seconds: float, conventions: Conventions) -> None:
    """The life of a worker: limit itself, warm up, say so, then answer each line of stdin until there are no more."""
    replies = Replies()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # control-C is for the parent, which then kills us
    signal.signal(signal.SIGALRM, replies.send)  # so that what is done is known while the next one hangs
    try:
        _limit_memory(memory_mib)
        by_reading(r"\frac{\sqrt{x}+1}{2}", r"0.5\sqrt{x}+0.5")  # imports what the first comparison needs
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into a RunError
        replies.add(READY, False, f"{type(error).__name__}: {error}", 0.0)
        replies.send()
        return
    replies.add(READY, True, "ready", 0.0)
    for line in _lines(replies):
        number, gold, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds / 20)
        # Should the parent be killed while we compute, nobody else ends us. The default action works in C code too.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 10)
        begun = time.perf_counter()
        try:
            outcome = by_reading(gold, answer, conventions)
        except Exception:  # noqa: BLE001 - memory may run out anywhere; the verdict says so
            outcome = CRASHED
        replies.add(number, *outcome, time.perf_counter() - begun)


def _lines(replies: Replies) -> Iterator[bytes]:
    """The lines of stdin as they come; while none is there, no reply is held back."""
    unread = b""
    while True:
        *lines, unread = unread.split(b"\n")
        yield from lines
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.send()
        heard = os.read(0, 1 << 16)
        if not heard:
            return
        unread += heard


def _limit_memory(memory_mib: int) -> None:
    """Cap this process's address space, where the system can (macOS cannot)."""
    import resource

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), Conventions(**json.loads(sys.argv[3])))
