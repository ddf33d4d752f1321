"""Pairs: files of gold and candidate answers, each judged and explained. What `algorist verify` does.

A line holds {"id", "gold", "candidate", "kind"}. Where kind is "answer" the candidate is a bare answer, though perhaps
in a sentence or a box, and any expression of the right value is right. Where it is "completion" the candidate is a
whole model output: its answer must be marked as such, and a formula left undone answers no question for a number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from algorist.errors import RecordError
from algorist.verify.conventions import DEFAULT, Conventions
from algorist.verify.equal import LONGEST_ANSWER, Outcome, at_sight, by_reading
from algorist.verify.extract import answer_in, extract
from algorist.verify.pool import Pair, Pool, Timed

KINDS = ("answer", "completion")
_TOGETHER = 1_000  # rows handed to the workers at a time


@dataclass(frozen=True)
class Row:
    """One line to be judged."""

    id: Any  # as the file has it; where it has none, the number of the line
    gold: str
    candidate: str
    kind: str


@dataclass(frozen=True)
class Judged:
    """What became of a row; `right` is None where it could not be judged."""

    id: Any
    right: bool | None
    reason: str
    extracted: str
    seconds: float

    def line(self) -> str:
        """The row as a line of JSON; of an endless answer its beginning."""
        answer = self.extracted[:LONGEST_ANSWER]
        written = {"id": self.id, "equivalent": self.right, "reason": self.reason, "extracted": answer}
        return json.dumps({**written, "seconds": round(self.seconds, 6)})


def rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of a file of JSON lines; empty lines are passed over.

    Raises:
        RecordError for a line that is no such row; `name` is the file's, for the message.
    """
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{name}, line {at}: is no JSON ({error}). Mend the line.") from None
        if not isinstance(row, dict):
            raise RecordError(f"{name}, line {at}: an object with gold and candidate was expected. Mend the line.")
        for key in ("gold", "candidate"):
            value = row.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                row[key] = str(value)
            elif not isinstance(value, str):
                raise RecordError(f"{name}, line {at}: {key} is {value!r:.40}, a text was expected. Mend the line.")
        kind = row.get("kind", "answer")
        if kind not in KINDS:
            raise RecordError(f"{name}, line {at}: kind is {kind!r:.40}, answer or completion was expected.")
        yield Row(row.get("id", at), row["gold"], row["candidate"], kind)


def judge(gold: str, candidate: str, kind: str, conventions: Conventions = DEFAULT) -> Judged:
    """One pair, judged here and now; hostile text belongs into `judge_all`, whose workers can be killed."""
    begun = time.perf_counter()

    def outcomes(pairs: Sequence[Pair]) -> Mapping[Pair, Timed]:
        return {pair: (by_reading(*pair, _conventions(kind, conventions)), 0.0) for pair in pairs}

    (found,) = _judged([Row(None, gold, candidate, kind)], {kind: outcomes}, conventions)
    return replace(found, seconds=time.perf_counter() - begun)


def judge_all(
    found: Iterable[Row], *, workers: int | None, seconds: float, memory_mib: int, conventions: Conventions
) -> Iterator[Judged]:
    """Every row judged, in order, a thousand at a time. Arguments are those of Pool.

    Raises RunError where no worker can start, and whatever `found` raises, after what came before it was judged.
    """
    remaining = iter(found)
    pools = {kind: Pool(workers, seconds, memory_mib, _conventions(kind, conventions)) for kind in KINDS}
    try:
        while True:
            part, error = _taken(remaining)
            yield from _judged(part, {kind: pool.timed for kind, pool in pools.items()}, conventions)
            if error:
                raise error
            if not part:
                return
    finally:
        for pool in pools.values():
            pool.close()


def _taken(remaining: Iterator[Row]) -> tuple[list[Row], RecordError | None]:
    """The next rows, and the error that ended them."""
    part: list[Row] = []
    try:
        part.extend(islice(remaining, _TOGETHER))
    except RecordError as error:
        return part, error
    return part, None


def _conventions(kind: str, conventions: Conventions) -> Conventions:
    return replace(conventions, unevaluated=True) if kind == "answer" else conventions


def _judged(part: Sequence[Row], ask: Mapping[str, Any], conventions: Conventions) -> Iterator[Judged]:
    """The rows of one part. What is a bare answer only inside its sentence is tried a second time."""
    first = [_seen(row, row.candidate if row.kind == "answer" else None, conventions) for row in part]
    first = _decided(part, first, ask)
    again = [
        _seen(row, inner, conventions)
        if row.kind == "answer" and judged.right is not True and inner != row.candidate
        else None
        for row, judged in zip(part, first, strict=True)
        for inner in (answer_in(row.candidate).answer or row.candidate,)
    ]
    places = [place for place, judged in enumerate(again) if judged is not None]
    second = _decided([part[place] for place in places], [judged for judged in again if judged is not None], ask)
    for place, judged in zip(places, second, strict=True):
        first[place] = replace(judged, seconds=judged.seconds + first[place].seconds)
    yield from first


def _seen(row: Row, answer: str | None, conventions: Conventions) -> Judged:
    """What is decided at sight; reason "" where it is not. Without an answer it is read out of the completion."""
    begun = time.perf_counter()
    outcome: Outcome | None
    if answer is None:
        extraction = extract(row.candidate)
        answer = extraction.answer
        outcome = at_sight(row.gold, answer, conventions) if answer else (False, extraction.found)
    else:
        outcome = at_sight(row.gold, answer, conventions)
    right, reason = outcome or (None, "")
    return Judged(row.id, right, reason, answer, time.perf_counter() - begun)


def _decided(part: Sequence[Row], seen: Sequence[Judged], ask: Mapping[str, Any]) -> list[Judged]:
    found: dict[tuple[str, Pair], Timed] = {}
    for kind, outcomes in ask.items():
        pairs = [
            (row.gold, judged.extracted)
            for row, judged in zip(part, seen, strict=True)
            if not judged.reason and row.kind == kind
        ]
        found.update({(kind, pair): timed for pair, timed in outcomes(pairs).items()})
    judged = []
    for row, one in zip(part, seen, strict=True):
        if not one.reason:
            (right, reason), seconds = found[row.kind, (row.gold, one.extracted)]
            one = replace(one, right=right, reason=reason, seconds=one.seconds + seconds)
        judged.append(one)
    return judged
