"""Hostile: all of hostile.py in a row gets verdicts, in time, and leaves nothing behind, wherever it is judged."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from algorist.records import Rollout, Verdict
from algorist.verify.pool import Pool
from verify import hostile

SLOWEST = 1.5  # seconds for one verdict, whatever is asked
GROWTH = (
    256 << 20
)  # bytes that thousands of hostile verdicts may leave behind in the caller, its memory of them included
CASES = hostile.cases()
GOLDS = {name: gold for name, gold, _ in CASES}
ROLLOUTS = [Rollout.of(name, text, "hostile") for name, _, text in CASES]
# Long-winded, but seven: leading or trailing zeros, and texts that may be said to say it.
SEVEN = {
    *(f"{zeros} for a number" for zeros in ("leading zeros", "leading zeros, short", "trailing zeros")),
    *(f"a number for {zeros}" for zeros in ("leading zeros", "leading zeros, short", "trailing zeros")),
    *(f"text: {where}" for where in ("a box far from its brace", "an answer far from its word", "stars")),
    *(f"text: {where}" for where in ("tokens at the end", "spaces at the end")),
}


def children() -> set[int]:
    """The processes below this one, those included that died and nobody waited for."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended while we looked
            continue
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def warm(pool: Pool) -> Pool:
    """The pool with its workers started, so that no verdict pays for their imports; it still tells right from wrong."""
    asked = [Rollout.of("warm", rf"\boxed{{{answer}}}", "test", index=i) for i, answer in enumerate(("x+x+1", "x+1"))]
    assert [verdict.right for verdict in pool.verdicts(asked, {"warm": "2x+1"})] == [True, False]
    return pool


def complaints(verdicts: list[Verdict]) -> list[str]:
    """What is wrong with verdicts on all ROLLOUTS; nothing, it is hoped."""
    if [verdict.rollout_id for verdict in verdicts] != [rollout.id for rollout in ROLLOUTS]:
        return ["the order was not kept"]
    found = []
    for (name, gold, _), verdict in zip(CASES, verdicts, strict=True):
        said = f"{name}: {verdict.right}, {verdict.reason!r}"
        itself, twins = name.endswith(" for itself"), name.startswith("twins: ")
        if verdict.right not in (True, False, None) or not verdict.reason or not isinstance(verdict.reason, str):
            found.append(f"no verdict: {said}")
        elif verdict.reason == "crashed":  # an exception, or a worker that died
            found.append(said)
        elif verdict.right is True and not itself and not twins and name not in SEVEN:
            found.append(f"paid for: {said}")
        elif verdict.right is False and (twins or (itself and verdict.extracted == gold.strip() != "")):
            found.append(f"not equal to itself: {said}")
    return found


def judged() -> list[str]:
    """Complaints about all verdicts from a new pool, in one call; a process that is left is one, too."""
    before = children()
    with Pool(workers=2) as pool:
        started = time.perf_counter()
        found = complaints(warm(pool).verdicts(ROLLOUTS, GOLDS))
        if time.perf_counter() - started > SLOWEST * len(ROLLOUTS) / 2:
            found.append("too slow in all")
        warm(pool)
    return found + [f"process {pid} is left" for pid in children() - before]


def test_there_is_enough_of_it() -> None:
    assert len(hostile.ANSWERS) > 250 and len(hostile.TEXTS) > 30 and len(hostile.CODE) > 100
    assert len({name for name, _, _ in CASES}) == len(CASES)
    assert set(GOLDS) >= SEVEN


def test_each_hostile_answer_gets_a_verdict_in_time() -> None:
    before, resident = children(), memory()
    verdicts, slow = [], []
    with warm(Pool(workers=1)) as pool:
        for rollout in ROLLOUTS:
            started = time.perf_counter()
            verdicts += pool.verdicts([rollout], GOLDS)
            if time.perf_counter() - started > SLOWEST:
                slow.append(rollout)
        warm(pool)
        grown = memory() - resident
    assert children() == before
    assert complaints(verdicts) == []
    assert grown < GROWTH
    with warm(Pool(workers=1)) as another:  # a busy machine may have been slow, once
        for rollout in slow:
            started = time.perf_counter()
            another.verdicts([rollout], GOLDS)
            assert time.perf_counter() - started < SLOWEST, rollout.problem_id


