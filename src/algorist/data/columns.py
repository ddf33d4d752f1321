"""Columns: which column of a row holds what, under the usual names, a mapped one, or as a path (`metadata.level`).

Rows of one file need not have the same columns, so the choice is made row by row: the first usual name that is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from algorist.errors import RecipeError, RecordError

Row = Mapping[str, Any]
Columns = Mapping[str, tuple[str, ...]]  # our name → the columns that may hold it, the likeliest first

HEAD = 200  # rows in which a source must show its columns


def peeked(rows: Iterator[dict[str, Any]]) -> tuple[list[dict[str, Any]], Iterator[dict[str, Any]]]:
    """The first HEAD rows, and all rows, those among them."""
    head = list(itertools.islice(rows, HEAD))
    return head, itertools.chain(head, rows)


def columns_of(
    where: str,
    head: Sequence[Row],
    guesses: Columns,
    own: Mapping[str, str] | None = None,
    shared: Mapping[str, str] | None = None,
) -> Columns:
    """Which columns are read for what: a mapped one alone, else the usual names.

    Args:
        own     our name → this source's column, which must be there
        shared  the same for all sources, taken where the column is there

    Raises RecipeError for a name that is not ours, RecordError for an own column that no row of `head` has.
    """
    chosen = dict(guesses)
    for name, column in [*(shared or {}).items(), *(own or {}).items()]:
        if name not in guesses:
            raise RecipeError(f"columns: {name} is not a field that can be mapped. Map one of {', '.join(guesses)}.")
        if any(holds(row, column) for row in head):
            chosen[name] = (column,)
        elif head and name in (own or {}) and column == (own or {})[name]:
            found = ", ".join(_names(head))
            raise RecordError(f"{where}: there is no column {column} to read the {name} from. Its columns are {found}.")
    return chosen


def require(where: str, head: Sequence[Row], columns: Columns, name: str, *instead: str) -> None:
    """Raise RecordError unless some row of `head` has a column for `name`, or for what can stand in for it."""
    wanted = [column for one in (name, *instead) for column in columns[one]]
    if head and not any(holds(row, column) for row in head for column in wanted):
        usual = (*columns[name], *(columns[instead[0]] if instead[:1] == ("solution",) else ()))
        raise RecordError(
            f"{where}: no column holds the {name}; found {', '.join(_names(head)) or 'none'}, expected "
            f'{" or ".join(usual)}. Map another one: columns = {{ {name} = "<column>" }}.'
        )


def has_gold(row: Row, columns: Columns) -> bool:
    """Whether a row has a column in which a gold answer may stand, empty or not."""
    return any(holds(row, column) for name in ("answer", "solution") for column in columns[name])


def holds(row: Row, column: str) -> bool:
    """Whether a row has a column, by its name or as a path into the tables that it holds."""
    return _at(row, column)[0]


def value_in(row: Row, columns: Iterable[str]) -> Any:
    """The value of the first of these columns that is there and not null."""
    return next((value for value in (_at(row, column)[1] for column in columns) if value is not None), None)


def spoken(value: Any) -> Any:
    """What the user says in a list of messages; every other value as it is."""
    if not (isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)):
        return value
    said = [turn.get("content", turn.get("value")) for turn in value if role_of(turn) == "user"]
    return said[0] if len(said) == 1 and isinstance(said[0], str) else value


def role_of(turn: Row) -> str:
    """user, assistant or system, by whatever name a message calls it; else that name."""
    role = str(turn.get("role", turn.get("from", ""))).lower()
    return {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}.get(role, role)


def text_of(value: Any) -> str | None:
    """A cell as text: numbers as they are written, whole floats without their ".0", lists of one as their item.

    None for what is no text: longer lists, objects. Half surrogate pairs, which a cut-off response can end in and no
    file can hold, become replacement characters.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, bool | list | tuple | dict | bytes):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _at(row: Row, column: str) -> tuple[bool, Any]:
    """(whether a row has the column, its value)."""
    if column in row:
        return True, row[column]
    if "." not in column:
        return False, None
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _names(head: Sequence[Row]) -> list[str]:
    return sorted({key for row in head for key in row})
