"""What happened at each optimizer step, and how far a long piece of work is.

`journal.jsonl` in the folder of a stage holds one line per step, at full precision, flushed as it is written: a killed
run loses the step it was in and nothing else. What is shown goes to stderr, a live bar on a terminal and a plain line
now and then elsewhere; stdout belongs to results.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from algorist.errors import RecordError, RunError, explain_full_disk

FILE = "journal.jsonl"
LINE_SECONDS = 10.0  # at least this long between two plain lines
_SHOWN = 5  # metrics beside the bar


class Entry:
    """What one optimizer step has to say. Values are numbers, or anything with `.item()`, such as a 0-d tensor."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder = folder
        self.index = index
        self.values: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add weighted sums up over the micro-batches of the step. Tensors stay on their device until the step ends."""
        for key, value in metrics.items():
            self.values[key] = self.values[key] + value if key in self.values else value

    def set(self, **values: Any) -> None:
        """Say what is known once per step: grad_norm, lr."""
        self.values.update(values)

    def refuse_unless_finite(self) -> None:
        """Raise RunError where the loss or the gradient norm is NaN or infinite; call it before the optimizer moves.

        Tensors become numbers here: the device is waited for once in a step, with the optimizer's work not yet queued.
        """
        found = {key: value.item() if hasattr(value, "item") else value for key, value in self.values.items()}
        self.values = {key: _number(value) for key, value in found.items()}
        for key in ("loss", "grad_norm"):
            if key in found and not math.isfinite(found[key]):
                raise RunError(
                    f"{self.folder}: {key} was not finite at step {self.index}, before any weight changed. "
                    "The last save is kept: lower learning_rate, or look for a broken record in this step's batch."
                )


class Journal:
    """The journal of one stage, a context manager: `with Journal(...) as journal`, then `journal.step(index)`.

    Opening it drops the lines of step `start` and later: a resumed run takes those steps again. Exactly one process
    may write a journal. `quiet` shows nothing; the file is written all the same.
    """

    def __init__(self, folder: Path, *, total: int, title: str, start: int, quiet: bool = False) -> None:
        self.folder = folder
        self._start = start
        self._meter = _Meter(title, total, start, quiet=quiet)
        self._file: TextIO | None = None
        self._last = 0.0

    def __enter__(self) -> Journal:
        with explain_full_disk(self.folder / FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            _keep_before(self.folder, self._start)
            self._file = open(self.folder / FILE, "a", encoding="utf-8")
        self._meter.open()
        self._last = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # each line was flushed; what a full disk refused is refused again here
                self._file.close()

    @contextlib.contextmanager
    def step(self, index: int) -> Iterator[Entry]:
        """Take one step: writes {"step", "seconds", ...metrics} when the block ends, nothing when it raises.

        `seconds` is the wall time since the step before was written (for the first: since the journal was opened), so
        that sampling and saving between two steps count and the seconds of a stage add up to its loop. A metric that is
        not a finite number is written as null.
        """
        entry = Entry(self.folder, index)
        yield entry
        now = time.monotonic()
        metrics = {key: _number(value) for key, value in entry.values.items()}
        beside = "beside_seconds"  # of work that ran at the same time
        spent = [value for key, value in metrics.items() if key.endswith("_seconds") and key != beside]
        if spent:
            metrics["idle_seconds"] = now - self._last - sum(spent)
        line = {"step": index, "seconds": now - self._last, **metrics}
        assert self._file is not None, "the journal is not open"
        with explain_full_disk(self.folder / FILE):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        rate = {"tokens/s": metrics["tokens"] / line["seconds"]} if metrics.get("tokens") else {}
        shown = {key: value for key, value in metrics.items() if key != "tokens" and not key.endswith("_seconds")}
        self._meter.show(index + 1, {**rate, **shown})
        self._last = now


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a journal in order, none where there is no journal yet.

    A last line that was cut by a kill is left out. Raises RecordError where any other line cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                entry = json.loads(line)
                entry["step"], entry["seconds"]
                entries.append(entry)
        except (ValueError, TypeError, KeyError):
            if not any(lines[number:]):
                break
            raise RecordError(
                f"{path}:{number}: not a step of this journal (a JSON object with step and seconds). Delete this line."
            ) from None
    return entries


def totals(folder: Path) -> tuple[int, float]:
    """(tokens trained on, seconds spent) of all steps in a journal."""
    entries = read(folder)
    return sum(entry.get("tokens") or 0 for entry in entries), math.fsum(entry["seconds"] for entry in entries)


@contextlib.contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show how far work outside training is (rollouts, verdicts, scores): yields `advance(n=1, **info)`.

    `info` are the latest things worth showing beside the bar. `advance` may be called from several threads.
    """
    lock = threading.Lock()
    meter = _Meter(title, total, 0, quiet=quiet)
    done = 0

    def advance(n: int = 1, **info: Any) -> None:
        nonlocal done
        with lock:
            done += n
            meter.show(done, info)

    meter.open()
    try:
        yield advance
    finally:
        meter.close()


