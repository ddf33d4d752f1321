"""Pool: right verdicts in order, and nothing a model writes can hang it, crash it or outlive it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorist.errors import RecordError, RunError
from algorist.records import Rollout, Verdict
from algorist.verify import pool as pool_module
from algorist.verify.equal import verifier
from algorist.verify.pool import Pool
from verify import sleeper

HANGS = rf"\boxed{{{sleeper.HANGS}}}"
DIES = rf"\boxed{{{sleeper.DIES}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One worker that can be made to hang and to die."""
    with pytest.MonkeyPatch.context() as patch, Pool(workers=1, seconds=2.0) as shared:
        patch.setattr(pool_module, "WORKER", sleeper.__name__)
        yield shared


def judge(pool: Pool, *pairs: tuple[str, str], finish: str = "stop") -> list[Verdict]:
    rollouts = [Rollout.of(f"p{i}", text, "test", finish=finish) for i, (_, text) in enumerate(pairs)]
    verdicts = pool.verdicts(rollouts, {f"p{i}": gold for i, (gold, _) in enumerate(pairs)})
    assert [verdict.rollout_id for verdict in verdicts] == [rollout.id for rollout in rollouts]
    return verdicts


def outcomes(verdicts: list[Verdict]) -> list[tuple[bool | None, str, str]]:
    return [(verdict.right, verdict.reason, verdict.extracted) for verdict in verdicts]


