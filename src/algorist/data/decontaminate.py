"""No evaluation question in the training data: the word n-gram test, and the report that proves it was made.

A problem is a hit when it shares `ngram` consecutive words with a benchmark problem. Statements too short to hold
so many are compared whole, with their operators, so that a short sum meets itself and no other. The report is bound
to the content of the benchmarks: with another evaluation file, or a changed one, it no longer counts.

Source of the 13 words: Brown et al. 2020, appendix C, which Phi-4's own report uses too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from algorist import store
from algorist.errors import RecordError, RunError
from algorist.records import Problem, content_id

REPORT = "decontamination.json"
_WORD = re.compile(r"[^\W_]+")
_WORD_OR_OPERATOR = re.compile(r"[^\W_]+|[-+*/^=<>!%]")


@dataclass(frozen=True)
class Hit:
    """One problem that shares words with one benchmark problem."""

    problem_id: str
    benchmark: str
    benchmark_problem_id: str
    words: str  # the first run of words they share, at least `ngram` long, or the whole short statement


@dataclass(frozen=True)
class Report:
    """What was compared with what, and everything found."""

    benchmarks: Mapping[str, str]  # name → benchmark_id
    ngram: int  # words
    problems: int  # compared
    hits: tuple[Hit, ...]


def benchmark_id(problems: Iterable[Problem]) -> str:
    """An id of the questions of a benchmark, whatever their order; changes when one is added, lost or reworded."""
    return content_id("benchmark", sorted({problem.id for problem in problems}))


def decontaminate(
    problems: Sequence[Problem], benchmarks: Mapping[str, Sequence[Problem]], ngram: int = 13
) -> tuple[list[Problem], Report]:
    """The problems that share no `ngram` words with any benchmark problem, and the report of those that do.

    Two statements of fewer than `ngram` words are the same where all their words and operators are, in order.
    """
    assert ngram > 0, "an n-gram holds at least one word"
    owners: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for name, questions in benchmarks.items():
        for question in questions:
            for gram in set(_grams(question.statement, ngram)):
                owners.setdefault(gram, []).append((name, question.id))
    clean, hits = [], []
    for problem in problems:
        grams = _grams(problem.statement, ngram)
        if owners.keys().isdisjoint(grams):
            clean.append(problem)
            continue
        hits += _hits(problem, grams, owners)
    ids = {name: benchmark_id(questions) for name, questions in benchmarks.items()}
    return clean, Report(ids, ngram, len(problems), tuple(hits))


def write_report(folder: Path, report: Report) -> Path:
    """Save the report where `require_report` looks for it."""
    path = folder / REPORT
    store.write_json(path, asdict(report))
    return path


def read_report(folder: Path) -> Report:
    """The report saved in `folder`. Raises RecordError where it is missing or cannot be read."""
    path = folder / REPORT
    raw = store.read_json(path)
    try:
        return Report(**{**raw, "hits": tuple(Hit(**hit) for hit in raw["hits"])})
    except (TypeError, KeyError) as error:
        raise RecordError(f"{path}: not a decontamination report ({error}). Delete it and gather again.") from None


def require_report(folder: Path, benchmarks: Mapping[str, Sequence[Problem]]) -> Report:
    """The report of `folder`, made against at least these benchmarks.

    Raises RunError where there is none, or one made for other questions; RecordError where it cannot be read.
    """
    if not (folder / REPORT).is_file():
        raise RunError(
            f"{folder}: there is no decontamination report, so nothing may be trained on this data. "
            f"Gather it against {', '.join(benchmarks) or 'the benchmarks of the recipe'}."
        )
    report = read_report(folder)
    covered = set(report.benchmarks.values())
    missing = [name for name, questions in benchmarks.items() if benchmark_id(questions) not in covered]
    if missing:
        raise RunError(
            f"{folder / REPORT}: made for other questions than {', '.join(missing)} now holds"
            f" (it covers {', '.join(report.benchmarks) or 'none'}). Gather the data again against the present files."
        )
    return report


def _grams(statement: str, ngram: int) -> list[tuple[str, ...]]:
    """All runs of `ngram` words in order, or, of a shorter statement, all words and operators as one run."""
    words = _WORD.findall(statement.lower())
    if len(words) < ngram:
        return [tuple(_WORD_OR_OPERATOR.findall(statement.lower()))]
    return list(zip(*(words[start:] for start in range(ngram)), strict=False))


def _hits(
    problem: Problem, grams: list[tuple[str, ...]], owners: Mapping[tuple[str, ...], list[tuple[str, str]]]
) -> list[Hit]:
    """One hit for each benchmark problem met, with the first run of shared words in full."""
    runs: dict[tuple[str, str], tuple[int, list[str]]] = {}  # owner → (position of the run's last gram, its words)
    for position, gram in enumerate(grams):
        for owner in owners.get(gram, ()):
            if owner not in runs:
                runs[owner] = position, list(gram)
            elif runs[owner][0] == position - 1:
                runs[owner] = position, [*runs[owner][1], gram[-1]]
    return [Hit(problem.id, name, question, " ".join(words)) for (name, question), (_, words) in runs.items()]