def test_all_of_it_at_once() -> None:
    assert judged() == []


def test_all_of_it_from_another_thread() -> None:
    found: list[str] = ["the thread died"]

    def ask() -> None:
        found[:] = judged()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == []


def test_all_of_it_beside_an_event_loop_that_goes_on() -> None:
    async def ask() -> tuple[list[str], float]:
        asking = asyncio.create_task(asyncio.to_thread(judged))
        longest, last = 0.0, time.perf_counter()
        while not asking.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        return await asking, longest

    found, longest = asyncio.run(ask())
    assert found == []
    assert longest < SLOWEST


def test_all_of_it_inside_a_coroutine() -> None:
    async def ask() -> list[str]:
        return judged()

    assert asyncio.run(ask()) == []


RANK = """
import json, sys
from pathlib import Path

from torch import distributed
from verify.test_hostile import judged

distributed.init_process_group("gloo")
every = [None, None]
distributed.all_gather_object(every, judged())
Path(f"{sys.argv[1]}-{distributed.get_rank()}").write_text(json.dumps(every))
distributed.destroy_process_group()
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_all_of_it_under_torchrun(tmp_path: Path) -> None:
    script, found = tmp_path / "rank.py", tmp_path / "found"
    script.write_text(RANK)
    before = children()
    running = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, found],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
    )
    try:
        said, _ = running.communicate(timeout=180)
    finally:
        for pid in children() - before:  # the ranks outlive a launcher that is killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert running.returncode == 0, said
    assert [json.loads((tmp_path / f"found-{rank}").read_text()) for rank in (0, 1)] == [[[], []], [[], []]]


WATCH = r"""
import json, sys
from algorist.verify import equal, extract

ordinary = ["7", "3/4", r"x+\sqrt{2}", r"\frac{x+1}{2}", r"\sin(x)", "(1,2)", r"\{1,2\}", "[0,1)", "x=3", "A", "i"]
ordinary += [r"\text{cm}", r"\begin{pmatrix}1&2\end{pmatrix}", "5!", "n^2", "and then", r"\foo", "(10^9)!", r"\pm 1"]
judge = eval if sys.argv[1:] == ["evil"] else lambda text: None
answer_in = getattr(extract, "answer_in", extract.extract)


def look(gold, text):
    equal.equal(gold, text)
    equal.at_sight(gold, text)
    extract.extract(text), extract.extract(r"\boxed{" + text + "}")
    answer_in(text), answer_in(f"So it is ${text}$.")


for gold in ordinary:
    for answer in ordinary:
        look(gold, answer)

watching, seen = False, []
SUSPECT = ("open", "import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "marshal.",
           "shutil.", "pty.", "tempfile.", "urllib.", "builtins.", "code.", "glob.", "pathlib.", "webbrowser.")


def hook(event, arguments):
    if watching and event.startswith(SUSPECT):
        seen.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(hook)
found = {}
for text in json.load(sys.stdin):
    for gold, candidate in (("42", text), (text, "42"), (text, text)):
        seen.clear()
        watching = True
        try:
            look(gold, candidate)
            judge("40+2")
        finally:
            watching = False
        if seen:
            found.setdefault(text, []).extend(seen)
json.dump(found, sys.stdout)
"""


def watched(folder: Path, *words: str) -> dict[str, list[str]]:
    """What the interpreter did that only evaluated code should do, for each piece of CODE that is judged in it."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *words],
        input=json.dumps(hostile.CODE),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_nothing_a_model_writes_is_run(tmp_path: Path) -> None:
    assert watched(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_watch_would_see_it(tmp_path: Path) -> None:
    found = watched(tmp_path, "evil")
    assert set(found) == set(hostile.CODE)
    assert {"compile", "exec"} <= {event.split()[0] for event in found["gold"]}


def test_code_is_worth_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rollouts = [Rollout.of(gold, text, "test") for gold in ("42", "0") for text in hostile.CODE]
    rollouts += [Rollout.of(gold, rf"\boxed{{{text}}}", "test") for gold in ("42", "0") for text in hostile.CODE]
    with Pool(workers=1) as pool:
        verdicts = pool.verdicts(rollouts, {"42": "42", "0": "0"})
    assert [rollout.text for rollout, verdict in zip(rollouts, verdicts, strict=True) if verdict.right] == []
    assert list(tmp_path.iterdir()) == []
