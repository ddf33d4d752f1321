"""Each problem once, and none that a benchmark asks: from sources/problems to problems, shard by shard.

What is left out stays readable: problems/left-out says of each row why, and what it repeats; problems/hits holds every
hit of the decontamination, of which problems/decontamination.json is made. measures/decontamination.json is the same
for the texts of rollouts.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from algorist import store
from algorist.data import dedup, leaks, sources
from algorist.data.decontaminate import Report, write_report
from algorist.data.leaks import Hit, Index
from algorist.data.shards import Engine, Job, build, made_from
from algorist.errors import RecipeError
from algorist.records import Defect, Problem, Rollout, content_id

LEFT_OUT = "left-out"  # in the folder of problems
HITS = "hits"
_SKETCHES = "sketches"  # what is computed of each shard to find repeats; gone when the task is done
_SHOWN = 200  # characters of a statement


@dataclass(frozen=True)
class Asked:
    """What must not be trained on, in a form that is cheap to send to a process: where it lies, and what of it."""

    folder: Path  # of the benchmarks
    names: tuple[str, ...]
    content: str  # of all of them together: other files, another index
    ngram: int
    fuzzy: float

    @classmethod
    def of(cls, root: Path, names: Sequence[str], ngram: int, fuzzy: float) -> Asked:
        """The benchmarks of a run."""
        folder = root / "benchmarks"
        made = [store.manifest(folder / name / part).content for name in names for part in ("", "unscored")]
        return cls(folder, tuple(names), content_id(list(names), made), ngram, fuzzy)

    def index(self) -> Index:
        """The benchmarks ready to be looked for; made once in a process."""
        return _index(self)


def write(
    root: Path, asked: Asked, near: float, engine: Engine, older: Sequence[Path] = ()
) -> tuple[store.Manifest, dedup.Found]:
    """Write `problems` of a run from its `sources/problems`, with the report without which nothing may be trained.

    Args:
        near   Jaccard similarity from which two statements with the same numbers and answers are one; 0: exact repeats
        older  folders of earlier runs of the task, whose shards may serve again

    Raises RecipeError where nothing is left, RecordError where a shard cannot be read, and what the engine raises.
    """
    told, folder = store.manifest(root / "sources" / "problems"), root / "problems"
    paths = [root / "sources" / "problems" / shard for shard in told.shards]
    found = dedup.find(paths, folder / _SKETCHES, near, engine)
    jobs = []
    for place, path in enumerate(paths):
        repeats = found.dropped(place)
        said = content_id(asked.content, asked.ngram, asked.fuzzy, sorted(repeats.items()))
        origin = made_from(clean_shard, store.facts(path).content, said)
        arguments = (path, folder / path.name, repeats, asked, origin)
        jobs.append(Job(folder / path.name, arguments, origin, (LEFT_OUT, HITS)))
    build("clean", clean_shard, jobs, engine, older)
    shutil.rmtree(folder / _SKETCHES, ignore_errors=True)
    store.finish(folder / LEFT_OUT, Defect, parents=[told.id])
    store.finish(folder / HITS, Hit, parents=[told.id])
    hits = tuple(store.stream(folder / HITS, Hit))
    ids = dict(asked.index().benchmarks)
    write_report(folder, Report(ids, asked.ngram, told.rows - sum(found.counts.values()), hits, asked.fuzzy))
    made = store.finish(folder, Problem, parents=[told.id])
    if not made.rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in made.dropped.items())
        raise RecipeError(f"[data] problems: none of {told.rows:,} is left ({reasons}). Name other files.")
    return made, found


def clean_shard(source: Path, out: Path, repeats: Mapping[int, tuple[str, str]], asked: Asked, made_from: str) -> None:
    """Write a shard of problems and, beside it, of what was left out and of the hits.

    Args:
        repeats  row of the source's shard → (reason, id of the problem that it repeats)
    """
    problems = store.read_shard(source, Problem)
    fresh = [problem for row, problem in enumerate(problems) if row not in repeats]
    hits = leaks.hits(asked.index(), fresh)
    leaked = {hit.problem_id: f"in {hit.benchmark}" for hit in reversed(hits)}
    lost = []
    dropped: Counter[str] = Counter()
    for row, problem in enumerate(problems):
        reason, other = repeats.get(row, (leaked.get(problem.id, ""), ""))
        if reason:
            dropped[reason] += 1
            said = f"{reason}: {other}" if other else reason
            lost.append(Defect(problem.source, problem.row, said, problem.id, problem.statement[:_SHOWN]))
    kept = [problem for problem in fresh if problem.id not in leaked]
    index = int(out.stem)
    store.write_shard(out.parent / LEFT_OUT, index, Defect, lost, made_from=made_from)
    store.write_shard(out.parent / HITS, index, Hit, hits, made_from=made_from)
    store.write_shard(out.parent, index, Problem, kept, dropped=dropped, made_from=made_from)


def report_rollouts(root: Path, asked: Asked) -> Report:
    """Write the report on the rollouts that quote a benchmark, as `measures` marked them, beside the measures."""
    made = store.manifest(root / "measures")
    hits: list[Hit] = []
    for shard in made.shards:
        marks = store.read_columns(root / "measures" / shard, ("leak",))["leak"].to_pylist()
        if any(marks):
            rollouts = store.read_shard(root / "rollouts" / shard, Rollout)
            quoting = [one for one, mark in zip(rollouts, marks, strict=True) if mark]
            hits += leaks.rollout_hits(asked.index(), quoting)
    report = Report(dict(asked.index().benchmarks), asked.ngram, 0, tuple(hits), 0.0, made.rows)
    write_report(root / "measures", report)
    return report


@functools.cache
def _index(asked: Asked) -> Index:
    return Index.of(sources.read_questions(asked.folder, asked.names), asked.ngram, asked.fuzzy)
