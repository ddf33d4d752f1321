"""Rows of whatever holds data: files of the usual kinds, folders of them, Hugging Face data sets, procedural problems.

    problems.jsonl, .jsonl.gz, .jsonl.zst, .json, .csv, .parquet    a file
    some/folder                                                     all such files in it, sorted by name, as one source
    some/folder                                                     a data set that `save_to_disk` of `datasets` wrote
    hf://owner/name:config@revision#split                           a data set of the Hugging Face hub
    gym://leg_counting?size=500&seed=1                              problems that reasoning-gym makes up

Rows come one after another, so that memory does not grow with the file; only .json is read as a whole. A line that
cannot be read at all stops the import: a file that is broken in one place is seldom whole elsewhere.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from algorist.data import procedural
from algorist.errors import RecipeError, RecordError

HUB = "hf://"
BATCH = 200  # rows that are decoded at a time: a row of a traced set may be half a megabyte
_ADDRESS = re.compile(r"(?P<name>[^#@:]+)(?::(?P<config>[^#@]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?")
_SAVED = ("state.json", "dataset_dict.json")  # one of them lies in every folder that `save_to_disk` wrote


@dataclass(frozen=True)
class Address:
    """Where on the hub a data set lies; a folder in place of owner/name is read the same way."""

    name: str
    config: str = ""
    revision: str = ""
    split: str = "train"

    @classmethod
    def of(cls, where: str) -> Address:
        """The parts of hf://owner/name:config@revision#split. Raises RecipeError for what is none."""
        match = _ADDRESS.fullmatch(where.removeprefix(HUB))
        if match is None:
            raise RecipeError(f"{where}: is no data set's name. Write hf://owner/name:config@revision#split.")
        return cls(**{key: value for key, value in match.groupdict().items() if value})


def read_rows(where: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, a folder or a data set, one after another.

    Raises RecipeError where there is no such thing, it is of another type, or the library that reads it is not
    installed; RecordError where it cannot be read.
    """
    if isinstance(where, str) and where.startswith(HUB):
        return _from_arrow(where, lambda: _of_the_hub(where))
    if isinstance(where, str) and where.startswith(procedural.GYM):
        return procedural.rows(where)
    path, _, split = str(where).partition("#") if not Path(where).exists() else (str(where), "", "")
    if _is_saved(Path(path)):
        return _from_arrow(path, lambda: _saved(Path(path), split))
    return _of_files(Path(where))


def is_local(where: str) -> bool:
    """Whether a source is a file or folder here, whose content can change under the same name."""
    return not where.startswith((HUB, procedural.GYM))


def require_file(path: Path) -> None:
    """Raise RecipeError unless `path` is a file."""
    if not path.is_file():
        found = "this is a folder, a file was expected" if path.is_dir() else "there is no such file"
        raise RecipeError(f"{path}: {found}. Check the path; a relative one starts where the command is run.")


def files_of(where: str) -> tuple[Path, ...]:
    """The files that a local source is read from; none for what is not local, and the path itself where nothing is."""
    if not is_local(where):
        return ()
    path = Path(where) if Path(where).exists() else Path(where.partition("#")[0])
    return tuple(_below(path)) if path.is_dir() else (path,)


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _of_files(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        parts = [part for part in sorted(path.iterdir()) if part.is_file() and _reader(part)]
        if not parts:
            raise RecipeError(f"{path}: there is no file in this folder to read. Expected {', '.join(_READERS)}.")
        for part in parts:
            yield from _of_files(part)
        return
    read = _reader(path)
    if read is None:
        found = f"the extension {path.suffix}" if path.suffix else "no extension"
        raise RecipeError(f"{path}: {found} does not say how to read it. Expected one of {', '.join(_READERS)}.")
    require_file(path)
    yield from read(path)


def _reader(path: Path) -> Callable[[Path], Iterator[dict[str, Any]]] | None:
    return next((read for ending, read in _READERS.items() if path.name.endswith(ending)), None)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    packed = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with io.BufferedReader(pa.input_stream(path, compression=packed)) as lines:
        number = 0
        while line := _next_line(path, lines, number + 1):
            number += 1
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


def _next_line(path: Path, lines: io.BufferedReader, number: int) -> bytes:
    try:
        return lines.readline()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path}:{number}: cannot be unpacked ({error}). Copy or download the file again.") from None


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
            for batch in file.iter_batches(batch_size=BATCH):
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


_READERS = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".jsonl.zst": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _datasets(where: str) -> Any:
    """The `datasets` library, which is slow to load and not always there."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise RecipeError(
            f"{where}: reading it takes the datasets library, which is not here. Install the extra with "
            "pip install '.[hub]'."
        ) from None


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in _SAVED)


def _saved(path: Path, split: str) -> Any:
    """A data set that `save_to_disk` wrote; of one with splits the one asked for, else train, else the only one."""
    found = _datasets(str(path)).load_from_disk(str(path))
    if not (path / "dataset_dict.json").is_file():
        return found
    names = list(found)
    wanted = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if wanted not in names:
        raise RecipeError(f"{path}: which split? Write {path}#{names[0]}; it has {', '.join(names)}.")
    return found[wanted]


def _of_the_hub(where: str) -> Any:
    """A data set of the hub, downloaded once into the library's cache. Code that a data set brings is never run."""
    address, library = Address.of(where), _datasets(where)
    try:
        return library.load_dataset(
            address.name, address.config or None, split=address.split, revision=address.revision or None
        )
    except Exception as error:  # the library and the network below it raise dozens of kinds
        first = next(iter(str(error).splitlines()), "")[:200]
        raise RecipeError(
            f"{where}: could not be loaded ({type(error).__name__}: {first}). "
            "Check name, configuration, revision and split, and the network."
        ) from None


def _from_arrow(where: str, load: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    data = load()
    try:
        for batch in _batches(data):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{where}: not readable as a data set ({error}). Copy or download it again.") from None


def _batches(data: Any) -> Iterator[pa.Table]:
    """As Arrow tables, in which an image stays the bytes it is."""
    yield from data.with_format("arrow").iter(batch_size=BATCH)
