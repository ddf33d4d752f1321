"""Twice the same problem in a corpus of any size: exact and near copies found shard by shard, a few numbers a problem.

Exact copies have the same id, that is the same normalised statement: one is kept, and none where the answers disagree.
Near copies are found by MinHash bands over shingles of three words or operators and compared in full. Two statements
from one template that differ in their numbers alone are different problems, so a near pair is one problem only if all
numbers of both are the same and the gold answers are seen to be; otherwise both stay and are counted.

What is computed of a shard (`sketch`) is kept in a scratch folder under the shard's content, and serves again. The rest
runs in the caller, band by band, with about 80 bytes a problem in memory; shingles stay on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from algorist import store
from algorist.data import shards as running
from algorist.errors import RecordError
from algorist.records import Problem
from algorist.verify.equal import equal

if TYPE_CHECKING:
    from algorist.numerics.shingles import Numbers, Rows

TWICE = "same statement twice"
CONFLICT = "same statement, different answers"
NEAR = "nearly the same statement, same numbers and answer"
_REASONS = ("", TWICE, CONFLICT, NEAR)
_SHINGLE = 3  # words or operators of a statement
_RUN = 5  # tokens of a rollout
_WINDOW = 1_000  # statements of one band and the same numbers that each is compared with, at most
_MARGIN = 0.15  # four standard errors of an estimate by 128 bins
_VERSION = 1  # of what a sketch holds


def unique(problems: Iterable[Problem]) -> tuple[list[Problem], dict[str, int]]:
    """Each statement once, in order of first appearance, and how many problems were left out for which reason.

    The first problem of a statement is kept with its labels. Where two answers to one statement differ, all of its
    problems go: one of the answers is wrong, and nothing here can tell which.
    """
    by_id: dict[str, list[Problem]] = {}
    for problem in problems:
        by_id.setdefault(problem.id, []).append(problem)
    kept, drops = [], Counter[str]()
    for group in by_id.values():
        if any(not same_answer(group[0].answer, other.answer) for other in group[1:]):
            drops[CONFLICT] += len(group)
        else:
            kept.append(group[0])
            drops[TWICE] += len(group) - 1
    return kept, dict(+drops)


def same_answer(one: str, other: str) -> bool:
    """Whether two gold answers are seen to be the same.

    >>> same_answer("025", "25.0"), same_answer("$x + 1$", "x+1"), same_answer("1/2", "2")
    (True, True, False)
    """
    return equal(one, other)[0] is True


@dataclass(frozen=True)
class Found:
    """What is there twice, for all problems of all shards in order."""

    starts: NDArray[np.int64]  # (shards + 1,) the first problem of each shard
    ids: NDArray[np.uint64]  # (N,) of the problems
    reasons: NDArray[np.uint8]  # (N,) 0: keep
    firsts: NDArray[np.int64]  # (N,) the problem that each repeats; itself where it is kept
    counts: Mapping[str, int]  # reason → problems dropped
    others: int  # problems kept that are near an earlier one with other numbers or another answer
    skipped: int  # comparisons left out in bands that held too many

    def dropped(self, shard: int) -> dict[int, tuple[str, str]]:
        """Row of the shard → (reason, id of the problem that it repeats), for the rows that go."""
        low, high = self.starts[shard], self.starts[shard + 1]
        rows = np.flatnonzero(self.reasons[low:high]) + low
        return {
            int(row - low): (_REASONS[self.reasons[row]], f"{self.ids[self.firsts[row]]:016x}") for row in rows.tolist()
        }


def find(shards: Sequence[Path], scratch: Path, near: float = 0.8, engine: running.Engine | None = None) -> Found:
    """Which problems of some shards to keep, and what the others repeat.

    Args:
        shards   of Problem records, in the order in which the first of several is kept
        scratch  a folder for what is computed of each shard; it may be kept, and serves again for the same shards
        near     Jaccard similarity of two statements' shingles from which they may be one; 0 finds exact copies only
        engine   what computes the shards

    Raises RecordError where a shard cannot be read, and what `shards.over` raises.
    """
    assert 0 <= near <= 1, "a similarity lies in [0, 1]"
    scratch.mkdir(parents=True, exist_ok=True)
    jobs = [(shard, scratch, near) for shard in shards]
    done = dict(running.over(sketch, jobs, engine or running.Engine(workers=1)))
    sketches = [done[place] for place in range(len(shards))]
    ids = _column(sketches, "ids")
    starts = np.r_[0, np.cumsum([len(_load(path, "ids")) for path in sketches])].astype(np.int64)
    answers = _column(sketches, "answers")
    reasons, firsts = np.zeros(len(ids), np.uint8), np.arange(len(ids))
    _exact(_Golds(shards, starts), ids, answers, reasons, firsts)
    others = skipped = 0
    if near:
        others, skipped = _near(_Golds(shards, starts), sketches, near, answers, (reasons, firsts))
    counts = Counter(_REASONS[reason] for reason in reasons[reasons > 0].tolist())
    return Found(starts, ids, reasons, firsts, dict(counts), others, skipped)


def sketch(shard: Path, scratch: Path, near: float) -> Path:
    """Write what `find` needs of one shard of problems: ids, hashes of answers and numbers, shingles, bands.

    Nothing is done where the file is there. Returns its path, named after the shard's content.
    """
    path = scratch / f"{store.facts(shard).content}-{near:g}-{_VERSION}.npz"
    if path.exists():
        return path
    table = store.read_columns(shard, ("id", "statement", "answer"))
    try:
        ids = np.array([int(one, 16) for one in table["id"].to_pylist()], np.uint64)
    except (ValueError, OverflowError):
        raise RecordError(
            f"{shard}: holds ids that are no content hashes. Delete the task's folder to make it again."
        ) from None
    arrays: dict[str, Numbers] = {"ids": ids, "answers": _hashes(table["answer"].to_pylist())}
    if near:
        from algorist.numerics import minhash, shingles, words

        signs, arrays["numbers"] = words.symbols(table["statement"].to_pylist())
        bands = minhash.bands(minhash.signatures(signs, _SHINGLE), minhash.layout(near))
        sets = shingles.sets(signs, _SHINGLE)
        arrays |= {"sizes": np.diff(sets.starts), "shingles": sets.values}
        arrays |= {f"band{place}": keys for place, keys in enumerate(bands)}
    with store.replacing(path) as draft, open(draft, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def same_rollouts(tokens: Sequence[Sequence[int] | Numbers]) -> list[int]:
    """Which rollouts of one problem are an earlier one again, id by id: rising places in `tokens`.

    >>> same_rollouts([range(3), range(4), range(3)])
    [2]
    """
    seen: set[bytes] = set()
    found = []
    for place, ids in enumerate(tokens):
        written = np.asarray(ids, np.int64).tobytes()
        if written in seen:
            found.append(place)
        seen.add(written)
    return found


def near_rollouts(tokens: Sequence[Sequence[int] | Numbers], near: float = 0.8) -> list[int]:
    """Which rollouts of one problem nearly repeat an earlier one that is kept.

    Args:
        tokens  the ids of each rollout, in the order in which the first of several is kept
        near    Jaccard similarity of their runs of five tokens from which two are one; 0 finds none

    Returns:
        rising places in `tokens`; no two of the others are near each other.

    >>> near_rollouts([range(100), range(200, 300), range(1, 101)])
    [2]
    """
    if near <= 0 or len(tokens) < 2:
        return []
    from algorist.numerics import minhash, shingles

    of = shingles.rows(tokens)
    signed = minhash.signatures(of, _RUN)
    sets: dict[int, Numbers] = {}

    def runs(place: int) -> Numbers:
        if place not in sets:
            sets[place] = shingles.sets(shingles.rows([of[place]]), _RUN)[0]
        return sets[place]

    kept: list[int] = []
    for later in range(len(tokens)):
        alike = (one for one in kept if minhash.estimate(signed[one], signed[later]) >= near - _MARGIN)
        if not any(minhash.jaccard(runs(one), runs(later)) >= near for one in alike):
            kept.append(later)
    return sorted(set(range(len(tokens))) - set(kept))


@dataclass(frozen=True)
class _Golds:
    """The gold answers of some places, read from their shards when they are asked for."""

    shards: Sequence[Path]
    starts: NDArray[np.int64]

    def read(self, places: Sequence[int]) -> dict[int, str]:
        """Place → answer; each shard is read once."""
        found: dict[int, str] = {}
        ordered = np.unique(np.asarray(places, np.int64))
        of = np.searchsorted(self.starts, ordered, side="right") - 1
        for shard in np.unique(of).tolist():
            answers = store.read_columns(self.shards[shard], ("answer",))["answer"]
            found |= {
                place: answers[place - int(self.starts[shard])].as_py() for place in ordered[of == shard].tolist()
            }
        return found


def _exact(golds: _Golds, ids: Numbers, answers: Numbers, reasons: Numbers, firsts: Numbers) -> None:
    """Marks what has the id of an earlier problem, and all that share an id but not an answer."""
    from algorist.numerics import minhash

    groups = minhash.buckets(ids)
    unclear: list[list[int]] = []
    for number in range(len(groups)):
        group = groups[number]
        firsts[group] = group[0]
        reasons[group[1:]] = _REASONS.index(TWICE)
        if np.any(answers[group] != answers[group[0]]):
            unclear.append(group.tolist())
    texts = golds.read([place for group in unclear for place in group])
    for first, *rest in unclear:
        if not all(same_answer(texts[first], texts[place]) for place in rest):
            reasons[[first, *rest]] = _REASONS.index(CONFLICT)


def _near(
    golds: _Golds, sketches: Sequence[Path], near: float, answers: Numbers, marks: tuple[Numbers, Numbers]
) -> tuple[int, int]:
    """Marks near copies; returns (problems near another one that both stay, comparisons left out)."""
    from algorist.numerics import minhash

    reasons, firsts = marks
    alive = np.flatnonzero(reasons == 0)
    numbers = _column(sketches, "numbers")[alive]
    parents = np.arange(len(reasons))
    beside = np.zeros(len(reasons), np.bool_)
    doubtful, skipped = np.empty((0, 2), np.int64), 0
    with _on_disk(sketches) as sets:
        for band in range(minhash.layout(near)[0]):
            keys = _column(sketches, f"band{band}")[alive]
            same = minhash.buckets(keys ^ (numbers * np.uint64(0x9E3779B97F4A7C15)))
            pairs, left_out = minhash.link(_at(same, alive), sets, near, answers, parents, _WINDOW)
            doubtful, skipped = np.unique(np.concatenate((doubtful, pairs)), axis=0), skipped + left_out
            minhash.neighbours(_at(minhash.buckets(keys), alive), sets, near, beside)
    texts = golds.read(doubtful.ravel().tolist())
    for one, other in doubtful.tolist():
        if same_answer(texts[one], texts[other]):
            minhash.join(parents, one, other)
    roots = np.array([minhash.root(parents, place) for place in alive.tolist()], np.int64)
    copies = roots != alive
    reasons[alive[copies]], firsts[alive[copies]] = _REASONS.index(NEAR), roots[copies]
    return int(np.count_nonzero(beside & (reasons == 0))), skipped


def _at(found: Rows, places: NDArray[np.int64]) -> Rows:
    return type(found)(places[found.values], found.starts)


@contextlib.contextmanager
def _on_disk(sketches: Sequence[Path]) -> Iterator[Rows]:
    """The shingles of all shards as one array that lies in a file."""
    from algorist.numerics.shingles import Rows

    starts = np.r_[0, np.cumsum(_column(sketches, "sizes"))].astype(np.int64)
    path = sketches[0].with_name("shingles.bin") if sketches else Path()
    try:
        values = np.memmap(path, np.uint64, "w+", shape=(int(starts[-1]),)) if starts[-1] else np.empty(0, np.uint64)
        at = 0
        for one in sketches:
            part = _load(one, "shingles")
            values[at : at + len(part)] = part
            at += len(part)
        yield Rows(np.asarray(values), starts)
    finally:
        if sketches:
            path.unlink(missing_ok=True)


def _load(path: Path, name: str) -> Any:
    with np.load(path) as arrays:
        return arrays[name]


def _column(sketches: Sequence[Path], name: str) -> Any:
    parts = [_load(path, name) for path in sketches]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(
        hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, np.uint64)
