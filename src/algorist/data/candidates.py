"""Candidates: the numbers of one shard of rollouts or problems, read together, narrowed with a reason for each loss.

Tables here hold no texts, so that a shard's numbers fit where its texts would not; texts and token ids are read in
small batches, for the rows that are wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from algorist import store
from algorist.errors import RecordError
from algorist.numerics.address import key
from algorist.records import Message, Problem

Drops = dict[str, int]
_ROLLOUTS = ("id", "problem_id", "sampler", "finish")
_VERDICTS = ("rollout_id", "right", "reason", "extracted")
_MEASURES = ("rollout_id", "num_tokens", "repetition", "leak")
_PROFILES = ("problem_id", "domain", "level", "pass_rate", "unjudged")
_TOGETHER = 512  # rows of texts that are in memory at a time


@dataclass(frozen=True)
class Shards:
    """Shard k of everything that the sets are drawn from: the same problems in each."""

    problems: Path
    profiles: Path  # aligned with problems, row by row
    rollouts: Path
    verdicts: Path  # aligned with rollouts, row by row
    measures: Path  # so is this

    @classmethod
    def of(cls, root: Path, name: str) -> Shards:
        """The shard of this file name in each data set of a run folder."""
        return cls(*(root / part / name for part in ("problems", "profiles", "rollouts", "verdicts", "measures")))

    def paths(self) -> tuple[Path, ...]:
        """All five files."""
        return self.problems, self.profiles, self.rollouts, self.verdicts, self.measures


@dataclass(frozen=True)
class Proposal:
    """What of one shard may enter a set: row numbers and numbers, no texts; and what may not, by reason."""

    table: pa.Table
    dropped: Drops


@dataclass(frozen=True)
class Choice:
    """What of one shard enters the set, and everything of it that does not, by reason."""

    table: pa.Table  # lines of the proposal
    dropped: Drops


def frame(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a shard. Raises RecordError where it cannot be read."""
    return cast(pl.DataFrame, pl.from_arrow(store.read_columns(path, columns)))


def rollouts(shards: Shards) -> pl.DataFrame:
    """One line per rollout of a shard: its row, what verdict and measure say of it, and its problem's profile.

    Raises RecordError where the files are not aligned.
    """
    found, verdicts, measures = (
        frame(path, columns)
        for path, columns in ((shards.rollouts, _ROLLOUTS), (shards.verdicts, _VERDICTS), (shards.measures, _MEASURES))
    )
    _aligned(found["id"], shards.rollouts, verdicts["rollout_id"], shards.verdicts)
    _aligned(found["id"], shards.rollouts, measures["rollout_id"], shards.measures)
    table = pl.concat([found, verdicts.drop("rollout_id"), measures.drop("rollout_id")], how="horizontal")
    profiles = frame(shards.profiles, _PROFILES)
    table = table.with_row_index("row").join(profiles, on="problem_id", how="left", maintain_order="left")
    if table["level"].null_count():
        raise RecordError(
            f"{shards.rollouts}: holds rollouts of problems that {shards.profiles} lacks. "
            f"Delete the folder {shards.rollouts.parent} to make it again."
        )
    return table


def problems(shards: Shards) -> pl.DataFrame:
    """One line per problem of a shard: its row, id, answer and profile. Raises RecordError where not aligned."""
    found, profiles = frame(shards.problems, ("id", "answer")), frame(shards.profiles, _PROFILES)
    _aligned(found["id"], shards.problems, profiles["problem_id"], shards.profiles)
    return pl.concat([found, profiles], how="horizontal").with_row_index("row")


def keep(table: pl.DataFrame, why: pl.Expr, dropped: Drops) -> pl.DataFrame:
    """The lines for which `why` is null; the others are counted in `dropped` under the reason that it gives."""
    table = table.with_columns(why.alias("why"))
    for reason, count in table["why"].drop_nulls().value_counts().iter_rows():
        dropped[reason] = dropped.get(reason, 0) + count
    return table.filter(pl.col("why").is_null()).drop("why")


def easier(levels: Collection[str], max_pass_rate: float) -> pl.Expr:
    """Whether a problem is easier than `levels`: by its pass rate where it has no level, never where there are none."""
    if not levels:
        return pl.lit(False)
    unlabelled = pl.col("level") == ""
    return pl.when(unlabelled).then(pl.col("pass_rate") > max_pass_rate).otherwise(~pl.col("level").is_in([*levels]))


def uniforms(ids: Iterable[str], *address: object) -> list[float]:
    """A number in (0, 1) for each id, which depends on the id and the address alone."""
    return [(key(*address, one) + 0.5) / 2**63 for one in ids]


def cells(path: Path, column: str, rows: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """(row, Arrow scalar) of one column of a shard, for the rows that are wanted, in the order of the file."""
    wanted = set(rows)
    start = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_TOGETHER, columns=[column]):
            here = [row for row in range(start, start + len(batch)) if row in wanted]
            start += len(batch)
            for row in here:
                yield row, batch.column(0)[row - start + len(batch)]
    except (OSError, pa.ArrowInvalid) as error:
        raise RecordError(f"{path}: not readable as Parquet ({error}). Delete the task's folder.") from None


def statements(path: Path, ids: Collection[str]) -> dict[str, Problem]:
    """The problems of a shard with these ids."""
    wanted = set(ids)
    return {problem.id: problem for problem in store.read_shard(path, Problem) if problem.id in wanted}


def user_turn(prompt: str, problem: Problem) -> Message:
    """What a model is asked: the statement in the words of [model] prompt."""
    return Message("user", prompt.replace("{problem}", problem.statement))


def _aligned(ids: pl.Series, path: Path, others: pl.Series, other: Path) -> None:
    if not ids.equals(others):
        raise RecordError(f"{other}: is not aligned with {path}. Delete the folder {other.parent} to make it again.")
