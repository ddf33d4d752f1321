r"""Problems from rows that others made: usual column names are guessed, any other can be mapped, defects are named.

A column may stand inside another (`metadata.level`). A row's gold answer is what its answer column holds or, where
there is none, the final answer of its worked solution (a box, a #### line). Instructions around the question, such as
"put your final answer within \boxed{}", are taken off: they are the sampler's words, and the same question must have
the same id in every source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algorist.data import defects
from algorist.data.columns import Columns, Row, columns_of, holds, peeked, require, spoken, text_of, value_in
from algorist.data.readers import read_rows
from algorist.records import LEVELS, Problem, normalised
from algorist.verify.boxes import last_boxes
from algorist.verify.extract import extract
from algorist.verify.pool import Pool

COLUMNS: Columns = {
    "statement": ("statement", "question", "problem", "prompt"),
    "answer": ("gold", "answer", "expected_answer", "final_answer"),
    "solution": ("solution", "ground_truth_solution"),
    "kind": ("kind", "question_type"),
    "domain": ("domain", "subject", "problem_type", "type"),
    "level": ("level",),
    "source": ("source", "benchmark", "dataset"),  # the row's own; "gsm8k" in it says elementary
    "licence": ("licence", "license"),
    "options": ("options", "choices"),
    "image": ("image", "images", "image_path", "img"),
}
# MATH grades difficulty within school competitions, not school years; its hardest fifth reads like first-year college
# work, and stage 2 asks for the levels from college up. The other names are what data sets call our levels.
_LEVELS = {
    "level 1": "middle",
    "level 2": "middle",
    "level 3": "high school",
    "level 4": "high school",
    "level 5": "college",
    "elementary school": "elementary",
    "grade school": "elementary",
    "middle school": "middle",
    "highschool": "high school",
    "undergraduate": "college",
    "university": "college",
    "graduate school": "graduate",
    "olympiad": "graduate",
    "graduate/olympiad": "graduate",
}
_KINDS = {"mcq": "choice", "multiple choice": "choice", "multiple-choice": "choice"}
_INSTRUCTION_BEFORE = re.compile(
    r"\s*(?:Return|Put|Give|Provide|Write|Place|Present|Solve)\b[^.\n]{0,160}\\boxed\s*\{[^{}]{0,20}\}[^.\n]{0,80}[.:]\s+"
)
_INSTRUCTION_AFTER = re.compile(
    r"\s*\b(?:Please|Let's|Put|Present|Make sure|Return|Give|Provide|Write|Think)\b[^.\n]{0,160}"
    r"\\boxed\s*\{(?:\s|answer|your answer|ANSWER)*\}[^.\n]{0,40}\.?\s*\Z"
)
_OPTION_LABEL = re.compile(r"\s*\(?[A-J]\s*[).:\]]")


@dataclass(frozen=True)
class Manner:
    """How the rows of one source are read."""

    source: str  # as the recipe names it
    columns: Columns
    licence: str = ""  # of all rows; where empty, what a row says
    levels: Mapping[str, str] = field(default_factory=dict)  # the source's label, normalised → one of LEVELS
    domains: Mapping[str, str] = field(default_factory=dict)
    refuse: frozenset[str] = frozenset(defects.REFUSED)


@dataclass(frozen=True)
class Reading:
    """What one row gave."""

    problem: Problem  # its answer is empty where none was found
    refused: str  # why it cannot be used; empty when it can
    noted: tuple[str, ...] = ()  # defects that it is used in spite of


def read_problem(row: Row, number: int, manner: Manner, statement: str | None = None) -> Reading:
    """The problem of a row, the `number`th of its source; `statement` where the row holds it in no column."""
    cell = {name: value_in(row, manner.columns.get(name, ())) for name in COLUMNS}
    raw = cell["statement"] if statement is None else statement
    asked = text_of(spoken(raw))
    asked, answer, reason = with_options(bare_question(asked or ""), cell), "", ""
    if text_of(spoken(raw)) is None:
        reason = defects.NO_TEXT
    elif not asked:
        reason = defects.NO_STATEMENT
    if not reason:
        answer, reason = _gold(row, cell, manner.columns)
    label = {name: text_of(cell[name]) or "" for name in ("kind", "domain", "level", "source", "licence")}
    kind = _KINDS.get(normalised(label["kind"]), label["kind"])
    if defects.letter(answer) and defects.has_options(asked, defects.letter(answer)):
        kind = "choice"
    found = [] if reason else _defects(row, asked, answer, kind, cell["image"])
    problem = Problem.of(
        asked,
        answer,
        kind=kind,
        domain=_mapped(manner.domains, label["domain"]) or label["domain"],
        level=_mapped(manner.levels, label["level"]) or level_of(label["level"], f"{label['source']} {manner.source}"),
        source=manner.source,
        licence=manner.licence or label["licence"],
        row=number,  # the labels are text but for this one
    )
    serious = [one for one in found if one in manner.refuse]
    return Reading(
        problem, reason or (serious[0] if serious else ""), tuple(one for one in found if one not in serious)
    )


def verify_golds(readings: Sequence[Reading], pool: Pool, refuse: frozenset[str]) -> list[Reading]:
    """The readings, with those golds refused or noted that no response could be judged against.

    A response that boxes the gold answer must be judged right, and a gold must be readable as more than a row of
    letters: identical texts are equal without being read, so it is also held against an answer that it is not.
    """
    usable = {at: reading.problem.answer for at, reading in enumerate(readings) if not reading.refused}
    boxed = {at: extract(f"\\boxed{{{answer}}}").answer for at, answer in usable.items()}
    said = pool.outcomes(
        pair for at, answer in usable.items() for pair in ((answer, boxed[at]), (answer, "0")) if pair[1]
    )
    checked = list(readings)
    for at, answer in usable.items():
        reason = ""
        if not boxed[at] or said[answer, boxed[at]][0] is not True:
            reason = defects.UNVERIFIED
        if said[answer, "0"][1] == "gold unreadable":
            reason = defects.UNREADABLE
        if reason:
            old = readings[at]
            refused = reason in refuse
            checked[at] = Reading(old.problem, reason if refused else "", old.noted + (() if refused else (reason,)))
    return checked


def read_benchmark(where: Path | str, columns: Mapping[str, str] | None = None) -> list[Problem]:
    """Every statement of an evaluation file, sound answer or not: a question need not be gradable to leak.

    Raises what `read_rows` and `columns_of` raise; the answer column may be missing.
    """
    head, rows = peeked(read_rows(where))
    manner = Manner(Path(where).stem, columns_of(str(where), head, COLUMNS, shared=columns))
    require(str(where), head, manner.columns, "statement")
    problems = [read_problem(row, number, manner).problem for number, row in enumerate(rows)]
    return [problem for problem in problems if problem.statement]


def bare_question(text: str) -> str:
    r"""A question without the instruction to box the answer that stands before or behind it."""
    if "\\boxed" not in text:
        return text.strip()
    bare = _INSTRUCTION_AFTER.sub("", _INSTRUCTION_BEFORE.sub("", text, count=1)).strip()
    return bare or text.strip()


def with_options(statement: str, cell: Mapping[str, Any]) -> str:
    """A statement with the options that its row lists apart from it, one a line: "A) 12"."""
    listed = options_of(cell["options"])
    if not listed or not statement or defects.has_options(statement):
        return statement
    return "\n".join([statement, *listed])


def options_of(value: Any) -> list[str]:
    """A cell of options as lines that begin with their letter; empty for what is none."""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if isinstance(value, dict):
        return [f"{label}) {text}" for label, text in value.items() if text is not None]
    if not isinstance(value, list | tuple) or len(value) < 2 or any(text_of(one) is None for one in value):
        return []
    lines = [text_of(one) or "" for one in value]
    if all(_OPTION_LABEL.match(line) for line in lines):
        return [line.strip() for line in lines]
    return [f"{chr(ord('A') + at)}) {line}" for at, line in enumerate(lines)] if len(lines) <= 10 else []


def level_of(label: str, source: str = "") -> str:
    """One of LEVELS for a label in other words, empty where it says nothing; all of GSM8K is grade-school work."""
    label = normalised(label)
    if label in LEVELS:
        return label
    return _LEVELS.get(label) or ("elementary" if "gsm8k" in normalised(source) else "")


def _mapped(table: Mapping[str, str], label: str) -> str:
    """What a source's table says of a label; "*" speaks for all others."""
    return table.get(normalised(label), table.get("*", ""))


