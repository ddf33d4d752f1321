"""The watchdog: a sampling that stands still is ended, with stacks and prompts; one that moves is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from algorist.records import Problem
from algorist.stages.watch import Watch

WANTED = [(Problem.of("What is 1 + 1?", "2"), 0), (Problem.of("What is 2 + 2?", "4"), 5)]


def waits(folder: Path, seconds: float, beats: int) -> list[str]:
    """What was said while something took 0.6 s, with a beat every now and then."""
    said: list[str] = []
    watch = Watch(folder, seconds, said.append)
    with watch.over(WANTED, {0}):
        for _ in range(beats + 1):
            time.sleep(0.6 / (beats + 1))
            watch.beat()
    return said


def test_what_stands_still_is_told_with_its_prompts_and_stacks(tmp_path: Path) -> None:
    place = tmp_path / "stuck.txt"
    assert waits(tmp_path, 0.2, 0) == [
        f"{place}: no response finished for 0 s, 1 are in flight. Look at the stacks and prompts there, then run the "
        "same command again; or raise [rlvr] health.patience."
    ]
    told = place.read_text()
    assert told.startswith("1 samples in flight, 1 of them:\n") and '"sample": 5, "statement": "What is 2 + 2?"' in told
    assert "test_watch.py" in told and "in waits" in told and "What is 1 + 1?" not in told


def test_what_moves_is_left_alone(tmp_path: Path) -> None:
    assert waits(tmp_path, 0.4, 5) == [] and not (tmp_path / "stuck.txt").exists()
    assert waits(tmp_path, 0.0, 0) == [] and waits(tmp_path, 3600.0, 0) == []


def test_the_process_ends(tmp_path: Path) -> None:
    """A thread that cannot be interrupted does not hold it up."""
    program = (
        "import threading\nfrom pathlib import Path\nfrom algorist.stages.watch import Watch\n"
        f"with Watch(Path({str(tmp_path)!r}), 0.1).over([], []):\n    threading.Lock().acquire() and "
        "threading.Event().wait()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and done.stderr.startswith(f"{tmp_path / 'stuck.txt'}: no response finished for 0 s")
