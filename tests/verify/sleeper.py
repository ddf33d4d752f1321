"""A worker of the pool that sleeps over HANGS and dies over DIES: no answer we know makes the real one do so."""

from __future__ import annotations

import json
import os
import sys
import time

from algorist.verify import worker
from algorist.verify.conventions import DEFAULT, Conventions
from algorist.verify.equal import Outcome, by_reading

HANGS = "hangs+1"
DIES = "dies+1"


def judged(gold: str, answer: str, conventions: Conventions = DEFAULT) -> Outcome:
    """What `by_reading` says, if it comes to that."""
    if answer == HANGS:
        time.sleep(3_600)
    if answer == DIES:
        os._exit(1)
    return by_reading(gold, answer, conventions)


if __name__ == "__main__":
    worker.by_reading = judged
    worker.serve(int(sys.argv[1]), float(sys.argv[2]), Conventions(**json.loads(sys.argv[3])))
