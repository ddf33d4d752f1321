"""The journal: what is written, what a resumed run keeps, what is shown, and each message word for word."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from algorist import journal
from algorist.errors import RecordError, RunError
from algorist.journal import Journal


def take(folder: Path, start: int, stop: int, total: int = 4, **metrics: float) -> None:
    with Journal(folder, total=total, title="sft", start=start, quiet=True) as book:
        for index in range(start, stop):
            with book.step(index) as entry:
                entry.add({"loss": 0.1, "tokens": 3})
                entry.add({"loss": 0.2, "tokens": 4})
                entry.set(lr=5e-7, **metrics)


def steps(folder: Path) -> list[int]:
    return [entry["step"] for entry in journal.read(folder)]


def test_a_line_holds_the_sums_at_full_precision(tmp_path: Path) -> None:
    take(tmp_path, 0, 2)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert list(first) == ["step", "seconds", "loss", "tokens", "lr"]
    assert (first["step"], first["loss"], first["tokens"], first["lr"]) == (0, 0.1 + 0.2, 7, 5e-7)
    assert '"loss": 0.30000000000000004' in lines[0]
    assert 0 < first["seconds"] < 5
    assert len(lines) == 2


def test_a_line_is_on_disk_when_its_step_ends(tmp_path: Path) -> None:
    with Journal(tmp_path, total=2, title="sft", start=0, quiet=True) as book:
        with book.step(0):
            pass
        assert steps(tmp_path) == [0]


def test_seconds_count_what_happens_between_steps(tmp_path: Path) -> None:
    with Journal(tmp_path, total=2, title="rlvr", start=0, quiet=True) as book:
        time.sleep(0.05)
        with book.step(0):
            pass
        with book.step(1):
            pass
    first, second = (entry["seconds"] for entry in journal.read(tmp_path))
    assert first >= 0.05 > second


def test_a_step_that_raises_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Journal(tmp_path, total=2, title="sft", start=0, quiet=True) as book:
        with book.step(0) as entry:
            entry.set(loss=1.0)
        with book.step(1) as entry:
            entry.set(loss=1.0)
            raise KeyError
    assert steps(tmp_path) == [0]


def test_resuming_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    take(tmp_path, 0, 4, grad_norm=1.0)
    before = (tmp_path / "journal.jsonl").read_text().splitlines()
    take(tmp_path, 2, 3, grad_norm=2.0)
    after = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert after[:2] == before[:2]
    assert [(entry["step"], entry["grad_norm"]) for entry in journal.read(tmp_path)] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]
    take(tmp_path, 0, 1)
    assert steps(tmp_path) == [0]


def test_a_line_cut_by_a_kill_is_left_out_and_mended_on_resume(tmp_path: Path) -> None:
    take(tmp_path, 0, 2)
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"step": 2, "sec')
    assert steps(tmp_path) == [0, 1]
    take(tmp_path, 2, 3)
    assert steps(tmp_path) == [0, 1, 2]


def test_a_whole_line_without_its_newline_counts_and_is_not_glued(tmp_path: Path) -> None:
    take(tmp_path, 0, 1)
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    assert steps(tmp_path) == [0]
    take(tmp_path, 1, 2)
    assert steps(tmp_path) == [0, 1]


@pytest.mark.parametrize("bad", ["{", "[1]", "3", '{"step": 1}'])
def test_a_broken_line_elsewhere_is_an_error(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"step": 0, "seconds": 1.0}}\n{bad}\n{{"step": 2, "seconds": 1.0}}\n')
    with pytest.raises(RecordError) as caught:
        journal.read(tmp_path)
    expected = "not a step of this journal (a JSON object with step and seconds). Delete this line."
    assert str(caught.value) == f"{path}:2: {expected}"


def test_totals(tmp_path: Path) -> None:
    assert journal.totals(tmp_path) == (0, 0.0)
    lines = [
        {"step": 0, "seconds": 0.1, "tokens": 5},
        {"step": 1, "seconds": 0.2},
        {"step": 2, "seconds": 0.3, "tokens": 7},
    ]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert journal.totals(tmp_path) == (12, 0.6)


@pytest.mark.parametrize("key", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_step_that_is_not_finite_is_refused(tmp_path: Path, key: str, value: float) -> None:
    book = Journal(tmp_path, total=200, title="rlvr", start=112, quiet=True)
    with pytest.raises(RunError) as caught, book, book.step(112) as entry:
        entry.add({"loss": 0.5})
        entry.set(grad_norm=1.0)
        entry.refuse_unless_finite()
        entry.set(**{key: value})
        entry.refuse_unless_finite()
    assert str(caught.value) == (
        f"{tmp_path}: {key} was not finite at step 112, before any weight changed. "
        "The last save is kept: lower learning_rate, or look for a broken record in this step's batch."
    )
    assert journal.read(tmp_path) == []


def test_other_metrics_that_are_not_finite_are_null(tmp_path: Path) -> None:
    take(tmp_path, 0, 1, kl=float("inf"))
    assert journal.read(tmp_path)[0]["kl"] is None


def test_tensors_are_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with Journal(tmp_path, total=1, title="sft", start=0, quiet=True) as book, book.step(0) as entry:
        entry.add({"loss": torch.tensor(0.5, dtype=torch.float64), "tokens": torch.tensor(3)})
        entry.add({"loss": torch.tensor(0.25, dtype=torch.float64), "tokens": torch.tensor(4)})
        entry.refuse_unless_finite()
    (line,) = journal.read(tmp_path)
    assert (line["loss"], line["tokens"], type(line["tokens"])) == (0.75, 7, int)


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full, pytest.raises(RunError) as caught:
        book = Journal(tmp_path, total=1, title="sft", start=0, quiet=True)
        with book:
            assert book._file is not None
            book._file.close()
            book._file = full
            with book.step(0):
                pass
    expected = "the disk is full. Free some space and run the same command again; what is finished is kept."
    assert str(caught.value) == f"{tmp_path}/journal.jsonl: {expected}"


def test_without_a_terminal_the_first_line_and_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path, total=1200, title="sft", start=1000) as book:
        for index in range(1000, 1200):
            with book.step(index) as entry:
                entry.add({"loss": 0.30123, "tokens": 7})
                entry.set(lr=5e-7, skipped=1234)
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    shown = r"[\d,]+ tokens/s, loss 0\.3012, lr 5e-07, skipped 1,234"
    assert re.fullmatch(rf"sft: 1,001/1,200, \d+s left, {shown}", first)
    assert re.fullmatch(rf"sft: 1,200/1,200, took \d+s, {shown}", last)
    assert out == ""


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "LINE_SECONDS", 0.0)
    with journal.progress("rollouts", 3) as advance:
        advance(wrong=0)
        advance(2, wrong=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["rollouts: 1/3, 0s left, wrong 0", "rollouts: 3/3, took 0s, wrong 1"]


def test_progress_that_is_cut_short_or_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), journal.progress("rollouts", 3) as advance:
        advance()
        advance()
        raise KeyError
    with journal.progress("rollouts", 0):
        pass
    with journal.progress("rollouts", 1, quiet=True) as advance:
        advance()
    assert capsys.readouterr().err.splitlines() == ["rollouts: 1/3, 0s left", "rollouts: 2/3, 0s left"]


def test_short_work_inside_a_step_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path, total=3, title="rlvr", start=0) as book:
        for index in range(3):
            with journal.progress("rollouts", 2) as advance:
                advance(2)
            with book.step(index):
                pass
    with journal.progress("scores", 1) as advance:
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["rlvr: 1/3, 0s left", "rlvr: 3/3, took 0s", "scores: 1/1, took 0s"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (190, "3m 10s"), (18_125, "5h 02m"), (356_400, "4d 03h")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert journal._duration(seconds) == expected


def left_on_screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end: knows cursor up, erase line and line ends, drops colours."""
    rows, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r?\n|\r|[^\x1b\r\n]+", written):
        if part == "\x1b[1A":
            row -= 1
        elif part in ("\r", "\x1b[2K"):
            rows[row] = ""
        elif part.endswith("\n"):
            row += 1
            rows += [""] * (row == len(rows))
        elif not part.startswith("\x1b"):
            rows[row] += part
    return [line.rstrip() for line in rows if line.strip()]


def test_on_a_terminal_bars_are_live_and_results_stay_on_stdout(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from algorist.journal import Journal, progress
with Journal(Path({str(tmp_path)!r}), total=2, title="rlvr", start=0) as book:
    for index in range(2):
        with progress("rollouts", 5) as advance:
            advance(5, wrong=1)
            time.sleep(0.25)
        print("result", index)
        with book.step(index) as entry:
            entry.set(loss=0.5, tokens=10)
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        seen = b""
        with open(ours, "rb", buffering=0) as screen:
            try:
                while part := screen.read(65536):
                    seen += part
            except OSError:  # how a pseudo-terminal says that its other end is closed
                pass
        assert process.stdout is not None
        assert process.stdout.read() == "result 0\nresult 1\n"
    assert process.returncode == 0
    text = seen.decode()
    assert re.search(r"rollouts .*5/5 .*wrong 1", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    (left,) = left_on_screen(text)
    assert re.fullmatch(r"rlvr ━+ 2/2 0:00:0\d took [01]s, [\d,]+ tokens/s, loss 0\.5", left)