class _Meter:
    """A live bar where stderr is a terminal; elsewhere the first line, the last, and one every LINE_SECONDS.

    A meter inside another one, such as the sampling round between two steps of RLVR, leaves no bar behind and prints
    only when it takes longer than LINE_SECONDS: there may be thousands of them in a run.
    """

    opened: ClassVar[int] = 0  # meters open now

    def __init__(self, title: str, total: int, start: int, *, quiet: bool) -> None:
        self.title, self.total, self.start, self.quiet = title, total, start, quiet
        self.inner = False
        self.bars: Progress | None = None
        self.text = ""  # the latest plain line
        self.printed = ""  # the latest one that was printed
        self.printed_at = -math.inf
        self.opened_at = time.monotonic()
        self.marks: deque[tuple[float, int]] = deque(maxlen=64)  # (time, done), a second apart or more

    def open(self) -> None:
        self.opened_at = time.monotonic()
        self.marks.append((self.opened_at, self.start))
        if self.quiet:
            return
        self.inner = _Meter.opened > 0
        _Meter.opened += 1
        if self.inner:
            self.printed_at = self.opened_at
        if not sys.stderr.isatty() or _console().is_dumb_terminal:
            return
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"),
            console=_console(),
            transient=self.inner,
            redirect_stdout=sys.stdout.isatty(),  # a bar on stderr must not swallow results that go to a file
        )
        self.bars.add_task(self.title, total=self.total, completed=self.start, rest="")
        self.bars.start()

    def show(self, done: int, info: Mapping[str, Any]) -> None:
        """Show that `done` of the total is done, with the first few of `info`."""
        if self.quiet:
            return
        now = time.monotonic()
        rest = ", ".join([self.time_left(now, done), *(_metric(*item) for item in list(info.items())[:_SHOWN])])
        if self.bars is not None:
            self.bars.update(self.bars.task_ids[0], completed=done, rest=rest)
            return
        self.text = f"{self.title}: {done:,}/{self.total:,}, {rest}"
        if now - self.printed_at >= LINE_SECONDS:
            self.print_line(now)

    def time_left(self, now: float, done: int) -> str:
        """`3m 10s left` by the speed of the latest minute or the latest 64 steps, whichever is longer."""
        if done >= self.total:
            return f"took {_duration(now - self.opened_at)}"
        since, before = self.marks[0]
        if now - self.marks[-1][0] >= 1.0:
            self.marks.append((now, done))
        return f"{_duration((self.total - done) * (now - since) / max(done - before, 1))} left"

    def print_line(self, now: float) -> None:
        print(self.text, file=sys.stderr, flush=True)
        self.printed, self.printed_at = self.text, now

    def close(self) -> None:
        if self.quiet:
            return
        _Meter.opened -= 1
        if self.bars is not None:
            self.bars.stop()
        elif self.text != self.printed and not self.inner:
            self.print_line(time.monotonic())


@functools.cache
def _console() -> Console:
    """One console for all bars, so that the bar of a sampling round fits under the bar of its stage."""
    return Console(stderr=True)


def _keep_before(folder: Path, start: int) -> None:
    """Leave only whole lines of steps before `start`, in one step, so that a kill here loses nothing."""
    path = folder / FILE
    kept = "".join(json.dumps(entry) + "\n" for entry in read(folder) if entry["step"] < start)
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == kept:
        return
    draft = path.with_name(f".{FILE}.draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _number(value: Any) -> Any:
    """A plain number, text or truth value; null for what is not finite, which strict JSON readers refuse."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _metric(name: str, value: Any) -> str:
    """`loss 0.3012`, `lr 1e-05`, `wrong 1,024`, `5,123 tokens/s`."""
    if name.endswith("/s"):
        return f"{value:,.0f} {name}"
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    return f"{name} {value:,}" if type(value) is int else f"{name} {value}"


def _duration(seconds: float) -> str:
    """`12s`, `3m 10s`, `5h 02m`, `4d 03h`."""
    whole = round(seconds)
    for size, upper, small, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{upper} {whole % size // small:02d}{lower}"
    return f"{whole}s"
