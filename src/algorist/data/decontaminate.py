"""No evaluation question in the training data: the report that proves it was looked for, and who must show it.

What is looked for, and how, stands in leaks.py. The report is bound to the content of the benchmarks: with another
evaluation file, or a changed one, it no longer counts, and nothing may be trained on the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from algorist import store
from algorist.data.leaks import FUZZY, Hit, Index, benchmark_id, hits, quotes, rollout_hits
from algorist.errors import RecordError, RunError
from algorist.records import Problem

__all__ = ["FUZZY", "Hit", "Index", "Report", "benchmark_id", "decontaminate", "hits", "quotes", "read_report",
           "require_report", "rollout_hits", "write_report"]  # fmt: skip

REPORT = "decontamination.json"


@dataclass(frozen=True)
class Report:
    """What was compared with what, and everything found."""

    benchmarks: Mapping[str, str]  # name → benchmark_id
    ngram: int  # words
    problems: int  # compared
    hits: tuple[Hit, ...]
    fuzzy: float = 0.0  # similarity at which the second test fired; 0: it was left out
    rollouts: int = 0  # compared


def decontaminate(
    problems: Sequence[Problem],
    benchmarks: Mapping[str, Sequence[Problem]],
    ngram: int = 13,
    fuzzy: float = FUZZY,
) -> tuple[list[Problem], Report]:
    """The problems that no test finds in any benchmark, and the report of those that one does; all in memory."""
    index = Index.of(benchmarks, ngram, fuzzy)
    found = hits(index, problems)
    dirty = {hit.problem_id for hit in found}
    clean = [problem for problem in problems if problem.id not in dirty]
    return clean, Report(index.benchmarks, ngram, len(problems), tuple(found), fuzzy)


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
        raise RecordError(f"{path}: not a decontamination report ({error}). Delete the folder and run again.") from None


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
