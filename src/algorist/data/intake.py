"""Intake: three data sets that grow shard by shard while sources are read: problems, their traces, and defects.

Shard k of the traces holds the responses to the problems of shard k. A statement that comes again, later in its source
or in another one, sends its traces to the shard where it came first, since that is the problem which the search for
duplicates keeps. Such traces wait on disk, and so do those of rows without a gold answer, until all sources are read.
Memory holds one shard, and sixteen bytes for each different statement.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorist import store
from algorist.data import traces
from algorist.records import Defect, Problem, Rollout, content_id

SHARD_ROWS = 1_000  # problems, or defects: eight chains of ten thousand tokens to each are some 300 MB
SHARD_TEXT = 128 << 20  # characters of traces with which a shard of problems is closed early
WAITING_TEXT = 32 << 20  # characters of traces that are held before they wait on disk
TEXT = 200  # characters of a row that a defect shows
NOTED = "noted: "  # before the reason of a defect in spite of which a row is used
_OWNER = "owner"
_SETS = ("problems", "traces", "defects")
_RECENT = 100_000


@dataclass
class Count:
    """What became of one source."""

    name: str
    rows: int = 0
    problems: int = 0
    repeats: int = 0  # rows that only brought more traces of a problem of the same source
    goldless: int = 0  # rows whose traces could only join the problem of another row that has a gold answer
    traces: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # reason → rows that gave no problem
    traces_refused: Counter[str] = field(default_factory=Counter)  # reason → traces left out
    noted: Counter[str] = field(default_factory=Counter)  # reason → problems and traces used in spite of it


class Places:
    """A map from ids to whole numbers that takes sixteen bytes an entry."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)
        self._values = np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def get(self, identity: str) -> int | None:
        """The number of an id, None where it has none."""
        key = int(identity, 16)
        if key in self._recent:
            return self._recent[key]
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        return int(self._values[at]) if at < len(self._keys) and int(self._keys[at]) == key else None

    def add(self, identity: str, value: int) -> None:
        """Give a number to an id that has none."""
        self._recent[int(identity, 16)] = value
        if len(self._recent) >= _RECENT:
            keys = np.concatenate([self._keys, np.fromiter(self._recent, np.uint64, len(self._recent))])
            values = np.concatenate([self._values, np.fromiter(self._recent.values(), np.int64, len(self._recent))])
            order = np.argsort(keys, kind="stable")
            self._keys, self._values, self._recent = keys[order], values[order], {}


