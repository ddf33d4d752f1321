"""Problems from files that others made: JSONL, JSON, Parquet or CSV in, Problem records and drop counts out.

Nobody names columns alike, so the usual names are guessed and any other can be mapped. A row that cannot become a
problem is left out and counted under a plain reason; a line that cannot be read at all stops the import, because
a file that is broken in one place is seldom whole elsewhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from algorist.data.dedup import unique
from algorist.errors import RecipeError, RecordError
from algorist.records import LEVELS, Problem, content_id, normalised
from algorist.verify.extract import extract

Drops = dict[str, int]
Row = Mapping[str, Any]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "statement": ("statement", "question", "problem", "prompt"),
    "answer": ("answer", "gold", "expected_answer", "final_answer"),
    "solution": ("solution",),
    "kind": ("kind",),
    "domain": ("domain", "subject", "type"),
    "level": ("level",),
    "source": ("source",),
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
    "olympiad": "graduate",
    "graduate/olympiad": "graduate",
}


@dataclass(frozen=True)
class Reading:
    """What one problem file gave: the problems, why rows were left out, and the ids that must not come back."""

    problems: list[Problem]
    drops: Drops
    refused: frozenset[str]  # ids of statements that were left out; another file does not make them sound


def read_problems(path: Path, columns: Mapping[str, str] | None = None) -> tuple[list[Problem], Drops]:
    """The problems of a file in its order, and how many rows were left out for which reason.

    `columns` maps a key of COLUMNS to the file's own column name. Where a file has no answer column, or its answer
    is a worked solution (a box, a #### line), the final answer is taken from there. Statements met twice are kept
    once; those met with different answers are all left out, since one of the answers is wrong.

    Raises RecipeError for a missing file, an unknown extension or an unknown key in `columns`, RecordError for what
    cannot be read and for columns that are not there.
    """
    reading = import_problems(path, columns)
    return reading.problems, reading.drops


def import_problems(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """`read_problems` that also says which statements were refused. Raises the same errors."""
    rows = list(read_rows(path))
    chosen = choose_columns(path, rows, COLUMNS, columns)
    if rows:
        require_column(path, rows, chosen, "statement", COLUMNS)
        require_column(path, rows, chosen, "answer", COLUMNS, instead="solution")
    drops: Counter[str] = Counter()
    found: list[Problem] = []
    refused = set()
    for row in rows:
        problem, reason = _problem(row, chosen, path.stem)
        if reason:
            drops[reason] += 1
            refused.add(problem.id)
        else:
            found.append(problem)
    kept, repeats = unique(found)
    refused |= {problem.id for problem in found} - {problem.id for problem in kept}
    refused -= {problem.id for problem in kept}
    return Reading(kept, dict(drops + Counter(repeats)), frozenset(refused))


def read_benchmark(path: Path, columns: Mapping[str, str] | None = None) -> list[Problem]:
    """Every statement of an evaluation file, sound answer or not: a question need not be gradable to leak.

    Raises what `read_problems` raises; the answer column may be missing.
    """
    rows = list(read_rows(path))
    chosen = choose_columns(path, rows, COLUMNS, columns)
    if rows:
        require_column(path, rows, chosen, "statement", COLUMNS)
    problems = [_problem(row, chosen, path.stem)[0] for row in rows]
    return [problem for problem in problems if problem.statement]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json, .parquet or .csv file, one after another.

    Raises RecipeError where the file is missing or of another type, RecordError where it cannot be read.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    if path.suffix not in readers:
        found = f"the extension {path.suffix}" if path.suffix else "no extension"
        raise RecipeError(f"{path}: {found} does not say how to read it. Expected one of {', '.join(readers)}.")
    require_file(path)
    yield from readers[path.suffix](path)


def require_file(path: Path) -> None:
    """Raise RecipeError unless `path` is a file."""
    if not path.is_file():
        found = "this is a folder, a file was expected" if path.is_dir() else "there is no such file"
        raise RecipeError(f"{path}: {found}. Check the path; a relative one starts where the command is run.")


def choose_columns(
    path: Path, rows: Sequence[Row], guesses: Mapping[str, tuple[str, ...]], columns: Mapping[str, str] | None
) -> dict[str, str]:
    """Our name → the file's column name, for every column that was mapped or is found under a usual name."""
    present = {key for row in rows for key in row}
    chosen = {name: next(guess for guess in usual if guess in present) for name, usual in guesses.items()
              if present.intersection(usual)}  # fmt: skip
    for name, column in (columns or {}).items():
        if name not in guesses:
            raise RecipeError(f"columns: {name} is not a field that can be mapped. Map one of {', '.join(guesses)}.")
        if rows and column not in present:
            raise RecordError(
                f"{path}: there is no column {column} to read the {name} from. Its columns are {_listed(present)}."
            )
        chosen[name] = column
    return chosen


def require_column(
    path: Path,
    rows: Sequence[Row],
    chosen: Mapping[str, str],
    name: str,
    guesses: Mapping[str, tuple[str, ...]],
    *,
    instead: str = "",
) -> None:
    """Raise RecordError unless a column was chosen for `name`, or for the one that can stand in for it."""
    if name in chosen or instead in chosen:
        return
    present = {key for row in rows for key in row}
    raise RecordError(
        f"{path}: no column holds the {name}; found {_listed(present)}, expected "
        f"{' or '.join(guesses[name] + guesses.get(instead, ()))}. Map another one: {name}=<column>."
    )


def text_of(value: Any) -> str | None:
    """A cell as text: numbers as they are written, whole floats without their ".0", lists of one as their item.

    None for what is no text: longer lists, objects. Half surrogate pairs, which a cut-off response can end in and no
    file can hold, become replacement characters.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, bool | list | tuple | dict):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def level_of(label: str, source: str) -> str:
    """One of LEVELS for a file's own label, empty where it says nothing; all of GSM8K is grade-school work."""
    label = normalised(label)
    if label in LEVELS:
        return label
    return _LEVELS.get(label) or ("elementary" if "gsm8k" in normalised(source) else "")


def _problem(row: Row, chosen: Mapping[str, str], stem: str) -> tuple[Problem, str]:
    """The problem of a row, and why it cannot be used (empty when it can)."""
    cell = {name: text_of(row.get(column)) for name, column in chosen.items()}
    statement = cell.get("statement")
    source = cell.get("source") or stem
    answer, reason = _gold(row, cell)
    if statement is None:
        reason = "the statement is not text"
    elif not statement.strip():
        reason = "no statement"
    problem = Problem.of(
        (statement or "").strip(),
        answer,
        kind=cell.get("kind") or "",
        domain=cell.get("domain") or "",
        level=level_of(cell.get("level") or "", source),
        source=source,
    )
    return problem, reason


def _gold(row: Row, cell: Mapping[str, str | None]) -> tuple[str, str]:
    """(answer, why it cannot be trusted): from the answer column, else from the worked solution."""
    solution = cell.get("solution") or ""
    answer = cell.get("answer", solution)
    if answer is None:
        return "", "the answer is not one text"
    boxes = row.get("n_boxed")
    if (isinstance(boxes, int) and boxes > 1) or answer.count("\\boxed") > 1 or solution.count("\\boxed") > 1:
        return answer.strip(), "several boxed answers"
    if "answer" not in cell or "\\boxed" in answer or re.search(r"^####", answer, re.MULTILINE):
        answer = extract(answer).answer
    return answer.strip(), "" if answer.strip() else "no answer"


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if isinstance(row, dict):
                    yield row
                    continue
                found = f"found a {type(row).__name__}"
            except json.JSONDecodeError as error:
                found = f"{error.msg}, column {error.colno}"
            except UnicodeDecodeError as error:
                found = f"not UTF-8, byte {error.start + 1}"
            except RecursionError:
                found = "nested too deeply"
            except ValueError as error:  # a number of more digits than Python reads
                found = str(error)
            raise RecordError(f"{path}:{number}: not a JSON object ({found}). Mend or delete the line.")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}). Mend the file; "
            "one object per line belongs into a .jsonl file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not readable as JSON ({error}). Mend the file.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordError(f"{path}: a list of objects was expected, found something else. Write the rows as one list.")
    yield from rows


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path}: not readable as Parquet ({error}). Copy or download the file again.") from None


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long solutions
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                if None in row:
                    raise csv.Error("more cells than columns")
                yield dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise RecordError(f"{path}:{rows.line_num}: not readable as CSV ({error}). Mend the line.") from None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def content_hash(path: Path) -> str:
    """An id of a file's bytes, the parent of what is made from it. Raises RecipeError where the file is missing."""
    require_file(path)
    with path.open("rb") as file:
        return content_id("file", hashlib.file_digest(file, "sha256").hexdigest())