def pids(pool: Pool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_cheap_verdicts_start_no_worker() -> None:
    with Pool() as cheap:
        verdicts = judge(cheap, ("18", r"\boxed{18}"), ("1/2", "A: 0.25"), ("3", "about 3"), ("", r"\boxed{3}"))
        assert outcomes(verdicts) == [
            (True, "equal", "18"),
            (False, "different", "0.25"),
            (False, "no answer", ""),
            (None, "gold unreadable", "3"),
        ]
        assert {verdict.verifier for verdict in verdicts} == {verifier()}
        assert pids(cheap) == []


def test_an_answer_that_was_cut_off_is_not_given() -> None:
    with Pool() as cheap:
        assert outcomes(judge(cheap, ("3", "<think>so"), finish="length")) == [(False, "cut off", "")]
        assert outcomes(judge(cheap, ("3", r"\boxed{3} and"), finish="length")) == [(True, "equal", "3")]


def test_an_endless_answer_is_not_kept() -> None:
    with Pool() as cheap:
        verdict = judge(cheap, ("3", r"\boxed{" + "3" * 500_000 + "}"))[0]
    assert (verdict.right, verdict.reason, len(verdict.extracted)) == (False, "too long", 2_000)


def test_twenty_thousand_cheap_verdicts_are_quick() -> None:
    text = "We add. 17 + 25 = 42, and carry. " * 5
    rollouts = [Rollout.of(f"p{i % 500}", rf"{text}\boxed{{{i % 97}}}", "toy", index=i) for i in range(20_000)]
    golds = {f"p{i}": str(i % 89) for i in range(500)}
    with Pool() as cheap:
        started = time.perf_counter()
        verdicts = cheap.verdicts(rollouts, golds)
        assert time.perf_counter() - started < 1.5
    assert [verdict.right for verdict in verdicts] == [i % 97 == i % 500 % 89 for i in range(20_000)]


def test_hostile_answers_cost_their_own_verdicts_only(pool: Pool) -> None:
    verdicts = judge(
        pool,
        ("x+1", r"\boxed{1+x}"),
        ("1", HANGS),
        ("x+1", r"\boxed{x+2}"),
        ("x", r"\boxed{" + "(" * 900 + ")" * 900 + "}"),
        ("x", "\\boxed{\ud800\x00\u2028}"),
        ("x", r"\boxed{__import__('os').system('touch hacked')}"),
        ("2x", r"\boxed{x+x}"),
    )
    right = [verdict.right for verdict in verdicts]
    assert (right[0], right[2], right[6]) == (True, False, True)
    assert (right[1], verdicts[1].reason) == (None, "timed out")
    assert right[3] is not True
    assert (right[4], right[5]) == (False, False)
    assert not Path("hacked").exists()


def test_nothing_is_asked_twice(pool: Pool) -> None:
    judge(pool, ("1", HANGS))
    started = time.perf_counter()
    verdicts = judge(pool, *[("1", HANGS)] * 100)
    assert time.perf_counter() - started < 0.5
    assert {verdict.reason for verdict in verdicts} == {"timed out"}


def test_a_worker_that_died_idle_is_replaced(pool: Pool) -> None:
    judge(pool, ("y+1", r"\boxed{1+y}"))
    (first,) = pids(pool)
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert judge(pool, ("y+2", r"\boxed{2+y}"))[0].right is True
    assert pids(pool) != [first]


def test_a_worker_is_replaced_after_many_tasks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(pool, ("z+1", r"\boxed{1+z}"))
    before = pids(pool)
    monkeypatch.setattr(pool_module, "TASKS_PER_WORKER", 1)
    assert judge(pool, ("z+2", r"\boxed{2+z}"))[0].right is True
    assert pids(pool) != before


def test_a_worker_that_crashes_leaves_its_verdict_open_in_any_thread(pool: Pool) -> None:
    found: list[Verdict] = []
    asking = threading.Thread(target=lambda: found.extend(judge(pool, ("1", DIES), ("x+2", r"\boxed{2+x}"))))
    asking.start()
    asking.join(timeout=30)
    assert [(verdict.right, verdict.reason) for verdict in found] == [(None, "crashed"), (True, "equal")]


def test_a_hang_among_many_costs_one_verdict(pool: Pool) -> None:
    """The pairs that wait behind it in the same worker are not lost, and are decided once each."""
    texts = [rf"\boxed{{w+{i}}}" for i in range(100)]
    texts[50] = HANGS
    verdicts = judge(pool, *(("w+7", text) for text in texts))
    assert [place for place, verdict in enumerate(verdicts) if verdict.right] == [7]
    assert [place for place, verdict in enumerate(verdicts) if verdict.right is None] == [50]


def test_long_answers_fill_no_pipe(pool: Pool) -> None:
    """While the worker hangs, what waits behind it must not block us either."""
    long = "\u2260" * 1_900  # six bytes each on their way
    verdicts = judge(pool, ("1", HANGS), *((f"z+{i}", rf"\boxed{{{long}{i}}}") for i in range(40)))
    assert [verdict.right for verdict in verdicts] == [None] + [False] * 40


def test_closing_leaves_no_process() -> None:
    with Pool(workers=1) as closing:
        judge(closing, ("x+1", r"\boxed{1+x}"))
        (worker,) = pids(closing)
        assert alive(worker)
    assert not alive(worker)


def test_a_script_without_a_main_guard_may_use_it_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from algorist.records import Rollout\nfrom algorist.verify.pool import Pool\n"
        "pool = Pool(workers=1)\n"
        "print(pool.verdicts([Rollout.of('p', r'\\boxed{x+x}', 'test')], {'p': '2x'})[0].right)\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, timeout=60)
    right, worker = done.stdout.split()
    assert (right, done.stderr) == ("True", "")
    assert not alive(int(worker))


def test_a_rollout_without_a_gold_answer_is_refused() -> None:
    rollout = Rollout.of("p1", r"\boxed{3}", "test")
    with Pool() as cheap, pytest.raises(RecordError) as refused:
        cheap.verdicts([rollout], {"p2": "3"})
    assert str(refused.value) == (
        f"rollout {rollout.id}: its problem p1 has no gold answer here. "
        "Verify rollouts together with the problems they were sampled for."
    )


def test_a_worker_that_cannot_start_is_an_error_not_a_verdict() -> None:
    with Pool(workers=1, memory_mib=8) as tight, pytest.raises(RunError, match="a worker could not start"):
        judge(tight, ("x+1", r"\boxed{1+x}"))


def test_an_alarm_at_any_moment_loses_no_reply(tmp_path: Path) -> None:
    """Alarms as fast as the system sends them, through queueing and sending; each reply arrives once."""
    script = (
        "import os, signal, time\n"
        "from algorist.verify.worker import Replies\n"
        "replies = Replies()\n"
        "signal.signal(signal.SIGALRM, replies.send)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)\n"
        "for number in range(30_000):\n    replies.add(number, True, 'equal', 0.0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "replies.send()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    numbers = [json.loads(line)[0] for line in done.stdout.splitlines()]
    assert sorted(numbers) == list(range(30_000))


def test_answers_whose_letters_take_twelve_bytes_fill_no_pipe(pool: Pool) -> None:
    wide = "\U0001f600" * 1_990
    verdicts = judge(pool, ("1", HANGS), *((f"z+{i}", rf"\boxed{{{wide}{i}}}") for i in range(12)))
    assert [verdict.right for verdict in verdicts] == [None] + [False] * 12
