"""Where a recipe's problems and benchmarks come from: files, or the toy world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from algorist import store
from algorist.data import decontaminate, dedup
from algorist.data.problems import read_benchmark, read_problems
from algorist.errors import RecipeError
from algorist.records import Problem
from algorist.toy import world

TOY = "toy"


@dataclass(frozen=True)
class Settings:
    """[data]"""

    problems: tuple[str, ...] = (TOY,)  # files (JSONL, JSON, Parquet, CSV), or "toy"
    benchmarks: dict[str, str] = field(default_factory=lambda: {TOY: TOY})  # name → file, or "toy"
    columns: dict[str, str] = field(default_factory=dict)  # statement, answer, … → the files' own column names
    ngram: int = 13  # words shared with a benchmark problem that rule a training problem out

    def __post_init__(self) -> None:
        if not self.problems or not self.benchmarks:
            raise ValueError("problems and benchmarks must name at least one source each.")
        if self.ngram < 1:
            raise ValueError("ngram must be at least 1.")


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
            asked = read_benchmark(Path(source), settings.columns)
        unique, dropped = dedup.unique(asked)
        problems = [problem for problem in unique if problem.answer]
        if len(problems) < len(unique):
            dropped["no answer"] = len(unique) - len(problems)
        if not problems:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            raise RecipeError(
                f'[data] benchmarks.{name} = "{source}": holds no problem that can be scored'
                f"{f' ({reasons})' if reasons else ''}. Name a file of problems with answers."
            )
        unscored = {problem.id: problem for problem in asked}
        for problem in problems:
            del unscored[problem.id]
        store.write(folder / name / "unscored", Problem, list(unscored.values()))
        made[name] = store.write(folder / name, Problem, problems, dropped=dropped)
    return made


def read_benchmarks(folder: Path, names: Sequence[str]) -> dict[str, list[Problem]]:
    """name → the problems to score, as `write_benchmarks` left them."""
    return {name: store.read(folder / name, Problem) for name in names}


def read_questions(folder: Path, names: Sequence[str]) -> dict[str, list[Problem]]:
    """name → everything that a benchmark asks, scored or not: none of it may be trained on."""
    scored = read_benchmarks(folder, names)
    return {name: scored[name] + store.read(folder / name / "unscored", Problem) for name in names}


def write_problems(
    folder: Path, settings: Settings, toy: world.Settings, benchmarks: dict[str, list[Problem]], seed: int
) -> store.Manifest:
    """The problems to learn from: read, freed of duplicates and of what the benchmarks ask, with the report of it."""
    found: list[Problem] = []
    dropped = Counter[str]()
    for source in settings.problems:
        if source == TOY:
            steps = range(toy.fewest_steps, toy.most_steps + 1)
            found += world.problems(seed, "train", toy.problems, steps, toy.distractors)
        else:
            problems, drops = read_problems(Path(source), settings.columns)
            found += problems
            dropped.update(drops)
    unique, twice = dedup.unique(found)
    dropped.update(twice)
    clean, report = decontaminate.decontaminate(unique, benchmarks, settings.ngram)
    dropped["in a benchmark"] += len(unique) - len(clean)
    folder.mkdir(parents=True, exist_ok=True)
    decontaminate.write_report(folder, report)
    if not clean:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in (+dropped).items())
        raise RecipeError(f"[data] problems: none of {len(found):,} is left ({reasons}). Name other files.")
    return store.write(folder, Problem, clean, dropped=dict(+dropped))
