"""Records on disk: Parquet shards, each written atomically, and a manifest that names their parents.

A data set is a folder. Shards appear one by one, so that a killed producer keeps what it finished; the manifest
is written last, and a folder without one is not a data set yet. Its id is a hash of content, not of file bytes or
time: the same records from the same parents have the same id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from algorist.errors import RecordError, explain_full_disk

Record = TypeVar("Record")
MANIFEST = "manifest.json"
_FACTS = b"algorist"  # the key under which a file's footer holds them
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


@dataclass(frozen=True)
class Manifest:
    """What a data set is made of."""

    id: str  # of content and parents
    kind: str  # name of the record type
    rows: int
    shards: tuple[str, ...]  # file names, in reading order
    parents: tuple[str, ...]  # ids of the data sets and checkpoints it was made from
    dropped: Mapping[str, int]  # reason → how many records were left out on the way here
    content: str = ""  # of content alone: what is made from this data set need not be made again while it stays


@dataclass(frozen=True)
class Facts:
    """What a shard says of itself, in the footer of its file."""

    rows: int
    content: str  # hash of the records, their order included
    made_from: str = ""  # what it was computed from: a shard with the same need not be computed again
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason → records left out in making it
    ids: str = ""  # hash of the token ids in the file beside it, where there is one (tokens.py)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; on success it takes the place of `path` in one step, on failure it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with explain_full_disk(path):
            yield draft
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old content or the new, never a part."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run. Raises RecordError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such file. Is this the folder of a finished task?") from None
    except ValueError as error:
        raise RecordError(
            f"{path}: not readable as JSON ({error}). Delete the task's folder to make it again."
        ) from None


def schema(kind: type) -> pa.Schema:
    """The Arrow schema of a record type: its fields in order, `X | None` as nullable, tuples as lists."""
    hints = typing.get_type_hints(kind)
    return pa.schema([pa.field(f.name, *_arrow_type(hints[f.name])) for f in fields(kind)])


def write_shard(
    folder: Path,
    index: int,
    kind: type[Record],
    records: Sequence[Record],
    *,
    dropped: Mapping[str, int] | None = None,
    made_from: str = "",
    ids: str = "",
) -> Path:
    """Write one shard of a data set that is still growing; writing the same index again replaces it.

    Args:
        dropped    reason → how many records were left out in making this shard
        made_from  a hash of everything that it was computed from
        ids        hash of the token ids that stand in a file beside it
    """
    path = folder / f"{index:05d}.parquet"
    said = schema(kind)
    columns = []
    for column in said:
        values = [getattr(record, column.name) for record in records]
        nested = pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)
        columns.append(pa.array(map(_tables, values) if nested else values, type=column.type))
    table = pa.Table.from_arrays(columns, schema=said)
    facts = Facts(table.num_rows, _content(table), made_from, dict(sorted((dropped or {}).items())), ids)
    table = table.replace_schema_metadata({_FACTS: json.dumps(asdict(facts)).encode()})
    with replacing(path) as draft:
        pq.write_table(table, draft, compression="zstd")
    return path


def facts(path: Path) -> Facts:
    """What a shard says of itself. Raises RecordError where it cannot be read."""
    try:
        return Facts(**json.loads(pq.read_metadata(path).metadata[_FACTS]))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path}: is no shard of ours ({error}). Delete the task's folder to make it again."
        ) from None


def finish(
    folder: Path,
    kind: type[Record],
    *,
    parents: Iterable[str] = (),
    dropped: Mapping[str, int] | None = None,
    shards: Sequence[str] | None = None,
) -> Manifest:
    """Declare the shards in `folder` complete: write the manifest that makes them a data set.

    Args:
        dropped  the sum of what the shards say unless it is given
        shards   the file names that make it up, all that are there unless given; others, which an earlier attempt with
                 a longer input left, are deleted, with the token ids beside them
    """
    shards = sorted(path.name for path in folder.glob("[0-9]*.parquet")) if shards is None else list(shards)
    _keep(folder, shards)
    said = [facts(folder / shard) for shard in shards]
    if dropped is None:
        dropped = sum((Counter(one.dropped) for one in said), Counter[str]())
    parents = tuple(parents)
    content = _hash([kind.__name__, *(one.content for one in said)])
    rows = sum(one.rows for one in said)
    reasons = {reason: count for reason, count in dropped.items() if count}
    manifest = Manifest(_hash([content, parents]), kind.__name__, rows, tuple(shards), parents, reasons, content)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def write(
    folder: Path,
    kind: type[Record],
    records: Sequence[Record],
    *,
    parents: Iterable[str] = (),
    dropped: Mapping[str, int] | None = None,
    shard_rows: int = 50_000,
) -> Manifest:
    """Write a whole data set, in place of whatever the folder held."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    _keep(folder, ())
    for index, start in enumerate(range(0, max(len(records), 1), shard_rows)):
        write_shard(folder, index, kind, records[start : start + shard_rows])
    return finish(folder, kind, parents=parents, dropped=dropped)


