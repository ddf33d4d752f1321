"""What is known of each problem once its rollouts are judged: field, level, and the pass rate as its difficulty.

    problems ─┬─ rollouts ── verdicts ──→ profiles     shard k of each is of the same problems
              └─ labels (data/labels.py)

The pass rate counts right against wrong. What could not be judged stands apart, and so does what only the rules call
wrong though a judge was asked: neither makes a problem look harder than it is.

`summarise` counts one shard, `merged` adds counts up: a summary of ten million rollouts is as small as one of ten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from algorist import store
from algorist.data import labels
from algorist.errors import RecordError
from algorist.records import Problem, Profile
from algorist.verify.judge import CONFLICT, UNDECIDED

_PER_DOUBLING = 16  # classes of length from n to 2n tokens: each is 4.4 % wide


@dataclass(frozen=True)
class Summary:
    """Counts over problems and their rollouts."""

    problems: int = 0
    rollouts: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)  # right, wrong, unjudged → rollouts
    source: Mapping[str, int] = field(default_factory=dict)  # source → problems; likewise the next four
    level: Mapping[str, int] = field(default_factory=dict)
    domain: Mapping[str, int] = field(default_factory=dict)
    licence: Mapping[str, int] = field(default_factory=dict)
    labelled_by: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[float, int] = field(default_factory=dict)  # pass rate to four digits → problems
    lengths: Mapping[int, int] = field(default_factory=dict)  # class of `length_class` → rollouts
    repetition: Mapping[str, int] = field(default_factory=dict)  # flag, or empty → rollouts
    leak: Mapping[str, int] = field(default_factory=dict)  # benchmark, or empty → rollouts


def profile(
    problems: Path,
    rollouts: Path,
    verdicts: Path,
    out: Path,
    log: Path,
    settings: labels.Settings,
    made_from: str,
) -> None:
    """Write the profiles of a shard of problems, row for row.

    Args:
        problems   the shard
        rollouts   the shard of the rollouts that respond to them
        verdicts   the shard of verdicts on these rollouts, in their order
        out        the shard to be written, of Profile records
        log        what a model said of the problems; not read where `settings` ask nobody
        settings   whose labels count
        made_from  for the footer of the shard

    Raises RecordError where the shards do not belong together, or a model was to be asked and there is no log.
    """
    found = store.read_shard(problems, Problem)
    counts = _counts(rollouts, verdicts)
    strangers = counts.keys() - {problem.id for problem in found}
    if strangers:
        raise RecordError(
            f"{rollouts}: has rollouts of {len(strangers):,} problems that are not in {problems}, such as "
            f"{min(strangers)}. Delete the folder of the rollouts to make them again."
        )
    said = labels.labelled(found, settings, log)
    records = []
    for problem in found:
        right, wrong, unjudged = counts.get(problem.id, (0, 0, 0))
        label = said[problem.id]
        rate = right / (right + wrong) if right + wrong else None
        records.append(Profile(problem.id, label.domain, label.level, label.by, right, wrong, unjudged, rate))
    store.write_shard(out.parent, int(out.stem), Profile, records, made_from=made_from)


def _counts(rollouts: Path, verdicts: Path) -> dict[str, tuple[int, int, int]]:
    """Problem id → (right, wrong, unjudged) of its rollouts."""
    asked = _frame(rollouts, ("id", "problem_id"))
    said = _frame(verdicts, ("rollout_id", "right", "reason"))
    if not asked["id"].equals(said["rollout_id"].alias("id")):
        raise RecordError(
            f"{verdicts}: its rows are not those of {rollouts}, in their order. "
            "Delete the folder of the verdicts to make them again."
        )
    right, reason = pl.col("right"), pl.col("reason")
    contested = (reason == CONFLICT) | reason.str.starts_with(UNDECIDED)  # verify.judge.contested, for a column
    wrong = right.eq(False) & ~contested
    table = (
        pl.concat([asked, said], how="horizontal")
        .group_by("problem_id")
        .agg(right.eq(True).sum().alias("good"), wrong.sum().alias("bad"), pl.len().alias("all"))
    )
    return {name: (good, bad, every - good - bad) for name, good, bad, every in table.iter_rows()}


def summarise(problems: Path, profiles: Path, measures: Path) -> Summary:
    """Counts over one shard of problems, their profiles and the measures of their rollouts.

    Raises RecordError where a shard cannot be read, or profiles and problems are not of the same rows.
    """
    asked = _frame(problems, ("id", "source", "licence"))
    told = _frame(profiles, ("problem_id", "level", "domain", "labelled_by", "right", "wrong", "unjudged", "pass_rate"))
    if not asked["id"].equals(told["problem_id"].alias("id")):
        raise RecordError(f"{profiles}: its rows are not those of {problems}. Delete its folder to make it again.")
    counted = _frame(measures, ("num_tokens", "repetition", "leak"))
    rates = Counter(round(rate, 4) for rate in told["pass_rate"].drop_nulls().to_list())
    lengths: Counter[int] = Counter()
    for length, count in _values(counted["num_tokens"]).items():
        lengths[length_class(length)] += count
    return Summary(
        problems=asked.height,
        rollouts=counted.height,
        verdicts={name: int(told[name].sum()) for name in ("right", "wrong", "unjudged")},
        **{name: _values(asked[name]) for name in ("source", "licence")},
        **{name: _values(told[name]) for name in ("level", "domain", "labelled_by")},
        rates=rates,
        lengths=lengths,
        **{name: _values(counted[name]) for name in ("repetition", "leak")},
    )


def merged(summaries: Iterable[Summary]) -> Summary:
    """The counts of several shards together; their order does not matter."""
    names = (
        "verdicts",
        "source",
        "level",
        "domain",
        "licence",
        "labelled_by",
        "rates",
        "lengths",
        "repetition",
        "leak",
    )
    problems = rollouts = 0
    counts: dict[str, Counter[Any]] = {name: Counter() for name in names}
    for one in summaries:
        problems, rollouts = problems + one.problems, rollouts + one.rollouts
        for name in names:
            counts[name].update(getattr(one, name))
    return Summary(problems, rollouts, **{name: dict(counts[name]) for name in names})


def length_class(tokens: int) -> int:
    """The class of a length: 0 for nothing, then sixteen for each doubling."""
    return 0 if tokens < 1 else 1 + math.floor(_PER_DOUBLING * math.log2(tokens) + 1e-9)


def quantiles(lengths: Mapping[int, int], shares: Sequence[float]) -> list[int]:
    """Lengths below or at which so many of the rollouts lie, from counts by class, each true to within 4.4 %.

    Args:
        lengths  class of `length_class` → rollouts
        shares   in [0, 1]

    Returns:
        One length in tokens for each share, the shortest of its class; none where nothing was counted.

    >>> quantiles({length_class(100): 3, length_class(1000): 1}, (0.5, 1.0))
    [99, 981]
    """
    total, found = sum(lengths.values()), []
    for share in shares if total else ():
        before = 0
        for place in sorted(lengths):
            before += lengths[place]
            if before >= share * total:
                break
        found.append(0 if place == 0 else math.ceil(2 ** ((place - 1) / _PER_DOUBLING) - 1e-9))
    return found


def _frame(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    frame = pl.from_arrow(store.read_columns(path, columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _values(column: pl.Series) -> dict[Any, int]:
    """Value → how often."""
    return dict(column.value_counts().iter_rows())
