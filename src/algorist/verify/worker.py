"""Worker: the other end of the pool's pipes. One process that compares answers until it is told no more, or killed.

Lines of JSON come in on stdin, [gold, answer], and go out on stdout, [right, reason, seconds], in the same order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from algorist.verify.conventions import Conventions
from algorist.verify.equal import Outcome, by_reading

CRASHED: Outcome = (None, "crashed")


def serve(memory_mib: int, seconds: float, conventions: Conventions) -> None:
    """The life of a worker: limit itself, warm up, say so, then answer each line of stdin until there are no more."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anybody prints must not be taken for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # control-C is for the parent, which then kills us
    try:
        _limit_memory(memory_mib)
        by_reading(r"\frac{\sqrt{x}+1}{2}", r"0.5\sqrt{x}+0.5")  # imports what the first comparison needs
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into a RunError
        replies.write(json.dumps([False, f"{type(error).__name__}: {error}", 0.0]).encode() + b"\n")
        return
    replies.write(json.dumps([True, "ready", 0.0]).encode() + b"\n")
    for line in sys.stdin.buffer:
        gold, answer = json.loads(line)
        # Should the parent be killed while we hang, nobody else ends us. The default action works inside C code too.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 10)
        begun = time.perf_counter()
        try:
            outcome = by_reading(gold, answer, conventions)
        except Exception:  # noqa: BLE001 - memory may run out anywhere; the verdict says so
            outcome = CRASHED
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps([*outcome, time.perf_counter() - begun]).encode() + b"\n")


def _limit_memory(memory_mib: int) -> None:
    """Cap this process's address space, where the system can (macOS cannot)."""
    import resource

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), Conventions(**json.loads(sys.argv[3])))