def manifest(folder: Path) -> Manifest:
    """The manifest of a finished data set. Raises RecordError where there is none."""
    raw = read_json(folder / MANIFEST)
    try:
        return Manifest(**{**raw, "shards": tuple(raw["shards"]), "parents": tuple(raw["parents"])})
    except (KeyError, TypeError):
        path = folder / MANIFEST
        raise RecordError(f"{path}: is no manifest. Delete the task's folder to make it again.") from None


def manifest_of(folder: Path, kind: type[Any]) -> Manifest:
    """The manifest of a finished data set of this kind. Raises RecordError where there is none, or one of another."""
    found = manifest(folder)
    if found.kind != kind.__name__:
        raise RecordError(f"{folder}: holds {found.kind} records, {kind.__name__} was asked for. Name another folder.")
    return found


def read(folder: Path, kind: type[Record]) -> list[Record]:
    """All records of a finished data set, in the order they were written."""
    return [record for shard in manifest_of(folder, kind).shards for record in read_shard(folder / shard, kind)]


def take(folder: Path, kind: type[Record], rows: Sequence[int]) -> list[Record]:
    """The records in these rows of a finished data set, rows counted over its shards; only their shards are read."""
    found, first, taken = manifest_of(folder, kind), 0, dict[int, Record]()
    for shard in found.shards:
        size = facts(folder / shard).rows
        if here := sorted({row for row in rows if first <= row < first + size}):
            table = read_columns(folder / shard).take([row - first for row in here])
            taken.update(zip(here, from_table(table, kind, folder / shard), strict=True))
        first += size
    return [taken[row] for row in rows]


def read_shard(path: Path, kind: type[Record]) -> list[Record]:
    """The records of one shard. Raises RecordError where the file cannot be read."""
    return from_table(read_columns(path), kind, path)


def from_table(table: pa.Table, kind: type[Record], path: Path) -> list[Record]:
    """The records of (a part of) the shard at `path`. Raises RecordError where they are of another kind."""
    hints = typing.get_type_hints(kind)
    columns = {}
    for name in table.column_names:
        build = _builder(hints[name]) if name in hints else None
        values = table[name].to_pylist()
        columns[name] = [build(value) for value in values] if build else values
    try:
        rows = zip(*columns.values(), strict=True) if columns else ()
        return [kind(**dict(zip(columns, row, strict=True))) for row in rows]
    except TypeError as error:
        raise RecordError(
            f"{path}: holds no {kind.__name__} records ({error}). Delete the task's folder to make it again."
        ) from None


def stream(folder: Path, kind: type[Record]) -> Iterator[Record]:
    """The records of a finished data set one after another, a shard in memory at a time."""
    for shard in manifest(folder).shards:
        yield from read_shard(folder / shard, kind)


def columns(path: Path) -> list[str]:
    """The names of a shard's columns. Raises RecordError where the file cannot be read."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a shard, or all, as an Arrow table. Raises RecordError where the file cannot be read."""
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> RecordError:
    return RecordError(f"{path}: not readable as Parquet ({error}). Delete the task's folder to make it again.")


def _keep(folder: Path, shards: Sequence[str]) -> None:
    """Delete every other shard of a folder, and the token ids (tokens.py) that stood beside it."""
    kept = {Path(name).stem for name in shards}
    for path in [*folder.glob("[0-9]*.parquet"), *folder.glob("[0-9]*.ids")]:
        if path.stem not in kept:
            path.unlink()


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _content(table: pa.Table) -> str:
    """A hash of the records: of their Arrow form, which is the same wherever they were made."""
    digest = hashlib.sha256()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()[:16]


def _tables(value: Any) -> Any:
    """Records inside of a record as Arrow takes them: tables."""
    return None if value is None else [asdict(item) for item in value]


def _builder(hint: Any) -> Callable[[Any], Any] | None:
    """What turns an Arrow value back into a field's: lists into tuples, tables into the records that they were."""
    inner = [option for option in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
             if option is not type(None)][0]  # fmt: skip
    if typing.get_origin(inner) is not tuple:
        return None
    item = typing.get_args(inner)[0]
    if is_dataclass(item):
        made: Callable[..., Any] = typing.cast(Any, item)
        return lambda value: None if value is None else tuple(made(**one) for one in value)
    return lambda value: None if value is None else tuple(value)


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """(Arrow type, nullable) of one field's annotation."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    inner = [option for option in options if option is not type(None)]
    assert len(inner) == 1, f"records hold plain fields, not {hint}"
    nullable = len(inner) != len(options)
    if typing.get_origin(inner[0]) is tuple:
        item = typing.get_args(inner[0])[0]
        if is_dataclass(item):
            return pa.list_(pa.struct(list(schema(item)))), nullable  # type: ignore[arg-type]
        return pa.list_(pa.int32() if item is int else _ARROW[item]), nullable
    return _ARROW[inner[0]], nullable