def _gold(row: Row, cell: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """(answer, why it cannot be trusted): from the answer column, else from the worked solution."""
    given = any(holds(row, column) for column in columns["answer"])
    value = cell["answer"] if given else cell["solution"]
    if isinstance(value, list | tuple) and len({text_of(one) for one in value}) == 1:
        value = value[0]
    answer, solution = text_of(value), text_of(cell["solution"]) or ""
    if answer is None:
        return "", defects.SEVERAL if isinstance(value, list | tuple) else defects.NOT_TEXT
    boxes = row.get("n_boxed")
    if (isinstance(boxes, int) and boxes > 1) or _several(answer) or _several(solution, strict=not given):
        return answer.strip(), defects.BOXES
    if not given or "\\boxed" in answer or re.search(r"^####", answer, re.MULTILINE):
        answer = extract(answer).answer
    listed = options_of(cell["options"])
    if isinstance(value, int) and listed and 0 <= value < len(listed) and str(value) not in map(_unlabelled, listed):
        answer = chr(ord("A") + value)  # the place of the right option, counted from 0
    answer = answer.strip()
    return (answer, "") if answer and not defects.is_nothing(answer) else ("", defects.NO_ANSWER)


def _defects(row: Row, statement: str, answer: str, kind: str, image: Any) -> list[str]:
    """Everything wrong with a row that has a statement and an answer, most serious first."""
    found = [defects.INVALID] if str(row.get("problem_is_valid", "yes")).lower() not in ("yes", "true", "none") else []
    found += [defects.PROOF] if normalised(kind) == "proof" else []
    found += [defects.IMAGE] if image not in (None, "", [], {}) else []
    found += [*defects.in_statement(statement, answer), *defects.in_answer(answer, statement)]
    found += [defects.PARTS] if str(row.get("is_multiple_answer")).lower() == "true" else []
    return list(dict.fromkeys(found))


def _several(text: str, *, strict: bool = True) -> bool:
    """Whether different things are boxed: anywhere, or, if not strict, as parts of the last answer.

    A solution beside an answer column may give several ways to the same answer, and box it in each.
    """
    if text.count("oxed") < 2:
        return False
    last, different = last_boxes(text)
    return different > 1 and (strict or len({box.content for box in last}) > 1)


def _unlabelled(option: str) -> str:
    return _OPTION_LABEL.sub("", option).strip()
