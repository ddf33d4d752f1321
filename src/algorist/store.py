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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from algorist.errors import RecordError, explain_full_disk

Record = TypeVar("Record")
MANIFEST = "manifest.json"
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


@dataclass(frozen=True)
class Manifest:
    """What a data set is made of."""

    id: str
    kind: str  # name of the record type
    rows: int
    shards: tuple[str, ...]  # file names, in reading order
    parents: tuple[str, ...]  # ids of the data sets and checkpoints it was made from
    dropped: Mapping[str, int]  # reason → how many records were left out on the way here


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


def write_shard(folder: Path, index: int, kind: type[Record], records: Sequence[Record]) -> Path:
    """Write one shard of a data set that is still growing; writing the same index again replaces it."""
    path = folder / f"{index:05d}.parquet"
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema(kind))  # type: ignore[call-overload]
    with replacing(path) as draft:
        pq.write_table(table, draft, compression="zstd")
    return path


def finish(
    folder: Path, kind: type[Record], *, parents: Iterable[str] = (), dropped: Mapping[str, int] | None = None
) -> Manifest:
    """Declare the shards in `folder` complete: write the manifest that makes them a data set."""
    shards = sorted(path.name for path in folder.glob("[0-9]*.parquet"))
    digest = hashlib.sha256(kind.__name__.encode())
    rows = 0
    for shard in shards:
        table = pq.read_table(folder / shard)
        rows += table.num_rows
        for row in table.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    parents = tuple(parents)
    digest.update(json.dumps(parents).encode())
    manifest = Manifest(digest.hexdigest()[:16], kind.__name__, rows, tuple(shards), parents, dict(dropped or {}))
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
    for old in folder.glob("[0-9]*.parquet"):
        old.unlink()
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


def read(folder: Path, kind: type[Record]) -> list[Record]:
    """All records of a finished data set, in the order they were written."""
    found = manifest(folder)
    if found.kind != kind.__name__:
        raise RecordError(f"{folder}: holds {found.kind} records, {kind.__name__} was asked for. Name another folder.")
    return [record for shard in found.shards for record in read_shard(folder / shard, kind)]


def read_shard(path: Path, kind: type[Record]) -> list[Record]:
    """The records of one shard. Raises RecordError where the file cannot be read."""
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise RecordError(
            f"{path}: not readable as Parquet ({error}). Delete the task's folder to make it again."
        ) from None
    try:
        return [kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows]
    except TypeError as error:
        raise RecordError(
            f"{path}: holds no {kind.__name__} records ({error}). Delete the task's folder to make it again."
        ) from None


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """(Arrow type, nullable) of one field's annotation."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    inner = [option for option in options if option is not type(None)]
    assert len(inner) == 1, f"records hold plain fields, not {hint}"
    nullable = len(inner) != len(options)
    if typing.get_origin(inner[0]) is tuple:
        item = typing.get_args(inner[0])[0]
        return pa.list_(pa.int32() if item is int else _ARROW[item]), nullable
    return _ARROW[inner[0]], nullable
