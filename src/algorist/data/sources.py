"""Where a recipe's problems and benchmarks come from: files, data sets, procedural problems, or the toy world."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from algorist import store
from algorist.data import columns, dedup, defects, problems, readers, traces
from algorist.data.columns import Columns, Row
from algorist.data.intake import NOTED, Count, Intake
from algorist.data.problems import Manner, read_benchmark
from algorist.errors import RecipeError
from algorist.records import LEVELS, Defect, Problem, Rollout, normalised
from algorist.toy import world
from algorist.verify.pool import Pool

TOY = "toy"
COUNTS = "sources.json"
GUESSES: Columns = {**problems.COLUMNS, **traces.COLUMNS}


@dataclass(frozen=True)
class Source:
    """A source with keys of its own."""

    path: str = ""  # what an entry of `problems` would say; must be given
    columns: dict[str, str] = field(default_factory=dict)  # statement, answer, … → this source's column names
    licence: str = ""  # of all rows; left out: what each row says
    levels: dict[str, str] = field(default_factory=dict)  # the source's label → elementary … graduate; "*" for others
    domains: dict[str, str] = field(default_factory=dict)  # the source's label → the domain; "*" for others
    traces: bool = True  # take the responses along that the source brings
    sampler: str = ""  # who wrote these responses, where no column says it; left out: the source's name
    thoughts: Literal["think", "as written"] = "think"  # rewrite other markers of thoughts as <think>, or keep them

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must say where the source is.")
        if wrong := sorted(set(self.levels.values()) - set(LEVELS)):
            raise ValueError(f'levels says "{wrong[0]}", one of {", ".join(LEVELS)} was expected.')


@dataclass(frozen=True)
class Settings:
    """[data]"""

    problems: tuple[str, ...] = ()  # files, folders, hf://owner/name, gym://task, "toy"; none and no `sources`: "toy"
    sources: dict[str, Source] = field(default_factory=dict)  # name → a source with keys of its own
    benchmarks: dict[str, str] = field(default_factory=lambda: {TOY: TOY})  # name → file, or "toy"
    columns: dict[str, str] = field(default_factory=dict)  # statement, answer, … → the column, in files that have it
    refuse: tuple[str, ...] = defects.REFUSED  # defects that keep a row out; others are only noted
    ngram: int = 13  # words shared with a benchmark problem that rule a training problem out
    fuzzy: float = 0.75  # Jaccard similarity to a benchmark problem that makes one a paraphrase of it; 0: not looked at
    near: float = 0.8  # Jaccard similarity of two problems from which they count as the same; 0: exact repeats only
    engine: Literal["processes", "ray"] = "processes"  # what runs the shards; "ray" takes the extra [ray]
    workers: int = 0  # shards at the same time; 0: as many as there are cores

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ValueError("benchmarks must name at least one file.")
        if wrong := [name for name in self.benchmarks if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]:
            raise ValueError(f'benchmarks: "{wrong[0]}" cannot be the name of a folder. Use letters, digits, ._-')
        if self.ngram < 1 or self.workers < 0:
            raise ValueError("ngram must be at least 1 and workers at least 0.")
        if not 0 <= self.fuzzy <= 1 or not 0 <= self.near <= 1:
            raise ValueError("fuzzy and near must lie in 0..1.")
        if twice := [name for name, times in Counter([*self.problems, *self.sources]).items() if times > 1]:
            raise ValueError(f'"{twice[0]}" is named twice. Name each source once.')
        if unknown := [name for name in self.refuse if name not in (*defects.REFUSED, *defects.NOTED)]:
            known = ", ".join((*defects.REFUSED, *defects.NOTED))
            raise ValueError(f'refuse: "{unknown[0]}" is no defect that can be chosen. There are {known}.')

    def named(self) -> dict[str, Source]:
        """name → source, in reading order: the entries of `problems` under their own names, then `sources`."""
        listed = self.problems or (() if self.sources else (TOY,))
        return {name: Source(name) for name in listed} | self.sources


@dataclass(frozen=True)
class _Opened:
    """A source whose columns are known."""

    source: Source
    manner: Manner
    rows: Iterator[dict[str, Any]]


def files_of(settings: Settings) -> tuple[Path, ...]:
    """The local files that the sources are read from: what a task that reads them depends on."""
    return tuple(path for one in settings.named().values() if one.path != TOY for path in readers.files_of(one.path))


def write_benchmarks(folder: Path, settings: Settings, toy: world.Settings, seed: int) -> dict[str, store.Manifest]:
    """One data set of problems for each benchmark, `<folder>/<name>`; returns their manifests by name.

    A question with no answer, or with several that disagree, cannot be scored, but can leak:
    `<folder>/<name>/unscored` keeps it.
    """
    made = {}
    for name, source in settings.benchmarks.items():
        if source == TOY:
            steps = range(toy.fewest_steps, toy.most_steps + 1)
            asked = world.problems(seed, "held out", toy.held_out, steps, toy.distractors)
        else:
            asked = read_benchmark(source, settings.columns)
        unique, dropped = dedup.unique(asked)
        found = [problem for problem in unique if problem.answer]
        if len(found) < len(unique):
            dropped["no answer"] = len(unique) - len(found)
        if not found:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            raise RecipeError(
                f'[data] benchmarks.{name} = "{source}": holds no problem that can be scored'
                f"{f' ({reasons})' if reasons else ''}. Name a file of problems with answers."
            )
        unscored = {problem.id: problem for problem in asked}
        for problem in found:
            del unscored[problem.id]
        store.write(folder / name / "unscored", Problem, list(unscored.values()))
        made[name] = store.write(folder / name, Problem, found, dropped=dropped)
    return made


def read_benchmarks(folder: Path, names: Sequence[str]) -> dict[str, list[Problem]]:
    """name → the problems to score, as `write_benchmarks` left them."""
    return {name: store.read(folder / name, Problem) for name in names}


def read_questions(folder: Path, names: Sequence[str]) -> dict[str, list[Problem]]:
    """name → everything that a benchmark asks, scored or not: none of it may be trained on."""
    scored = read_benchmarks(folder, names)
    return {name: scored[name] + store.read(folder / name / "unscored", Problem) for name in names}


def write_sources(folder: Path, settings: Settings, toy: world.Settings, seed: int, pool: Pool) -> list[Count]:
    """Read every source into the data sets `<folder>/problems`, `/traces` and `/defects`; what became of each.

    Shards follow the sources in order, hold at most 1,000 problems and never mix two sources; shard k of the traces
    belongs to shard k of the problems (intake.py). `<folder>/sources.json` keeps the counts.

    Raises RecipeError for sources that are not there, columns that are in none of them, or where nothing is left;
    RecordError for what cannot be read.
    """
    named = settings.named()
    # All are opened before one is read: a wrong name at the end of the list shows at once.
    opened = {name: _opened(name, one, settings) for name, one in named.items() if one.path != TOY}
    _require_columns(settings, opened)
    intake = Intake(folder)
    for name in named:
        count = intake.open(name)
        if name in opened:
            _read(opened[name], intake, count, pool)
        else:
            steps = range(toy.fewest_steps, toy.most_steps + 1)
            for problem in world.problems(seed, "train", toy.problems, steps, toy.distractors):
                count.rows += 1
                intake.take(problem, ())
        intake.close()
    counts = intake.finish()
    store.write_json(folder / COUNTS, {"sources": [vars(count) for count in counts]})
    if not any(count.problems for count in counts):
        refused = sum((count.refused for count in counts), Counter[str]())
        reasons = ", ".join(f"{times:,} {reason}" for reason, times in refused.most_common()) or "the sources are empty"
        rows = sum(count.rows for count in counts)
        raise RecipeError(f"[data] problems: none of {rows:,} rows became a problem ({reasons}). Name other files.")
    return counts


def read_counts(folder: Path) -> list[Count]:
    """What became of each source, as `write_sources` left it."""
    tables = ("refused", "traces_refused", "noted")
    names = [part.name for part in fields(Count)]  # what an older version kept beside them is passed over
    return [
        Count(**{**{name: one[name] for name in names}, **{name: Counter(one[name]) for name in tables}})
        for one in store.read_json(folder / COUNTS)["sources"]
    ]


def counts_text(counts: Sequence[Count]) -> str:
    """The counts as a table, a line for each source, with the defects below it."""
    lines = [f"{'rows':>10} {'problems':>10} {'traces':>10}  source"]
    for count in counts:
        lines.append(f"{count.rows:>10,} {count.problems:>10,} {count.traces:>10,}  {count.name}")
        kinds = (("refused", count.refused), ("noted", count.noted), ("traces left out", count.traces_refused))
        for title, found in kinds:
            lines += [f"{'':>33} {title}: {times:,} {reason}" for reason, times in found.most_common()]
    return "\n".join(lines)


def _opened(name: str, source: Source, settings: Settings) -> _Opened:
    """A source with its columns. Raises RecipeError and RecordError for what is not there."""
    head, rows = columns.peeked(readers.read_rows(source.path))
    chosen = columns.columns_of(source.path, head, GUESSES, source.columns, settings.columns)
    columns.require(source.path, head, chosen, "statement", "messages", "problem_id")
    levels = {normalised(label): level for label, level in source.levels.items()}
    domains = {normalised(label): domain for label, domain in source.domains.items()}
    manner = Manner(name, chosen, source.licence, levels, domains, frozenset(settings.refuse))
    if not any(traces.told(row, chosen).texts or columns.has_gold(row, chosen) for row in head):
        columns.require(source.path, head, chosen, "answer", "solution")
    return _Opened(source, manner, rows)


def _require_columns(settings: Settings, opened: Mapping[str, _Opened]) -> None:
    """Raise RecipeError for a column of [data] columns that neither a source nor a benchmark has."""
    known = [one.manner.columns for one in opened.values()]
    for path in settings.benchmarks.values():
        if settings.columns and path != TOY:
            head, _ = columns.peeked(readers.read_rows(path))
            known.append(columns.columns_of(path, head, GUESSES, shared=settings.columns))
    for name, column in settings.columns.items():
        if known and not any(chosen[name] == (column,) for chosen in known):
            raise RecipeError(
                f'[data] columns.{name} = "{column}": no source has such a column. Name one that is there.'
            )


def _read(opened: _Opened, intake: Intake, count: Count, pool: Pool) -> None:
    """All rows of a source, a few hundred in memory at a time."""
    numbered = enumerate(opened.rows)
    while batch := list(itertools.islice(numbered, readers.BATCH)):
        told = [traces.told(row, opened.manner.columns) for _, row in batch]
        readings = [
            problems.read_problem(row, number, opened.manner, one.statement)
            for (number, row), one in zip(batch, told, strict=True)
        ]
        readings = problems.verify_golds(readings, pool, opened.manner.refuse)
        for (number, row), one, reading in zip(batch, told, readings, strict=True):
            count.rows += 1
            _take(opened, intake, (number, row), one, reading)


def _take(
    opened: _Opened, intake: Intake, numbered: tuple[int, Row], told: traces.Told, reading: problems.Reading
) -> None:
    """One row: its problem and its traces, and what is wrong with either."""
    number, row = numbered
    manner, count, problem = opened.manner, intake.counts[-1], reading.problem
    found: list[Rollout] = []
    said: list[str] = []
    if opened.source.traces:
        found, said = traces.rollouts(manner.source, number, row, manner.columns, told.texts)
        found = [traces.adapted(one, opened.source.sampler, opened.source.thoughts == "think") for one in found]
    count.traces_refused.update(said)
    identity = _identity(problem, row, manner)
    reason = told.refused or reading.refused
    if identity and found and reason in (defects.NO_ANSWER, defects.NO_STATEMENT):
        count.goldless += 1
        intake.take_goldless(identity, found)
    elif reason:
        count.refused[reason] += 1
        count.traces_refused.update(["of a row that was refused"] * len(found))
        said.append(reason)
    else:
        intake.take(problem, found)
        count.noted.update(reading.noted)
        said += [NOTED + one for one in reading.noted]
    for one in said:
        intake.refuse(Defect(manner.source, number, one, identity, problem.statement or str(row)))


def _identity(problem: Problem, row: Row, manner: Manner) -> str:
    """The id of the problem that a row is about: of its statement, else the one that it names; empty without either."""
    named = columns.text_of(columns.value_in(row, manner.columns["problem_id"])) or ""
    return problem.id if problem.statement else named if re.fullmatch("[0-9a-f]{16}", named) else ""