class Intake:
    """Takes problems with their traces and defects, source by source, and writes the data sets below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: list[Count] = []
        self._shard = self._defect_shard = 0
        self._problems: list[Problem] = []
        self._traces: list[Rollout] = []
        self._defects: dict[str, list[Defect]] = {}  # by source
        self._size = 0
        self._owners = Places()
        self._told = Places()  # (statement, answer) of this source
        self._waiting: dict[bool, list[Rollout]] = {True: [], False: []}  # by whether a gold answer is missing
        self._files: dict[bool, list[Path]] = {True: [], False: []}
        self._held = 0
        for name in (*_SETS, ".waiting"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def open(self, name: str) -> Count:
        """Begin a source; its count is to be filled by whoever reads its rows."""
        self.counts.append(Count(name))
        self._told = Places()
        return self.counts[-1]

    def close(self) -> None:
        """End a source: no shard goes on into the next one."""
        self._write_problems()
        self._write_defects(self.counts[-1].name)

    def take(self, problem: Problem, rollouts: Sequence[Rollout]) -> None:
        """A problem with the traces of its row; a row that only repeats a problem of its source brings traces alone."""
        if len(self._problems) >= SHARD_ROWS or self._size >= SHARD_TEXT:
            self._write_problems()
        count = self.counts[-1]
        if self._owners.get(problem.id) is None:
            self._owners.add(problem.id, self._shard)
        said = content_id(problem.id, problem.answer.strip())
        if rollouts and self._told.get(said) is not None:
            count.repeats += 1
        else:
            self._problems.append(problem)
            count.problems += 1
        if rollouts and self._told.get(said) is None:
            self._told.add(said, 0)
        count.traces += len(rollouts)
        mine = [traces.on(problem.id, rollout) for rollout in rollouts]
        if self._owners.get(problem.id) == self._shard:
            self._traces += mine
            self._size += sum(len(rollout.text) for rollout in mine)
        else:
            self._wait(mine, goldless=False)

    def take_goldless(self, problem_id: str, rollouts: Sequence[Rollout]) -> None:
        """Traces of a row without a gold answer, which another source may have."""
        self.counts[-1].traces += len(rollouts)
        self._wait([traces.on(problem_id, rollout) for rollout in rollouts], goldless=True)

    def refuse(self, defect: Defect) -> None:
        """A defect, to be shown; the reader counts it."""
        held = self._defects.setdefault(defect.source, [])
        held.append(dataclasses.replace(defect, text=defect.text[:TEXT]))
        if len(held) >= SHARD_ROWS:
            self._write_defects(defect.source)

    def finish(self) -> list[Count]:
        """Bring waiting traces to their problems and write the manifests; what became of each source."""
        self._write_waiting()
        moved = self._files[False] + [path for path in map(self._with_owners, self._files[True]) if path]
        for owner in sorted(
            {owner for path in moved for owner in pq.read_table(path, columns=[_OWNER])[0].to_pylist()}
        ):
            problems = store.read_columns(self._path("problems", owner), ["id"])["id"].to_pylist()
            found = store.read_shard(self._path("traces", owner), Rollout)
            self._settle(owner, problems, [*found, *(rollout for path in moved for rollout in _of(path, owner))])
        for name in list(self._defects):
            self._write_defects(name)
        shutil.rmtree(self.folder / ".waiting", ignore_errors=True)
        refused = sum((count.refused for count in self.counts), Counter[str]())
        left_out = sum((count.traces_refused for count in self.counts), Counter[str]())
        for name in _SETS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        problems_made = store.finish(self.folder / "problems", Problem, dropped=refused)
        store.finish(self.folder / "traces", Rollout, parents=[problems_made.id], dropped=left_out)
        store.finish(self.folder / "defects", Defect)
        return self.counts

    def _path(self, name: str, shard: int) -> Path:
        return self.folder / name / f"{shard:05d}.parquet"

    def _write_problems(self) -> None:
        if not self._problems and not self._traces:
            return
        store.write_shard(self.folder / "problems", self._shard, Problem, self._problems)
        self._settle(self._shard, [problem.id for problem in self._problems], self._traces)
        self._problems, self._traces, self._size = [], [], 0
        self._shard += 1

    def _write_defects(self, source: str) -> None:
        if held := self._defects.pop(source, []):
            store.write_shard(self.folder / "defects", self._defect_shard, Defect, held)
            self._defect_shard += 1

    def _settle(self, shard: int, problems: Sequence[str], found: Sequence[Rollout]) -> None:
        """Write a shard of traces, with what is wrong about them."""
        places: dict[str, int] = {}
        for identity in problems:
            places.setdefault(identity, len(places))
        kept, repeats = traces.settled(places, found)
        by_name = {count.name: count for count in self.counts}
        path = self._path("traces", shard)  # where it is there, it was settled before, and its repeats are noted
        known = set(store.read_columns(path, ["id"])["id"].to_pylist()) if path.exists() else set()
        for rollout, reason in repeats:
            count, noted = by_name[rollout.source], reason == traces.AGAIN
            if noted and rollout.id in known:
                continue
            (count.noted if noted else count.traces_refused)[reason] += 1
            count.traces -= not noted
            said = NOTED + reason if noted else reason
            self.refuse(Defect(rollout.source, rollout.row, said, rollout.problem_id, rollout.text))
        store.write_shard(self.folder / "traces", shard, Rollout, kept)

    def _wait(self, rollouts: list[Rollout], *, goldless: bool) -> None:
        self._waiting[goldless] += rollouts
        self._held += sum(len(rollout.text) for rollout in rollouts)
        if self._held >= WAITING_TEXT:
            self._write_waiting()

    def _write_waiting(self) -> None:
        for goldless, rollouts in self._waiting.items():
            if rollouts:
                self._files[goldless].append(self._write_owned(rollouts, goldless=goldless))
        self._waiting, self._held = {True: [], False: []}, 0

    def _write_owned(self, rollouts: Sequence[Rollout], *, goldless: bool) -> Path:
        """Waiting traces in the order of the shards that they go to, -1 where none is known yet."""
        owned = [(-1 if goldless else self._owners.get(one.problem_id), one) for one in rollouts]
        return _write(self.folder / ".waiting" / f"{sum(map(len, self._files.values())):05d}.parquet", owned)

    def _with_owners(self, path: Path) -> Path | None:
        """The traces without a gold answer of a file, with the shards of their problems; those of none are refused."""
        by_name = {count.name: count for count in self.counts}
        owned, rows = [], set()
        for rollout in _of(path, -1):
            owner = self._owners.get(rollout.problem_id)
            if owner is not None:
                owned.append((owner, rollout))
                continue
            count = by_name[rollout.source]
            count.traces -= 1
            count.traces_refused[traces.NO_GOLD] += 1
            if (rollout.source, rollout.row) not in rows:
                rows.add((rollout.source, rollout.row))
                count.goldless -= 1
                count.refused[traces.NO_GOLD] += 1
                self.refuse(Defect(rollout.source, rollout.row, traces.NO_GOLD, rollout.problem_id, rollout.text))
        return _write(path, owned) if owned else None


def _write(path: Path, owned: Sequence[tuple[int | None, Rollout]]) -> Path:
    ordered = sorted(owned, key=lambda pair: pair[0] or 0)
    said = store.schema(Rollout).append(pa.field(_OWNER, pa.int32()))
    table = pa.Table.from_pylist([dataclasses.asdict(rollout) | {_OWNER: owner} for owner, rollout in ordered], said)
    with store.replacing(path) as draft:  # small groups of rows, so that one owner's are read without the others'
        pq.write_table(table, draft, compression="zstd", row_group_size=256)
    return path


def _of(path: Path, owner: int) -> Iterator[Rollout]:
    """The traces of a file that go to one shard."""
    table = pq.read_table(path, filters=[(_OWNER, "==", owner)]).drop_columns([_OWNER])
    yield from (Rollout(**row) for row in table.to_pylist())
