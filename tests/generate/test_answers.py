"""The log of answers: each sample once, nothing overwritten, killed or full or foreign."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from algorist.errors import RecordError, RunError
from algorist.generate import answers
from algorist.generate.answers import Answer, Ask, Refused, reading, writing
from conftest import ROOT


def answer(key: str, index: int, text: str = "It is 2.") -> Answer:
    return Answer(key, index, text, "stop", 9, 4, "http://h/v1", 0.5, 9, 40)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "deep" / answers.FILE


def test_what_is_added_is_there(log: Path) -> None:
    texts = ["It is 2.", "", "é\x00😀\n" * 1000]
    with writing(log) as known:
        known.add([answer("a", 2, texts[2]), answer("a", 0, texts[0]), answer("b", 0, texts[1])])
        assert known.have(["a", "b", "c"]) == {("a", 0), ("a", 2), ("b", 0)}
    for opened in (reading, writing):
        with opened(log) as known:
            assert known.read("a") == [answer("a", 0, texts[0]), answer("a", 2, texts[2])]
            assert known.read("b") == [answer("b", 0, "")] and known.read("c") == []
            assert len(known) == 3 and known.spent() == (27, 120)
    assert [path.name for path in log.parent.iterdir()] == [answers.FILE], "one plain file"


def test_the_first_of_two_answers_stays(log: Path) -> None:
    with writing(log) as known:
        known.add([answer("a", 0, "first")])
        known.add([answer("a", 0, "second"), answer("a", 1, "third")])
        known.add([answer("a", 1, "fourth")] * 3)
        assert [one.text for one in known.read("a")] == ["first", "third"]


def test_what_is_missing_of_an_ask(log: Path) -> None:
    ask = Ask("a", "What is 1 + 1?", 8, 0, 7)
    with writing(log) as known:
        assert known.missing(ask) == [ask]
        known.add([answer("a", index) for index in (0, 3, 4, 7, 9)])
        assert known.missing(ask) == [replace(ask, first=1, count=2), replace(ask, first=5, count=2)]
        assert known.missing(replace(ask, first=8, count=4)) == [
            replace(ask, first=8, count=1),
            replace(ask, first=10, count=2),
        ]
        assert known.missing(replace(ask, first=3, count=2)) == []


def test_what_was_refused_for_good_is_not_missing(log: Path) -> None:
    with writing(log) as known:
        known.refuse(
            [
                Refused("a", "refused by the server (400)", "too long", "http://h/v1", 8, lasting=True),
                Refused("b", "given up", "status 500", "http://h/v1", 8, lasting=False),
            ]
        )
        assert known.missing(Ask("a", "?")) == [] and known.missing(Ask("b", "?")) == [Ask("b", "?")]
        assert (known.refusal("a"), known.refusal("b")) == ("too long", "")
    connection = sqlite3.connect(log)
    connection.execute("DELETE FROM refused")  # what the docstring says to do
    connection.commit()
    connection.close()
    with writing(log) as known:
        assert known.missing(Ask("a", "?")) == [Ask("a", "?")]


HOLDER = """
import sys, time
from pathlib import Path
from algorist.generate.answers import Answer, reading, writing
with (writing if sys.argv[2] == "writing" else reading)(Path(sys.argv[1])) as known:
    if sys.argv[2] == "writing":
        known.add([Answer("k", i, "text", "stop", 0, 0, "h", 0.0) for i in range(3)])
    known.have(["k"])
    print("open", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(log: Path, how: str) -> Iterator[None]:
    """Another process holds the log, and is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-c", HOLDER, str(log), how]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def test_one_process_writes_and_nobody_reads_beside_it(log: Path) -> None:
    with holder(log, "writing"):
        with pytest.raises(RunError) as refused, writing(log):
            pass
        assert str(refused.value) == (
            f"{log}: another process has this log of answers open. Wait for it to end or stop it."
        )
        with pytest.raises(RunError) as refused, reading(log):
            pass
        assert str(refused.value) == (
            f"{log}: another process writes this log of answers, or was killed while it did. "
            "Wait for it to end or run the same command again."
        )
    with pytest.raises(RunError, match="was killed while it did"), reading(log):
        pass
    with writing(log) as known:
        assert known.have(["k"]) == {("k", 0), ("k", 1), ("k", 2)}, "what was added survives a kill"
    with reading(log) as known:
        assert len(known.read("k")) == 3


def test_many_read_at_once(log: Path) -> None:
    with writing(log) as known:
        known.add([answer("k", 0)])
    with holder(log, "reading"), reading(log) as known:
        assert known.have(["k"]) == {("k", 0)}


@pytest.mark.parametrize("content", [b"no database" * 100, b"x", b"x" * 150])
def test_a_file_that_is_no_log(log: Path, content: bytes) -> None:
    log.parent.mkdir()
    log.write_bytes(content)
    for opened in (reading, writing):
        with pytest.raises(RecordError) as refused, opened(log):
            pass
        assert str(refused.value).startswith(f"{log}: is no log of answers")
        assert str(refused.value).endswith("Move it away and run again.")
    assert log.read_bytes() == content


def test_a_database_of_somebody_else(log: Path) -> None:
    log.parent.mkdir()
    connection = sqlite3.connect(log)
    connection.execute("CREATE TABLE answers (x)")
    connection.close()
    content = log.read_bytes()
    for opened in (reading, writing):
        with pytest.raises(RecordError) as refused, opened(log):
            pass
        assert str(refused.value) == f"{log}: is no log of answers, or of another version. Move it away and run again."
    assert log.read_bytes() == content


def test_a_log_that_is_not_there(log: Path) -> None:
    with pytest.raises(RecordError) as refused, reading(log):
        pass
    assert str(refused.value) == f"{log}: there is no such log of answers. Ask the teacher first."


def test_an_empty_file_becomes_a_log_but_is_none(log: Path) -> None:
    log.parent.mkdir()
    log.touch()
    with pytest.raises(RecordError, match="is no log of answers"), reading(log):
        pass
    with writing(log) as known:
        known.add([answer("k", 0)])
    with reading(log) as known:
        assert len(known) == 1


def test_a_full_disk(log: Path) -> None:
    with writing(log) as known:
        known.add([answer("k", 0)])
        known._connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(RunError) as refused:
            for index in range(1, 100):
                known.add([answer("k", index, os.urandom(20_000).hex())])
        assert str(refused.value) == (
            f"{log}: the disk is full. Free some space and run the same command again; what is finished is kept."
        )
    with reading(log) as known:
        kept = known.read("k")
    assert len(kept) >= 2 and [one.index for one in kept] == list(range(len(kept)))


def test_memory_does_not_grow_with_the_log(log: Path) -> None:
    text = os.urandom(5_000).hex()
    with writing(log) as known:
        tracemalloc.start()
        try:
            for start in range(0, 2000, 40):
                known.add([answer(f"k{index}", 0, text) for index in range(start, start + 40)])
            assert sum(len(known.read(f"k{index}")) for index in range(2000)) == 2000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert log.stat().st_size > 9_000_000 and peak < 2_000_000
