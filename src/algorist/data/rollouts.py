"""Rollouts that somebody already made: their rows become Rollout records, joined to problems by the statement.

Such files carry more than responses: the question and the gold answer of each row make problems, and a `correct`
label says what another grader thought, which is what our own verdicts are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorist.data.dedup import CONFLICT, unique
from algorist.data.problems import Drops, Row, choose_columns, level_of, read_rows, require_column, text_of
from algorist.errors import RecordError
from algorist.records import Problem, Rollout

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "statement": ("question", "problem", "statement", "prompt"),
    "problem_id": ("problem_id",),
    "answer": ("gold", "answer", "expected_answer", "final_answer"),
    "text": ("completion", "response", "text", "output"),
    "sampler": ("model", "sampler"),
    "index": ("sample", "index"),
    "label": ("correct", "label"),
    "benchmark": ("benchmark", "dataset"),
    "source": ("label_source", "source"),
    "level": ("level",),
    "domain": ("domain", "subject", "type"),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": ("max_tokens",),
    "finish": ("finish", "finish_reason"),
}


@dataclass(frozen=True)
class Imported:
    """What one rollout file gave."""

    rollouts: list[Rollout]  # in the file's order
    problems: list[Problem]  # made from question and gold inside the rows, each statement once
    labels: dict[str, bool]  # rollout id → what the source says about its answer
    sources: dict[str, str]  # rollout id → where the label comes from: "benchmark · grader", or the file's name
    drops: Drops


def read_rollouts(path: Path, problems: Iterable[Problem] = (), columns: Mapping[str, str] | None = None) -> Imported:
    """The rollouts of a file, with the problems, labels and sources found in its rows.

    A row belongs to the problem whose statement it repeats, or, without a statement, to the one of `problems` whose
    id it names. Its gold answer is the row's own or that of `problems`. Samples without a number are numbered as
    they come; where two different responses claim the same number, the later one takes the next free one.

    Raises RecipeError for a missing file or unknown extension, RecordError for what cannot be read and for columns
    that are not there.
    """
    rows = list(read_rows(path))
    chosen = choose_columns(path, rows, COLUMNS, columns)
    if rows:
        require_column(path, rows, chosen, "text", COLUMNS)
        require_column(path, rows, chosen, "statement", COLUMNS, instead="problem_id")
    known = {problem.id: problem for problem in problems}
    drops: Counter[str] = Counter()
    ready: list[tuple[Row, Problem, str]] = []
    for row in rows:
        problem = _problem(row, chosen, known, path.stem)
        text = text_of(row.get(chosen["text"]))
        reason = problem if isinstance(problem, str) else "the response is not text" if text is None else ""
        if reason or not (text or "").strip():
            drops[reason or "empty response"] += 1
        elif not isinstance(problem, str):
            ready.append((row, problem, text or ""))
    distinct = {(problem.id, problem.answer): problem for _, problem, _ in ready}
    sound, _ = unique(distinct.values())
    drops[CONFLICT] = len(ready) - len(ready := _on(sound, ready))
    return _imported(path, ready, sound, chosen, drops)


def numbered(rollout: Rollout, taken: Mapping[str, Rollout]) -> Rollout:
    """The rollout, moved to the next free sample number where another text has its own; the same text stays put."""
    while rollout.id in taken and taken[rollout.id].text != rollout.text:
        settings = {key: getattr(rollout, key) for key in ("seed", "temperature", "top_p", "max_tokens", "finish")}
        rollout = Rollout.of(rollout.problem_id, rollout.text, rollout.sampler, index=rollout.index + 1, **settings)
    return rollout


def _on(sound: list[Problem], ready: list[tuple[Row, Problem, str]]) -> list[tuple[Row, Problem, str]]:
    ids = {problem.id for problem in sound}
    return [entry for entry in ready if entry[1].id in ids]


def _imported(
    path: Path,
    ready: list[tuple[Row, Problem, str]],
    problems: list[Problem],
    chosen: Mapping[str, str],
    drops: Counter[str],
) -> Imported:
    """Number the samples, leave out repeats, and gather labels and sources by rollout id."""
    rollouts: dict[str, Rollout] = {}
    labels, sources = {}, {}
    next_index: Counter[tuple[str, str]] = Counter()
    for row, problem, text in ready:
        sampler = text_of(row.get(chosen.get("sampler", ""))) or path.stem
        stated = _number(path, row, chosen, "index", int)
        index = next_index[problem.id, sampler] if stated is None else stated
        rollout = numbered(Rollout.of(problem.id, text, sampler, index=index, **_settings(path, row, chosen)), rollouts)
        if rollout.id in rollouts:
            drops["same rollout twice"] += 1
            continue
        next_index[problem.id, sampler] = max(next_index[problem.id, sampler], rollout.index + 1)
        rollouts[rollout.id] = rollout
        label = _label(row.get(chosen.get("label", "")))
        if label is not None:
            labels[rollout.id] = label
        parts = [text_of(row.get(chosen.get(name, ""))) for name in ("benchmark", "source")]
        sources[rollout.id] = " · ".join(part for part in parts if part) or path.stem
    return Imported(list(rollouts.values()), problems, labels, sources, dict(+drops))


def _problem(row: Row, chosen: Mapping[str, str], known: Mapping[str, Problem], stem: str) -> Problem | str:
    """The problem a row answers, or why it has none."""
    cell = {name: text_of(row.get(chosen[name])) or "" for name in ("statement", "answer") if name in chosen}
    statement, answer = cell.get("statement", "").strip(), cell.get("answer", "").strip()
    if not statement:
        named = known.get(str(row.get(chosen.get("problem_id", ""), "")))
        return named or "no statement and no known problem"
    labels = {name: text_of(row.get(chosen.get(name, ""))) or "" for name in ("benchmark", "level", "domain")}
    source = labels["benchmark"] or stem
    problem = Problem.of(
        statement, answer, domain=labels["domain"], level=level_of(labels["level"], source), source=source
    )
    if answer:
        return problem
    return known.get(problem.id) or "no gold answer"


def _settings(path: Path, row: Row, chosen: Mapping[str, str]) -> dict[str, Any]:
    """How the rollout was sampled, as far as the row says."""
    kinds = {"seed": int, "temperature": float, "top_p": float, "max_tokens": int}
    found = {name: _number(path, row, chosen, name, kind) for name, kind in kinds.items()}
    unknown = {"seed": 0, "temperature": 1.0, "top_p": 1.0, "max_tokens": 0}
    settings: dict[str, Any] = {name: unknown[name] if value is None else value for name, value in found.items()}
    if text_of(row.get(chosen.get("finish", ""))) == "length":
        settings["finish"] = "length"
    return settings


def _number(path: Path, row: Row, chosen: Mapping[str, str], name: str, kind: type) -> Any:
    """A numeric cell, None where it is absent. Raises RecordError for what is no such number."""
    value = row.get(chosen.get(name, ""))
    if value is None or value == "":
        return None
    try:
        if kind(value) == float(value):
            return kind(value)
    except (TypeError, ValueError, OverflowError):
        pass
    expected = "a whole number" if kind is int else "a number"
    raise RecordError(f"{path}: {chosen[name]} is {value!r:.40}, {expected} was expected. Mend the row.")


def _label(value: Any) -> bool | None:
    """True or False for what means that; None where the source has no clear opinion."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
