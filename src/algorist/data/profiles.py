"""What is known of each problem once its rollouts are judged: field, level, and the pass rate as its difficulty.

    problems ─┬─ rollouts ── verdicts ──→ profiles     shard k of each is of the same problems
              └─ labels (data/labels.py)

The pass rate counts right against wrong. What could not be judged stands apart, and so does what only the rules call
wrong though a judge was asked: neither makes a problem look harder than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from algorist import store
from algorist.data import labels
from algorist.errors import RecordError
from algorist.records import Problem, Profile
from algorist.verify.judge import CONFLICT, UNDECIDED


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


def _frame(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    frame = pl.from_arrow(store.read_columns(path, columns))
    assert isinstance(frame, pl.DataFrame)
    return frame
